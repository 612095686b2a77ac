//! A run's folder: made as late as possible, so that a run that cannot start leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::run::{RunError, RunLock, RunStore};

use super::TrainError;

/// The folder of a run that is being prepared.
pub(super) struct RunFolder {
    path: PathBuf,
    /// Held from the beginning if the folder is there already.
    lock: Option<RunLock>,
}

/// A folder that this process alone writes.
pub(super) struct Taken {
    pub(super) lock: RunLock,
    pub(super) store: RunStore,
    pub(super) made: Made,
}

/// The folders that were made for a run, the innermost last. They go again with this unless it is [`kept`](Self::keep).
#[derive(Debug)]
pub(super) struct Made {
    folders: Vec<PathBuf>,
    kept: bool,
}

impl RunFolder {
    /// Finds out now what would fail after all downloads: that another process has the folder, or that there is no writing in
    /// its place.
    pub(super) fn find(path: &Path) -> Result<Self, TrainError> {
        if path.is_dir() {
            return Ok(Self { path: path.to_owned(), lock: Some(acquire(path)?) });
        }
        let there = path.ancestors().skip(1).find(|folder| folder.is_dir() || folder.as_os_str().is_empty());
        let there = there.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // It only has to be tried where the first new folder will be.
        let probe = there.join(format!(".{}.probe", std::process::id()));
        let tried = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe));
        tried.map_err(RunError::io("write into", there))?;
        Ok(Self { path: path.to_owned(), lock: None })
    }

    /// The folder's checkpoints, to be read.
    pub(super) fn store(&self) -> RunStore {
        RunStore::read(self.path.join("checkpoints"))
    }

    /// Makes what is missing and takes the folder.
    pub(super) fn take(self) -> Result<Taken, TrainError> {
        let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let mut made: Vec<PathBuf> = self.path.ancestors().take_while(missing).map(Path::to_owned).collect();
        made.reverse();
        let mut made = Made { folders: made, kept: false };
        let lock = match self.lock {
            Some(lock) => lock,
            None => acquire(&self.path).inspect_err(|error| {
                // Another process has made it at the same time.
                made.kept = matches!(error, TrainError::Run(RunError::Locked { .. }));
            })?,
        };
        let store = RunStore::open(self.path.join("checkpoints"))?;
        Ok(Taken { lock, store, made })
    }
}

impl Made {
    /// From now on a panic or an early return leaves them.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Removes what was made, with all in it.
    pub(super) fn remove(mut self) {
        self.kept = false;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Some(folder) = self.folders.pop() else { return };
        let _ = fs::remove_dir_all(folder);
        // Of the folders around it those that nobody else uses.
        while let Some(around) = self.folders.pop() {
            let _ = fs::remove_dir(around);
        }
    }
}

fn acquire(path: &Path) -> Result<RunLock, TrainError> {
    let lock = RunLock::acquire(path)?;
    if !lock.is_enforced() {
        note!("{} knows no locks: let no other process train there", path.display());
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
        let Taken { lock, made, .. } = folder.take().unwrap();
        assert!(run.join("checkpoints").is_dir());
        fs::write(run.join("config.toml"), "").unwrap();
        fs::write(place.path().join("runs/note"), "").unwrap();
        drop((lock, made));
        assert!(!run.exists() && place.path().join("runs/note").exists());

        fs::create_dir(&run).unwrap();
        drop(RunFolder::find(&run).unwrap().take().unwrap());
        assert!(run.is_dir());

        let other = place.path().join("kept");
        let mut taken = RunFolder::find(&other).unwrap().take().unwrap();
        taken.made.keep();
        drop(taken);
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
