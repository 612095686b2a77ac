//! Weights that are split over several files, and the index that lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value as Json;

use super::json::read_json;
use super::{WeightsError, WeightsFile};

/// The end of an index's name.
pub(crate) const INDEX: &str = ".index.json";
/// Most bytes of an index; it has the name of every tensor.
const MAX_INDEX: u64 = 64 << 20;

/// Opens the files that an index names, and checks that each has the tensors that it should have. Gives the number of
/// every tensor's file with them.
pub(super) fn open(path: &Path) -> Result<(Vec<WeightsFile>, BTreeMap<String, usize>), WeightsError> {
    let refuse = |what: String| Err(WeightsError::Unsupported { path: path.to_owned(), what });
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut files = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, shard) in weight_map(path)? {
        let number = match numbers.get(&shard) {
            Some(number) => *number,
            None => {
                let place = path.with_file_name(&shard);
                if !is_name(&shard) || is_index(&place) {
                    return refuse(format!("{shard:?}, where {name} should be, is not a file beside it"));
                }
                if !place.is_file() {
                    return refuse(format!("{shard}, where {name} should be, is not beside it"));
                }
                files.push(WeightsFile::open_file(&place, None)?);
                numbers.insert(shard.clone(), files.len() - 1);
                files.len() - 1
            }
        };
        if files[number].info(&name).is_none() {
            return refuse(format!("{shard} has no tensor {name}, which should be there"));
        }
        tensors.insert(name, number);
    }
    if tensors.is_empty() {
        return refuse("it names no tensors".to_owned());
    }
    Ok((files, tensors))
}

/// Whether a file has the name of an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX))
}

/// Whether a name joined to a folder gives a file in that folder.
fn is_name(shard: &str) -> bool {
    !shard.contains(['/', '\\'])
        && matches!(Path::new(shard).components().collect::<Vec<_>>()[..], [Component::Normal(_)])
}

/// Reads an index: names of tensors, and the file of each.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let index = read_json(path, MAX_INDEX)?;
    let map = index.get("weight_map").and_then(Json::as_object);
    let entries = map.map(|map| map.iter().map(|(name, file)| Some((name.clone(), file.as_str()?.to_owned()))));
    entries.and_then(Iterator::collect).ok_or_else(|| WeightsError::Unsupported {
        path: path.to_owned(),
        what: "it has no weight_map, which says where each tensor is".to_owned(),
    })
}

/// The names of the files that an index lists; none if `path` is no index. Errors are left to [`WeightsFile::open`].
pub(crate) fn shards_of(path: &Path) -> BTreeSet<String> {
    let map = if is_index(path) { weight_map(path).unwrap_or_default() } else { BTreeMap::new() };
    map.into_values().filter(|shard| is_name(shard)).collect()
}
