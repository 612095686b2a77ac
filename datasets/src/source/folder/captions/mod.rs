//! Captions of a folder's images: in text files beside them, or in files of metadata.

mod coco;
mod entry;
mod metadata;

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use self::entry::{Entry, Unread};
use self::metadata::{Kind, parse};
use crate::decode::MAX_BYTES;
use crate::error::{DataError, ImageProblem};
use crate::files;
use crate::text::{decode_text, lines, quoted, shortened};

/// The largest size of a text file with captions, in bytes.
const MAX_TEXT: u64 = 1 << 16;

/// How similar two names are at least if a message suggests one for the other. Equal names have 1.
const SIMILAR: f64 = 0.5;

/// Names of this many bytes or more are not compared with others.
const LONGEST: usize = 1000;

/// How many files of metadata a message names.
const NAMED: usize = 3;

/// The captions of a folder's images, or where they are.
#[derive(Debug, Default)]
pub struct Captions {
    /// Path of an image without its extension -> the text file beside it.
    beside: HashMap<PathBuf, PathBuf>,
    /// Index of an image -> its captions in files of metadata. The list is empty if it has an entry without text.
    by_index: HashMap<usize, Vec<String>>,
    /// Files of metadata that were read.
    read: Vec<MetadataFile>,
    /// Files of metadata that were not used, and why.
    unread: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct MetadataFile {
    path: PathBuf,
    /// Names in the file that no image has.
    unknown: Vec<String>,
    /// Names in the file that several images have.
    ambiguous: HashSet<String>,
}

/// Collects files that may have captions while a folder is listed.
#[derive(Debug, Default)]
pub struct CaptionSearch {
    beside: HashMap<PathBuf, PathBuf>,
    /// In the order in which they are read.
    metadata: BTreeSet<(Kind, PathBuf)>,
}

impl CaptionSearch {
    /// Adds a file if its name is one of a file with captions.
    pub fn add(&mut self, root: &Path, file: &Path) {
        if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
            self.beside.insert(file.with_extension(""), file.to_owned());
        } else if let Some(kind) = Kind::of(root, file) {
            self.metadata.insert((kind, file.to_owned()));
        }
    }

    /// Reads the files of metadata that were found. `images` maps every name of an image to its index.
    ///
    /// # Errors
    /// One of the files is broken.
    pub fn read(self, root: &Path, images: &HashMap<&Path, usize>) -> Result<Captions, DataError> {
        let mut captions = Captions { beside: self.beside, ..Captions::default() };
        let mut by_file_name = None;
        for (kind, path) in self.metadata {
            let result = match files::read(&path, MAX_BYTES) {
                Err(_) if path.is_symlink() && !path.exists() => {
                    Err(Unread::NotUsed("it is a link that leads nowhere".to_owned()))
                }
                Err(ImageProblem::Unreadable(reason)) => Err(Unread::Broken(reason)),
                Err(problem) => Err(Unread::Broken(format!("the file {problem}"))),
                Ok(bytes) => match decode_text(&bytes) {
                    Some(text) => parse(kind, path.parent() == Some(root), &text),
                    None => Err(Unread::Broken("it is not UTF-8 or UTF-16".to_owned())),
                },
            };
            match result {
                Ok(entries) => {
                    let by_file_name = match kind {
                        Kind::Coco => Some(&*by_file_name.get_or_insert_with(|| index_by_file_name(images))),
                        _ => None,
                    };
                    captions.add(root, path, entries, images, by_file_name);
                }
                Err(Unread::NotUsed(reason)) => captions.unread.push((path, shortened(&reason, 200))),
                Err(Unread::Broken(reason)) => {
                    return Err(DataError::Captions { path, reason: shortened(&reason, 300) });
                }
            }
        }
        Ok(captions)
    }
}

/// The index of each image by the last part of its path; `None` if several images have it.
fn index_by_file_name<'a>(images: &HashMap<&'a Path, usize>) -> HashMap<&'a OsStr, Option<usize>> {
    let mut found = HashMap::new();
    for (path, index) in images {
        let Some(name) = path.file_name() else { continue };
        let known = found.entry(name).or_insert(Some(*index));
        *known = known.filter(|known| known == index);
    }
    found
}

impl Captions {
    fn add(
        &mut self,
        root: &Path,
        path: PathBuf,
        entries: Vec<Entry>,
        images: &HashMap<&Path, usize>,
        by_file_name: Option<&HashMap<&OsStr, Option<usize>>>,
    ) {
        let folder = path.parent().unwrap_or(root).to_owned();
        // COCO has a folder for annotations beside those for images.
        let folders = [Some(&*folder), folder.parent().filter(|_| by_file_name.is_some())];
        let mut file = MetadataFile { path, unknown: Vec::new(), ambiguous: HashSet::new() };
        for Entry { file_name, captions } in entries {
            let mut found = folders.into_iter().flatten().find_map(|folder| find(images, folder, &file_name));
            if let (None, Some(by_file_name)) = (found, by_file_name) {
                let last = file_name.rsplit(['/', '\\']).next().unwrap_or(&file_name);
                match by_file_name.get(OsStr::new(last)) {
                    Some(Some(index)) => found = Some(*index),
                    Some(None) => _ = file.ambiguous.insert(last.to_owned()),
                    None => {}
                }
            }
            match found {
                Some(index) => self.by_index.entry(index).or_default().extend(captions),
                None => file.unknown.push(file_name),
            }
        }
        self.read.push(file);
    }

