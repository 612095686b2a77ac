//! Files of weights, whatever their format: recognised by content, read tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value as Json;

use crate::hub::{Fetched, INDEX};
use crate::pickle::{Id, Pickle, Value};
use crate::safetensors_file::{SafetensorsError, SafetensorsFile, is_safetensors};
use crate::tensor::{HostTensor, ShapeError};
use crate::torch_file::{TensorRef, TorchError, TorchFile, is_legacy};

/// Where the weights lie among the top-level entries of a torch file, best first: Lightning, then LlamaGen.
const STATE_DICTS: [&str; 3] = ["state_dict", "ema", "model"];
/// What wrappers put into names, wherever the module is that they are around: DistributedDataParallel, torch.compile,
/// FSDP, activation checkpointing and DeepSpeed. No module is called so by itself.
const WRAPPERS: [&str; 5] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];
/// What is listed where nothing was found at the top of a file.
const TOP: &str = "top-level keys";
/// What diffusers and transformers call the weights in a model's folder.
const FOLDER_FILES: [&str; 6] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
];
/// Subfolders of a pipeline that hold its VQGAN.
const PIPELINE_FOLDERS: [&str; 3] = ["vqvae", "vqgan", "movq"];
/// Most attributes of a TorchScript program's modules; inner modules can be shared, and one that contains itself has no
/// end.
const MAX_ATTRIBUTES: usize = 1 << 20;
/// Longest name of a parameter in a TorchScript program, in bytes.
const MAX_NAME: usize = 256;
/// Most bytes of a `config.json` that anyone reads.
const MAX_CONFIG: u64 = 1 << 20;
/// Most bytes of the index of weights that are split over several files; it has every tensor's name.
const MAX_INDEX: u64 = 64 << 20;

/// Why weights cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file or folder cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else than weights.
    #[error("{} holds no weights: {what}", path.display())]
    NotWeights {
        /// The file or folder.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// A file of `torch.save` that cannot be read.
    #[error("{}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },
    /// A safetensors file that cannot be read.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafetensorsError,
    },
    /// The key that was asked for is not there or holds no tensors, or none of the usual ones does.
    /// [`Location`](crate::hub::Location) says how to name one.
    #[error("{}: {what}; the {level} are {}", path.display(), listed(keys))]
    Key {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: String,
        /// Which keys are listed: `top-level keys`, or `keys there`.
        level: &'static str,
        /// What there is.
        keys: Vec<String>,
    },
    /// No tensor of that name.
    #[error("{} has no tensor named {name}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor whose bytes do not fill its shape.
    #[error("tensor {name}: {source}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: ShapeError,
    },
    /// A model that is recognised and cannot be used here, or that contradicts its configuration, or none at all.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Two tensors that are the same one without what wrappers put into their names.
    #[error("{}: {} and {} are both {name} without what wrappers add, so it is not clear which is meant", path.display(), names[0], names[1])]
    Twice {
        /// The file.
        path: PathBuf,
        /// The name that both would have.
        name: String,
        /// The names that they have.
        names: Box<[String; 2]>,
    },
    /// A weight that no network can compute with.
    #[error("{}: {count} of the {of} elements of {name} are infinite or not a number: training it had failed before it was saved, so take an earlier checkpoint", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Elements that are not finite.
        count: usize,
        /// All its elements.
        of: usize,
    },
    /// A CLIP whose activation is written nowhere, where no other can be assumed.
    #[error(
        "{}: open_clip_config.json is not beside it, and its activation is written nowhere else: put that file there, or set \
         clip.activation to \"gelu\" (what OpenCLIP trains with) or \"quick_gelu\" (OpenAI's, and models with quickgelu in \
         their name)",
        path.display()
    )]
    NoActivation {
        /// The file.
        path: PathBuf,
    },
    /// An architecture that contradicts itself, or that a family cannot express.
    #[error("architecture: {0}")]
    Architecture(String),
    /// The tensors are not those of the architecture. Names are the file's own.
    #[error("{} does not fit the architecture: {}", path.display(), mismatch(missing, unexpected, different))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Tensors that the architecture needs.
        missing: Vec<String>,
        /// Tensors that the architecture has no place for.
        unexpected: Vec<String>,
        /// Tensors of another shape or of integers, with both said.
        different: Vec<String>,
    },
}

