//! Captions of a folder's images: in text files beside them, or in one file at the root.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::DataError;

/// Most bytes of a text file that is a caption.
const MAX_TEXT: u64 = 1 << 16;

/// Where the captions of a folder's images are.
#[derive(Debug, Default)]
pub(crate) struct Captions {
    /// Path of an image without its extension -> the text file beside it.
    beside: HashMap<PathBuf, PathBuf>,
    /// Path of an image -> what the file at the root says.
    told: HashMap<PathBuf, Vec<String>>,
}

impl Captions {
    /// Reads `metadata.jsonl` and `captions.json` at a folder's root, where they are.
    ///
    /// # Errors
    /// One of them is broken.
    pub fn at(root: &Path) -> Result<Self, DataError> {
        let mut captions = Self::default();
        captions.read(root, "metadata.jsonl", Self::add_lines)?;
        captions.read(root, "captions.json", Self::add_document)?;
        Ok(captions)
    }

    /// Remembers a file if it can be the caption of an image beside it.
    pub fn see(&mut self, file: &Path) {
        if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
            self.beside.insert(file.with_extension(""), file.to_owned());
        }
    }

    /// The captions of an image; none where there is no text.
    pub fn of(&self, image: &Path) -> Vec<String> {
        // Nothing is looked for on the disk that was not seen there before.
        let beside = if self.beside.is_empty() { None } else { self.beside.get(&image.with_extension("")) };
        let captions = beside.and_then(|file| read_text(file)).map(|text| lines(&text)).unwrap_or_default();
        match captions.is_empty() {
            true => self.told.get(image).cloned().unwrap_or_default(),
            false => captions,
        }
    }

    fn read(
        &mut self,
        root: &Path,
        name: &str,
        add: impl FnOnce(&mut Self, &Path, &str) -> Result<(), String>,
    ) -> Result<(), DataError> {
        let path = root.join(name);
        let result = match fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error.to_string()),
        };
        result.and_then(|text| add(self, root, &text)).map_err(|reason| DataError::Captions { path, reason })
    }

    fn add_lines(&mut self, root: &Path, text: &str) -> Result<(), String> {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let entry = serde_json::from_str(line).map_err(|error| error.to_string());
            let added = entry.and_then(|entry| self.add_entry(root, &entry));
            added.map_err(|reason| format!("line {}: {reason}", number + 1))?;
        }
        Ok(())
    }

    fn add_document(&mut self, root: &Path, text: &str) -> Result<(), String> {
        match serde_json::from_str(text).map_err(|error| error.to_string())? {
            Json::Array(entries) => entries.iter().enumerate().try_for_each(|(index, entry)| {
                self.add_entry(root, entry).map_err(|reason| format!("entry {}: {reason}", index + 1))
            }),
            Json::Object(map) => map.iter().try_for_each(|(name, told)| self.add(root, name, told)),
            _ => Err("a list of entries or a map of file names to captions is needed".to_owned()),
        }
    }

    fn add_entry(&mut self, root: &Path, entry: &Json) -> Result<(), String> {
        match entry.get("file_name").and_then(Json::as_str) {
            Some(name) => self.add(root, name, entry.get("text").unwrap_or(&Json::Null)),
            None => Err("an entry needs file_name, a text".to_owned()),
        }
    }

    fn add(&mut self, root: &Path, name: &str, told: &Json) -> Result<(), String> {
        let texts = match told {
            Json::Null => Some(Vec::new()),
            Json::String(text) => Some(vec![text.as_str()]),
            Json::Array(texts) => texts.iter().map(Json::as_str).collect(),
            _ => None,
        };
        let texts =
            texts.ok_or_else(|| format!("the text of {name} is {told}; a text or a list of texts is needed"))?;
        let texts = texts.into_iter().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        self.told.entry(root.join(name)).or_default().extend(texts);
        Ok(())
    }
}

/// The text of a small UTF-8 file.
fn read_text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_TEXT + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() as u64 > MAX_TEXT {
        return None;
    }
    String::from_utf8(bytes).ok()
}

fn lines(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
