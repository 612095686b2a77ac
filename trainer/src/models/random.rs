//! Random weights in place of published ones: memory and speed do not depend on weights, and the gradient must not depend on
//! the batch split with any of them. Nothing is written to a file.
//!
//! In a configuration they have names of their own, so that a run with them is the same run wherever it is resumed:
//! [`RANDOM`] for the networks of LPIPS, and `random:openai/clip-vit-base-patch32` for a CLIP of that architecture.

use std::collections::BTreeMap;

use checkpoints::{Activation, ClipArchitecture, HostTensor, LpipsNetwork, Tower};
use rand::RngExt;

use super::initialize::rng_for;

/// The name of a small CLIP.
const TINY: &str = "tiny";

/// Where random weights are, in place of a file.
pub const RANDOM: &str = "random";

/// Whether `spec` names random weights.
pub fn is_random(spec: &str) -> bool {
    spec == RANDOM || random_clip(spec).is_some()
}

/// The name of the CLIP whose architecture random weights have, as `owner/name`; `None` for a place of weights.
pub fn random_clip(spec: &str) -> Option<&str> {
    spec.strip_prefix(RANDOM)?.strip_prefix(':')
}

type Tensors = BTreeMap<String, HostTensor>;

/// Uniform within `bound`.
fn uniform(seed: u64, name: &str, shape: &[usize], bound: f32) -> HostTensor {
    let mut rng = rng_for(seed, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-bound..=bound)).collect();
    HostTensor::from_f32(shape, &values)
}

fn constant(shape: &[usize], value: f32) -> HostTensor {
    HostTensor::from_f32(shape, &vec![value; shape.iter().product()])
}

/// The network that LPIPS takes features from, by torchvision's names. The weights keep the size of activations of a ReLU network.
pub fn lpips_backbone(network: LpipsNetwork, seed: u64) -> Tensors {
    let mut tensors = Tensors::new();
    for (index, shape) in network.convolutions() {
        let inputs = shape[1..].iter().product::<usize>() as f32;
        let name = format!("features.{index}.weight");
        tensors.insert(name.clone(), uniform(seed, &name, shape, (6.0 / inputs).sqrt()));
        tensors.insert(format!("features.{index}.bias"), constant(&shape[..1], 0.0));
    }
    tensors
}

/// LPIPS's linear layers, `lin0.weight` to `lin4.weight`, all channels alike.
pub fn lpips_linear(network: LpipsNetwork) -> Tensors {
    let layer = |(layer, channels): (usize, usize)| {
        (format!("lin{layer}.weight"), constant(&[1, channels, 1, 1], 1.0 / channels as f32))
    };
    network.channels().into_iter().enumerate().map(layer).collect()
}

/// The weights of a CLIP, by the names of transformers.
pub fn clip_weights(architecture: &ClipArchitecture, seed: u64) -> Tensors {
    let weight = |(name, shape): (String, Vec<usize>)| {
        let inputs = shape.iter().skip(1).product::<usize>().max(1) as f32;
        let tensor = match name.as_str() {
            "logit_scale" => constant(&shape, 4.6),
            name if name.contains("norm") && name.ends_with("weight") => constant(&shape, 1.0),
            name if name.ends_with("bias") => constant(&shape, 0.0),
            name => uniform(seed, name, &shape, inputs.powf(-0.5)),
        };
        (name, tensor)
    };
    architecture.parameters().into_iter().map(weight).collect()
}

/// A small CLIP for tests, and the published ones that are most in use: owner and name, side of images and patches, image tower, text tower, length of
/// embeddings.
type Known = (&'static str, [usize; 2], Tower, Tower, usize, Activation);

fn known_clips() -> [Known; 8] {
    let tower = |width, layers, heads| Tower { width, layers, heads, mlp: 4 * width };
    let (base, large, huge) = (tower(768, 12, 12), tower(1024, 24, 16), tower(1280, 32, 16));
    let (small_text, text, large_text) = (tower(512, 12, 8), tower(768, 12, 12), tower(1024, 24, 16));
    let (openai, laion) = (Activation::QuickGelu, Activation::Gelu);
    let tiny = Tower { width: 32, layers: 2, heads: 2, mlp: 64 };
    [
        (TINY, [32, 16], tiny.clone(), tiny, 16, openai),
        ("openai/clip-vit-base-patch32", [224, 32], base.clone(), small_text.clone(), 512, openai),
        ("openai/clip-vit-base-patch16", [224, 16], base.clone(), small_text.clone(), 512, openai),
        ("openai/clip-vit-large-patch14", [224, 14], large.clone(), text.clone(), 768, openai),
        ("openai/clip-vit-large-patch14-336", [336, 14], large.clone(), text.clone(), 768, openai),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", [224, 32], base, small_text, 512, laion),
        ("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", [224, 14], large, text, 768, laion),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", [224, 14], huge, large_text, 1024, laion),
    ]
}

/// The names of [`known_clip`].
pub fn known_clip_names() -> [&'static str; 8] {
    known_clips().map(|known| known.0)
}

/// Returns the architecture of `tiny`, or of a published CLIP that is in wide use by its `owner/name` on the Hub.
pub fn known_clip(name: &str) -> Option<ClipArchitecture> {
    let (_, [image_size, patch_size], vision, text, embedding, activation) =
        known_clips().into_iter().find(|known| known.0 == name)?;
    // Every byte is a token in itself and at the end of a word, and there are two more.
    let vocabulary = if name == TINY { 2 * 256 + 2 } else { 49_408 };
    Some(ClipArchitecture {
        image_size,
        patch_size,
        vision,
        text,
        context_length: 77,
        vocabulary,
        embedding,
        activation,
        layer_norm_epsilon: 1e-5,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        end_of_text: vocabulary as u32 - 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_from_the_seed() {
        let clip = |seed| clip_weights(&known_clip(TINY).unwrap(), seed);
        let lpips = |seed| lpips_backbone(LpipsNetwork::AlexNet, seed);
        assert!(clip(1) == clip(1) && clip(1) != clip(2));
        assert!(lpips(1) == lpips(1) && lpips(1) != lpips(2));
    }

    #[test]
    fn names_of_random_weights_are_told_from_places() {
        assert_eq!(random_clip("random:openai/clip-vit-base-patch32"), Some("openai/clip-vit-base-patch32"));
        for place in ["./random", "random.pth", "hf://random/random", "openai/clip-vit-base-patch32"] {
            assert!(!is_random(place), "{place}");
        }
        assert!(is_random(RANDOM));
    }
}
