//! Why weights cannot be read, written or used, each in one line.

use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::safetensors_file::SafetensorsError;
use super::torch_file::TorchError;
use crate::tensor::{ShapeError, is_float};

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
    #[error("{}: {what}; the {level} are {}", path.display(), first_of(keys, 20, "none"))]
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
    #[error("{}: {} and {} are both {name} without the prefixes of wrappers, so it is unclear which one is meant", path.display(), names[0], names[1])]
    Twice {
        /// The file.
        path: PathBuf,
        /// The name that both would have.
        name: String,
        /// The names that they have.
        names: Box<[String; 2]>,
    },
    /// A weight that no network can compute with.
    #[error("{}: {count} of the {of} elements of {name} are infinite or not a number: the training had failed before this was saved, so use an earlier checkpoint", path.display())]
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
        "{}: open_clip_config.json is not beside it, and only that file names its activation: put it there, or set \
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

/// What does not fit between the tensors of a file and an architecture.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// Tensors that the architecture needs.
    pub missing: Vec<String>,
    /// Tensors that the architecture has no place for.
    pub unexpected: Vec<String>,
    /// Tensors of another shape or of integers, with both said.
    pub different: Vec<String>,
}

impl Differences {
    /// Compares a tensor of the file with a weight's shape; false if it differs.
    pub fn compare(&mut self, in_file: &str, (dtype, found): (Dtype, &[usize]), shape: &[usize]) -> bool {
        let difference = match is_float(dtype) {
            _ if found != shape => format!("{in_file} is {found:?}, must be {shape:?}"),
            false => format!("{in_file} is {dtype}, must be floating-point"),
            true => return true,
        };
        self.different.push(difference);
        false
    }

    /// # Errors
    /// [`WeightsError::Mismatch`] with all differences, if there are any.
    pub fn check(self, path: &Path) -> Result<(), WeightsError> {
        let Differences { missing, unexpected, different } = self;
        match missing.is_empty() && unexpected.is_empty() && different.is_empty() {
            true => Ok(()),
            false => Err(WeightsError::Mismatch { path: path.to_owned(), missing, unexpected, different }),
        }
    }
}

fn mismatch(missing: &[String], unexpected: &[String], different: &[String]) -> String {
    let kinds = [("missing", missing), ("unexpected", unexpected), ("different", different)];
    let present = kinds.iter().filter(|(_, names)| !names.is_empty());
    let parts = present.map(|(kind, names)| format!("{} {kind} ({})", names.len(), names.join(", ")));
    parts.collect::<Vec<_>>().join("; ")
}

/// The first few of a list, to keep a message on one line.
pub(crate) fn enumerate(items: &[impl AsRef<str>]) -> String {
    first_of(items, 8, "nothing")
}

fn first_of(items: &[impl AsRef<str>], shown: usize, none: &str) -> String {
    let first = items.iter().take(shown).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match items.len() {
        0 => none.to_owned(),
        count if count > shown => format!("{first} and {} more", count - shown),
        _ => first,
    }
}
