//! Says what a file is that holds no weights.

use std::fs::File;
use std::io::{Read, Seek};

use super::pickle::{Pickle, PickleError};

/// Describes a file that is neither torch nor safetensors by its first bytes.
pub(super) fn describe(beginning: &[u8], file: &mut File) -> &'static str {
    let printable = |byte: &u8| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r');
    let is_text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(_) => bytes.iter().all(printable),
        // These bytes may end within a character.
        Err(error) => error.error_len().is_none() && bytes.iter().all(printable),
    };
    let lower = beginning.to_ascii_lowercase();
    let trimmed = lower.trim_ascii_start();
    if beginning.is_empty() {
        "it is empty"
    } else if beginning.starts_with(b"version https://git-lfs") {
        "it is a git-lfs pointer; fetch the file itself with `git lfs pull`"
    } else if trimmed.starts_with(b"<!doctype html") || trimmed.starts_with(b"<html") {
        "it is a web page, most likely an error page saved instead of the download"
    } else if beginning.get(257..262) == Some(b"ustar") {
        "it is a tar archive; if torch 0.1 made it, re-save it with a newer torch"
    } else if beginning.starts_with(b"\x89HDF\r\n") {
        "it is an HDF5 file (Keras); only torch and safetensors files are read"
    } else if beginning.starts_with(b"\x1f\x8b") {
        "it is compressed with gzip; unpack it first"
    } else if is_text(beginning) {
        "it is a text file"
    } else if is_pickle(file) {
        "it is a pickle, not made by torch.save"
    } else {
        "it is neither a torch file nor a safetensors file, or its beginning is damaged"
    }
}

fn is_pickle(file: &mut File) -> bool {
    // The first megabyte decides; a longer pickle is cut off there.
    let read = |file: &mut File| {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let Ok(bytes) = read(file) else {
        return false;
    };
    bytes.first() == Some(&0x80) && matches!(Pickle::read(&mut bytes.as_slice()), Ok(_) | Err(PickleError::Truncated))
}
