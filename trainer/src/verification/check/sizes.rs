//! The sizes at which a device is checked.

use checkpoints::{Activation, Architecture, ClipArchitecture, Tower};

use super::Scale;
use crate::models::architectures::by_name;

/// The sizes of the networks and images that layers are checked with.
pub(super) struct Sizes {
    pub(super) architecture: Architecture,
    /// Side of the images.
    pub(super) side: usize,
    pub(super) discriminator: usize,
    pub(super) clip: ClipArchitecture,
    /// Side of the images that LPIPS compares.
    pub(super) lpips_side: usize,
}

impl Sizes {
    pub(super) fn of(scale: Scale) -> Self {
        let full = by_name("taming-f16-16384").unwrap_or_else(|| unreachable!("it is built in"));
        match scale {
            Scale::Full => Self {
                architecture: full,
                side: 128,
                discriminator: 64,
                clip: clip(224, 32, Tower { width: 768, layers: 2, heads: 12, mlp: 3072 }, 512),
                lpips_side: 64,
            },
            Scale::Small => Self {
                architecture: Architecture {
                    base_channels: 16,
                    channels: vec![16, 32],
                    res_blocks: 1,
                    attention_levels: vec![1],
                    latent_channels: 8,
                    code_dim: 8,
                    codes: 64,
                    groups: 8,
                    ..full
                },
                side: 16,
                discriminator: 8,
                clip: clip(32, 16, Tower { width: 32, layers: 1, heads: 2, mlp: 64 }, 16),
                lpips_side: 32,
            },
        }
    }
}

/// A CLIP whose two towers are alike.
fn clip(image_size: usize, patch_size: usize, tower: Tower, embedding: usize) -> ClipArchitecture {
    ClipArchitecture {
        image_size,
        patch_size,
        vision: tower.clone(),
        text: tower,
        context_length: 77,
        vocabulary: 514,
        embedding,
        activation: Activation::QuickGelu,
        layer_norm_epsilon: 1e-5,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        end_of_text: 513,
    }
}
