//! The configuration of a run: strict TOML, every key with a default.

mod check;
mod read;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::Problem;
pub use read::{BUILT_IN, ConfigError, Loaded, Origin, Override, load};

/// Everything a run needs to know. An unknown key is an error.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[run]`
    pub run: RunConfig,
    /// `[batch]`
    pub batch: BatchConfig,
    /// `[precision]`
    pub precision: PrecisionConfig,
    /// `[model]`
    pub model: ModelConfig,
    /// `[data]`
    pub data: DataConfig,
    /// `[losses.*]`
    pub losses: LossesConfig,
    /// `[optimizer]`
    pub optimizer: OptimizerConfig,
    /// `[schedule]`
    pub schedule: ScheduleConfig,
    /// `[ema]`
    pub ema: EmaConfig,
    /// `[checkpoints]`
    pub checkpoints: CheckpointsConfig,
    /// `[validation]`
    pub validation: ValidationConfig,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The run's folder is `runs/<name>`; the configuration file's name where empty.
    pub name: String,
    /// Optimizer steps in all.
    pub steps: u64,
    /// All randomness of a run follows from it.
    pub seed: u64,
    /// `auto`, `cpu`, `cuda:0`, `wgpu:0`.
    pub device: String,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { name: String::new(), steps: 1000, seed: 0, device: "auto".into() }
    }
}

/// `[batch]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Samples that an optimizer step sees.
    pub effective: usize,
    /// Samples on the device at a time; need not divide `effective`.
    pub micro: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { effective: 32, micro: 4 }
    }
}

/// `[precision]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrecisionConfig {
    /// What the networks compute in.
    pub compute: Compute,
}

/// A precision to compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 32-bit floating point.
    #[default]
    Fp32,
}

/// `[model]`: a pretrained checkpoint, or an architecture to start from nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `hf://owner/name[@revision][/file]` or a local path. Without it the weights are random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// Name of a built-in architecture, for random weights; `tiny` where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Channels of each level, finest first, in place of the architecture's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<usize>>,
    /// Residual blocks for each level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub res_blocks: Option<usize>,
    /// Levels with attention, 0 being the finest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_levels: Option<Vec<usize>>,
    /// Attention in the middle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mid_attention: Option<bool>,
    /// Channels between the encoder and the codebook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent_channels: Option<usize>,
    /// Length of a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_dim: Option<usize>,
    /// Number of codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes: Option<usize>,
    /// Groups of the normalisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Codes and latents compared at unit length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_norm: Option<bool>,
}

impl ModelConfig {
    /// The first key set that describes an architecture.
    fn architecture_key(&self) -> Option<&'static str> {
        let keys = [
            ("model.architecture", self.architecture.is_some()),
            ("model.channels", self.channels.is_some()),
            ("model.res_blocks", self.res_blocks.is_some()),
            ("model.attention_levels", self.attention_levels.is_some()),
            ("model.mid_attention", self.mid_attention.is_some()),
            ("model.latent_channels", self.latent_channels.is_some()),
            ("model.code_dim", self.code_dim.is_some()),
            ("model.codes", self.codes.is_some()),
            ("model.groups", self.groups.is_some()),
            ("model.l2_norm", self.l2_norm.is_some()),
        ];
        keys.into_iter().find(|(_, set)| *set).map(|(key, _)| key)
    }
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Where pictures come from.
    pub source: DataSource,
    /// The folder of `source = "folder"`; searched to any depth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Number of different pictures of `source = "shapes"`.
    pub images: usize,
    /// Side of the square that a model sees, in pixels.
    pub resolution: u32,
    /// Flip every other picture left to right.
    pub flip: bool,
    /// Which square of a picture.
    pub crop: CropConfig,
    /// Pictures kept for validation and never trained on; at most a quarter of all.
    pub validation: usize,
    /// Threads that read pictures.
    pub workers: usize,
    /// Pictures read ahead, at most.
    pub prefetch: usize,
    /// Broken pictures that are skipped before the run gives up.
    pub max_bad: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: DataSource::Shapes,
            path: None,
            images: 20_000,
            resolution: 256,
            flip: true,
            crop: CropConfig::Random,
            validation: 64,
            workers: 2,
            prefetch: 16,
            max_bad: 100,
        }
    }
}

