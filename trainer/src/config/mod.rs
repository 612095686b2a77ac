//! The configuration of a run: strict TOML, every key with a default. It collects the tables of losses, optimizers and
//! precision, which stand beside what they configure, and depends on nothing above the engine.

mod check;
mod extends;
mod hints;
mod layers;
mod micro;
mod model;
mod overrides;
mod read;
mod reference;
mod sweep;

use std::path::PathBuf;

use checkpoints::hub::expand_home;
use datasets::SourceSettings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::engine::Recompute;
pub use crate::losses::{
    Adaptive, AdversarialConfig, Against, ClipConfig, ClipContrastiveConfig, ClipDirectionConfig, ClipImageConfig,
    ClipTextConfig, CodebookConfig, DiscriminatorConfig, LossesConfig, PerceptualConfig, PixelConfig, PixelNorm,
};
use crate::losses::{LossKeys, Sees, Surroundings};
pub use crate::optim::{
    OptimizerConfig, OptimizerName, PartialOptimizerConfig, PartialScheduleConfig, ScheduleConfig, ScheduleKind,
};
pub use crate::precision::{Compute, LossScaleConfig, PrecisionConfig, ScalerConfig};
pub use crate::problem::Problem;
pub use datasets::DataSource;
pub use extends::{built_in, first_sentence};
pub use micro::Micro;
pub use model::ModelConfig;
pub use overrides::Override;
pub use read::{BUILT_IN, ConfigError, Loaded, Origin, load, load_saved, saved_config};
pub use reference::{KeyReference, KeyValue, reference, schema, tables};
pub use sweep::{Bytes, MaxDeviation, SweepConfig, Tolerance};

/// Everything a run needs to know. An unknown key is an error.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The configuration that this one is based on: a path relative to this file, or a built-in name such as
    /// `small-gpu.toml`. This file then says only what differs.
    #[serde(skip_serializing)]
    pub extends: Option<String>,
    /// The run: its name, length, seed and device.
    pub run: RunConfig,
    /// How many samples an optimizer step sees, and how many of them are in memory at a time.
    pub batch: BatchConfig,
    /// What is computed in half precision, and the loss scale.
    pub precision: PrecisionConfig,
    /// How the memory peak is kept small. None of it changes what a step computes.
    pub memory: MemoryConfig,
    /// A pretrained checkpoint, or an architecture that starts from random weights.
    pub model: ModelConfig,
    /// Where images come from, and what of them the model sees.
    pub data: DataConfig,
    /// The losses: each has a table with its `weight`, where 0 is off.
    pub losses: LossesConfig,
    /// The discriminator of `[losses.adversarial]`.
    pub discriminator: DiscriminatorConfig,
    /// The CLIP model of the losses `clip_*`, and the views of an image that it gets.
    pub clip: ClipConfig,
    /// The model's optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run, in optimizer steps.
    pub schedule: ScheduleConfig,
    /// The average of the weights over the steps, which validation, `reconstruct` and `export` use.
    pub ema: EmaConfig,
    /// When the run is saved, and which checkpoints stay.
    pub checkpoints: CheckpointsConfig,
    /// When and on how many images the model is validated.
    pub validation: ValidationConfig,
    /// What `train sweep` varies, and the bars that each row must meet.
    #[serde(skip_serializing_if = "SweepConfig::is_default")]
    pub sweep: SweepConfig,
}

impl Config {
    /// Replaces a leading `~` in paths by the user's folder. Locations of weights are expanded where they are read.
    fn expand_home(&mut self) {
        for path in [&mut self.data.path, &mut self.sweep.baseline].into_iter().flatten() {
            if let Some(text) = path.to_str() {
                *path = expand_home(text);
            }
        }
    }

    /// The settings from which the data source is opened.
    pub(crate) fn source_settings(&self) -> SourceSettings<'_> {
        SourceSettings {
            path: self.data.path.as_deref(),
            images: self.data.images,
            resolution: self.data.resolution,
            seed: self.run.seed,
            needs_captions: self.needs_captions(),
        }
    }

    /// Whether a loss or validations read captions.
    pub(crate) fn needs_captions(&self) -> bool {
        self.losses.needs_captions() || self.validation.clip
    }

    /// Whether the run has a CLIP: for a loss or for validations.
    pub(crate) fn has_clip(&self) -> bool {
        let perceptual = &self.losses.perceptual;
        self.losses.has(Sees::Clip) || perceptual.is_on() && !perceptual.has_lpips() || self.validation.clip
    }

    /// The scores that validations leave out, since the weights of their networks are random.
    pub(crate) fn scores_left_out(&self) -> Vec<&'static str> {
        let perceptual = &self.losses.perceptual;
        let scores = [
            ("LPIPS", perceptual.has_lpips() && perceptual.is_random()),
            ("CLIP's similarity", self.has_clip() && self.clip.is_random()),
        ];
        scores.into_iter().filter(|(_, left_out)| *left_out).map(|(name, _)| name).collect()
    }

    /// The discriminator's optimizer: `[discriminator.optimizer]`, with `[optimizer]` for keys that it does not set.
    pub fn discriminator_optimizer(&self) -> OptimizerConfig {
        self.discriminator.optimizer.over(&self.optimizer)
    }

    /// The discriminator's schedule: `[discriminator.schedule]`, with `[schedule]` for keys that it does not set.
    pub fn discriminator_schedule(&self) -> ScheduleConfig {
        self.discriminator.schedule.over(&self.schedule)
    }

    /// The settings outside of its own table that a loss may use.
    pub fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            seed: self.run.seed,
            steps: self.run.steps,
            effective: self.batch.effective,
            resolution: self.data.resolution,
            precision: &self.precision,
            optimizer: &self.optimizer,
            schedule: &self.schedule,
            discriminator: &self.discriminator,
            clip: &self.clip,
            judge_by_clip: self.validation.clip,
            losses: self.losses.on().map(|table| (table.sees(), table.weight())).collect(),
        }
    }
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The run's folder is `runs/<name>`. If empty, the configuration file's name.
    pub name: String,
    /// Optimizer steps in all.
    #[schemars(range(min = 1, max = check::MOST_STEPS))]
    pub steps: u64,
    /// Determines all randomness of a run.
    pub seed: u64,
    /// Where to compute: `auto`, `cpu`, `cuda:0`, `wgpu:0`, …; `auto` takes CUDA, then wgpu, then the CPU.
    pub device: String,
    /// Write event files for TensorBoard into the run's folder.
    pub tensorboard: bool,
    /// Optimizer steps between histograms of the gradients' norms in those files; 0 writes none.
    pub gradient_histograms: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            steps: 1000,
            seed: 0,
            device: "auto".into(),
            tensorboard: true,
            gradient_histograms: 10,
        }
    }
}

