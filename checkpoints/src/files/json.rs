//! Reads JSON files of a limited size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value as Json;

use super::WeightsError;

/// Most bytes of a configuration; real ones have a few thousand.
const MAX_CONFIG: u64 = 1 << 20;

/// Reads a configuration of diffusers or transformers.
pub(crate) fn read_config(path: &Path) -> Result<Json, WeightsError> {
    read_json(path, MAX_CONFIG)
}

/// Reads a JSON file of at most so many bytes.
pub(super) fn read_json(path: &Path, most: u64) -> Result<Json, WeightsError> {
    let failed = |source| WeightsError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        let what = format!("it exceeds {} MiB, which no such file does", most >> 20);
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, what)));
    }
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}
