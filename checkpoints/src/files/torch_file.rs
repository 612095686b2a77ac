//! Files of `torch.save`, both the zip archives of today and the legacy form of torch before 1.6, and the attributes
//! of TorchScript programs, whose code is never run.
//!
//! Opening reads the pickle alone. A tensor is read when it is asked for, so optimizer states cost nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use zip::read::ZipReadOptions;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, Value};
pub use super::torch_storage::TorchError;
use super::torch_storage::{Storage, dtype_named, legacy_storages};
use crate::tensor::{HostTensor, elements};

/// The integer that opens a legacy file, as the pickle writes it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Most bytes read from one compressed storage, since a compressed size says nothing about the real one.
const MAX_INFLATED: usize = 1 << 32;
/// Most bytes a tensor may have beyond those stored for it (an expanded tensor stores less than it shows).
const MAX_EXPANDED: usize = 1 << 28;

/// Where a tensor's elements lie.
#[derive(Debug, Clone)]
pub(crate) struct TensorRef {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    /// In elements, from the storage's beginning.
    offset: usize,
    storage: String,
    storage_bytes: usize,
}

/// An open file of `torch.save`.
#[derive(Debug)]
pub(crate) struct TorchFile {
    pub pickle: Pickle,
    /// A TorchScript program: its pickle is a module, with its parameters and inner modules as attributes.
    pub is_script: bool,
    container: Mutex<Container>,
}

#[derive(Debug)]
enum Container {
    Zip {
        archive: Box<ZipArchive<File>>,
        folder: String,
        big_endian: bool,
    },
    Legacy {
        file: File,
        /// First byte and length of every storage.
        storages: HashMap<String, (u64, u64)>,
    },
}

/// Whether the file begins with the pickle of torch's magic number.
pub(crate) fn is_legacy(file: &mut File) -> std::io::Result<bool> {
    file.rewind()?;
    // Whatever is no pickle fails within a few bytes; the limit is for what happens to look like one.
    let first = Pickle::read(&mut BufReader::new(file.take(64)));
    Ok(first.is_ok_and(|pickle| is_magic(&pickle)))
}

fn is_magic(pickle: &Pickle) -> bool {
    matches!(pickle.get(pickle.root()), Value::BigInt(bytes) if bytes[..] == MAGIC)
}

impl TorchFile {
    /// Opens a zip archive.
    pub fn open_zip(file: File) -> Result<TorchFile, TorchError> {
        let mut archive = ZipArchive::new(file)?;
        let names = archive.file_names().filter_map(Result::ok);
        let folder = names
            .filter_map(|name| Some(name.strip_suffix("data.pkl")?.to_owned()))
            .filter(|folder| folder.ends_with('/'))
            .min_by_key(String::len)
            .ok_or(TorchError::Unsupported("it is a zip archive without data.pkl, not a file of torch.save"))?;
        let is_script = archive.index_for_name(&format!("{folder}constants.pkl")).is_some();
        let big_endian = match archive.index_for_name(&format!("{folder}byteorder")) {
            Some(index) => {
                let mut order = Vec::new();
                let entry = archive.by_index_with_options(index, reading())?;
                entry.take(16).read_to_end(&mut order)?;
                order == b"big"
            }
            None => false,
        };
        let index = archive
            .index_for_name(&format!("{folder}data.pkl"))
            .ok_or(TorchError::Unsupported("its data.pkl has another name"))?;
        let entry = archive.by_index_with_options(index, reading())?;
        let pickle = Pickle::read(&mut BufReader::new(entry))?;
        let archive = Box::new(archive);
        let container = Container::Zip { archive, folder, big_endian };
        Ok(TorchFile { pickle, is_script, container: Mutex::new(container) })
    }

    /// Opens a legacy file: five pickles, then the storages one after the other.
    pub fn open_legacy(mut file: File) -> Result<TorchFile, TorchError> {
        file.rewind()?;
        let length = file.metadata()?.len();
        let mut input = BufReader::new(file);
        let magic = Pickle::read(&mut input)?;
        if !is_magic(&magic) {
            return Err(TorchError::Damaged("the magic number is wrong".to_owned()));
        }
        let version = Pickle::read(&mut input)?;
        if version.unsigned(version.root()) != Some(1001) {
            return Err(TorchError::Unsupported("its legacy protocol is not 1001, the only one torch ever used"));
        }
        let _system = Pickle::read(&mut input)?;
        let pickle = Pickle::read(&mut input)?;
        let keys = Pickle::read(&mut input)?;
        let storages = legacy_storages(&pickle, &keys, &mut input, length)?;
        let file = input.into_inner();
        let container = Mutex::new(Container::Legacy { file, storages });
        Ok(TorchFile { pickle, is_script: false, container })
    }

