//! A run on the disk: checkpoints that are whole or absent, one writer at a time, and a log without gaps.
//!
//! A checkpoint is written under a hidden temporary name, synced, described by a manifest of sizes and SHA-256 hashes,
//! and only then renamed. So a folder called `step-000100` was complete when it got its name, and [`verify`] tells
//! whether it still is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use crate::disk::FileRecord;
use crate::disk::sha256_of;

mod atomic;
mod background;
mod lock;
mod metrics;
mod store;

pub use atomic::atomic_write;
pub use background::{BackgroundWriter, Keep, Saved};
pub use lock::RunLock;
pub use metrics::MetricsLog;
pub use store::{Checkpoint, Newest, RunStore, SaveError};

/// The file in every checkpoint that lists the others.
pub const MANIFEST: &str = "manifest.json";

/// The layout of a checkpoint that this version writes and reads.
pub const FORMAT: u32 = 1;

/// What went wrong with a run's folder, in one line.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}{}", .path.display(), advice(.source))]
    Io {
        /// The verb: "write", "read", "create".
        action: &'static str,
        /// The file or folder that was being worked on.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The folder has no manifest, so it was never finished or is not a checkpoint.
    #[error("{} is not a finished checkpoint: it has no {MANIFEST}", .path.display())]
    NoManifest {
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// The manifest is there but is not what this program writes.
    #[error("{} is damaged: {reason}", .path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a newer version.
    #[error("{} has checkpoint format {found}, this version reads format {FORMAT}: use the version that wrote it", .path.display())]
    UnknownFormat {
        /// The manifest.
        path: PathBuf,
        /// The format that it names.
        found: u64,
    },
    /// The folder was renamed, or its manifest belongs to another one.
    #[error("{} contains step {found}, not the step in its name", .path.display())]
    WrongStep {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The step in the manifest.
        found: u64,
    },
    /// A file of the manifest is gone.
    #[error("{} is missing from its checkpoint", .path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file of the manifest was cut short or added to.
    #[error("{} has {found} bytes, its checkpoint was written with {expected}", .path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A file of the manifest has other contents.
    #[error("{} was changed after its checkpoint was written: its SHA-256 is {found}, not {expected}", .path.display())]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// SHA-256 in the manifest.
        expected: String,
        /// SHA-256 on disk.
        found: String,
    },
    /// All files are as they were written, and still are no checkpoint of a run.
    #[error("{} is complete, but cannot be resumed: {reason}", .path.display())]
    Unusable {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The checkpoint's writer made something else than files and folders.
    #[error("{} cannot be part of a checkpoint: {reason}", .path.display())]
    NotAFile {
        /// The entry.
        path: PathBuf,
        /// Why it cannot.
        reason: &'static str,
    },
    /// Another process writes this run.
    #[error("{} is in use by {holder}: wait for it, stop it, or give this run another name", .path.display())]
    Locked {
        /// The run's folder.
        path: PathBuf,
        /// Process and host, as far as they are known.
        holder: String,
    },
}

impl RunError {
    /// For `map_err`: names the path and what was done to it ("read", "write") in an error of the file system.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
        let path = path.to_path_buf();
        move |source| RunError::Io { action, path, source }
    }
}

/// What a user can do about an error of the file system, to be appended to its message.
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or keep fewer checkpoints ([checkpoints] keep_last)"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; choose a folder that can be written to"
        }
        _ => "",
    }
}

/// Files of a checkpoint by their path inside it, with `/` between folders.
pub type FileRecords = BTreeMap<String, FileRecord>;

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The layout, see [`FORMAT`].
    pub format: u32,
    /// The optimizer step after which it was written.
    pub step: u64,
    /// Every file but the manifest.
    pub files: FileRecords,
}

/// Checks a checkpoint against its manifest: every file there, of the right size, with the right hash.
pub fn verify(checkpoint: &Path) -> Result<Manifest, RunError> {
    let manifest = check_sizes(checkpoint)?;
    for (name, record) in &manifest.files {
        let path = checkpoint.join(name);
        let found = sha256_of(&path).map_err(RunError::io("read", &path))?;
        if found != record.sha256 {
            let expected = record.sha256.clone();
            return Err(RunError::WrongHash { path, expected, found });
        }
    }
    Ok(manifest)
}

/// [`verify`] without reading the files: enough for a checkpoint that this process wrote itself.
fn check_sizes(checkpoint: &Path) -> Result<Manifest, RunError> {
    let manifest = read_manifest(checkpoint)?;
    for (name, record) in &manifest.files {
        let path = checkpoint.join(name);
        let found = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err(RunError::MissingFile { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RunError::MissingFile { path });
            }
            Err(error) => return Err(RunError::io("read", &path)(error)),
        };
        if found != record.size {
            return Err(RunError::WrongSize { path, expected: record.size, found });
        }
    }
    Ok(manifest)
}

fn read_manifest(checkpoint: &Path) -> Result<Manifest, RunError> {
    let path = checkpoint.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RunError::NoManifest { path: checkpoint.to_path_buf() });
        }
        Err(error) => return Err(RunError::io("read", &path)(error)),
    };
    // The format comes first: a newer layout must not be reported as a damaged one.
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    let bad = |reason: String| RunError::BadManifest { path: path.clone(), reason };
    let version: Version = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    if version.format != u64::from(FORMAT) {
        return Err(RunError::UnknownFormat { path, found: version.format });
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let inside = |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match manifest.files.keys().find(|name| name.is_empty() || !inside(name)) {
        Some(name) => Err(bad(format!("it names {name:?}, which is not inside the checkpoint"))),
        None => Ok(manifest),
    }
}
