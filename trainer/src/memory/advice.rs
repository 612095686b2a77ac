//! What a user can change so that a step needs less memory.

use std::fmt;

use super::Variant;
use crate::config::{Compute, Config, Recompute};
use crate::losses::Sees;

/// Changes of a configuration with which a step needs less memory.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Saving {
    /// Keys and values, as `--set` has them.
    pub(super) changes: Vec<String>,
    /// What the configuration is with them, at micro-batch 1.
    pub(super) variant: Variant,
}

impl fmt::Display for Saving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.changes.join(" with "))
    }
}

/// Half the resolution, if the model allows it.
fn half_resolution(config: &Config) -> Option<u32> {
    let mut smaller = config.clone();
    smaller.data.resolution /= 2;
    (config.data.resolution.is_multiple_of(2) && smaller.check().is_ok()).then_some(smaller.data.resolution)
}

/// The changes of `config` that save memory: each alone, then all of them together.
pub(super) fn savings(config: &Config) -> Vec<Saving> {
    let own = Variant { micro: 1, ..Variant::of(config) };
    let mut all = Saving { changes: Vec::new(), variant: own };
    let mut savings = Vec::new();
    let mut add = |change: String, set: &dyn Fn(&mut Variant)| {
        let mut variant = own;
        set(&mut variant);
        set(&mut all.variant);
        all.changes.push(change.clone());
        savings.push(Saving { changes: vec![change], variant });
    };
    if own.recompute == Recompute::None {
        add("memory.recompute = \"blocks\"".to_owned(), &|variant| variant.recompute = Recompute::Blocks);
    }
    if own.precision == Compute::Fp32 {
        add("precision.compute = \"bf16\"".to_owned(), &|variant| variant.precision = Compute::Bf16);
    }
    if let Some(half) = half_resolution(config) {
        add(format!("data.resolution = {half}"), &|variant| variant.resolution = half);
    }
    if all.changes.len() > 1 {
        savings.push(all);
    }
    savings
}

/// What saves memory but only the user can decide, since it changes what is learned or what is kept of it.
pub fn would_help(config: &Config) -> Vec<String> {
    let mut ways = Vec::new();
    if let Some(half) = half_resolution(config) {
        ways.push(format!("data.resolution = {half}"));
    }
    if config.model.train.iter().any(|pattern| pattern == "*") {
        ways.push("freezing the encoder (model.train = [\"post_quant_conv\", \"decoder\"])".to_owned());
    }
    if config.precision.compute == Compute::Fp32 {
        ways.push("precision.compute = \"bf16\"".to_owned());
    }
    if config.losses.has(Sees::Clip) {
        ways.push("a smaller CLIP (clip.pretrained)".to_owned());
    }
    if config.ema.decay > 0.0 {
        ways.push("no average of the weights (ema.decay = 0)".to_owned());
    }
    if ways.is_empty() {
        ways.push("a smaller model".to_owned());
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_saves_memory_is_what_is_not_on_yet() {
        let mut config = Config::default();
        let words = |config: &Config| savings(config).iter().map(Saving::to_string).collect::<Vec<_>>();
        let [blocks, bf16, half] =
            ["memory.recompute = \"blocks\"", "precision.compute = \"bf16\"", "data.resolution = 128"];
        assert_eq!(words(&config), [blocks, bf16, half, &[blocks, bf16, half].join(" with ")]);
        config.memory.recompute = Recompute::Blocks;
        config.precision.compute = Compute::Fp16;
        assert_eq!(words(&config), [half]);
    }

    #[test]
    fn what_helps_is_what_is_not_on_yet() {
        let mut config = Config::default();
        assert_eq!(
            would_help(&config),
            [
                "data.resolution = 128",
                "freezing the encoder (model.train = [\"post_quant_conv\", \"decoder\"])",
                "precision.compute = \"bf16\"",
                "no average of the weights (ema.decay = 0)",
            ]
        );
        config.precision.compute = Compute::Fp16;
        config.model.train = vec!["decoder".to_owned()];
        config.losses.clip_image.weight = 1.0;
        config.ema.decay = 0.0;
        assert_eq!(would_help(&config), ["data.resolution = 128", "a smaller CLIP (clip.pretrained)"]);
    }
}