    /// The captions of the image at `index`, which has these names.
    pub fn of<'a>(&self, index: usize, names: impl IntoIterator<Item = &'a Path>) -> Vec<String> {
        // Only text files that were there when the folder was listed are opened.
        let beside = names.into_iter().filter_map(|name| self.text_beside(name)?.ok());
        let mut beside = beside.filter(|captions| !captions.is_empty());
        beside.next().unwrap_or_else(|| self.by_index.get(&index).cloned().unwrap_or_default())
    }

    /// The captions in the text file beside an image, or why it has none; `None` without such a file.
    fn text_beside(&self, image: &Path) -> Option<Result<Vec<String>, String>> {
        let file = if self.beside.is_empty() { None } else { self.beside.get(&image.with_extension("")) }?;
        let name = file.file_name().unwrap_or_default().display();
        Some(match files::read(file, MAX_TEXT).map(|bytes| decode_text(&bytes)) {
            Ok(Some(text)) => match lines(&text) {
                lines if lines.is_empty() => Err(format!("{name} is empty")),
                lines => Ok(lines),
            },
            Ok(None) => Err(format!("{name} is not UTF-8 or UTF-16")),
            Err(problem) => Err(format!("{name}: {problem}")),
        })
    }

    /// Why the image at `index`, which has these names, has no captions.
    pub fn why_none<'a>(&self, root: &Path, index: usize, names: impl IntoIterator<Item = &'a Path>) -> String {
        let names: Vec<&Path> = names.into_iter().collect();
        let Some(image) = names.first() else { return String::new() };
        let beside = names.iter().find_map(|name| self.text_beside(name)?.err());
        let beside = beside.unwrap_or_else(|| {
            format!("there is no {}", image.with_extension("txt").file_name().unwrap_or_default().display())
        });
        let below = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
        let mut reasons = vec![beside];
        let list = |files: Vec<String>| match files.len() {
            several if several > NAMED => format!("{} and {} more", files[..NAMED].join(", "), several - NAMED),
            _ => files.join(", "),
        };
        let read = list(self.read.iter().map(|file| below(&file.path)).collect());
        if self.by_index.contains_key(&index) {
            reasons.push(format!("its entry in {read} has no text"));
        } else if self.read.is_empty() && self.unread.is_empty() {
            reasons.push("there is no file of metadata".to_owned());
        } else if !self.read.is_empty() {
            let hint = self.hint(image).map(|hint| format!("; {hint}")).unwrap_or_default();
            reasons.push(format!("{read} has no entry for it{hint}"));
        }
        if !self.unread.is_empty() {
            let unread = self.unread.iter().map(|(path, reason)| format!("{} was not used: {reason}", below(path)));
            reasons.push(list(unread.collect()));
        }
        reasons.join("; ")
    }

    /// What may be wrong with the name of `image` in files of metadata.
    fn hint(&self, image: &Path) -> Option<String> {
        let last = image.file_name()?.to_string_lossy();
        if self.read.iter().any(|file| file.ambiguous.contains(&*last)) {
            return Some("the name is there, but several images have it".to_owned());
        }
        // Of several equal file names, the one in the folder with the most similar name is suggested.
        let path = image.to_string_lossy();
        let similarity = |name: &String| {
            let last_of_name = name.rsplit(['/', '\\']).next().unwrap_or(name);
            (strsim::normalized_levenshtein(last_of_name, &last), strsim::normalized_levenshtein(name, &path))
        };
        let names = self.read.iter().flat_map(|file| &file.unknown).filter(|name| name.len() < LONGEST);
        let names = names.map(|name| (similarity(name), name));
        let ((similarity, _), name) = names.max_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal))?;
        (similarity >= SIMILAR).then(|| format!("the nearest name there is {}", quoted(name)))
    }
}

/// The index of the image called `name` in `folder`. A backslash separates folders too, unless it is part of a file's
/// name.
fn find(images: &HashMap<&Path, usize>, folder: &Path, name: &str) -> Option<usize> {
    let image = |name: &str| images.get(&*join(folder, Path::new(name))).copied();
    image(name).or_else(|| image(&name.replace('\\', "/")))
}

/// `folder/name`, with `.` and `..` in the name resolved.
fn join(folder: &Path, name: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for component in name.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => _ = path.pop(),
            other => path.push(other),
        }
    }
    path
}
