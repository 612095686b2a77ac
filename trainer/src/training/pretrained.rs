//! The weights that a run starts from.

use std::path::{Path, PathBuf};

use checkpoints::hub::{self, FileChoice, HubError, HubSettings, Location};
use checkpoints::run::{RunError, RunStore};
use checkpoints::shipped::VQGAN_SHAPES;
use checkpoints::{Architecture, QuantizerKind, WeightsError, WeightsFile, load_vqgan, vqgan_notes};

use crate::config::{Config, ModelConfig, Problem};
use crate::models::architectures::{NAMES, by_name};
use crate::models::initialize::random_weights;
use crate::models::weights::StateDict;
use crate::show::download::DownloadBar;
use crate::training::run_state::{self, State, StateError};

/// Why there are no weights to start from.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// The Hub, or a name of something on it.
    #[error("{0}")]
    Hub(#[from] HubError),
    /// The file.
    #[error("{0}")]
    Weights(#[from] WeightsError),
    /// No such file.
    #[error("there is no {}", .0.display())]
    Missing(PathBuf),
    /// A run's folder without a checkpoint that verifies.
    #[error("{} is a run without a whole checkpoint", .0.display())]
    NoCheckpoint(PathBuf),
    /// A checkpoint that does not verify.
    #[error("{0}")]
    Run(#[from] RunError),
    /// A checkpoint that verifies holds something unexpected.
    #[error("{}: {source}", path.display())]
    State {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// A shipped model could not be unpacked.
    #[error("{name} cannot be unpacked: {source}")]
    Unpack {
        /// The model's name.
        name: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The architecture is unknown or impossible.
    #[error("`{}` {}", .0.key, .0.message)]
    Architecture(Problem),
}

impl PretrainedError {
    /// Whether the request was wrong, and not what was found.
    pub fn is_wrong_usage(&self) -> bool {
        matches!(self, Self::Architecture(_)) || matches!(self, Self::Hub(error) if error.is_wrong_usage())
    }
}

/// A model's weights, from any source.
pub struct Initial {
    /// The model's architecture.
    pub architecture: Architecture,
    /// The weights by canonical name.
    pub weights: StateDict,
    /// Side of the images that it was trained on, in pixels; `None` for a model from elsewhere.
    pub resolution: Option<u32>,
    /// The configuration of the run that it is of.
    pub config: Option<Box<Config>>,
    /// Describes the model for the user.
    pub description: String,
}

/// Reads the pretrained weights of `config`, or draws random ones.
///
/// # Errors
/// If the weights cannot be fetched or read, or do not make a model.
pub fn initial(config: &Config) -> Result<Initial, PretrainedError> {
    match &config.model.pretrained {
        Some(spec) => pretrained(spec),
        None => random(&config.model, config.run.seed),
    }
}

/// Reads weights by name: `vqgan-shapes`, a run's folder, one of its checkpoints, a file, a diffusers folder, or
/// `hf://owner/name`.
///
/// # Errors
/// If the weights cannot be fetched or read, or do not make a model.
pub fn pretrained(spec: &str) -> Result<Initial, PretrainedError> {
    if spec == VQGAN_SHAPES.name {
        return shipped();
    }
    let location = Location::parse(spec)?;
    if let Location::Local { path, key } = &location {
        if !path.exists() {
            return Err(PretrainedError::Missing(path.clone()));
        }
        if key.is_none()
            && let Some(checkpoint) = checkpoint_of(path)?
        {
            return of_checkpoint(&checkpoint);
        }
    }
    let fetched = hub::fetch(&location, FileChoice::Vqgan, &HubSettings::from_env(), &DownloadBar::default())?;
    let file = WeightsFile::open_fetched(&fetched)?;
    let architecture = Architecture::infer(&file, None)?;
    let weights = load_vqgan(&file, &architecture)?;
    let mut description = format!("{} from {spec}", describe(&architecture));
    vqgan_notes(&file)?.iter().for_each(|note| description += &format!(" ({note})"));
    Ok(Initial { architecture, weights, resolution: None, config: None, description })
}

/// Side of the images that the shipped model was trained on, in pixels.
const SHIPPED_RESOLUTION: u32 = 64;

fn shipped() -> Result<Initial, PretrainedError> {
    let unpack = |source| PretrainedError::Unpack { name: VQGAN_SHAPES.name, source };
    let folder = VQGAN_SHAPES.unpack().map_err(unpack)?;
    read_shipped(folder.path(), VQGAN_SHAPES.name)
}

/// Reads `model.safetensors`, which has canonical names, and `architecture.json` in `folder`.
fn read_shipped(folder: &Path, name: &'static str) -> Result<Initial, PretrainedError> {
    let unpack = |source| PretrainedError::Unpack { name, source };
    let architecture = std::fs::read(folder.join("architecture.json")).map_err(unpack)?;
    let architecture: Architecture = serde_json::from_slice(&architecture).map_err(|error| unpack(error.into()))?;
    let file = WeightsFile::open(folder.join("model.safetensors"))?;
    let read = |(name, _): (String, Vec<usize>)| Ok((name.clone(), file.read(&name)?));
    let weights = architecture.parameters().into_iter().map(read).collect::<Result<_, WeightsError>>()?;
    let description = format!("{} from {name}", describe(&architecture));
    Ok(Initial { architecture, weights, resolution: Some(SHIPPED_RESOLUTION), config: None, description })
}

/// Returns the newest whole checkpoint if `path` is a run's folder, `path` itself if it is a checkpoint, else `None`.
fn checkpoint_of(path: &Path) -> Result<Option<PathBuf>, PretrainedError> {
    let checkpoints = path.join("checkpoints");
    if is_run(path, &checkpoints) {
        let newest = RunStore::read(&checkpoints).newest_usable(run_state::check)?;
        for (path, reason) in &newest.passed_over {
            note!("passed over {}: {reason}", path.display());
        }
        return match newest.checkpoint {
            Some(checkpoint) => Ok(Some(checkpoint.path)),
            None => Err(PretrainedError::NoCheckpoint(path.to_owned())),
        };
    }
    match run_state::is_checkpoint(path) {
        true => {
            checkpoints::run::verify(path)?;
            Ok(Some(path.to_owned()))
        }
        false => Ok(None),
    }
}

/// Whether a folder is a run of this program. taming's logs have `checkpoints/` too, but with files of weights in it.
fn is_run(path: &Path, checkpoints: &Path) -> bool {
    let holds_weights = || {
        let files = std::fs::read_dir(checkpoints).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_weights = |file: &PathBuf| {
            file.extension()
                .is_some_and(|ending| ["ckpt", "pt", "pth", "safetensors"].iter().any(|known| ending == *known))
        };
        files.filter(is_weights).any(|file| file.is_file())
    };
    checkpoints.is_dir() && (path.join("config.toml").is_file() || !holds_weights())
}

fn of_checkpoint(path: &Path) -> Result<Initial, PretrainedError> {
    let wrong = |source| PretrainedError::State { path: path.to_owned(), source };
    let resumed = run_state::read(path).map_err(wrong)?;
    let State { architecture, config, .. } = resumed.state;
    Ok(Initial {
        description: format!("{} from {}", describe(&architecture), path.display()),
        architecture,
        weights: resumed.ema.unwrap_or(resumed.model),
        resolution: Some(config.data.resolution),
        config: Some(Box::new(config)),
    })
}

fn random(model: &ModelConfig, seed: u64) -> Result<Initial, PretrainedError> {
    let architecture = random_architecture(model).map_err(PretrainedError::Architecture)?;
    let description = format!("{} with random weights", describe(&architecture));
    let weights = random_weights(&architecture, seed);
    Ok(Initial { architecture, weights, resolution: None, config: None, description })
}

pub(super) fn random_architecture(model: &ModelConfig) -> Result<Architecture, Problem> {
    let name = model.architecture.as_deref().unwrap_or("tiny");
    let unknown = || Problem {
        key: "model.architecture",
        message: format!("is \"{name}\", must be one of {}", NAMES.join(", ")),
    };
    let mut architecture = by_name(name).ok_or_else(unknown)?;
    if let Some(channels) = &model.channels {
        architecture.base_channels = channels.first().copied().unwrap_or(0);
        architecture.channels.clone_from(channels);
    }
    let set = |field: &mut usize, value: Option<usize>| *field = value.unwrap_or(*field);
    set(&mut architecture.res_blocks, model.res_blocks);
    set(&mut architecture.latent_channels, model.latent_channels);
    set(&mut architecture.code_dim, model.code_dim);
    set(&mut architecture.codes, model.codes);
    set(&mut architecture.groups, model.groups);
    if let Some(levels) = &model.attention_levels {
        architecture.attention_levels.clone_from(levels);
    }
    architecture.mid_attention = model.mid_attention.unwrap_or(architecture.mid_attention);
    architecture.quantizer.l2_norm = model.l2_norm.unwrap_or(architecture.quantizer.l2_norm);
    let wrong = |error: WeightsError| Problem { key: "model", message: format!("does not describe a model: {error}") };
    architecture.check().map_err(wrong)?;
    Ok(architecture)
}

pub(super) fn describe(architecture: &Architecture) -> String {
    let parameters = architecture.parameters();
    let count: usize = parameters.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    format!(
        "{} {}VQGAN, f{}, {} codes of {} values, {:.1} M parameters",
        architecture.family,
        if architecture.quantizer.kind == QuantizerKind::Gumbel { "Gumbel " } else { "" },
        architecture.downsampling(),
        architecture.codes,
        architecture.code_dim,
        count as f64 / 1e6
    )
}