/// `[batch]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Samples of an optimizer step.
    #[schemars(range(min = 1, max = check::MOST_SAMPLES))]
    pub effective: usize,
    /// Samples on the device at a time; need not divide `effective`.
    pub micro: Micro,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { effective: 32, micro: Micro::Samples(4) }
    }
}

/// `[memory]`: how the memory peak is kept small. None of it changes what a step computes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Recompute activations in the model's backward pass, so that the forward pass need not keep them.
    pub recompute: Recompute,
    /// The most memory that a step may use, such as `"4GiB"`. `batch.micro` is chosen and lowered to fit. On the CPU
    /// this counts all that the program has allocated, apart from images that are read ahead; on a GPU, what the
    /// allocator has reserved. The default is 90 % of the free memory of a CUDA device, and no limit elsewhere.
    #[schemars(with = "Option<String>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Where images come from.
    pub source: DataSource,
    /// The folder of `source = "folder"`; searched to any depth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Number of different images of `source = "shapes"` and `"plain-shapes"`.
    #[schemars(range(min = 1, max = check::MOST_IMAGES))]
    pub images: usize,
    /// Side of the square images that the model sees, in pixels.
    #[schemars(range(min = 8, max = 4096))]
    pub resolution: u32,
    /// Flip half of the samples left to right.
    pub flip: bool,
    /// Which square of an image the model sees.
    pub crop: CropConfig,
    /// Images kept for validation and never trained on; at most a quarter of all.
    pub validation: usize,
    /// Threads that read images.
    #[schemars(range(max = check::MOST_WORKERS))]
    pub workers: usize,
    /// Images read ahead, at most.
    #[schemars(range(min = 1, max = check::MOST_PREFETCHED))]
    pub prefetch: usize,
    /// Broken images that are skipped before the run gives up.
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

impl DataConfig {
    /// Switches to drawn images of the same size, which need no files.
    pub fn draw_shapes(&mut self) {
        self.source = DataSource::Shapes;
        self.path = None;
    }
}

/// Which square of an image a sample shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CropConfig {
    /// Anywhere.
    Random,
    /// The middle.
    Center,
}

/// `[ema]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Share of the old average that a step keeps, at most `(1 + step) / (10 + step)`, so that its start does not
    /// dominate a short run; 0 keeps no average.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub decay: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999 }
    }
}

/// `[checkpoints]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointsConfig {
    /// Optimizer steps between checkpoints; 0 writes none by steps.
    pub every_steps: u64,
    /// Minutes after the last checkpoint at which the next one is written; 0 writes none by time.
    #[schemars(range(min = 0.0))]
    pub every_minutes: f64,
    /// Newest checkpoints to keep.
    #[schemars(range(min = 1))]
    pub keep_last: usize,
    /// Checkpoints at multiples of this step are kept for good; 0 keeps none.
    pub keep_every: u64,
    /// The validation metric that decides which checkpoint is the best. A new best one is written at once and kept.
    pub best: Metric,
}

impl Default for CheckpointsConfig {
    fn default() -> Self {
        Self { every_steps: 1000, every_minutes: 0.0, keep_last: 2, keep_every: 0, best: Metric::None }
    }
}

/// A metric of a validation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, strum::IntoStaticStr, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Metric {
    /// No metric.
    #[default]
    #[serde(alias = "")]
    None,
    /// Mean absolute error; the lower the better.
    L1,
    /// Peak signal-to-noise ratio; the higher the better.
    Psnr,
    /// Structural similarity; the higher the better.
    Ssim,
    /// LPIPS; the lower the better.
    Lpips,
    /// Cosine of CLIP's embeddings; the higher the better.
    Clip,
}

/// `[validation]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Optimizer steps between validations; 0 validates before the first step and after the last.
    pub every_steps: u64,
    /// Images of the validation split to validate on, at most.
    pub images: usize,
    /// Images on the sample grid.
    pub samples: usize,
    /// Measure CLIP's scores also if no loss uses `[clip]`: the similarity of reconstructions to originals and, where
    /// images have captions, to captions.
    pub clip: bool,
    /// Ends the run after this many validations in a row without a better `checkpoints.best`; 0 never does.
    pub patience: u64,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every_steps: 500, images: 64, samples: 8, clip: false, patience: 0 }
    }
}
