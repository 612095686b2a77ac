//! `[discriminator]` and `[clip]`: the networks that losses need beside the model.

use checkpoints::Activation;
use serde::{Deserialize, Serialize};

use crate::models::discriminator::DiscriminatorNorm;

use super::{LossesConfig, PartialOptimizerConfig, PartialScheduleConfig};

/// `[discriminator]`: a PatchGAN (Isola et al. 2016, arXiv 1611.07004), for `[losses.adversarial]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscriminatorConfig {
    /// The normalisation; that of `pretrained` where there is one.
    pub norm: DiscriminatorNorm,
    /// Channels after the first convolution, 1 to 1024; those of `pretrained` where there is one.
    pub channels: usize,
    /// Convolutions that halve the picture, 1 to 10; those of `pretrained` where there is one.
    pub layers: usize,
    /// A taming-transformers checkpoint with a discriminator: `hf://owner/name[@revision][/file]` or a local path.
    /// Without it the weights are random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// First optimizer step at which it learns; `losses.adversarial.start` where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// `[discriminator.optimizer]`
    pub optimizer: PartialOptimizerConfig,
    /// `[discriminator.schedule]`, which counts from the step at which it starts to learn.
    pub schedule: PartialScheduleConfig,
}

impl Default for DiscriminatorConfig {
    fn default() -> Self {
        Self {
            norm: DiscriminatorNorm::Group,
            channels: 64,
            layers: 3,
            pretrained: None,
            start: None,
            optimizer: PartialOptimizerConfig::default(),
            schedule: PartialScheduleConfig::default(),
        }
    }
}

/// `[clip]`: the CLIP model of the losses `clip_*`, and the views of a picture that it sees.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipConfig {
    /// The model: `hf://owner/name[@revision][/file]` or a local path, `hf://openai/clip-vit-base-patch32` where
    /// nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// `quick_gelu` or `gelu`, in place of what the model's configuration says; needed for a checkpoint of an OpenCLIP
    /// training, which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// A tokenizer, likewise, or a folder with one; that beside the model where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Whether the whole picture is one of the views.
    pub whole: bool,
    /// Random squares that are the other views, up to 1024; picture and reconstruction have the same ones.
    pub cutouts: usize,
    /// Exponent of the evenly drawn share of the way from the smallest square to the largest, above 0; over 1 favours
    /// small ones.
    pub cutout_power: f64,
    /// Cutouts of each sample of a micro-batch in memory at a time; 0 for all. It does not change what a step computes.
    pub cutouts_at_once: usize,
    /// Probability, 0..1, that a cutout is turned and shifted.
    pub affine: f64,
    /// Probability, 0..1, that a cutout is seen from aside.
    pub perspective: f64,
    /// Probability, 0..1, that a cutout's colours change.
    pub jitter: f64,
    /// Probability, 0..1, that a rectangle of a cutout is blanked.
    pub erasing: f64,
    /// Largest standard deviation of a cutout's noise, 0 or more, of pixels in 0..1; each cutout's is drawn evenly up
    /// to it.
    pub noise: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            pretrained: None,
            activation: None,
            tokenizer: None,
            whole: true,
            cutouts: 8,
            cutout_power: 1.0,
            cutouts_at_once: 0,
            affine: 0.7,
            perspective: 0.7,
            jitter: 0.7,
            erasing: 0.7,
            noise: 0.1,
        }
    }
}

impl ClipConfig {
    /// Whether a loss that is on needs CLIP.
    pub fn is_needed(losses: &LossesConfig) -> bool {
        let LossesConfig { clip_image, clip_text, clip_contrastive, clip_direction, .. } = losses;
        let weights = [clip_image.weight, clip_text.weight, clip_contrastive.weight, clip_direction.weight];
        weights.iter().any(|weight| *weight != 0.0)
    }

    /// Where the model is.
    pub fn location(&self) -> &str {
        self.pretrained.as_deref().unwrap_or("hf://openai/clip-vit-base-patch32")
    }
}