    /// The tensor that `id` stands for; None when it is anything else, or a kind that holds no plain elements
    /// (sparse, quantized).
    pub fn tensor(&self, mut id: Id) -> Result<Option<TensorRef>, TorchError> {
        let pickle = &self.pickle;
        // A parameter wraps a tensor; nothing real wraps more than twice.
        for _ in 0..4 {
            let Some((module, name, args)) = pickle.call(id) else {
                return Ok(None);
            };
            let args = match (module, name, args) {
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", args) => {
                    let Some(&inner) = args.first() else {
                        return Ok(None);
                    };
                    id = inner;
                    continue;
                }
                // A tensor with attributes: (function, type, arguments, state).
                ("torch._tensor", "_rebuild_from_type_v2", &[function, _, args, ..]) => {
                    let Some(("torch._utils", "_rebuild_tensor_v2")) = pickle.class(function) else {
                        return Ok(None);
                    };
                    pickle.sequence(args).unwrap_or_default()
                }
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", args) => args,
                _ => return Ok(None),
            };
            let is_v3 = name == "_rebuild_tensor_v3";
            return self.rebuild(args, is_v3);
        }
        Ok(None)
    }

    fn rebuild(&self, args: &[Id], is_v3: bool) -> Result<Option<TensorRef>, TorchError> {
        let pickle = &self.pickle;
        let damaged = |what: &str| TorchError::Damaged(format!("a tensor without {what}"));
        let &[storage, offset, size, stride, ..] = args else {
            return Err(damaged("its four arguments"));
        };
        let sizes = |id| -> Option<Vec<usize>> {
            let ids = pickle.sequence(id)?.iter();
            ids.map(|&id| pickle.unsigned(id)).collect()
        };
        let shape = sizes(size).ok_or_else(|| damaged("a shape"))?;
        let strides = sizes(stride).ok_or_else(|| damaged("strides"))?;
        let offset = pickle.unsigned(offset).ok_or_else(|| damaged("an offset"))?;
        if shape.len() != strides.len() {
            return Err(damaged("a stride for every dimension"));
        }
        let Some(storage) = Storage::of(pickle, storage)? else {
            return Ok(None);
        };
        let (dtype, metadata) = if is_v3 {
            let class = args.get(6).and_then(|&id| pickle.class(id));
            (class.and_then(|(_, name)| dtype_named(name)), args.get(7))
        } else {
            (storage.dtype, args.get(6))
        };
        let Some(dtype) = dtype else {
            return Ok(None);
        };
        // A conjugated or negated view: the stored numbers are not the tensor's.
        if metadata.is_some_and(|&id| pickle.entries(id).is_some_and(|flags| !flags.is_empty())) {
            return Ok(None);
        }
        let offset = offset.checked_add(storage.view_offset).ok_or_else(|| damaged("an offset that fits"))?;
        Ok(Some(TensorRef { dtype, shape, strides, offset, storage: storage.key, storage_bytes: storage.bytes }))
    }

    /// Reads a tensor's elements.
    pub fn read(&self, tensor: &TensorRef) -> Result<HostTensor, TorchError> {
        let outside = || {
            let key = &tensor.storage;
            TorchError::Damaged(format!("a tensor reaches beyond its storage {key}"))
        };
        let size = tensor.dtype.bitsize() / 8;
        let count = elements(&tensor.shape).ok_or_else(outside)?;
        let total = count.checked_mul(size).ok_or_else(outside)?;
        let host = |bytes| HostTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes };
        if count == 0 {
            return Ok(host(Vec::new()));
        }
        let mut steps = tensor.shape.iter().zip(&tensor.strides);
        let reach =
            steps.try_fold(0usize, |sum, (&length, &stride)| sum.checked_add((length - 1).checked_mul(stride)?));
        let span = reach.and_then(|reach| reach.checked_add(1)?.checked_mul(size)).ok_or_else(outside)?;
        let start = tensor.offset.checked_mul(size).ok_or_else(outside)?;
        let end = start.checked_add(span).ok_or_else(outside)?;
        if end > tensor.storage_bytes {
            return Err(outside());
        }
        if total > span && total - span > MAX_EXPANDED {
            return Err(TorchError::Unsupported("a tensor in it is expanded far beyond the elements that it stores"));
        }
        let mut container = self.container.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = container.read(&tensor.storage, start, span)?;
        drop(container);
        if self.is_big_endian() {
            for element in bytes.chunks_exact_mut(size) {
                element.reverse();
            }
        }
        if is_contiguous(&tensor.shape, &tensor.strides) {
            return Ok(host(bytes));
        }
        Ok(host(gather(&bytes, &tensor.shape, &tensor.strides, size, total)))
    }

    fn is_big_endian(&self) -> bool {
        let container = self.container.lock().unwrap_or_else(PoisonError::into_inner);
        // Legacy files are little-endian on every machine.
        matches!(*container, Container::Zip { big_endian: true, .. })
    }
}

