//! Writes files that `torch.load` reads.

use std::collections::BTreeMap;
use std::io::{Seek, Write};

use safetensors::Dtype;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::TorchError;
use crate::tensor::HostTensor;

/// Writes `{key: tensors, "args": args}` as `torch.save` would, for programs that read nothing else.
pub(crate) fn write_torch(
    output: impl Write + Seek,
    key: &str,
    tensors: &BTreeMap<String, HostTensor>,
    args: Option<&serde_json::Map<String, serde_json::Value>>,
) -> Result<(), TorchError> {
    let mut pickle = Pickling(b"\x80\x02}(".to_vec());
    if let Some(args) = args {
        // A plain dict, because torch refuses to load a Namespace unless told to trust the file.
        pickle.text("args");
        pickle.0.extend(b"}(");
        for (name, value) in args {
            pickle.text(name);
            pickle.plain(value);
        }
        pickle.0.push(b'u');
    }
    pickle.text(key);
    pickle.0.extend(b"ccollections\nOrderedDict\n)R(");
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let storage = storage_class(tensor.dtype)
            .ok_or(TorchError::Unsupported("one of the tensors has an element type without a torch storage"))?;
        pickle.text(name);
        pickle.0.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.text("storage");
        pickle.0.extend(format!("ctorch\n{storage}Storage\n").bytes());
        pickle.text(&index.to_string());
        pickle.text("cpu");
        pickle.int(tensor.len());
        pickle.0.extend(b"tQ");
        pickle.int(0);
        pickle.ints(tensor.shape.iter().copied());
        let mut strides = vec![1; tensor.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * tensor.shape[axis].max(1);
        }
        pickle.ints(strides);
        pickle.0.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.0.extend(b"uu.");

    let mut archive = ZipWriter::new(output);
    // torch maps archives into memory only where the data are aligned to 64 bytes.
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let mut entry = |name: &str, bytes: &[u8]| -> Result<(), TorchError> {
        let large = bytes.len() > u32::MAX as usize;
        archive.start_file(format!("archive/{name}"), stored.large_file(large))?;
        Ok(archive.write_all(bytes)?)
    };
    entry("data.pkl", &pickle.0)?;
    entry("byteorder", b"little")?;
    for (index, (_, tensor)) in tensors.iter().enumerate() {
        entry(&format!("data/{index}"), &tensor.bytes)?;
    }
    entry("version", b"3\n")?;
    archive.finish()?;
    Ok(())
}

fn storage_class(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "Double",
        Dtype::F32 => "Float",
        Dtype::F16 => "Half",
        Dtype::BF16 => "BFloat16",
        Dtype::I64 => "Long",
        Dtype::I32 => "Int",
        Dtype::I16 => "Short",
        Dtype::I8 => "Char",
        Dtype::U8 => "Byte",
        Dtype::BOOL => "Bool",
        _ => return None,
    })
}

/// A pickle of protocol 2 that is being written.
struct Pickling(Vec<u8>);

impl Pickling {
    /// Writes a number, a bool or a text; None for any other value.
    fn plain(&mut self, value: &serde_json::Value) {
        use serde_json::Value as Json;
        match value {
            Json::Bool(true) => self.0.push(0x88),
            Json::Bool(false) => self.0.push(0x89),
            Json::String(text) => self.text(text),
            Json::Number(number) => match (number.as_u64(), number.as_f64()) {
                (Some(value), _) => self.int(value as usize),
                (None, value) => {
                    self.0.push(b'G');
                    self.0.extend(value.unwrap_or(f64::NAN).to_be_bytes());
                }
            },
            _ => self.0.push(b'N'),
        }
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.bytes());
    }

    fn int(&mut self, value: usize) {
        // Nine bytes, so that the sign bit of the eighth is not taken for a minus.
        self.0.extend([0x8a, 9]);
        self.0.extend((value as u64).to_le_bytes());
        self.0.push(0);
    }

    fn ints(&mut self, values: impl IntoIterator<Item = usize>) {
        self.0.push(b'(');
        for value in values {
            self.int(value);
        }
        self.0.push(b't');
    }
}
