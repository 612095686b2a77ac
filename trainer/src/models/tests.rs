//! The model as a whole.

use checkpoints::Architecture;

use super::architectures::by_name;

/// Small enough for many forward passes in a test, with every kind of block in it.
pub(crate) fn tiny_architecture() -> Architecture {
    let tiny = by_name("tiny").unwrap();
    Architecture {
        base_channels: 8,
        channels: vec![8, 16],
        attention_levels: vec![1],
        mid_attention: true,
        latent_channels: 8,
        code_dim: 4,
        codes: 32,
        groups: 4,
        ..tiny
    }
}
