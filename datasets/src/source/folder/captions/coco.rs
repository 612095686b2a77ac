//! Captions in the format of COCO: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::entry::{Entry, Unread};

#[derive(Deserialize)]
struct Document {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: Id,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Id,
    caption: String,
}

#[derive(Deserialize, PartialEq, Eq, Hash)]
#[serde(untagged)]
enum Id {
    Number(u64),
    Text(String),
}

/// Whether a document with another file name has the format of COCO.
pub fn has_format(document: &Map<String, Json>) -> bool {
    ["images", "annotations"].iter().all(|key| document.get(*key).is_some_and(Json::is_array))
}

/// The entries of a document that is parsed already.
pub fn from_json(document: Json) -> Result<Vec<Entry>, serde_json::Error> {
    serde_json::from_value(document).map(entries)
}

/// The entries of a document.
///
/// # Errors
/// It is not JSON, or not in the format of COCO.
pub fn parse(text: &str) -> Result<Vec<Entry>, Unread> {
    serde_json::from_str(text).map(entries).map_err(|error| match error.is_data() {
        true => Unread::NotUsed(format!("it does not have COCO's format: {error}")),
        false => Unread::Broken(error.to_string()),
    })
}

fn entries(document: Document) -> Vec<Entry> {
    let mut captions: HashMap<Id, Vec<String>> = HashMap::new();
    for Annotation { image_id, caption } in document.annotations {
        let caption = caption.trim();
        if !caption.is_empty() {
            captions.entry(image_id).or_default().push(caption.to_owned());
        }
    }
    let entry = |Image { id, file_name }| Entry { file_name, captions: captions.remove(&id).unwrap_or_default() };
    document.images.into_iter().map(entry).collect()
}
