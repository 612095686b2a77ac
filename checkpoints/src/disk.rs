//! Writes files that are whole or absent, and hashes them.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes per write: few enough to stay in the processor's cache while they are hashed, enough to skip further buffers.
const PIECE: usize = 1 << 18;

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// Writes `temporary`, syncs it and renames it to `path`: a crash leaves the old file or the new one, never a part.
pub(crate) fn replace<T, E: From<io::Error>>(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let finish = || {
        let mut file = File::create(temporary)?;
        let written = write(&mut file)?;
        file.sync_all()?;
        drop(file);
        fs::rename(temporary, path)?;
        Ok(written)
    };
    finish().inspect_err(|_| {
        // On a full disk the half-written file has to go. If that fails too, the first error is the one to report.
        let _ = fs::remove_file(temporary);
    })
}

/// [`replace`] for a large file. Its temporary name is always the same, so the next write replaces what a crash left.
pub(crate) fn write_whole<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<T, E>,
) -> Result<T, E> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    replace(path, partial.as_ref(), |file| {
        let mut output = BufWriter::with_capacity(PIECE, file);
        let written = write(&mut output)?;
        output.flush()?;
        Ok(written)
    })
}

/// Hashes the bytes that pass through it to `output`.
pub(crate) struct Hashing<W> {
    output: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    pub fn new(output: W) -> Hashing<W> {
        Hashing { output, hash: Sha256::new(), size: 0 }
    }

    /// The record of all bytes so far.
    pub fn record(self) -> FileRecord {
        let hash = self.hash.finalize();
        FileRecord { size: self.size, sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(&bytes[..bytes.len().min(PIECE)])?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// SHA-256 of a file in lower-case hexadecimal, read in pieces: weights need not fit in memory.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut BufReader::with_capacity(1 << 20, File::open(path)?), &mut hashing)?;
    Ok(hashing.record().sha256)
}