/// Checksums are not checked: torch does not check them either, and has an option to save without them.
fn reading() -> ZipReadOptions<'static> {
    ZipReadOptions::new().ignore_crc32(true)
}

impl Container {
    /// Bytes `start..start + length` of a storage.
    fn read(&mut self, key: &str, start: usize, length: usize) -> Result<Vec<u8>, TorchError> {
        let missing = || TorchError::Damaged(format!("storage {key} is missing or cut off"));
        let end = start.checked_add(length).ok_or_else(missing)?;
        match self {
            Container::Legacy { file, storages } => {
                let &(first, stored) = storages.get(key).ok_or_else(missing)?;
                if end as u64 > stored {
                    return Err(missing());
                }
                file.seek(SeekFrom::Start(first + start as u64))?;
                exactly(file, length)?.ok_or_else(missing)
            }
            Container::Zip { archive, folder, .. } => {
                let name = format!("{folder}data/{key}");
                let index = archive.index_for_name(&name).ok_or_else(missing)?;
                let entry = archive.by_index_data(index)?;
                if end as u64 > entry.size() {
                    return Err(missing());
                }
                if entry.compression() == CompressionMethod::Stored {
                    let mut entry = archive.by_index_seek(index)?;
                    entry.seek(SeekFrom::Start(start as u64))?;
                    return exactly(&mut entry, length)?.ok_or_else(missing);
                }
                if end > MAX_INFLATED {
                    return Err(TorchError::Unsupported("a tensor in it is compressed and larger than 4 GiB"));
                }
                let mut entry = archive.by_index_with_options(index, reading())?;
                std::io::copy(&mut (&mut entry).take(start as u64), &mut std::io::sink())?;
                exactly(&mut entry, length)?.ok_or_else(missing)
            }
        }
    }
}

/// Exactly `length` bytes, or None when there are fewer. Memory is taken as the bytes arrive.
fn exactly(input: &mut impl Read, length: usize) -> std::io::Result<Option<Vec<u8>>> {
    // A real tensor is read in one piece; a length that is too large ends with the file.
    let mut bytes = Vec::with_capacity(length.min(1 << 28));
    input.take(length as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == length).then_some(bytes))
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    for (&length, &stride) in shape.iter().zip(strides).rev() {
        if length != 1 {
            if stride != expected {
                return false;
            }
            expected = expected.saturating_mul(length);
        }
    }
    true
}

/// Copies a strided tensor into row-major order.
fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize, total: usize) -> Vec<u8> {
    // The stride of a dimension with one element is never used and may be anything.
    let steps = shape.iter().zip(strides);
    let steps: Vec<usize> = steps.map(|(&length, &stride)| if length == 1 { 0 } else { stride }).collect();
    let mut gathered = Vec::with_capacity(total);
    let mut index = vec![0usize; shape.len()];
    let mut position = 0usize;
    loop {
        gathered.extend_from_slice(&bytes[position * size..(position + 1) * size]);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return gathered;
            }
            axis -= 1;
            index[axis] += 1;
            position += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            position -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}
