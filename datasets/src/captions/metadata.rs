//! Files that tell the captions of many images.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::coco;
use crate::text::cut;

/// What such a file is called decides how it is read. In the order in which they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// `metadata.jsonl` in any folder: an entry on each line.
    Lines,
    /// `captions.json` at the root: a list of entries, or a map of names to captions.
    Document,
    /// `metadata.csv` in any folder: a row for each entry.
    Table,
    /// `captions_*.json` at the root or in a folder `annotations`, as COCO has it.
    Coco,
}

/// What one entry says of one image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it is written.
    pub file_name: String,
    /// None of them empty.
    pub captions: Vec<String>,
}

/// Why a file has no entries.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is meant to have captions, and is broken.
    Broken(String),
    /// It is about something else.
    NotUsed(String),
}

/// The keys of captions; the first that has any counts.
const KEYS: [&str; 3] = ["text", "caption", "captions"];

impl Kind {
    /// What a file is by its name and its place.
    pub fn of(root: &Path, file: &Path) -> Option<Self> {
        let folder = file.parent()?;
        match file.file_name()?.to_str()? {
            "metadata.jsonl" => Some(Self::Lines),
            "metadata.csv" => Some(Self::Table),
            "captions.json" if folder == root => Some(Self::Document),
            name if name.starts_with("captions_") && name.ends_with(".json") => {
                let place = folder == root || folder.file_name().is_some_and(|name| name == "annotations");
                place.then_some(Self::Coco)
            }
            _ => None,
        }
    }
}

/// The entries of a file's text.
///
/// # Errors
/// It is broken, or of another kind than its name says.
pub(super) fn parse(kind: Kind, at_root: bool, text: &str) -> Result<Vec<Entry>, Unread> {
    match kind {
        Kind::Lines => of_lines(text, at_root),
        Kind::Document => of_document(text),
        Kind::Table => of_table(text),
        Kind::Coco => coco::parse(text),
    }
}

fn of_lines(text: &str, at_root: bool) -> Result<Vec<Entry>, Unread> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let json = serde_json::from_str(line).map_err(|error| error.to_string());
        if let (Ok(json), true, false) = (&json, entries.is_empty(), at_root)
            && name(json).is_none()
        {
            return Err(Unread::NotUsed("its first line has no file_name".to_owned()));
        }
        let added = json.and_then(|json| entry(&json));
        entries.push(added.map_err(|reason| Unread::Broken(format!("line {}: {reason}", number + 1)))?);
    }
    Ok(entries)
}

fn of_document(text: &str) -> Result<Vec<Entry>, Unread> {
    let json = serde_json::from_str(text).map_err(|error| error.to_string());
    let entries = json.and_then(|json| match json {
        Json::Array(entries) => (entries.iter().enumerate())
            .map(|(index, json)| entry(json).map_err(|reason| format!("entry {}: {reason}", index + 1)))
            .collect(),
        Json::Object(map) if coco::is(&map) => coco::of(Json::Object(map)).map_err(|error| error.to_string()),
        Json::Object(map) => {
            let entry = |(name, told): (&String, &Json)| {
                captions(told)
                    .map(|captions| Entry { file_name: name.clone(), captions })
                    .ok_or_else(|| no_text(name, told))
            };
            map.iter().map(entry).collect()
        }
        _ => Err("a list of entries or a map of file names to captions is needed".to_owned()),
    });
    entries.map_err(Unread::Broken)
}

fn of_table(text: &str) -> Result<Vec<Entry>, Unread> {
    let broken = |error: csv::Error| Unread::Broken(error.to_string());
    let mut table = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(text.as_bytes());
    let header = table.headers().map_err(broken)?;
    let column = |key: &str| header.iter().position(|name| name == key);
    let Some(file_name) = column("file_name") else {
        return Err(Unread::NotUsed("it has no column file_name".to_owned()));
    };
    let columns = KEYS.map(column);
    if columns.iter().all(Option::is_none) {
        return Err(Unread::NotUsed(format!("it has none of the columns {}", KEYS.join(", "))));
    }
    let entry = |row: csv::StringRecord| {
        let cells = columns.iter().flatten().filter_map(|column| row.get(*column).map(str::trim));
        let caption = cells.into_iter().find(|cell| !cell.is_empty()).map(str::to_owned);
        let file_name = row.get(file_name).unwrap_or_default().trim().to_owned();
        Entry { file_name, captions: caption.into_iter().collect() }
    };
    table.records().map(|row| row.map(entry).map_err(broken)).collect()
}

fn name(json: &Json) -> Option<&str> {
    json.get("file_name")?.as_str()
}

fn entry(json: &Json) -> Result<Entry, String> {
    let name = name(json).ok_or("an entry needs file_name, a text")?;
    let mut found = Vec::new();
    for key in KEYS {
        let told = json.as_object().and_then(|entry: &Map<String, Json>| entry.get(key)).unwrap_or(&Json::Null);
        found = captions(told).ok_or_else(|| no_text(name, told))?;
        if !found.is_empty() {
            break;
        }
    }
    Ok(Entry { file_name: name.to_owned(), captions: found })
}

/// A text, a list of texts, or nothing; `None` for anything else.
fn captions(told: &Json) -> Option<Vec<String>> {
    let texts = match told {
        Json::Null => Some(Vec::new()),
        Json::String(text) => Some(vec![text.as_str()]),
        Json::Array(texts) => texts.iter().map(Json::as_str).collect(),
        _ => None,
    };
    let texts = texts?.into_iter().map(str::trim).filter(|text| !text.is_empty());
    Some(texts.map(str::to_owned).collect())
}

fn no_text(name: &str, told: &Json) -> String {
    format!("the text of {} is {}; a text or a list of texts is needed", cut(name), cut(&told.to_string()))
}
