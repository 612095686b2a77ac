//! The Hub's cache as other tools lay it out: `models--owner--name/{refs,snapshots,blobs}`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::atomic_write;

/// What the cache has of one repository.
pub(super) struct RepoCache {
    folder: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, owner: &str, name: &str) -> RepoCache {
        RepoCache { folder: cache.join(format!("models--{owner}--{name}")) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder with the files of a revision, if there is one.
    pub(super) fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => fs::read_to_string(self.folder.join("refs").join(revision)).ok()?,
        };
        let snapshot = self.folder.join("snapshots").join(commit.trim());
        (is_commit(commit.trim()) && snapshot.is_dir()).then_some(snapshot)
    }

    /// Records the commit of a branch or tag, for later use without a network.
    pub(super) fn remember(&self, revision: &str, commit: &str) {
        let path = self.folder.join("refs").join(revision);
        if is_commit(revision) || fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return;
        }
        // In a cache that is read-only the record is left out; the files are there.
        if let Some(folder) = path.parent() {
            let _ = fs::create_dir_all(folder).map(|()| atomic_write(&path, commit.as_bytes()));
        }
    }
}

/// Whether a revision is a whole commit hash, which no branch can be.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}
