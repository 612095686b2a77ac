//! Maps quantized latents to images: a middle with attention, then residual levels, each of twice the size.

use burn::module::Module;
use checkpoints::Architecture;

use super::blocks::{AttnBlock, Block, ResnetBlock, Upsample, conv3x3};
use super::encoder::{Middle, level_blocks, read_level};
use super::ops::conv2d::Conv2d;
use super::ops::group_norm::GroupNorm;
use super::weights::{ModelError, WeightReader};

/// `[N, latent channels, H/f, W/f]` to `[N, 3, H, W]`, not clamped.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid: Middle,
    /// Finest level first, as in the names; the forward pass runs them in reverse.
    up: Vec<UpLevel>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// One resolution of the decoder; `attn` is empty or has one entry for each block.
#[derive(Module, Debug)]
struct UpLevel {
    block: Vec<ResnetBlock>,
    attn: Vec<AttnBlock>,
    upsample: Option<Upsample>,
}

impl Decoder {
    pub(super) fn read(from: &WeightReader, architecture: &Architecture) -> Result<Self, ModelError> {
        let level = |i: usize| {
            let from = from.at("up").at(&i.to_string());
            let (block, attn) = read_level(&from, architecture, i, architecture.res_blocks + 1)?;
            let upsample = (i > 0).then(|| Upsample::read(&from.at("upsample"))).transpose()?;
            Ok(UpLevel { block, attn, upsample })
        };
        Ok(Self {
            conv_in: conv3x3(&from.at("conv_in"))?,
            mid: Middle::read(&from.at("mid"), architecture)?,
            up: (0..architecture.channels.len()).map(level).collect::<Result<_, ModelError>>()?,
            norm_out: GroupNorm::read(&from.at("norm_out"), architecture.groups)?,
            conv_out: conv3x3(&from.at("conv_out"))?,
        })
    }

    /// Returns all blocks in the order of the forward pass; the last one is the last layer.
    pub(super) fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = vec![Block::Conv(&self.conv_in)];
        blocks.extend(self.mid.blocks());
        for level in self.up.iter().rev() {
            blocks.extend(level_blocks(&level.block, &level.attn));
            blocks.extend(level.upsample.as_ref().map(Block::Upsample));
        }
        blocks.extend([Block::NormSilu(&self.norm_out), Block::Conv(&self.conv_out)]);
        blocks
    }

    /// The convolution that outputs the image.
    pub(super) fn last_layer(&self) -> &Conv2d {
        &self.conv_out
    }
}
