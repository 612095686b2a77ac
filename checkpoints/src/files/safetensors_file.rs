//! The safetensors format, read tensor by tensor and written in one go.
//!
//! The format's own crate checks the header; the bytes are read by seeking, because a memory map needs `unsafe`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use safetensors::tensor::{Metadata, TensorInfo};

use crate::disk::{FileRecord, Hashing, write_whole};
use crate::tensor::HostTensor;

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Why a safetensors file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The disk failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The header is no JSON, or its offsets do not fit its shapes.
    #[error("the safetensors header is damaged: {0}")]
    Header(String),
    /// The file is shorter than its header says; an interrupted download, as a rule.
    #[error("the file has {found} bytes, but its header says {expected}: it is cut off or damaged")]
    Length {
        /// Bytes according to the header.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
}

/// An open safetensors file.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    file: Mutex<File>,
    /// Where the data begin.
    start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Whether the file begins like one: a header length that fits, then a JSON object.
pub(crate) fn is_safetensors(beginning: &[u8]) -> bool {
    let Some((length, rest)) = beginning.split_first_chunk() else {
        return false;
    };
    let length = u64::from_le_bytes(*length);
    (2..=MAX_HEADER).contains(&length) && rest.first() == Some(&b'{')
}

impl SafetensorsFile {
    /// Reads the header.
    pub fn open(mut file: File) -> Result<SafetensorsFile, SafetensorsError> {
        let found = file.metadata()?.len();
        file.rewind()?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            let what = format!("{length} bytes exceed what the format allows");
            return Err(SafetensorsError::Header(what));
        }
        let start = length + 8;
        if start > found {
            let expected = start;
            return Err(SafetensorsError::Length { expected, found });
        }
        let mut header = Vec::new();
        (&mut file).take(length).read_to_end(&mut header)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| SafetensorsError::Header(error.to_string()))?;
        // The crate checks that the tensors fill one range without gaps; that it is the file's is checked here.
        let expected = start.saturating_add(metadata.data_len() as u64);
        if expected != found {
            return Err(SafetensorsError::Length { expected, found });
        }
        let tensors = metadata.tensors().into_iter();
        let tensors = tensors.map(|(name, info)| (name, info.clone())).collect();
        Ok(SafetensorsFile { file: Mutex::new(file), start, tensors })
    }

    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    pub fn read(&self, info: &TensorInfo) -> Result<HostTensor, SafetensorsError> {
        let (from, to) = info.data_offsets;
        // Within the file, as `open` made sure, so the length can be believed.
        let mut bytes = vec![0; to - from];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.start + from as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(HostTensor { dtype: info.dtype, shape: info.shape.clone(), bytes })
    }
}

/// Writes a safetensors file; `metadata` goes into its header (Python libraries want `format` = `pt` there). Returns
/// what it is to be recognised by, of the bytes before they went to the disk.
///
/// The file appears under its name only when it is whole.
///
/// # Errors
/// When the file cannot be written, or a tensor's bytes do not fit its shape.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, HostTensor>,
    metadata: Option<&BTreeMap<String, String>>,
) -> Result<FileRecord, SafetensorsError> {
    let mut order: Vec<_> = tensors.iter().collect();
    // The widest elements first keeps every tensor aligned.
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.bitsize()));
    let mut offset = 0;
    let mut infos = Vec::with_capacity(order.len());
    for (name, tensor) in &order {
        let end = offset + tensor.bytes.len();
        let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (offset, end) };
        infos.push(((*name).clone(), info));
        offset = end;
    }
    let invalid = |error: &dyn std::error::Error| SafetensorsError::Header(error.to_string());
    let metadata = metadata.map(|metadata| metadata.clone().into_iter().collect::<HashMap<_, _>>());
    let header = Metadata::new(metadata, infos).map_err(|error| invalid(&error))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| invalid(&error))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    write_whole(path, |output| {
        let mut output = Hashing::new(output);
        output.write_all(&(header.len() as u64).to_le_bytes())?;
        output.write_all(&header)?;
        for (_, tensor) in &order {
            output.write_all(&tensor.bytes)?;
        }
        Ok(output.record())
    })
}
