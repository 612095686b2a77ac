//! `[model]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[model]`: a pretrained checkpoint, or an architecture that starts from random weights.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `hf://owner/name[@revision][/file][#key]`, or a local path with or without `#key`. If unset, weights are random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// The parameters to train: globs over names such as `encoder.down.0.block.0.conv1.weight`. A `*` also matches
    /// dots, and a pattern that matches a module matches all below it, so that `decoder` is the whole decoder. The rest
    /// is frozen.
    pub train: Vec<String>,
    /// Name of a built-in architecture, for random weights; `tiny` if unset.
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
    /// Compare codes and latents at unit length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_norm: Option<bool>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            pretrained: None,
            train: vec!["*".into()],
            architecture: None,
            channels: None,
            res_blocks: None,
            attention_levels: None,
            mid_attention: None,
            latent_channels: None,
            code_dim: None,
            codes: None,
            groups: None,
            l2_norm: None,
        }
    }
}

impl ModelConfig {
    /// The first key set that describes an architecture.
    pub(super) fn architecture_key(&self) -> Option<&'static str> {
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
