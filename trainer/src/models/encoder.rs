//! Maps images to latents: residual levels, each of half the size, then a middle with attention.

use burn::module::Module;
use checkpoints::Architecture;

use super::blocks::{AttnBlock, Block, Downsample, ResnetBlock, conv3x3};
use super::ops::conv2d::Conv2d;
use super::ops::group_norm::GroupNorm;
use super::weights::{ModelError, WeightReader};

/// `[N, 3, H, W]` in -1..1 to `[N, latent channels, H/f, W/f]`.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<DownLevel>,
    mid: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// One resolution of the encoder; `attn` is empty or has one entry for each block.
#[derive(Module, Debug)]
struct DownLevel {
    block: Vec<ResnetBlock>,
    attn: Vec<AttnBlock>,
    downsample: Option<Downsample>,
}

impl Encoder {
    pub(super) fn read(from: &WeightReader, architecture: &Architecture) -> Result<Self, ModelError> {
        let levels = architecture.channels.len();
        let level = |i: usize| {
            let from = from.at("down").at(&i.to_string());
            let (block, attn) = read_level(&from, architecture, i, architecture.res_blocks)?;
            let downsample = (i + 1 < levels).then(|| Downsample::read(&from.at("downsample"))).transpose()?;
            Ok(DownLevel { block, attn, downsample })
        };
        Ok(Self {
            conv_in: conv3x3(&from.at("conv_in"))?,
            down: (0..levels).map(level).collect::<Result<_, ModelError>>()?,
            mid: Middle::read(&from.at("mid"), architecture)?,
            norm_out: GroupNorm::read(&from.at("norm_out"), architecture.groups)?,
            conv_out: conv3x3(&from.at("conv_out"))?,
        })
    }

    /// Returns all blocks in the order of the forward pass.
    pub(super) fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = vec![Block::Conv(&self.conv_in)];
        for level in &self.down {
            blocks.extend(level_blocks(&level.block, &level.attn));
            blocks.extend(level.downsample.as_ref().map(Block::Downsample));
        }
        blocks.extend(self.mid.blocks());
        blocks.extend([Block::NormSilu(&self.norm_out), Block::Conv(&self.conv_out)]);
        blocks
    }
}

/// The lowest resolution, the same in encoder and decoder: block, attention if the family has it, block.
#[derive(Module, Debug)]
pub(super) struct Middle {
    block_1: ResnetBlock,
    attn_1: Option<AttnBlock>,
    block_2: ResnetBlock,
}

impl Middle {
    pub(super) fn read(from: &WeightReader, architecture: &Architecture) -> Result<Self, ModelError> {
        let groups = architecture.groups;
        let attn = || AttnBlock::read(&from.at("attn_1"), groups);
        Ok(Self {
            block_1: ResnetBlock::read(&from.at("block_1"), groups)?,
            attn_1: architecture.mid_attention.then(attn).transpose()?,
            block_2: ResnetBlock::read(&from.at("block_2"), groups)?,
        })
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        let attn = self.attn_1.as_ref().map(Block::Attn);
        [Block::Resnet(&self.block_1)].into_iter().chain(attn).chain([Block::Resnet(&self.block_2)])
    }
}

pub(super) type LevelBlocks = (Vec<ResnetBlock>, Vec<AttnBlock>);

pub(super) fn read_level(
    from: &WeightReader,
    architecture: &Architecture,
    level: usize,
    blocks: usize,
) -> Result<LevelBlocks, ModelError> {
    let groups = architecture.groups;
    let block = |j: usize| ResnetBlock::read(&from.at("block").at(&j.to_string()), groups);
    let attn = |j: usize| AttnBlock::read(&from.at("attn").at(&j.to_string()), groups);
    let attended = if architecture.attention_levels.contains(&level) { blocks } else { 0 };
    Ok(((0..blocks).map(block).collect::<Result<_, _>>()?, (0..attended).map(attn).collect::<Result<_, _>>()?))
}

/// Returns the blocks of one level, each followed by its attention if it has one.
pub(super) fn level_blocks<'a>(block: &'a [ResnetBlock], attn: &'a [AttnBlock]) -> impl Iterator<Item = Block<'a>> {
    let with_attn = |(j, block)| [Some(Block::Resnet(block)), attn.get(j).map(Block::Attn)];
    block.iter().enumerate().flat_map(with_attn).flatten()
}