fn mismatch(missing: &[String], unexpected: &[String], different: &[String]) -> String {
    let kinds = [("missing", missing), ("unexpected", unexpected), ("different", different)];
    let present = kinds.iter().filter(|(_, names)| !names.is_empty());
    let parts = present.map(|(kind, names)| format!("{} {kind} ({})", names.len(), names.join(", ")));
    parts.collect::<Vec<_>>().join("; ")
}

fn listed(keys: &[String]) -> String {
    const SHOWN: usize = 20;
    match keys.len() {
        0 => "none".to_owned(),
        1..=SHOWN => keys.join(", "),
        more => format!("{} and {} more", keys[..SHOWN].join(", "), more - SHOWN),
    }
}

/// Named tensors in a file, none of them read yet.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Torch {
        file: Box<TorchFile>,
        tensors: BTreeMap<String, TensorRef>,
        /// Whether these are all that was saved, not what lies under a key.
        is_whole: bool,
    },
    Safetensors(SafetensorsFile),
    /// Several files, and which of them has which tensor.
    Shards {
        files: Vec<WeightsFile>,
        tensors: BTreeMap<String, usize>,
    },
}

impl WeightsFile {
    /// Opens weights: a file of `torch.save`, a safetensors file, the index of several (`*.index.json`), or a folder of
    /// diffusers or transformers (a whole pipeline too, for its VQGAN).
    ///
    /// Of a torch file, takes what is under `state_dict`, `ema` or `model`, else the dict of tensors itself; of a
    /// TorchScript program the parameters, named by the attributes that lead to them.
    ///
    /// # Errors
    /// One line that says what the file is instead, or what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<WeightsFile, WeightsError> {
        Self::open_with(path, None)
    }

    /// [`open`](Self::open), with the key of a torch file that holds the weights: one at the top, or `state/generator` for
    /// one in a dict below it.
    ///
    /// # Errors
    /// As for `open`; [`WeightsError::Key`] lists the keys that there are.
    pub fn open_with(path: impl AsRef<Path>, key: Option<&str>) -> Result<WeightsFile, WeightsError> {
        let path = path.as_ref();
        let failed = |source| WeightsError::Io { path: path.to_owned(), source };
        let kind = std::fs::metadata(path).map_err(failed)?;
        if !kind.is_dir() && !kind.is_file() {
            // Opening a pipe waits for somebody to write into it.
            return Err(WeightsError::NotWeights { path: path.to_owned(), what: "it is no regular file".to_owned() });
        }
        if kind.is_dir() {
            let folders: Vec<&str> = std::iter::once("").chain(PIPELINE_FOLDERS).collect();
            let path = in_folder(path, &FOLDER_FILES, &folders)?;
            return Self::open_file(&path, key);
        }
        Self::open_file(path, key)
    }

    /// Opens what was found or downloaded.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn open_fetched(fetched: &Fetched) -> Result<WeightsFile, WeightsError> {
        Self::open_with(&fetched.weights, fetched.key.as_deref())
    }

    fn open_file(path: &Path, key: Option<&str>) -> Result<WeightsFile, WeightsError> {
        let failed = |source| WeightsError::Io { path: path.to_owned(), source };
        let torch = |source| WeightsError::Torch { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut beginning = Vec::new();
        (&mut file).take(512).read_to_end(&mut beginning).map_err(failed)?;

        let source = if beginning.starts_with(b"PK\x03\x04") {
            let file = TorchFile::open_zip(file).map_err(torch)?;
            Source::torch(path, file, key)?
        } else if is_safetensors(&beginning) {
            let file = SafetensorsFile::open(file)
                .map_err(|source| WeightsError::Safetensors { path: path.to_owned(), source })?;
            if let Some(key) = key {
                return Err(WeightsError::Key {
                    path: path.to_owned(),
                    what: format!("a safetensors file has no top-level key {key}"),
                    level: TOP,
                    keys: Vec::new(),
                });
            }
            Source::Safetensors(file)
        } else if is_index(path) {
            if let Some(key) = key {
                let what = format!("the index of several files has no key {key}");
                return Err(WeightsError::Key { path: path.to_owned(), what, level: TOP, keys: Vec::new() });
            }
            Source::shards(path)?
        } else if is_legacy(&mut file).map_err(failed)? {
            let file = TorchFile::open_legacy(file).map_err(torch)?;
            Source::torch(path, file, key)?
        } else {
            return Err(WeightsError::NotWeights {
                path: path.to_owned(),
                what: what_else(&beginning, &mut file).to_owned(),
            });
        };
        Ok(WeightsFile { path: path.to_owned(), source })
    }

    /// The file that the weights are in; inside of the folder when a folder was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The JSON file of that name beside the weights, if there is one. Only those whose family keeps its configuration
    /// there should ask: what else lies beside weights may be anything.
    pub(crate) fn json_beside(&self, name: &str) -> Result<Option<Json>, WeightsError> {
        let path = self.path.with_file_name(name);
        // A folder or a pipe of that name is no configuration, and opening the latter waits for ever.
        path.is_file().then(|| read_config(&path)).transpose()
    }

    /// Whether a state dict is all that was saved, without a word about the training that it comes from.
    pub(crate) fn is_state_dict(&self) -> bool {
        match &self.source {
            Source::Torch { is_whole, .. } => *is_whole,
            Source::Safetensors(_) | Source::Shards { .. } => true,
        }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names: Vec<&str> = match &self.source {
            Source::Torch { tensors, .. } => tensors.keys().map(String::as_str).collect(),
            Source::Safetensors(file) => file.tensors().keys().map(String::as_str).collect(),
            Source::Shards { tensors, .. } => tensors.keys().map(String::as_str).collect(),
        };
        names.into_iter()
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        match &self.source {
            Source::Torch { tensors, .. } => {
                let tensor = tensors.get(name)?;
                Some((tensor.dtype, &tensor.shape))
            }
            Source::Safetensors(file) => {
                let info = file.tensors().get(name)?;
                Some((info.dtype, &info.shape))
            }
            Source::Shards { files, tensors } => files[*tensors.get(name)?].info(name),
        }
    }

    /// The names without what wrappers put into them, and which names of the file these are.
    pub(crate) fn unwrapped(&self) -> Result<Unwrapped<'_>, WeightsError> {
        let mut names = BTreeMap::new();
        for in_file in self.names() {
            self.insert(&mut names, unwrapped(in_file), in_file)?;
        }
        Ok(Unwrapped(names))
    }

    /// Enters the name of a tensor, which may be there once.
    pub(crate) fn insert<'a>(
        &self,
        names: &mut BTreeMap<String, &'a str>,
        name: String,
        in_file: &'a str,
    ) -> Result<(), WeightsError> {
        match names.insert(name.clone(), in_file) {
            None => Ok(()),
            Some(other) => {
                let names = Box::new([other.to_owned(), in_file.to_owned()]);
                Err(WeightsError::Twice { path: self.path.clone(), name, names })
            }
        }
    }

    /// Reads a tensor that a network computes with.
    pub(crate) fn read_weight(&self, name: &str) -> Result<HostTensor, WeightsError> {
        let tensor = self.read(name)?;
        // A double can be finite and too large for what networks compute in.
        if tensor.dtype != Dtype::F64 && tensor.is_finite() {
            return Ok(tensor);
        }
        let values = tensor.to_f32();
        match values.iter().filter(|value| !value.is_finite()).count() {
            0 => Ok(tensor),
            count => {
                let (path, name) = (self.path.clone(), name.to_owned());
                Err(WeightsError::NotFinite { path, name, count, of: values.len() })
            }
        }
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// When there is none of that name, or its bytes are not there.
    pub fn read(&self, name: &str) -> Result<HostTensor, WeightsError> {
        let path = || self.path.clone();
        let missing = || WeightsError::NoTensor { path: path(), name: name.to_owned() };
        match &self.source {
            Source::Torch { file, tensors, .. } => {
                let tensor = tensors.get(name).ok_or_else(missing)?;
                file.read(tensor).map_err(|source| WeightsError::Torch { path: path(), source })
            }
            Source::Safetensors(file) => {
                let info = file.tensors().get(name).ok_or_else(missing)?;
                file.read(info).map_err(|source| WeightsError::Safetensors { path: path(), source })
            }
            Source::Shards { files, tensors } => files[*tensors.get(name).ok_or_else(missing)?].read(name),
        }
    }

    /// A hyperparameter that was saved with the weights: an attribute of LlamaGen's `args`, or an entry of
    /// Lightning's `hyper_parameters`.
    pub fn hyper(&self, name: &str) -> Option<Json> {
        let Source::Torch { file, .. } = &self.source else {
            return None;
        };
        let pickle = &file.pickle;
        let trees = ["args", "hyper_parameters"].iter().filter_map(|key| {
            let tree = find(pickle, &pickle.entries(pickle.root())?, key)?;
            pickle.attributes(tree).or_else(|| pickle.entries(tree))
        });
        let value = trees.into_iter().find_map(|tree| find(pickle, &tree, name))?;
        // Values may share and contain each other, so a small tree can unfold into a huge one.
        let mut budget = 10_000;
        json(pickle, value, 16, &mut budget)
    }
}

