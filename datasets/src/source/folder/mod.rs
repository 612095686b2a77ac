//! A folder of images and all its subfolders, with captions if it has any.

mod captions;
mod identity;
mod kinds;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walkdir::{DirEntry, WalkDir};

use self::captions::{CaptionSearch, Captions};
use self::identity::Identities;
pub use self::kinds::is_image;
use self::kinds::{EXTENSIONS, OtherFiles, is_hidden};
use super::interface::{FromSettings, Source, SourceImage, SourceSettings};
use crate::budget::Budget;
use crate::decode::{Encoded, MAX_BYTES};
use crate::error::{DataError, ImageError, ImageProblem, SettingError};
use crate::files;

/// The memory budget of all images that are decoded at the same time, in bytes: enough for a dozen of 24 megapixels.
const DECODING: u64 = 1 << 30;

/// Whether to read captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CaptionFiles {
    /// Files with captions are found, and files of metadata are read at once.
    Read,
    /// No file with captions is opened, and no image has a caption.
    Ignore,
}

/// The images of a folder, sorted by path, so that an index means the same file on every machine.
///
/// Hidden files and folders are ignored. Links are followed, but never in circles. Several links to one file count as
/// one image, under the first of their names; otherwise an image could be in both training and validation. Only regular
/// files are read; a pipe or a device with the name of an image is a bad image.
///
/// The captions of an image are the lines of the text file beside it (`cat.txt` for `cat.jpg`), without empty lines. If
/// there is no such file, or it is empty, captions come from files of metadata:
///
/// ```text
/// metadata.jsonl          {"file_name": "cats/1.jpg", "text": "a cat"}     a line each, several for several captions
/// metadata.csv            file_name,text                                   a row each
/// captions.json           [{"file_name": "cats/1.jpg", "text": "a cat"}]   or {"cats/1.jpg": ["a cat", "a tired cat"]}
/// captions_*.json         {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
/// ```
///
/// `metadata.jsonl` and `metadata.csv` may be in any folder, and their file names are relative to it. `captions.json`
/// is read from the root only, COCO's `captions_*.json` from the root and from folders called `annotations`. COCO's
/// images may be in any folder, if only one image has that file name. The key of a caption is `text`, `caption` or
/// `captions`. A backslash separates folders as a slash does. All text is UTF-8, or UTF-16 with a byte-order mark.
#[derive(Debug)]
pub struct FolderSource {
    root: PathBuf,
    files: Vec<PathBuf>,
    /// Index of an image -> further names of its file.
    other_names: HashMap<usize, Vec<PathBuf>>,
    other_files: OtherFiles,
    /// `None` if captions are ignored.
    captions: Option<Captions>,
    budget: Arc<Budget>,
}

