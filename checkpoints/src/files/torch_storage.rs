//! The storages of a file of PyTorch: what its pickle says of them, and where those of a legacy file lie.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use safetensors::Dtype;

use super::pickle::{Id, Pickle, PickleError, Value};

/// Why a torch file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// The archive is damaged.
    #[error("the archive is damaged: {0}")]
    Zip(#[from] zip::result::ZipError),
    /// The pickle is damaged.
    #[error("the pickle inside is damaged: {0}")]
    Pickle(#[from] PickleError),
    /// The disk failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A form that is recognised and not read.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Parts of the file that contradict each other.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// A storage as the pickle names it.
pub(super) struct Storage {
    pub(super) key: String,
    /// None for untyped storages and for element types without a counterpart.
    pub(super) dtype: Option<Dtype>,
    pub(super) bytes: usize,
    /// In elements: views have a storage of their own in old files.
    pub(super) view_offset: usize,
}

impl Storage {
    /// None when `id` is no storage, or has elements of a kind that is not read.
    pub(super) fn of(pickle: &Pickle, id: Id) -> Result<Option<Storage>, TorchError> {
        let damaged = || TorchError::Damaged("a storage without its key or size".to_owned());
        let Value::Persistent(id) = pickle.get(id) else {
            return Ok(None);
        };
        let Some(&[kind, class, key, _location, count, ref rest @ ..]) = pickle.sequence(*id) else {
            return Ok(None);
        };
        if pickle.text(kind) != Some("storage") {
            return Ok(None);
        }
        let Some((_, class)) = pickle.class(class) else {
            return Ok(None);
        };
        let (dtype, element_bytes) = match class.strip_suffix("Storage") {
            Some("Untyped") => (None, 1),
            Some(element) => match dtype_named(&element.to_lowercase()) {
                Some(dtype) => (Some(dtype), dtype.bitsize() / 8),
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let key = storage_key(pickle, key).ok_or_else(damaged)?;
        let count = pickle.unsigned(count).ok_or_else(damaged)?;
        let bytes = count.checked_mul(element_bytes).ok_or_else(damaged)?;
        let view_offset = match rest.first().and_then(|&view| pickle.sequence(view)) {
            Some(&[_key, offset, _size]) => pickle.unsigned(offset).ok_or_else(damaged)?,
            _ => 0,
        };
        Ok(Some(Storage { key, dtype, bytes, view_offset }))
    }
}

/// Storage keys are texts, and numbers in the oldest files.
fn storage_key(pickle: &Pickle, id: Id) -> Option<String> {
    match pickle.get(id) {
        Value::Text(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn dtype_named(name: &str) -> Option<Dtype> {
    Some(match name {
        "double" | "float64" => Dtype::F64,
        "float" | "float32" => Dtype::F32,
        "half" | "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "long" | "int64" => Dtype::I64,
        "int" | "int32" => Dtype::I32,
        "short" | "int16" => Dtype::I16,
        "char" | "int8" => Dtype::I8,
        "byte" | "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "bool" => Dtype::BOOL,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        _ => return None,
    })
}

/// Where every storage of a legacy file lies. Each is its number of elements (8 bytes) and then the elements; how
/// large those are is known from the pickle alone.
pub(super) fn legacy_storages(
    pickle: &Pickle,
    keys: &Pickle,
    input: &mut BufReader<File>,
    length: u64,
) -> Result<HashMap<String, (u64, u64)>, TorchError> {
    let mut widths = HashMap::new();
    for value in pickle.values() {
        let Value::Persistent(id) = value else {
            continue;
        };
        let Some(&[_, class, key, ..]) = pickle.sequence(*id) else {
            continue;
        };
        if let (Some((_, class)), Some(key)) = (pickle.class(class), storage_key(pickle, key)) {
            // The first mention counts: torch writes the storage with that element size.
            widths.entry(key).or_insert_with(|| element_bytes(class));
        }
    }
    let cut_off = || TorchError::Damaged("it ends before its last storage".to_owned());
    let keys = keys
        .sequence(keys.root())
        .ok_or_else(cut_off)?
        .iter()
        .map(|&id| storage_key(keys, id).ok_or_else(cut_off))
        .collect::<Result<Vec<_>, _>>()?;
    let mut storages = HashMap::new();
    for key in keys {
        let Some(width) = widths.get(&key).copied().flatten() else {
            return Err(TorchError::Damaged(format!(
                "storage {key} has an element type that is not known, so what follows cannot be found"
            )));
        };
        let mut count = [0; 8];
        input.read_exact(&mut count).map_err(|_| cut_off())?;
        let first = input.stream_position()?;
        let bytes = u64::from_le_bytes(count).checked_mul(width);
        let bytes = bytes.ok_or_else(cut_off)?;
        let end = first.checked_add(bytes).filter(|&end| end <= length);
        let end = end.ok_or_else(cut_off)?;
        input.seek(SeekFrom::Start(end))?;
        storages.insert(key, (first, bytes));
    }
    Ok(storages)
}

/// Bytes per element of a storage class, also for classes that are only skipped.
fn element_bytes(class: &str) -> Option<u64> {
    let element = class.strip_suffix("Storage")?;
    Some(match element {
        "Untyped" | "QInt8" | "QUInt8" | "QUInt4x2" | "QUInt2x4" => 1,
        "QInt32" => 4,
        "ComplexFloat" => 8,
        "ComplexDouble" => 16,
        other => dtype_named(&other.to_lowercase())?.bitsize() as u64 / 8,
    })
}