impl Source {
    fn torch(path: &Path, file: TorchFile, key: Option<&str>) -> Result<Source, WeightsError> {
        let (tensors, is_whole) = state_dict(path, &file, key)?;
        let file = Box::new(file);
        Ok(Source::Torch { file, tensors, is_whole })
    }

    /// The files that an index names, each with the tensors that it should have.
    fn shards(path: &Path) -> Result<Source, WeightsError> {
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
                        return refuse(format!("{shard:?}, where {name} should be, is no file beside it"));
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
        Ok(Source::Shards { files, tensors })
    }
}

/// Whether a file is called like the index of several.
fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX))
}

/// Whether joining it to a folder gives a file in that folder.
fn is_name(shard: &str) -> bool {
    !shard.contains(['/', '\\'])
        && matches!(Path::new(shard).components().collect::<Vec<_>>()[..], [Component::Normal(_)])
}

/// What an index says: names of tensors, and the file of each.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let index = read_json(path, MAX_INDEX)?;
    let map = index.get("weight_map").and_then(Json::as_object);
    let entries = map.map(|map| map.iter().map(|(name, file)| Some((name.clone(), file.as_str()?.to_owned()))));
    entries.and_then(Iterator::collect).ok_or_else(|| WeightsError::Unsupported {
        path: path.to_owned(),
        what: "it has no weight_map, which says where each tensor is".to_owned(),
    })
}

