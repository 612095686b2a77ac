//! `[discriminator]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table::{MOST_CHANNELS, MOST_LAYERS};
use crate::models::discriminator::DiscriminatorNorm;
use crate::optim::{PartialOptimizerConfig, PartialScheduleConfig};

/// `[discriminator]`: a PatchGAN (Isola et al. 2017, arXiv 1611.07004), for `[losses.adversarial]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiscriminatorConfig {
    /// The normalisation; `pretrained`, if set, determines it.
    pub norm: DiscriminatorNorm,
    /// Channels after the first convolution, 1 to 1024; `pretrained`, if set, determines them.
    #[schemars(range(min = 1, max = MOST_CHANNELS))]
    pub channels: usize,
    /// Convolutions that halve the image, 1 to 10; `pretrained`, if set, determines them.
    #[schemars(range(min = 1, max = MOST_LAYERS))]
    pub layers: usize,
    /// A taming-transformers checkpoint with a discriminator: `hf://owner/name[@revision][/file]` or a local path. The
    /// default is random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// First optimizer step at which it is trained; the default is `losses.adversarial.start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// The discriminator's optimizer: a key that is not set has the value of `[optimizer]`.
    pub optimizer: PartialOptimizerConfig,
    /// The discriminator's learning rate, from the step at which its training starts: a key that is not set has the value of
    /// `[schedule]`.
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
