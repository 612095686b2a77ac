//! Fetching what a loss needs, and why a loss cannot be had.

use std::path::PathBuf;

use checkpoints::WeightsError;
use checkpoints::hub::{self, Fetched, FileChoice, HubError, HubSettings, Location};

use crate::models::clip::TokenizerError;
use crate::models::weights::ModelError;
use crate::problem::Problem;
use crate::show::download::DownloadBar;

/// Why a loss cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// Its network cannot be fetched.
    #[error("`{key}`: {source}")]
    Hub {
        /// Where the network is asked for.
        key: &'static str,
        /// Why not.
        source: HubError,
    },
    /// There is no such file.
    #[error("`{key}`: there is no {}", path.display())]
    NoFile {
        /// Where the network is asked for.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Its network's weights cannot be read.
    #[error("`{key}`: {source}")]
    Weights {
        /// Where the network is asked for.
        key: &'static str,
        /// Why not.
        source: WeightsError,
    },
    /// Its network's weights do not make the network.
    #[error("`{key}`: {source}")]
    Model {
        /// Where the network is asked for.
        key: &'static str,
        /// Why not.
        source: ModelError,
    },
    /// A discriminator that was saved.
    #[error(transparent)]
    Saved(#[from] ModelError),
    /// The tokenizer of a CLIP.
    #[error("`clip.tokenizer`: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// No tokenizer where one is needed.
    #[error("`clip.tokenizer` is not set, and beside {} there is none: name a tokenizer.json, such as hf://openai/clip-vit-base-patch32/tokenizer.json", .0.display())]
    NoTokenizer(PathBuf),
    /// A loss's own settings.
    #[error("`{}` {}", .0.key, .0.message)]
    Setting(Problem),
}

impl LossError {
    /// Whether the configuration alone is to blame.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Hub { source, .. } => source.is_wrong_usage(),
            Self::Weights { source, .. } => matches!(source, WeightsError::NoActivation { .. }),
            _ => matches!(self, Self::Setting(_) | Self::NoTokenizer(_)),
        }
    }
}

/// Fetches what `spec` names, if it is not on this machine already.
pub(crate) fn fetch(key: &'static str, spec: &str, files: FileChoice) -> Result<Fetched, LossError> {
    let hub = |source| LossError::Hub { key, source };
    let location = Location::parse(spec).map_err(hub)?;
    if let Location::Local { path, .. } = &location
        && !path.exists()
    {
        return Err(LossError::NoFile { key, path: path.clone() });
    }
    hub::fetch(&location, files, &HubSettings::from_env(), &DownloadBar::default()).map_err(hub)
}