/// The files beside an index that it speaks of; none for anything that is no index. What is wrong with it is for
/// [`WeightsFile::open`] to say.
pub(crate) fn shards_of(path: &Path) -> BTreeSet<String> {
    let map = if is_index(path) { weight_map(path).unwrap_or_default() } else { BTreeMap::new() };
    map.into_values().filter(|shard| is_name(shard)).collect()
}

/// The tensors under `key`, or under the usual places; and whether these are the whole file.
fn state_dict(
    path: &Path,
    file: &TorchFile,
    key: Option<&str>,
) -> Result<(BTreeMap<String, TensorRef>, bool), WeightsError> {
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
                None => "what torch saved there is no dict".to_owned(),
            },
        });
    };
    let no_key = |what| {
        let names = top.iter().map(|&(key, _)| key_name(pickle, key));
        WeightsError::Key { path: path.to_owned(), what, level: TOP, keys: names.collect() }
    };
    let under = |key| match find(pickle, &top, key).and_then(|id| pickle.entries(id)) {
        Some(entries) => tensors_of(path, file, &entries),
        None => Ok(BTreeMap::new()),
    };
    if let Some(key) = key {
        let (found, is_top, around) = find_nested(pickle, top, key);
        let tensors = found.as_ref().map(|entries| tensors_of(path, file, entries)).transpose()?.unwrap_or_default();
        if tensors.is_empty() {
            let is_top = is_top && found.is_none();
            let keys = found.unwrap_or(around).iter().map(|&(key, _)| key_name(pickle, key)).collect();
            let what = format!("there are no tensors under the key {key}");
            let level = if is_top { TOP } else { "keys there" };
            return Err(WeightsError::Key { path: path.to_owned(), what, level, keys });
        }
        return Ok((tensors, false));
    }
    for key in STATE_DICTS {
        let tensors = under(key)?;
        if !tensors.is_empty() {
            return Ok((tensors, false));
        }
    }
    let tensors = tensors_of(path, file, &top)?;
    if tensors.is_empty() {
        return Err(no_key(format!(
            "there are no tensors at the top or under {}, so name what holds them, as in {}#KEY or #KEY/INNER",
            STATE_DICTS.join(", "),
            path.file_name().unwrap_or_default().to_string_lossy()
        )));
    }
    Ok((tensors, true))
}

