//! A run's folder. It is created as late as possible, so that a run that cannot start leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::run::{RunError, RunLock, RunStore};

use super::TrainError;

/// The folder of a run that is being prepared.
pub(super) struct RunFolder {
    path: PathBuf,
    /// Held from the start if the folder exists already.
    lock: Option<RunLock>,
}

/// A run's folder that only this process writes.
pub(super) struct ClaimedFolder {
    pub(super) lock: RunLock,
    pub(super) store: RunStore,
    pub(super) created: CreatedFolders,
}

/// The folders that were created for a run, the innermost last. Removes them when dropped, unless [`keep`](Self::keep)
/// was called.
#[derive(Debug)]
pub(super) struct CreatedFolders {
    folders: Vec<PathBuf>,
    kept: bool,
}

impl RunFolder {
    /// Checks before all downloads that no other process uses the folder and that it can be written.
    pub(super) fn find(path: &Path) -> Result<Self, TrainError> {
        if path.is_dir() {
            return Ok(Self { path: path.to_owned(), lock: Some(acquire(path)?) });
        }
        let there = path.ancestors().skip(1).find(|folder| folder.is_dir() || folder.as_os_str().is_empty());
        let there = there.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Only the place of the first new folder has to be tested.
        let probe = there.join(format!(".{}.probe", std::process::id()));
        let tried = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe));
        tried.map_err(RunError::io("write into", there))?;
        Ok(Self { path: path.to_owned(), lock: None })
    }

    /// Opens the folder's checkpoints for reading.
    pub(super) fn store(&self) -> RunStore {
        RunStore::read(self.path.join("checkpoints"))
    }

    /// Creates missing folders and locks the run's folder for this process.
    pub(super) fn claim(self) -> Result<ClaimedFolder, TrainError> {
        let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let mut created: Vec<PathBuf> = self.path.ancestors().take_while(missing).map(Path::to_owned).collect();
        created.reverse();
        let mut created = CreatedFolders { folders: created, kept: false };
        let lock = match self.lock {
            Some(lock) => lock,
            None => acquire(&self.path).inspect_err(|error| {
                // Another process created it at the same time.
                created.kept = matches!(error, TrainError::Run(RunError::Locked { .. }));
            })?,
        };
        let store = RunStore::open(self.path.join("checkpoints"))?;
        Ok(ClaimedFolder { lock, store, created })
    }
}

impl CreatedFolders {
    /// Keeps the folders, also after a panic or an early return.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Removes the innermost folder with everything in it, and then the folders around it that are empty.
    pub(super) fn remove(mut self) {
        self.kept = false;
    }
}

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Some(folder) = self.folders.pop() else { return };
        let _ = fs::remove_dir_all(folder);
        // Fails for a folder that is not empty: somebody else uses it.
        while let Some(around) = self.folders.pop() {
            let _ = fs::remove_dir(around);
        }
    }
}

fn acquire(path: &Path) -> Result<RunLock, TrainError> {
    let lock = RunLock::acquire(path)?;
    if !lock.is_enforced() {
        note!("{} cannot be locked on its file system: make sure that no other process trains there", path.display());
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_goes_and_what_was_there_stays() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("runs/a");
        let folder = RunFolder::find(&run).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let ClaimedFolder { lock, created, .. } = folder.claim().unwrap();
        assert!(run.join("checkpoints").is_dir());
        fs::write(run.join("config.toml"), "").unwrap();
        fs::write(place.path().join("runs/note"), "").unwrap();
        drop((lock, created));
        assert!(!run.exists() && place.path().join("runs/note").exists());

        fs::create_dir(&run).unwrap();
        drop(RunFolder::find(&run).unwrap().claim().unwrap());
        assert!(run.is_dir());

        let other = place.path().join("kept");
        let mut claimed = RunFolder::find(&other).unwrap().claim().unwrap();
        claimed.created.keep();
        drop(claimed);
        assert!(other.is_dir());
    }

    #[test]
    fn a_folder_in_use_is_found_out_at_once() {
        let place = tempfile::tempdir().unwrap();
        let _other = RunLock::acquire(place.path()).unwrap();
        let error = RunFolder::find(place.path()).err().unwrap().to_string();
        assert!(error.contains(&format!("is in use by process {}", std::process::id())), "{error}");
    }
}