/// A source of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DataSource {
    /// A folder of images.
    Folder,
    /// Pictures that the program draws.
    Shapes,
}

/// Which square of a picture a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CropConfig {
    /// Anywhere.
    Random,
    /// The middle.
    Center,
}

/// `[losses.*]`: a loss that is not named keeps its default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossesConfig {
    /// `[losses.pixel]`
    pub pixel: PixelConfig,
    /// `[losses.codebook]`
    pub codebook: CodebookConfig,
}

/// `[losses.pixel]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PixelConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// The norm of the difference.
    pub norm: PixelNormConfig,
    /// Share of `l1` in `mix`, 0..1.
    pub mix: f64,
}

impl Default for PixelConfig {
    fn default() -> Self {
        Self { weight: 1.0, start: 0, ramp: 0, norm: PixelNormConfig::L1, mix: 0.5 }
    }
}

/// The norm of a difference of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelNormConfig {
    /// Mean absolute error.
    L1,
    /// Mean squared error.
    L2,
    /// A mix of both.
    Mix,
}

/// `[losses.codebook]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodebookConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// The smaller of the two terms' weights; the checkpoint's where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Whether `beta` weights the codes' term (taming's legacy) and not the commitment; the checkpoint's where nothing is
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legacy: Option<bool>,
    /// Weight of the entropy term; the checkpoint's where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
}

impl Default for CodebookConfig {
    fn default() -> Self {
        Self { weight: 1.0, start: 0, ramp: 0, beta: None, legacy: None, entropy: None }
    }
}

/// `[optimizer]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The algorithm.
    pub name: OptimizerName,
    /// Highest learning rate of the schedule.
    pub learning_rate: f64,
    /// Decay of the running mean and of the running square.
    pub betas: [f64; 2],
    /// Guard against division by zero.
    pub epsilon: f64,
    /// Weight decay: decoupled in `adamw`, part of the gradient in `adam`.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adam,
            learning_rate: 4.5e-6 * 16.0,
            betas: [0.5, 0.9],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
        }
    }
}

/// An algorithm of `[optimizer]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Kingma and Ba 2014, arXiv 1412.6980.
    Adam,
    /// Loshchilov and Hutter 2017, arXiv 1711.05101.
    AdamW,
}

/// `[schedule]`, in optimizer steps.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the learning rate grows from nothing.
    pub warmup: u64,
    /// Learning rate at the end, as a share of the highest; `constant` does not use it.
    pub last: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Constant, warmup: 0, last: 0.0 }
    }
}

/// The shape of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Stays.
    Constant,
    /// Half a cosine (Loshchilov and Hutter 2016, arXiv 1608.03983).
    Cosine,
    /// A straight line.
    Linear,
}

/// `[ema]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Share of the old average that a step keeps, and at most `(1 + step) / (10 + step)` of it, so that a short run is not
    /// ruled by its start; 0 keeps no average.
    pub decay: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999 }
    }
}

/// `[checkpoints]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointsConfig {
    /// Optimizer steps between checkpoints; 0 writes one at the end only.
    pub every_steps: u64,
    /// Newest checkpoints to keep.
    pub keep_last: usize,
    /// Checkpoints at multiples of this step are kept for good; 0 keeps none.
    pub keep_every: u64,
}

impl Default for CheckpointsConfig {
    fn default() -> Self {
        Self { every_steps: 1000, keep_last: 2, keep_every: 0 }
    }
}

/// `[validation]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Optimizer steps between validations; 0 validates before the first step and after the last.
    pub every_steps: u64,
    /// Pictures of the validation split to look at, at most.
    pub images: usize,
    /// Pictures on the sample grid.
    pub samples: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every_steps: 500, images: 64, samples: 8 }
    }
}