impl FolderSource {
    /// Lists the images of a folder. Does not read them.
    ///
    /// # Errors
    /// The path does not exist, is a file, cannot be listed, or has no images; a file of metadata is broken.
    fn open(path: impl AsRef<Path>, caption_files: CaptionFiles) -> Result<Self, DataError> {
        let root = path.as_ref().to_owned();
        match fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(DataError::NotAFolder { path: root }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::Missing { path: root });
            }
            Err(error) => {
                return Err(DataError::Unlistable { path: root, reason: error.to_string() });
            }
        }
        let mut found = Vec::new();
        let mut search = (caption_files == CaptionFiles::Read).then(CaptionSearch::default);
        let mut other_files = OtherFiles::default();
        let visible = WalkDir::new(&root)
            .follow_links(true)
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.path()));
        for entry in visible {
            let (file, entry) = match entry {
                Ok(entry) if entry.file_type().is_dir() => continue,
                Ok(entry) => (entry.path().to_owned(), Some(entry)),
                Err(error) if error.loop_ancestor().is_some() => continue,
                Err(error) => (broken_link(error, &root)?, None),
            };
            if is_image(&file) {
                found.push((file, entry.as_ref().map_or(0, inode)));
                continue;
            }
            if let Some(search) = &mut search {
                search.add(&root, &file);
            }
            other_files.add(&file);
        }
        if found.is_empty() {
            let kinds = Some(other_files.in_words()).filter(|kinds| !kinds.is_empty());
            return Err(DataError::NoImages {
                path: root,
                extensions: EXTENSIONS.join(", "),
                other_files: other_files.count(),
                kinds: kinds.map_or_else(String::new, |kinds| format!(": {kinds}")),
            });
        }
        found.sort();
        let mut identities = Identities::of(&found);
        let (mut files, mut other_names) = (Vec::<PathBuf>::new(), HashMap::<usize, Vec<PathBuf>>::new());
        for (file, inode) in found {
            match identities.first_index(&file, inode, files.len()) {
                index if index == files.len() => files.push(file),
                index => other_names.entry(index).or_default().push(file),
            }
        }
        let read = |search: CaptionSearch| {
            let others = other_names.iter().flat_map(|(index, names)| names.iter().map(|name| (&**name, *index)));
            let images = files.iter().enumerate().map(|(index, file)| (&**file, index)).chain(others).collect();
            search.read(&root, &images)
        };
        let captions = search.map(read).transpose()?;
        Ok(Self { root, files, other_names, other_files, captions, budget: Budget::new(DECODING) })
    }

    /// How many names lead to images that have another name already.
    fn count_other_names(&self) -> usize {
        self.other_names.values().map(Vec::len).sum()
    }

    /// All names of the file at `index`, first the one in `files`.
    fn names(&self, index: usize) -> impl Iterator<Item = &Path> {
        let others = self.other_names.get(&index).into_iter().flatten();
        std::iter::once(&self.files[index]).chain(others).map(PathBuf::as_path)
    }

    fn read(&self, index: usize) -> Result<SourceImage, ImageProblem> {
        let mut needed = 0;
        loop {
            let file = files::open(&self.files[index])?;
            // Before the file is read, its size is the best estimate. If decoding needs more than the budget has left,
            // the share is given back, and the loop waits for all that is needed: no thread holds a share while it
            // waits.
            let mut share = self.budget.take(needed.max(file.size.min(MAX_BYTES)));
            let bytes = file.read(MAX_BYTES)?;
            let encoded = Encoded::read_header(&bytes)?;
            needed = bytes.len() as u64 + encoded.peak_memory();
            if share.resize(needed) {
                return Ok(SourceImage::within(share, encoded.decode()?));
            }
        }
    }
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.files[index].display().to_string()
    }

    fn load(&self, index: usize) -> Result<SourceImage, ImageError> {
        self.read(index).map_err(|problem| problem.named(self.name(index)))
    }

    fn captions(&self, index: usize) -> Vec<String> {
        self.captions.as_ref().map_or_else(Vec::new, |captions| captions.of(index, self.names(index)))
    }

    fn why_no_captions(&self, index: usize) -> String {
        match &self.captions {
            Some(captions) => captions.why_none(&self.root, index, self.names(index)),
            None => "files with captions were not read".to_owned(),
        }
    }

    fn skipped(&self) -> usize {
        self.other_files.unreadable_images().count()
    }

    fn notes(&self) -> Vec<String> {
        let unreadable = self.other_files.unreadable_images();
        let (count, links) = (unreadable.count(), self.count_other_names());
        let unreadable = (count > 0).then(|| {
            format!(
                "{count} of {} files in {} are of kinds that are not read ({}); convert them to JPEG or PNG to train on them",
                count + self.files.len(),
                self.root.display(),
                unreadable.in_words()
            )
        });
        let links = (links > 0)
            .then(|| format!("{links} more names lead to images that are there already; each image counts once"));
        unreadable.into_iter().chain(links).collect()
    }

    fn version_differences(&self) -> Vec<String> {
        let is_new = |path: &&PathBuf| {
            let extension = path.extension().unwrap_or_default();
            ["gif", "tif", "tiff"].iter().any(|known| extension.eq_ignore_ascii_case(known))
        };
        let (new, links) = (self.files.iter().filter(is_new).count(), self.count_other_names());
        let new = (new > 0).then(|| format!("{new} of them are GIF or TIFF, which were not read before"));
        let links = (links > 0).then(|| format!("{links} more names of the same files counted as images before"));
        new.into_iter().chain(links).collect()
    }
}

impl FromSettings for FolderSource {
    fn check(settings: &SourceSettings) -> Result<(), SettingError> {
        path_in(settings).map(|_| ())
    }

    fn from_settings(settings: &SourceSettings) -> Result<Self, DataError> {
        let caption_files = if settings.needs_captions { CaptionFiles::Read } else { CaptionFiles::Ignore };
        Self::open(path_in(settings)?, caption_files)
    }
}

fn path_in<'a>(settings: &SourceSettings<'a>) -> Result<&'a Path, SettingError> {
    let message = "is missing: data.source = \"folder\" needs a folder of images";
    settings.path.ok_or_else(|| SettingError { key: "data.path", message: message.into() })
}

/// The inode of an entry's file, if listing tells it; otherwise 0.
fn inode(entry: &DirEntry) -> u64 {
    #[cfg(unix)]
    return walkdir::DirEntryExt::ino(entry);
    #[cfg(not(unix))]
    return 0;
}

/// The path of a link to nothing: it stays in the list, and is named as a bad image when it is drawn. Anything else
/// that cannot be listed may hide half of the data, so it is an error.
fn broken_link(error: walkdir::Error, root: &Path) -> Result<PathBuf, DataError> {
    let path = error.path().unwrap_or(root).to_path_buf();
    if path.is_symlink() {
        return Ok(path);
    }
    let reason = match error.into_io_error() {
        Some(error) => error.to_string(),
        None => "the listing failed".into(),
    };
    Err(DataError::Unlistable { path, reason })
}
