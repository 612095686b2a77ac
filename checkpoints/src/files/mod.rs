//! Files of weights in every container: recognised by their content, read tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value as Json;

mod error;
mod folder;
mod json;
mod names;
mod not_weights;
mod pickle;
mod safetensors_file;
mod shards;
mod state_dict;
#[cfg(test)]
mod tests;
mod torch_file;
mod torch_storage;
mod torch_writer;

use crate::tensor::HostTensor;
pub use error::WeightsError;
pub(crate) use error::{Differences, enumerate};
pub(crate) use folder::in_folder;
pub(crate) use json::read_config;
pub use pickle::PickleError;
pub use safetensors_file::{SafetensorsError, write_safetensors};
use safetensors_file::{SafetensorsFile, is_safetensors};
use shards::is_index;
pub(crate) use shards::{INDEX, shards_of};
use state_dict::TOP;
pub use torch_file::TorchError;
use torch_file::{TensorRef, TorchFile, is_legacy};
pub(crate) use torch_writer::write_torch;

/// Weights on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The file with the weights, or the index of the files that they are split over. What belongs to them lies beside
    /// it.
    pub weights: PathBuf,
    /// The key of a torch file that holds the weights; `/` leads into inner dicts.
    pub key: Option<String>,
}

impl<P: AsRef<Path>> From<P> for Fetched {
    fn from(path: P) -> Fetched {
        Fetched { weights: path.as_ref().to_owned(), key: None }
    }
}

/// Named tensors in a file, each read when it is asked for.
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
    /// Several files, and the number of the file that holds each tensor.
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

    /// [`open`](Self::open), with the key of a torch file that holds the weights: one at the top, or `state/generator`
    /// for one in a dict below it.
    ///
    /// # Errors
    /// As for `open`; [`WeightsError::Key`] lists the keys that there are.
    pub fn open_with(path: impl AsRef<Path>, key: Option<&str>) -> Result<WeightsFile, WeightsError> {
        let path = path.as_ref();
        let failed = |source| WeightsError::Io { path: path.to_owned(), source };
        let kind = std::fs::metadata(path).map_err(failed)?;
        if kind.is_dir() {
            return Self::open_file(&folder::find_weights(path)?, key);
        }
        if !kind.is_file() {
            // Opening a pipe waits until somebody writes into it.
            return Err(WeightsError::NotWeights { path: path.to_owned(), what: "it is no regular file".to_owned() });
        }
        Self::open_file(path, key)
    }

    /// Opens weights that were found or downloaded.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn open_fetched(fetched: &Fetched) -> Result<WeightsFile, WeightsError> {
        Self::open_with(&fetched.weights, fetched.key.as_deref())
    }

    fn open_file(path: &Path, key: Option<&str>) -> Result<WeightsFile, WeightsError> {
        let failed = |source| WeightsError::Io { path: path.to_owned(), source };
        let torch = |source| WeightsError::Torch { path: path.to_owned(), source };
        let without_key = |what: &str| match key {
            None => Ok(()),
            Some(key) => {
                let (path, what) = (path.to_owned(), format!("{what} key {key}"));
                Err(WeightsError::Key { path, what, level: TOP, keys: Vec::new() })
            }
        };
        let mut file = File::open(path).map_err(failed)?;
        let mut beginning = Vec::new();
        (&mut file).take(512).read_to_end(&mut beginning).map_err(failed)?;

        let source = if beginning.starts_with(b"PK\x03\x04") {
            Source::torch(path, TorchFile::open_zip(file).map_err(torch)?, key)?
        } else if is_safetensors(&beginning) {
            let file = SafetensorsFile::open(file)
                .map_err(|source| WeightsError::Safetensors { path: path.to_owned(), source })?;
            without_key("a safetensors file has no top-level")?;
            Source::Safetensors(file)
        } else if is_index(path) {
            without_key("the index of several files has no")?;
            let (files, tensors) = shards::open(path)?;
            Source::Shards { files, tensors }
        } else if is_legacy(&mut file).map_err(failed)? {
            Source::torch(path, TorchFile::open_legacy(file).map_err(torch)?, key)?
        } else {
            let what = not_weights::describe(&beginning, &mut file).to_owned();
            return Err(WeightsError::NotWeights { path: path.to_owned(), what });
        };
        Ok(WeightsFile { path: path.to_owned(), source })
    }

    /// The file that the weights are in; inside of the folder when a folder was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses the weights: says in one line what they are instead, or what is wrong with them.
    pub(crate) fn refuse<T>(&self, what: impl Into<String>) -> Result<T, WeightsError> {
        Err(WeightsError::Unsupported { path: self.path.clone(), what: what.into() })
    }

    /// The JSON file of that name beside the weights, if there is one. To be asked only for a configuration that
    /// belongs to such weights: other files beside weights may be anything.
    pub(crate) fn json_beside(&self, name: &str) -> Result<Option<Json>, WeightsError> {
        let path = self.path.with_file_name(name);
        // A folder or a pipe of that name is no configuration, and opening a pipe waits for ever.
        path.is_file().then(|| read_config(&path)).transpose()
    }

    /// Whether a state dict is all that was saved, with nothing about a training around it.
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

    /// The first names, for a message about weights that are not known.
    pub(crate) fn first_names(&self) -> String {
        self.names().take(3).collect::<Vec<_>>().join(", ")
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        match &self.source {
            Source::Torch { tensors, .. } => tensors.get(name).map(|tensor| (tensor.dtype, &tensor.shape[..])),
            Source::Safetensors(file) => file.tensors().get(name).map(|info| (info.dtype, &info.shape[..])),
            Source::Shards { files, tensors } => files[*tensors.get(name)?].info(name),
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

    /// Reads a weight of a network: every element must be finite.
    pub(crate) fn read_weight(&self, name: &str) -> Result<HostTensor, WeightsError> {
        let tensor = self.read(name)?;
        // An F64 can be finite and still too large for the F32 that networks compute with.
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

    /// A hyperparameter that was saved with the weights: an attribute of LlamaGen's `args`, or an entry of
    /// Lightning's `hyper_parameters`.
    pub fn hyper(&self, name: &str) -> Option<Json> {
        match &self.source {
            Source::Torch { file, .. } => state_dict::hyper(&file.pickle, name),
            Source::Safetensors(_) | Source::Shards { .. } => None,
        }
    }
}

impl Source {
    fn torch(path: &Path, file: TorchFile, key: Option<&str>) -> Result<Source, WeightsError> {
        let (tensors, is_whole) = state_dict::find(path, &file, key)?;
        Ok(Source::Torch { file: Box::new(file), tensors, is_whole })
    }
}
