//! Fetches the files that a loss needs; errors of loading a loss.

use std::path::PathBuf;

use checkpoints::WeightsError;
use checkpoints::hub::{self, Fetched, FileChoice, HubError, HubSettings, Location, Presence};
use checkpoints::shipped::CLIP_SHAPES;

use crate::models::clip::TokenizerError;
use crate::models::weights::ModelError;
use crate::problem::Problem;
use crate::show::download::DownloadBar;

/// Why a loss cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// Its network cannot be fetched.
    #[error("`{key}`: {source}")]
    Hub {
        /// The key that names the network.
        key: &'static str,
        /// The cause.
        source: HubError,
    },
    /// The file does not exist.
    #[error("`{key}`: there is no {}", path.display())]
    NoFile {
        /// The key that names the network.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Its network's weights cannot be read.
    #[error("`{key}`: {source}")]
    Weights {
        /// The key that names the network.
        key: &'static str,
        /// The cause.
        source: WeightsError,
    },
    /// Its network's weights do not match the network.
    #[error("`{key}`: {source}")]
    Model {
        /// The key that names the network.
        key: &'static str,
        /// The cause.
        source: ModelError,
    },
    /// A saved discriminator cannot be restored.
    #[error(transparent)]
    Saved(#[from] ModelError),
    /// A shipped model could not be unpacked.
    #[error("`{key}` cannot be unpacked: {source}")]
    Unpack {
        /// The key that names the network.
        key: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The tokenizer of a CLIP cannot be used.
    #[error("`clip.tokenizer`: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// There is no tokenizer, but one is needed.
    #[error("`clip.tokenizer` is not set, and there is none beside {}: name a tokenizer.json, such as hf://openai/clip-vit-base-patch32/tokenizer.json", .0.display())]
    NoTokenizer(PathBuf),
    /// The loss's own settings are wrong.
    #[error("`{}` {}", .0.key, .0.message)]
    Setting(Problem),
}

impl LossError {
    /// Whether only the configuration is wrong.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Hub { source, .. } => source.is_wrong_usage(),
            Self::Weights { source, .. } => matches!(source, WeightsError::NoActivation { .. }),
            _ => matches!(self, Self::Setting(_) | Self::NoTokenizer(_)),
        }
    }
}

/// Fetches the files that `spec` names, unless they are on this machine already.
pub(crate) fn fetch(key: &'static str, spec: &str, files: FileChoice) -> Result<Fetched, LossError> {
    let fetched = hub::fetch(&locate(key, spec)?, files, &HubSettings::from_env(), &DownloadBar::default());
    fetched.map_err(|source| LossError::Hub { key, source })
}

/// Finds out what [`fetch`] would download.
pub(crate) fn look(key: &'static str, spec: &str, files: FileChoice) -> Result<Presence, LossError> {
    let presence = hub::look(&locate(key, spec)?, files, &HubSettings::from_env());
    presence.map_err(|source| LossError::Hub { key, source })
}

/// Whether nothing has to be downloaded for the weights at `spec`, which may be a shipped model.
pub(crate) fn is_here(key: &'static str, spec: &str) -> bool {
    let settings = HubSettings { offline: true, ..HubSettings::from_env() };
    let files = if key == "clip.pretrained" { FileChoice::Clip } else { FileChoice::Any };
    let is_there = |location| hub::look(&location, files, &settings).is_ok_and(|presence| presence == Presence::Here);
    spec == CLIP_SHAPES.name || locate(key, spec).is_ok_and(is_there)
}

fn locate(key: &'static str, spec: &str) -> Result<Location, LossError> {
    match Location::parse(spec).map_err(|source| LossError::Hub { key, source })? {
        Location::Local { path, .. } if !path.exists() => Err(LossError::NoFile { key, path }),
        location => Ok(location),
    }
}
