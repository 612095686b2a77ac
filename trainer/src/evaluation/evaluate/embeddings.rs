//! Embeddings of many images in a file, so that memory does not grow with their number and a stopped evaluation goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Rows of `width` values in single precision, one for each image.
#[derive(Debug)]
pub struct EmbeddingFile {
    file: File,
    width: usize,
    rows: usize,
}

impl EmbeddingFile {
    /// Opens the file, or creates it, and keeps its first `rows` rows.
    ///
    /// # Errors
    /// What the system says, also if the file has fewer rows.
    pub fn open(path: &Path, width: usize, rows: usize) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let bytes = bytes(width, rows);
        if file.metadata()?.len() < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.set_len(bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, width, rows })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends `[n, width]`.
    ///
    /// # Errors
    /// What the device or the system says.
    pub fn append(&mut self, rows: Tensor<2>) -> io::Result<()> {
        let count = rows.dims()[0];
        let values = rows.try_into_vec_as::<f32>().map_err(|error| io::Error::other(error.to_string()))?;
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.file.write_all(&bytes)?;
        self.rows += count;
        Ok(())
    }

    /// Waits until all rows are on the disk.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Reads `count` rows from `first` on, fewer at the end: `[n, width]` in single precision.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&mut self, first: usize, count: usize, device: &Device) -> io::Result<Tensor<2>> {
        let count = count.min(self.rows - first);
        let mut bytes = vec![0; bytes(self.width, count) as usize];
        self.file.seek(SeekFrom::Start(self::bytes(self.width, first)))?;
        self.file.read_exact(&mut bytes)?;
        self.file.seek(SeekFrom::End(0))?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(Tensor::from_data(TensorData::new(values, [count, self.width]), (device, DType::F32)))
    }
}

fn bytes(width: usize, rows: usize) -> u64 {
    (width * rows * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_after_the_last_save_is_dropped() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("originals.f32");
        let rows = |values: [[f32; 2]; 2]| Tensor::<2>::from_data(values, &device);
        let mut file = EmbeddingFile::open(&path, 2, 0).unwrap();
        file.append(rows([[1.0, 2.0], [3.0, 4.0]])).unwrap();
        file.append(rows([[5.0, 6.0], [7.0, 8.0]])).unwrap();
        let mut file = EmbeddingFile::open(&path, 2, 3).unwrap();
        file.append(rows([[9.0, 10.0], [11.0, 12.0]])).unwrap();
        assert_eq!(file.rows(), 5);
        let tail = file.read(2, 9, &device).unwrap();
        assert_eq!(tail.dims(), [3, 2]);
        assert_eq!(tail.try_into_vec_as::<f32>().unwrap(), [5.0, 6.0, 9.0, 10.0, 11.0, 12.0]);
        assert!(EmbeddingFile::open(&path, 2, 6).is_err());
    }
}
