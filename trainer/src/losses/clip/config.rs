//! `[clip]`.

use checkpoints::Activation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::models::random::{RANDOM, known_clip, known_clip_names, random_clip};
use crate::problem::{Problem, location, not_negative, positive, problem, share};

/// More views of one image than this are a typing error.
const MOST_CUTOUTS: usize = 1024;

/// `[clip]`: the CLIP model of the losses `clip_*`, and the views of an image that it gets.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClipConfig {
    /// The model: `hf://owner/name[@revision][/file]`, a local path, or `clip-shapes`, a small model that is part of the
    /// program; the default is `hf://openai/clip-vit-base-patch32`. `random:openai/clip-vit-base-patch32` is that one's
    /// architecture with random weights, which follow from `run.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// `quick_gelu` or `gelu`, overriding the model's configuration; required for a checkpoint of an OpenCLIP training,
    /// which has no configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// A tokenizer, likewise, or a folder with one; the default is the one beside the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Whether the whole image is one of the views.
    pub whole: bool,
    /// Number of random squares used as further views, up to 1024; image and reconstruction have the same ones.
    #[schemars(range(max = MOST_CUTOUTS))]
    pub cutouts: usize,
    /// Exponent, above 0, of the uniform number that chooses a square's size from the smallest to the largest: above 1,
    /// more of the squares are small.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub cutout_power: f64,
    /// Cutouts per sample of a micro-batch in memory at a time; 0 for all. It does not change the result of a step.
    pub cutouts_at_once: usize,
    /// Probability, 0..1, that a cutout is rotated and shifted.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub affine: f64,
    /// Probability, 0..1, that a cutout is seen in perspective.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub perspective: f64,
    /// Probability, 0..1, that a cutout's colours change.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: f64,
    /// Probability, 0..1, that a rectangle of a cutout is blanked.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub erasing: f64,
    /// Largest standard deviation of a cutout's noise, 0 or more, for pixels in 0..1; each cutout's is drawn uniformly
    /// up to it.
    #[schemars(range(min = 0.0))]
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
    /// Whether the model has random weights.
    pub fn is_random(&self) -> bool {
        random_clip(self.location()).is_some()
    }

    /// Where the model is.
    pub fn location(&self) -> &str {
        self.pretrained.as_deref().unwrap_or("hf://openai/clip-vit-base-patch32")
    }

    /// Checks the table. `needs_views`: whether a loss sees cutouts; `clip_contrastive` always sees whole images.
    ///
    /// # Errors
    /// The first problem.
    pub fn check(&self, needs_views: bool) -> Result<(), Problem> {
        location("clip.pretrained", self.pretrained.as_deref())?;
        location("clip.tokenizer", self.tokenizer.as_deref())?;
        if let Some(name) = random_clip(self.location()).filter(|name| known_clip(name).is_none()) {
            let known = known_clip_names().join(", ");
            return problem(
                "clip.pretrained",
                format!("is {RANDOM}:{name}, must have one of {known} behind the colon"),
            );
        }
        if self.cutouts > MOST_CUTOUTS {
            return problem("clip.cutouts", format!("is {}, must be at most {MOST_CUTOUTS}", self.cutouts));
        }
        if self.cutouts == 0 && !self.whole && needs_views {
            let message = "is 0 and clip.whole is false: CLIP would see nothing of an image";
            return problem("clip.cutouts", message);
        }
        positive("clip.cutout_power", self.cutout_power)?;
        share("clip.affine", self.affine)?;
        share("clip.perspective", self.perspective)?;
        share("clip.jitter", self.jitter)?;
        share("clip.erasing", self.erasing)?;
        not_negative("clip.noise", self.noise)
    }
}
