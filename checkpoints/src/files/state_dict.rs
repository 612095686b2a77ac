//! Finds the tensors and hyperparameters in what torch saved.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::WeightsError;
use super::pickle::{Id, Pickle, Value};
use super::torch_file::{TensorRef, TorchError, TorchFile};

/// Where the weights are among the top-level entries of a torch file, best first: Lightning, then LlamaGen.
const STATE_DICTS: [&str; 3] = ["state_dict", "ema", "model"];
/// Names the listed keys where nothing was found at the top of a file.
pub(super) const TOP: &str = "top-level keys";
/// Most attributes of a TorchScript program's modules. Modules can share inner modules or contain themselves, so a
/// small file can have attributes without end.
const MAX_ATTRIBUTES: usize = 1 << 20;
/// Longest name of a parameter in a TorchScript program, in bytes.
const MAX_NAME: usize = 256;

type Tensors = BTreeMap<String, TensorRef>;

/// The tensors under `key` or in the usual places, and whether these are the whole file.
pub(super) fn find(path: &Path, file: &TorchFile, key: Option<&str>) -> Result<(Tensors, bool), WeightsError> {
    let pickle = &file.pickle;
    if file.is_script {
        return match key {
            None => Ok((script_tensors(path, file)?, true)),
            Some(key) => Err(WeightsError::Key {
                path: path.to_owned(),
                what: format!("a TorchScript program has no top-level key {key}"),
                level: TOP,
                keys: Vec::new(),
            }),
        };
    }
    let Some(top) = pickle.entries(pickle.root()) else {
        return Err(WeightsError::NotWeights {
            path: path.to_owned(),
            what: match pickle.call(pickle.root()) {
                Some((_, name, _)) if name.starts_with("_rebuild") => {
                    "it is a single tensor, not a dict of them".to_owned()
                }
                Some((module, name, _)) => {
                    format!("it is a whole pickled object ({module}.{name}); save its state_dict() instead")
                }
                None => "it is not a dict".to_owned(),
            },
        });
    };
    let no_tensors = |what, level, entries: Entries| {
        let keys = entries.iter().map(|&(key, _)| key_name(pickle, key)).collect();
        Err(WeightsError::Key { path: path.to_owned(), what, level, keys })
    };
    if let Some(key) = key {
        let (found, is_top, around) = find_nested(pickle, top, key);
        let tensors = found.as_ref().map(|entries| tensors_of(path, file, entries)).transpose()?.unwrap_or_default();
        if tensors.is_empty() {
            let level = if is_top && found.is_none() { TOP } else { "keys there" };
            return no_tensors(format!("there are no tensors under the key {key}"), level, found.unwrap_or(around));
        }
        return Ok((tensors, false));
    }
    for key in STATE_DICTS {
        let entries = get(pickle, &top, key).and_then(|id| pickle.entries(id)).unwrap_or_default();
        let tensors = tensors_of(path, file, &entries)?;
        if !tensors.is_empty() {
            return Ok((tensors, false));
        }
    }
    let tensors = tensors_of(path, file, &top)?;
    if tensors.is_empty() {
        let what = format!(
            "there are no tensors at the top or under {}, so name the key that holds them, as in {}#KEY or #KEY/INNER",
            STATE_DICTS.join(", "),
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        return no_tensors(what, TOP, top);
    }
    Ok((tensors, true))
}

fn tensors_of(path: &Path, file: &TorchFile, entries: &[(Id, Id)]) -> Result<Tensors, WeightsError> {
    let mut tensors = BTreeMap::new();
    for &(key, value) in entries {
        let Some(name) = file.pickle.text(key) else {
            continue;
        };
        let tensor = file.tensor(value).map_err(|source| WeightsError::Torch { path: path.to_owned(), source })?;
        if let Some(tensor) = tensor {
            tensors.insert(name.to_owned(), tensor);
        }
    }
    Ok(tensors)
}

/// The tensors among a program's attributes and those of its inner modules, their names joined by dots.
fn script_tensors(path: &Path, file: &TorchFile) -> Result<Tensors, WeightsError> {
    let pickle = &file.pickle;
    let mut tensors = BTreeMap::new();
    let mut modules = vec![(String::new(), pickle.root())];
    let mut left = MAX_ATTRIBUTES;
    let failed = |source| WeightsError::Torch { path: path.to_owned(), source };
    while let Some((prefix, module)) = modules.pop() {
        for (key, value) in pickle.attributes(module).unwrap_or_default() {
            left = left.checked_sub(1).ok_or_else(|| {
                failed(TorchError::Unsupported("it has more parts than any real TorchScript program"))
            })?;
            let Some(key) = pickle.text(key) else {
                continue;
            };
            let name = format!("{prefix}{key}");
            if name.len() > MAX_NAME {
                return Err(failed(TorchError::Unsupported(
                    "its parts lie deeper than in any real TorchScript program",
                )));
            }
            if let Some(tensor) = file.tensor(value).map_err(failed)? {
                tensors.insert(name, tensor);
            } else if pickle.attributes(value).is_some() {
                modules.push((format!("{name}."), value));
            }
        }
    }
    if tensors.is_empty() {
        let what = "it is a TorchScript program without parameters".to_owned();
        return Err(WeightsError::NotWeights { path: path.to_owned(), what });
    }
    Ok(tensors)
}

/// The value of a text key; the last one, as in Python.
fn get(pickle: &Pickle, entries: &[(Id, Id)], key: &str) -> Option<Id> {
    let mut entries = entries.iter().rev();
    let found = entries.find(|(id, _)| pickle.text(*id) == Some(key))?;
    Some(found.1)
}

type Entries = Vec<(Id, Id)>;

/// Looks up a key in which `/` leads into inner dicts. Gives the entries of the dict that is found there, whether the
/// key was looked up at the top, and the entries of the dict in which it was looked up.
fn find_nested(pickle: &Pickle, mut entries: Entries, mut key: &str) -> (Option<Entries>, bool, Entries) {
    let mut is_top = true;
    loop {
        if let Some(found) = get(pickle, &entries, key) {
            return (pickle.entries(found), is_top, entries);
        }
        let inner = |(at, _)| Some((pickle.entries(get(pickle, &entries, &key[..at])?)?, &key[at + 1..]));
        let Some(inner) = key.match_indices('/').find_map(inner) else {
            return (None, is_top, entries);
        };
        (entries, key) = inner;
        is_top = false;
    }
}

fn key_name(pickle: &Pickle, id: Id) -> String {
    match pickle.get(id) {
        Value::Text(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Class(class) => format!("<class {}.{}>", class.module, class.name),
        _ => "<something else>".to_owned(),
    }
}

/// A hyperparameter: an attribute of LlamaGen's `args`, or an entry of Lightning's `hyper_parameters`.
pub(super) fn hyper(pickle: &Pickle, name: &str) -> Option<Json> {
    let top = pickle.entries(pickle.root())?;
    let trees = ["args", "hyper_parameters"].iter().filter_map(|key| {
        let tree = get(pickle, &top, key)?;
        pickle.attributes(tree).or_else(|| pickle.entries(tree))
    });
    let value = trees.into_iter().find_map(|tree| get(pickle, &tree, name))?;
    // Values can share and contain each other, so a small file can unfold into a huge tree.
    let mut budget = 10_000;
    json(pickle, value, 16, &mut budget)
}

/// A plain value as JSON; None where Python would have built an object.
fn json(pickle: &Pickle, id: Id, depth: usize, budget: &mut usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    *budget = budget.checked_sub(1)?;
    Some(match pickle.get(id) {
        Value::None => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(value) => value.as_str().into(),
        Value::List(ids) | Value::Tuple(ids) => {
            let values = ids.iter().map(|&id| json(pickle, id, depth, budget));
            Json::Array(values.collect::<Option<_>>()?)
        }
        _ => {
            let mut map = serde_json::Map::new();
            for (key, value) in pickle.entries(id)? {
                map.insert(pickle.text(key)?.to_owned(), json(pickle, value, depth, budget)?);
            }
            Json::Object(map)
        }
    })
}
