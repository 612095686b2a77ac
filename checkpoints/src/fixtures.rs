//! Files that tests of several formats read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

/// Names and shapes.
pub(crate) type Shapes = BTreeMap<String, Vec<usize>>;

/// A file of this crate's own.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fixtures").join(name)
}

/// Names and shapes of a published architecture, as its own code has them.
pub(crate) fn published(name: &str) -> Shapes {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    let line = |line: &str| {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape = shape.split_whitespace().map(|size| size.parse().unwrap());
        (name.to_owned(), shape.collect())
    };
    text.lines().map(line).collect()
}

/// Writes a safetensors file with these tensors: a header, and data that take no space on the disk.
pub(crate) fn place(folder: &Path, name: &str, shapes: &Shapes) -> PathBuf {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in shapes {
        let end = offset + 2 * shape.iter().product::<usize>();
        let info = json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]});
        header.insert(name.clone(), info);
        offset = end;
    }
    let header = serde_json::Value::from(header).to_string();
    let path = folder.join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + offset) as u64).unwrap();
    path
}
