//! `[discriminator]`.

use serde::{Deserialize, Serialize};

use crate::models::discriminator::DiscriminatorNorm;
use crate::optim::{PartialOptimizerConfig, PartialScheduleConfig};

/// `[discriminator]`: a PatchGAN (Isola et al. 2017, arXiv 1611.07004), for `[losses.adversarial]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscriminatorConfig {
    /// The normalisation; `pretrained`, if set, determines it.
    pub norm: DiscriminatorNorm,
    /// Channels after the first convolution, 1 to 1024; `pretrained`, if set, determines them.
    pub channels: usize,
    /// Convolutions that halve the image, 1 to 10; `pretrained`, if set, determines them.
    pub layers: usize,
    /// A taming-transformers checkpoint with a discriminator: `hf://owner/name[@revision][/file]` or a local path. The
    /// default is random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// First optimizer step at which it is trained; the default is `losses.adversarial.start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// `[discriminator.optimizer]`
    pub optimizer: PartialOptimizerConfig,
    /// `[discriminator.schedule]`, which counts from the step at which its training starts.
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
