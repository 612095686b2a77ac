//! Small pretrained models that are part of the program, so that a first run needs no download. Their files lie
//! beside this crate's sources, with a model card for each.

use std::io;

use tempfile::TempDir;

/// A model that is part of the program.
#[derive(Debug)]
pub struct Shipped {
    /// Its name in a configuration.
    pub name: &'static str,
    /// Its files, by name.
    files: &'static [(&'static str, &'static [u8])],
}

macro_rules! files {
    ($folder:literal: $($file:literal),+) => {
        &[$(($file, include_bytes!(concat!("../", $folder, "/", $file)))),+]
    };
}

/// A VQGAN for `model.pretrained`.
pub static VQGAN_SHAPES: Shipped =
    Shipped { name: "vqgan-shapes", files: files!("vqgan-shapes": "architecture.json", "model.safetensors") };

/// A CLIP for `clip.pretrained`.
pub static CLIP_SHAPES: Shipped = Shipped {
    name: "clip-shapes",
    files: files!("clip-shapes": "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"),
};

impl Shipped {
    /// Writes the files into a temporary folder, which is removed when it is dropped.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn unpack(&self) -> io::Result<TempDir> {
        let folder = tempfile::Builder::new().prefix(self.name).tempdir()?;
        for (name, bytes) in self.files {
            std::fs::write(folder.path().join(name), bytes)?;
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn together_they_have_at_most_8_megabytes() {
        let files = VQGAN_SHAPES.files.iter().chain(CLIP_SHAPES.files);
        let bytes: usize = files.map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 8_000_000, "{bytes}");
    }

    #[test]
    fn a_folder_has_the_files_and_goes_away() {
        let folder = CLIP_SHAPES.unpack().unwrap();
        let path = folder.path().to_owned();
        for (name, bytes) in CLIP_SHAPES.files {
            assert_eq!(std::fs::read(path.join(name)).unwrap(), *bytes);
        }
        drop(folder);
        assert!(!path.exists());
    }
}
