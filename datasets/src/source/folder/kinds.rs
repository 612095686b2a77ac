//! The kinds of files in a folder, told apart by their extensions.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use crate::text::shortened;

/// The file name extensions that count as an image, in any case.
pub const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp"];

/// Extensions of images that cannot be read.
const UNREADABLE: [&str; 27] = [
    "arw", "avif", "cr2", "cr3", "dng", "exr", "hdr", "heic", "heif", "hif", "j2k", "jfif", "jp2", "jpe", "jxl", "nef",
    "orf", "pbm", "pgm", "ppm", "psd", "qoi", "raf", "rw2", "svg", "tga", "xcf",
];

/// How many kinds a message lists.
const LISTED: usize = 5;

/// How many files of each kind there are beside the images, by extension.
#[derive(Debug, Default)]
pub struct OtherFiles(BTreeMap<String, usize>);

impl OtherFiles {
    pub fn add(&mut self, file: &Path) {
        *self.0.entry(extension(file)).or_default() += 1;
    }

    pub fn count(&self) -> usize {
        self.0.values().sum()
    }

    /// Those that are images of kinds that cannot be read.
    pub fn unreadable_images(&self) -> Self {
        let unreadable = self.0.iter().filter(|(kind, _)| UNREADABLE.contains(&&***kind));
        Self(unreadable.map(|(kind, count)| (kind.clone(), *count)).collect())
    }

    /// `1200 heic, 3 json`, the most frequent kinds first; empty without files.
    pub fn in_words(&self) -> String {
        let mut kinds: Vec<(&String, &usize)> = self.0.iter().collect();
        kinds.sort_by_key(|(_, count)| Reverse(**count));
        let name = |kind: &str| if kind.is_empty() { "without extension".to_owned() } else { shortened(kind, 12) };
        let listed = kinds.iter().take(LISTED);
        let mut words: Vec<String> = listed.map(|(kind, count)| format!("{count} {}", name(kind))).collect();
        let rest: usize = kinds.iter().skip(LISTED).map(|(_, count)| **count).sum();
        if rest > 0 {
            words.push(format!("{rest} others"));
        }
        words.join(", ")
    }
}

/// Whether a file's extension is that of an image that can be read: jpg, jpeg, png, webp, gif, tif, tiff or bmp, in any case.
pub fn is_image(path: &Path) -> bool {
    EXTENSIONS.contains(&&*extension(path))
}

pub fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// In lower case; empty for a file without an extension.
fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}
