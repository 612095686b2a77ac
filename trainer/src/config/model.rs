//! `[model]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[model]`: a pretrained checkpoint, or an architecture that starts from random weights.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `hf://owner/name[@revision][/file][#key]`, a local path with or without `#key`, or `vqgan-shapes`, a small model that
    /// is part of the program. If unset, weights are random.
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
        self.clone().unset_architecture(|_| true).first().copied()
    }

    /// Gives the keys that describe an architecture, are set and are chosen by `which` their default. Returns them.
    pub(super) fn unset_architecture(&mut self, which: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let keys: [(&'static str, &mut dyn Unset); 10] = [
            ("model.architecture", &mut self.architecture),
            ("model.channels", &mut self.channels),
            ("model.res_blocks", &mut self.res_blocks),
            ("model.attention_levels", &mut self.attention_levels),
            ("model.mid_attention", &mut self.mid_attention),
            ("model.latent_channels", &mut self.latent_channels),
            ("model.code_dim", &mut self.code_dim),
            ("model.codes", &mut self.codes),
            ("model.groups", &mut self.groups),
            ("model.l2_norm", &mut self.l2_norm),
        ];
        let chosen = keys.into_iter().filter(|(key, _)| which(key));
        chosen.filter_map(|(key, value)| value.unset().then_some(key)).collect()
    }
}

/// A value that may be unset.
trait Unset {
    /// Unsets it. Returns whether it was set.
    fn unset(&mut self) -> bool;
}

impl<T> Unset for Option<T> {
    fn unset(&mut self) -> bool {
        self.take().is_some()
    }
}
