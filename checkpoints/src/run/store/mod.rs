//! The folder of a run's checkpoints.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::atomic::{is_temporary, replace, sync_folder, temporary_beside};
use super::{FORMAT, FileRecord, FileRecords, MANIFEST, Manifest, RunError, check_sizes, sha256_of, verify};

/// Names the newest checkpoint, for people and scripts; [`RunStore::newest`] goes by what is whole.
const LATEST: &str = "latest";
/// Names the checkpoint that [`RunStore::prune`] keeps.
const BEST: &str = "best";
/// The suffix of a whole checkpoint that is about to take the place of an older one of the same step.
const REPLACEMENT: &str = ".new";
/// In the name of a checkpoint that a run which went back to an earlier one left behind it.
const ASIDE: &str = ".aside-";

/// The folder that holds a run's `step-000100/` folders.
#[derive(Debug)]
pub struct RunStore {
    pub(super) folder: PathBuf,
    /// The step that this process saved last, which need not be read back to be trusted.
    saved: AtomicU64,
    hook: Hook,
}

const NONE_SAVED: u64 = u64::MAX;

/// Called after everything that is written, renamed or removed, by what that was.
struct Hook(Box<dyn Fn(&'static str) + Send + Sync>);

impl Default for Hook {
    fn default() -> Hook {
        Hook(Box::new(|_| {}))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str("Hook")
    }
}

/// A checkpoint that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// The optimizer step after which it was written.
    pub step: u64,
    /// Its files.
    pub manifest: Manifest,
}

/// What [`RunStore::newest`] found.
#[derive(Debug)]
pub struct Newest {
    /// The newest one that is whole, if there is any.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are not, and why.
    pub passed_over: Vec<(PathBuf, RunError)>,
}

/// Why a checkpoint was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError<E: Error + 'static> {
    /// What the caller's own writing returned.
    #[error("cannot save checkpoint {}: {source}", .path.display())]
    Write {
        /// The checkpoint that was not saved.
        path: PathBuf,
        /// What the caller returned.
        source: E,
    },
    /// Everything around it.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl RunStore {
    /// Opens the folder of a run's checkpoints to save into, creating it if need be.
    ///
    /// It writes a file and removes it, so that a disk that cannot be written to is found out now and not after the
    /// first hundred steps.
    pub fn open(folder: impl Into<PathBuf>) -> Result<RunStore, RunError> {
        let store = RunStore::read(folder);
        fs::create_dir_all(&store.folder).map_err(RunError::io("create", &store.folder))?;
        let probe = temporary_beside(&store.folder.join("probe"));
        let written = fs::write(&probe, b"probe");
        // A full disk leaves an empty file behind, so it is removed either way.
        let removed = fs::remove_file(&probe);
        written.and(removed).map_err(RunError::io("write into", &store.folder))?;
        Ok(store)
    }

    /// The same folder to read from: it need not exist, and may be read-only.
    pub fn read(folder: impl Into<PathBuf>) -> RunStore {
        RunStore { folder: folder.into(), saved: AtomicU64::new(NONE_SAVED), hook: Hook::default() }
    }

    /// The same folder, with `after` called whenever something in it was written, renamed or removed, and told what it
    /// was. Tests simulate a crash there.
    #[must_use]
    pub fn with_hook(self, after: impl Fn(&'static str) + Send + Sync + 'static) -> RunStore {
        RunStore { hook: Hook(Box::new(after)), ..self }
    }

    /// Saves a checkpoint: `write` fills the folder that it is given, the rest is done here. The files that `write`
    /// returns are not read again to be hashed.
    ///
    /// Whatever happens in between, [`RunStore::newest`] finds this checkpoint or the one before it. An older
    /// checkpoint of the same step is replaced.
    pub fn save<E: Error + 'static>(
        &self,
        step: u64,
        write: &mut dyn FnMut(&Path) -> Result<FileRecords, E>,
    ) -> Result<PathBuf, SaveError<E>> {
        self.clean_up()?;
        let path = self.path_of(step);
        let temporary = temporary_beside(&path);
        let written = self.write(&temporary, step, write).and_then(|()| Ok(self.publish(&temporary, &path)?));
        if written.is_err() {
            // On a full disk the half-written checkpoint has to be removed first.
            let _ = fs::remove_dir_all(&temporary);
        }
        written?;
        self.saved.store(step, Ordering::Relaxed);
        Ok(path)
    }

    fn write<E: Error + 'static>(
        &self,
        temporary: &Path,
        step: u64,
        write: &mut dyn FnMut(&Path) -> Result<FileRecords, E>,
    ) -> Result<(), SaveError<E>> {
        fs::create_dir(temporary).map_err(RunError::io("create", temporary))?;
        self.point("folder made");
        let known = write(temporary).map_err(|source| SaveError::Write { path: self.path_of(step), source })?;
        self.point("files written");
        let mut manifest = Manifest { format: FORMAT, step, files: FileRecords::new() };
        self.seal(temporary, "", &known, &mut manifest.files)?;
        let path = temporary.join(MANIFEST);
        let text =
            serde_json::to_vec_pretty(&manifest).map_err(io::Error::from).map_err(RunError::io("write", &path))?;
        self.replace(&path, &text, "manifest begun")?;
        self.point("manifest written");
        Ok(())
    }

    /// [`atomic_write`](super::atomic_write), with a point between the writing and the renaming.
    fn replace(&self, path: &Path, bytes: &[u8], begun: &'static str) -> Result<(), RunError> {
        let write = |file: &mut File| file.write_all(bytes).map(|()| self.point(begun));
        replace(path, write).map_err(RunError::io("write", path))
    }

    /// Syncs and records every file below `folder`, as `known` where it is. `inside` is the folder's path in the
    /// checkpoint, empty or ending in a slash.
    fn seal(&self, folder: &Path, inside: &str, known: &FileRecords, files: &mut FileRecords) -> Result<(), RunError> {
        for entry in fs::read_dir(folder).map_err(RunError::io("read", folder))? {
            let entry = entry.map_err(RunError::io("read", folder))?;
            let path = entry.path();
            let not_a_file = |reason| RunError::NotAFile { path: path.clone(), reason };
            let Ok(name) = entry.file_name().into_string() else {
                return Err(not_a_file("its name is not UTF-8"));
            };
            let kind = entry.file_type().map_err(RunError::io("read", &path))?;
            if kind.is_dir() {
                self.seal(&path, &format!("{inside}{name}/"), known, files)?;
            } else if !kind.is_file() {
                return Err(not_a_file("it is neither a file nor a folder"));
            } else if inside.is_empty() && name == MANIFEST {
                return Err(not_a_file("the name is that of the list of files"));
            } else {
                let size = sync_file(&path).map_err(RunError::io("write", &path))?;
                let name = format!("{inside}{name}");
                let sha256 = match known.get(&name) {
                    Some(record) if record.size == size => record.sha256.clone(),
                    Some(FileRecord { size: expected, .. }) => {
                        return Err(RunError::WrongSize { path, expected: *expected, found: size });
                    }
                    None => sha256_of(&path).map_err(RunError::io("read", &path))?,
                };
                files.insert(name, FileRecord { size, sha256 });
            }
            self.point("entry sealed");
        }
        sync_folder(folder).map_err(RunError::io("write", folder))
    }

    /// Gives a whole checkpoint its name, and then names it in `latest`.
    fn publish(&self, temporary: &Path, path: &Path) -> Result<(), RunError> {
        if path.exists() {
            // A folder cannot be renamed over a full one. So the new one gets a name that `newest` knows first; only
            // then does the old one lose its own.
            let replacement = replacement_of(path);
            self.rename(temporary, &replacement)?;
            self.finish_replacement(&replacement, path)?;
        } else {
            self.rename(temporary, path)?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.replace(&self.folder.join(LATEST), format!("{name}\n").as_bytes(), "latest begun")?;
        self.point("latest written");
        Ok(())
    }

    fn finish_replacement(&self, replacement: &Path, path: &Path) -> Result<(), RunError> {
        if path.exists() {
            self.remove(path, || self.rename(replacement, path))
        } else {
            self.rename(replacement, path)
        }
    }

    /// Hides a checkpoint by one rename, does `then`, and deletes it: a half-deleted folder never looks like a damaged
    /// checkpoint.
    fn remove(&self, path: &Path, then: impl FnOnce() -> Result<(), RunError>) -> Result<(), RunError> {
        let hidden = temporary_beside(path);
        self.rename(path, &hidden)?;
        then()?;
        fs::remove_dir_all(&hidden).map_err(RunError::io("remove", &hidden))?;
        self.point("removed");
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), RunError> {
        fs::rename(from, to).and_then(|()| sync_folder(&self.folder)).map_err(RunError::io("write", to))?;
        self.point("renamed");
        Ok(())
    }

    /// The newest checkpoint that is whole, and the newer ones that are not. Changes nothing.
    pub fn newest(&self) -> Result<Newest, RunError> {
        self.newest_usable(|_| Ok::<(), RunError>(()))
    }

    /// [`RunStore::newest`], where `check` can also refuse a whole checkpoint by its folder.
    pub fn newest_usable<E: Error>(&self, check: impl Fn(&Path) -> Result<(), E>) -> Result<Newest, RunError> {
        let mut passed_over = Vec::new();
        for Named { path, step, .. } in self.named()?.into_iter().rev() {
            let usable = |manifest| match check(&path) {
                Ok(()) => Ok(manifest),
                Err(error) => Err(RunError::Unusable { path: path.clone(), reason: error.to_string() }),
            };
            match verify_step(&path, step, verify).and_then(usable) {
                Ok(manifest) => {
                    return Ok(Newest { checkpoint: Some(Checkpoint { path, step, manifest }), passed_over });
                }
                Err(error) => passed_over.push((path, error)),
            }
        }
        Ok(Newest { checkpoint: None, passed_over })
    }

    /// The checkpoint at `path`, wherever that is, if it is whole.
    pub fn verified(path: &Path) -> Result<Checkpoint, RunError> {
        let manifest = verify(path)?;
        Ok(Checkpoint { path: path.to_path_buf(), step: manifest.step, manifest })
    }

    /// Renames the checkpoints of later steps than `step`, for a run that resumes from there. Returns the new names.
    pub fn set_aside(&self, step: u64) -> Result<Vec<PathBuf>, RunError> {
        let later: Vec<Named> = self.named()?.into_iter().filter(|at| at.step > step).collect();
        let mut aside = Vec::new();
        // The newest first: at any time what is left is a run that ends earlier.
        for at in later.iter().rev() {
            let name = at.path.file_name().unwrap_or_default().to_string_lossy();
            let free = (1..).map(|count| self.folder.join(format!("{name}{ASIDE}{count}"))).find(|path| !path.exists());
            if let Some(free) = free {
                self.rename(&at.path, &free)?;
                aside.push(free);
            }
        }
        if !aside.is_empty() {
            self.replace(&self.folder.join(LATEST), format!("{}\n", name_of(step)).as_bytes(), "latest begun")?;
        }
        Ok(aside)
    }

    /// The steps that have a checkpoint, whole or not, in rising order.
    pub fn steps(&self) -> Result<Vec<u64>, RunError> {
        let steps: BTreeSet<u64> = self.named()?.into_iter().map(|named| named.step).collect();
        Ok(steps.into_iter().collect())
    }

    /// Records the checkpoint of `step` as the best so far; [`RunStore::prune`] keeps it.
    pub fn set_best(&self, step: u64) -> Result<(), RunError> {
        self.replace(&self.folder.join(BEST), format!("{}\n", name_of(step)).as_bytes(), "best begun")?;
        self.point("best written");
        Ok(())
    }

    /// The folder that [`RunStore::set_best`] named, if it is still there.
    pub fn best(&self) -> Option<PathBuf> {
        let path = self.path_of(self.best_step()?);
        path.exists().then_some(path)
    }

    fn best_step(&self) -> Option<u64> {
        step_of(fs::read_to_string(self.folder.join(BEST)).ok()?.trim())
    }

    /// Deletes old checkpoints; returns those that it deleted.
    ///
    /// The newest `keep_last` stay, every one whose step is a multiple of `keep_every`, and the best. If none of these
    /// is whole, the newest whole one stays too: there is always one to resume from.
    pub fn prune(&self, keep_last: usize, keep_every: Option<u64>) -> Result<Vec<PathBuf>, RunError> {
        let steps = self.steps()?;
        let newest = &steps[steps.len().saturating_sub(keep_last)..];
        let best = self.best_step();
        let every = |step: u64| keep_every.is_some_and(|every| every > 0 && step.is_multiple_of(every));
        let stays = |at: &Named| newest.contains(&at.step) || every(at.step) || best == Some(at.step);
        let (kept, mut doomed): (Vec<Named>, Vec<Named>) = self.named()?.into_iter().partition(stays);
        if doomed.is_empty() {
            return Ok(Vec::new());
        }
        let saved = self.saved.load(Ordering::Relaxed);
        let whole = |at: &Named| match at.step == saved {
            true => verify_step(&at.path, at.step, check_sizes).is_ok(),
            false => verify_step(&at.path, at.step, verify).is_ok(),
        };
        if !kept.iter().rev().any(whole)
            && let Some(spared) = doomed.iter().rposition(whole)
        {
            doomed.remove(spared);
        }
        for at in &doomed {
            self.remove(&at.path, || Ok(()))?;
        }
        Ok(doomed.into_iter().map(|at| at.path).collect())
    }

    /// Removes what a crash left, and finishes a replacement that it interrupted.
    fn clean_up(&self) -> Result<(), RunError> {
        for name in self.names()?.iter().filter(|name| is_temporary(name)) {
            let path = self.folder.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(RunError::io("remove", &path))?;
            self.point("left-over removed");
        }
        for at in self.named()?.into_iter().filter(|at| at.replacement) {
            if verify_step(&at.path, at.step, verify).is_ok() {
                self.finish_replacement(&at.path, &self.path_of(at.step))?;
            } else {
                self.remove(&at.path, || Ok(()))?;
            }
        }
        Ok(())
    }

    /// Every folder with the name of a checkpoint, by rising step; a replacement comes after what it replaces.
    fn named(&self) -> Result<Vec<Named>, RunError> {
        let mut named: Vec<Named> = self
            .names()?
            .into_iter()
            .filter_map(|name| {
                let (plain, replacement) = match name.strip_suffix(REPLACEMENT) {
                    Some(plain) => (plain, true),
                    None => (name.as_str(), false),
                };
                let step = step_of(plain)?;
                let path = self.folder.join(&name);
                path.is_dir().then_some(Named { step, replacement, path })
            })
            .collect();
        named.sort();
        Ok(named)
    }

    fn names(&self) -> Result<Vec<String>, RunError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RunError::io("read", &self.folder)(error)),
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
        let names: io::Result<Vec<Option<String>>> = entries.map(name).collect();
        Ok(names.map_err(RunError::io("read", &self.folder))?.into_iter().flatten().collect())
    }

    fn path_of(&self, step: u64) -> PathBuf {
        self.folder.join(name_of(step))
    }

    /// A point at which a test may simulate a crash.
    fn point(&self, after: &'static str) {
        (self.hook.0)(after);
    }
}

/// Ordered by step, then by which replaces which.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    step: u64,
    replacement: bool,
    path: PathBuf,
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}

fn replacement_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(REPLACEMENT);
    name.into()
}

fn verify_step(
    path: &Path,
    step: u64,
    verify: impl Fn(&Path) -> Result<Manifest, RunError>,
) -> Result<Manifest, RunError> {
    let manifest = verify(path)?;
    match manifest.step == step {
        true => Ok(manifest),
        false => Err(RunError::WrongStep { path: path.to_path_buf(), found: manifest.step }),
    }
}

/// Windows flushes only files that are open for writing.
fn sync_file(path: &Path) -> io::Result<u64> {
    let file = File::options().read(true).write(true).open(path)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests;
