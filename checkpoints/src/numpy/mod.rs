//! NumPy's archives of arrays (`.npz`): read and written, array by array.

mod header;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

pub use self::header::NpyHeader;
use crate::disk;

/// What is wrong with an archive, in one line.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The archive.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is no archive of arrays.
    #[error("{} is no .npz file: {reason}", .path.display())]
    NotNpz {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// An array is not there.
    #[error("{} has no array `{name}` (it has {found})", .path.display())]
    NoArray {
        /// The archive.
        path: PathBuf,
        /// The array.
        name: String,
        /// The arrays that there are.
        found: String,
    },
    /// An array is not as it is needed.
    #[error("{}: `{name}` {reason}", .path.display())]
    Array {
        /// The archive.
        path: PathBuf,
        /// The array.
        name: String,
        /// What was found, and what is needed.
        reason: String,
    },
}

/// An archive of arrays.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl Npz {
    /// Opens an archive; reads no array.
    ///
    /// # Errors
    /// It cannot be read, or is no archive.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let file = File::open(path).map_err(|source| NpzError::Io { path: path.to_owned(), source })?;
        let not_npz =
            |error: zip::result::ZipError| NpzError::NotNpz { path: path.to_owned(), reason: error.to_string() };
        Ok(Self { path: path.to_owned(), archive: ZipArchive::new(BufReader::new(file)).map_err(not_npz)? })
    }

    /// Whether there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.archive.index_for_name(&in_archive(name)).is_some()
    }

    /// Starts to read an array: its header, and a reader of its elements in their order in the file.
    ///
    /// # Errors
    /// There is no such array, or it is none.
    pub fn array(&mut self, name: &str) -> Result<(NpyHeader, impl Read + '_), NpzError> {
        if !self.has(name) {
            let files = self.archive.file_names().filter_map(Result::ok);
            let found: Vec<String> = files.map(|file| file.trim_end_matches(".npy").to_owned()).collect();
            let (name, found) = (name.to_owned(), found.join(", "));
            return Err(NpzError::NoArray { path: self.path.clone(), name, found });
        }
        let path = self.path.clone();
        let not_npz = |error: zip::result::ZipError| NpzError::NotNpz { path: path.clone(), reason: error.to_string() };
        let mut entry = self.archive.by_name(&in_archive(name)).map_err(not_npz)?;
        let header = NpyHeader::read(&mut entry);
        let header = header.map_err(|reason| NpzError::Array { path: path.clone(), name: name.to_owned(), reason })?;
        Ok((header, entry))
    }

    /// Reads a whole array of floats with `shape`.
    ///
    /// # Errors
    /// As for [`array`](Self::array), and if it has another type or shape, or ends too early.
    pub fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, NpzError> {
        let path = self.path.clone();
        let wrong = |reason: String| NpzError::Array { path: path.clone(), name: name.to_owned(), reason };
        let (header, mut reader) = self.array(name)?;
        if header.shape != shape {
            return Err(wrong(format!("has shape {:?}, and {shape:?} is needed", header.shape)));
        }
        // A symmetric matrix and a vector are the same in either order.
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let values: Vec<f64> = match header.descr.as_str() {
            "<f8" => bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
            "<f4" => bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
            other => return Err(wrong(format!("has elements of type {other}, and <f8 or <f4 is needed"))),
        };
        match values.len() == shape.iter().product::<usize>() {
            true => Ok(values),
            false => Err(wrong("is cut off".to_owned())),
        }
    }
}

/// Writes arrays of `float64` by name and shape, as `numpy.savez` does. Replaces `path` when all is written.
///
/// # Errors
/// The file system.
pub fn write_npz(path: &Path, arrays: &[(&str, &[usize], &[f64])]) -> Result<(), NpzError> {
    let write = |file: &mut BufWriter<&mut File>| -> io::Result<()> {
        let mut archive = ZipWriter::new(file);
        for (name, shape, values) in arrays {
            let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
            archive.start_file(in_archive(name), options)?;
            archive.write_all(&header::write("<f8", shape))?;
            for values in values.chunks(1 << 16) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                archive.write_all(&bytes)?;
            }
        }
        archive.finish()?;
        Ok(())
    };
    disk::write_whole(path, write).map_err(|source| NpzError::Io { path: path.to_owned(), source })
}

fn in_archive(name: &str) -> String {
    format!("{name}.npy")
}
