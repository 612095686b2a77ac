//! Files with the captions of many images.

use std::path::Path;

use serde_json::Value as Json;

use super::coco;
use super::entry::{Entry, Unread};
use crate::text::quoted;

/// How a file is read: its name decides. In the order in which the files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `metadata.jsonl` in any folder: an entry on each line.
    Lines,
    /// `captions.json` at the root: a list of entries, or a map of names to captions.
    Document,
    /// `metadata.csv` in any folder: a row for each entry.
    Table,
    /// `captions_*.json` at the root or in a folder `annotations`, in the format of COCO.
    Coco,
}

/// The keys of captions. The first key with a caption counts.
const KEYS: [&str; 3] = ["text", "caption", "captions"];

impl Kind {
    /// The kind of a file, by its name and its folder.
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
/// It is broken, or has other contents than its name says.
pub fn parse(kind: Kind, at_root: bool, text: &str) -> Result<Vec<Entry>, Unread> {
    match kind {
        Kind::Lines => parse_lines(text, at_root),
        Kind::Document => parse_document(text),
        Kind::Table => parse_table(text),
        Kind::Coco => coco::parse(text),
    }
}

fn parse_lines(text: &str, at_root: bool) -> Result<Vec<Entry>, Unread> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let json = serde_json::from_str(line).map_err(|error| error.to_string());
        if let (Ok(json), true, false) = (&json, entries.is_empty(), at_root)
            && file_name(json).is_none()
        {
            return Err(Unread::NotUsed("its first line has no file_name".to_owned()));
        }
        let parsed = json.and_then(|json| entry(&json));
        entries.push(parsed.map_err(|reason| Unread::Broken(format!("line {}: {reason}", number + 1)))?);
    }
    Ok(entries)
}

fn parse_document(text: &str) -> Result<Vec<Entry>, Unread> {
    let json = serde_json::from_str(text).map_err(|error| error.to_string());
    let entries = json.and_then(|json| match json {
        Json::Array(entries) => (entries.iter().enumerate())
            .map(|(index, json)| entry(json).map_err(|reason| format!("entry {}: {reason}", index + 1)))
            .collect(),
        Json::Object(map) if coco::has_format(&map) => {
            coco::from_json(Json::Object(map)).map_err(|error| error.to_string())
        }
        Json::Object(map) => {
            let entry = |(name, value): (&String, &Json)| {
                captions(value)
                    .map(|captions| Entry { file_name: name.clone(), captions })
                    .ok_or_else(|| no_text(name, value))
            };
            map.iter().map(entry).collect()
        }
        _ => Err("a list of entries or a map of file names to captions is needed".to_owned()),
    });
    entries.map_err(Unread::Broken)
}

fn parse_table(text: &str) -> Result<Vec<Entry>, Unread> {
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

fn file_name(json: &Json) -> Option<&str> {
    json.get("file_name")?.as_str()
}

fn entry(json: &Json) -> Result<Entry, String> {
    let name = file_name(json).ok_or("an entry needs file_name, a text")?;
    let mut found = Vec::new();
    for key in KEYS {
        let value = json.get(key).unwrap_or(&Json::Null);
        found = captions(value).ok_or_else(|| no_text(name, value))?;
        if !found.is_empty() {
            break;
        }
    }
    Ok(Entry { file_name: name.to_owned(), captions: found })
}

/// The captions in a text, a list of texts, or nothing; `None` for anything else.
fn captions(value: &Json) -> Option<Vec<String>> {
    let texts = match value {
        Json::Null => Some(Vec::new()),
        Json::String(text) => Some(vec![text.as_str()]),
        Json::Array(texts) => texts.iter().map(Json::as_str).collect(),
        _ => None,
    };
    let texts = texts?.into_iter().map(str::trim).filter(|text| !text.is_empty());
    Some(texts.map(str::to_owned).collect())
}

fn no_text(name: &str, value: &Json) -> String {
    format!("the text of {} is {}; a text or a list of texts is needed", quoted(name), quoted(&value.to_string()))
}
