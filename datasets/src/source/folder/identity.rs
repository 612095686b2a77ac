//! Finds out which names lead to the same file.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files seen so far, by what the system calls them.
#[derive(Debug, Default)]
pub struct Identities {
    /// Inodes that several entries of the listing have.
    shared: HashSet<u64>,
    known: HashMap<Identity, usize>,
}

/// Device and inode.
#[cfg(unix)]
type Identity = (u64, u64);
/// The path without links.
#[cfg(not(unix))]
type Identity = PathBuf;

impl Identities {
    /// For all `files` of a listing, with their inodes; 0 is an unknown one. Only files with a shared or unknown inode
    /// can be the same, so only these are looked up: a million look-ups on a network disk would take long.
    pub fn of(files: &[(PathBuf, u64)]) -> Self {
        let (mut seen, mut shared) = (HashSet::new(), HashSet::from([0]));
        shared.extend(files.iter().map(|(_, inode)| *inode).filter(|inode| !seen.insert(*inode)));
        Self { shared, known: HashMap::new() }
    }

    /// The index at which the file was first seen: `index` if it is new. A link to nothing is always new.
    pub fn first_index(&mut self, file: &Path, inode: u64, index: usize) -> usize {
        match self.shared.contains(&inode).then(|| identity(file)).flatten() {
            Some(identity) => *self.known.entry(identity).or_insert(index),
            None => index,
        }
    }
}

#[cfg(unix)]
fn identity(file: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;

    let metadata = fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(file: &Path) -> Option<Identity> {
    fs::canonicalize(file).ok()
}
