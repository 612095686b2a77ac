//! Which names lead to one file.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Tells by what the system calls a file, whatever its name.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// Numbers that several entries of a listing have.
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
    /// For files with the numbers that listing gave them, of which 0 says nothing. Only those that have one in common with
    /// another can be the same file, and only those are looked up: for a million of files on a network that would take long.
    pub fn of(files: &[(PathBuf, u64)]) -> Self {
        let (mut seen, mut shared) = (HashSet::new(), HashSet::from([0]));
        shared.extend(files.iter().map(|(_, number)| *number).filter(|number| !seen.insert(*number)));
        Self { shared, known: HashMap::new() }
    }

    /// The index that the file was first seen at: `index` for a new one. A link that leads nowhere is always new.
    pub fn first(&mut self, file: &Path, number: u64, index: usize) -> usize {
        match self.shared.contains(&number).then(|| identity(file)).flatten() {
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