fn tensors_of(
    path: &Path,
    file: &TorchFile,
    entries: &[(Id, Id)],
) -> Result<BTreeMap<String, TensorRef>, WeightsError> {
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
fn script_tensors(path: &Path, file: &TorchFile) -> Result<BTreeMap<String, TensorRef>, WeightsError> {
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
fn find(pickle: &Pickle, entries: &[(Id, Id)], key: &str) -> Option<Id> {
    let mut entries = entries.iter().rev();
    let found = entries.find(|(id, _)| pickle.text(*id) == Some(key))?;
    Some(found.1)
}

type Entries = Vec<(Id, Id)>;

/// The entries of the dict at a key, `/` leading into inner dicts; whether it is a key at the top; and the entries of the
/// innermost dict on the way.
fn find_nested(pickle: &Pickle, mut entries: Entries, mut key: &str) -> (Option<Entries>, bool, Entries) {
    let mut is_top = true;
    loop {
        if let Some(found) = find(pickle, &entries, key) {
            return (pickle.entries(found), is_top, entries);
        }
        let inner = |(at, _)| Some((pickle.entries(find(pickle, &entries, &key[..at])?)?, &key[at + 1..]));
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

/// A tensor's name without what wrappers put into it.
fn unwrapped(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    parts.join(".")
}

/// Names without what wrappers put into them -> names in the file.
#[derive(Debug)]
pub(crate) struct Unwrapped<'a>(pub(crate) BTreeMap<String, &'a str>);

impl Unwrapped<'_> {
    /// What comes before `ending` in the shortest name that ends so, whole parts of it; empty where it is the name.
    pub(crate) fn prefix_of(&self, ending: &str) -> Option<&str> {
        let prefixes = self.0.keys().filter_map(|name| name.strip_suffix(ending));
        prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.')).min_by_key(|prefix| prefix.len())
    }
}

/// The weights in a model's folder, or in one of its inner `folders`, by the `names` that they can have.
pub(crate) fn in_folder(folder: &Path, names: &[&str], folders: &[&str]) -> Result<PathBuf, WeightsError> {
    for inner in folders {
        for name in names {
            let paths = [name.to_string(), format!("{name}{INDEX}")].map(|name| folder.join(inner).join(name));
            if let Some(path) = paths.into_iter().find(|path| path.is_file()) {
                return Ok(path);
            }
        }
    }
    let inner: Vec<&str> = folders.iter().filter(|inner| !inner.is_empty()).copied().collect();
    let inner = if inner.is_empty() { String::new() } else { format!(" or in its {}", inner.join(", ")) };
    let names = names[..names.len().min(4)].join(", ");
    Err(WeightsError::NotWeights {
        path: folder.to_owned(),
        what: format!("there is no {names} in it{inner}; name the file itself if it is called otherwise"),
    })
}

/// Reads a configuration of diffusers or transformers.
pub(crate) fn read_config(path: &Path) -> Result<Json, WeightsError> {
    read_json(path, MAX_CONFIG)
}

/// Reads a JSON file of at most so many bytes.
fn read_json(path: &Path, most: u64) -> Result<Json, WeightsError> {
    let failed = |source| WeightsError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        let what = format!("it has more than {} MiB, which no such file has", most >> 20);
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, what)));
    }
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// What a file that is no weights seems to be.
fn what_else(beginning: &[u8], file: &mut File) -> &'static str {
    let printable = |byte: &u8| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r');
    let is_text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(_) => bytes.iter().all(printable),
        // The sample may end within a character.
        Err(error) => error.error_len().is_none() && bytes.iter().all(printable),
    };
    let lower = beginning.to_ascii_lowercase();
    let trimmed = lower.trim_ascii_start();
    if beginning.is_empty() {
        "it is empty"
    } else if beginning.starts_with(b"version https://git-lfs") {
        "it is a git-lfs pointer; fetch the file itself with `git lfs pull`"
    } else if trimmed.starts_with(b"<!doctype html") || trimmed.starts_with(b"<html") {
        "it is a web page, most likely an error page saved instead of the download"
    } else if beginning.get(257..262) == Some(b"ustar") {
        "it is a tar archive; if torch 0.1 made it, re-save it with a newer torch"
    } else if beginning.starts_with(b"\x89HDF\r\n") {
        "it is an HDF5 file (Keras); only torch and safetensors files are read"
    } else if beginning.starts_with(b"\x1f\x8b") {
        "it is compressed with gzip; unpack it first"
    } else if is_text(beginning) {
        "it is a text file"
    } else if is_pickle(file) {
        "it is a pickle, not made by torch.save"
    } else {
        "it is neither a torch file nor a safetensors file, or its beginning is damaged"
    }
}

fn is_pickle(file: &mut File) -> bool {
    // A pickle of any size counts when its first megabyte raises no doubt.
    let read = |file: &mut File| {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let Ok(bytes) = read(file) else {
        return false;
    };
    bytes.first() == Some(&0x80)
        && matches!(Pickle::read(&mut bytes.as_slice()), Ok(_) | Err(crate::pickle::PickleError::Truncated))
}

#[cfg(test)]
mod tests;
