//! The architecture of a VQGAN, and the parameters that it has.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Family;
use crate::files::WeightsError;

/// How a latent becomes a code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizerKind {
    /// The nearest code.
    #[default]
    Nearest,
    /// The code with the largest logit, drawn in training (taming's `GumbelVQ`).
    Gumbel,
}

/// How a Gumbel quantizer is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GumbelTraining {
    /// Weight of the divergence of the codes' probabilities from even ones.
    pub kl_weight: f64,
    /// Temperature of the softmax at the first step.
    pub temperature_start: f64,
    /// Temperature at step `temperature_steps` and from there on.
    pub temperature_end: f64,
    /// Steps over which the temperature falls, along half a cosine.
    pub temperature_steps: u64,
}

/// How the codebook is looked up and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantizer {
    /// How a latent becomes a code. What follows is of the nearest code alone.
    #[serde(default)]
    pub kind: QuantizerKind,
    /// Encoder output and codebook are both scaled to length 1 before they are compared.
    pub l2_norm: bool,
    /// `beta` weighs the codebook's term instead of the commitment's: a slip in taming that its models were trained
    /// with, and that diffusers kept.
    pub legacy_beta: bool,
    /// Weight of the commitment's term (of the codebook's with `legacy_beta`).
    pub beta: f64,
    /// Weight of LlamaGen's entropy term; 0 is none.
    pub entropy_ratio: f64,
}

impl Quantizer {
    /// What taming trains with unless told otherwise.
    pub(super) const TAMING: Quantizer =
        Quantizer { kind: QuantizerKind::Nearest, l2_norm: false, legacy_beta: true, beta: 0.25, entropy_ratio: 0.0 };

    /// Canonical name of the codebook, `[codes, code_dim]`.
    pub fn codebook(&self) -> &'static str {
        match self.kind {
            QuantizerKind::Nearest => "quantize.embedding.weight",
            QuantizerKind::Gumbel => "quantize.embed.weight",
        }
    }
}

/// The architecture of a VQGAN, the same in all families.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Whose names the weights had.
    pub family: Family,
    /// Channels of the image that goes in; 3.
    pub in_channels: usize,
    /// Channels of the image that comes out; 3.
    pub out_channels: usize,
    /// Channels behind the encoder's first convolution (`ch`).
    pub base_channels: usize,
    /// Channels of every level, the finest first.
    pub channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub res_blocks: usize,
    /// Levels with an attention block behind every residual block; 0 is the finest.
    pub attention_levels: Vec<usize>,
    /// Whether there is attention between the two middle blocks.
    pub mid_attention: bool,
    /// Channels of the encoder's output (`z_channels`).
    pub latent_channels: usize,
    /// Length of a code (`embed_dim`).
    pub code_dim: usize,
    /// Number of codes (`n_embed`).
    pub codes: usize,
    /// Groups of every GroupNorm; 32.
    pub groups: usize,
    /// How the codebook is looked up and trained.
    pub quantizer: Quantizer,
    /// diffusers: indices instead of latents go into the decoder of its pipelines. Kept for the export.
    #[serde(default)]
    pub lookup_from_codebook: bool,
    /// diffusers: how its pipelines scale the latents. Kept for the export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f64>,
    /// diffusers: what else its configuration says and the model's computation does not depend on, by key
    /// (`force_upcast`, `sample_size`). Kept for the export.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub diffusers: serde_json::Map<String, Json>,
}

/// No published model comes near it, and nothing beyond it could be allocated.
const MAX_SIZE: usize = 1 << 22;

impl Architecture {
    /// How many pixels of the image one code stands for, along each axis: 2^(levels - 1).
    pub fn downsampling(&self) -> usize {
        let halvings = self.channels.len().saturating_sub(1) as u32;
        1usize.checked_shl(halvings).unwrap_or(usize::MAX)
    }

    /// Whether the numbers go together.
    ///
    /// # Errors
    /// [`WeightsError::Architecture`] with the first thing that does not.
    pub fn check(&self) -> Result<(), WeightsError> {
        let levels = self.channels.len();
        let wrong = |what: String| Err(WeightsError::Architecture(what));
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("base_channels", self.base_channels),
            ("res_blocks", self.res_blocks),
            ("latent_channels", self.latent_channels),
            ("code_dim", self.code_dim),
            ("codes", self.codes),
            ("groups", self.groups),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return wrong(format!("{name} must be at least 1"));
        }
        if let Some((name, size)) = sizes.iter().find(|(_, size)| *size > MAX_SIZE) {
            return wrong(format!("{name} is {size}, must be at most {MAX_SIZE}"));
        }
        if (self.in_channels, self.out_channels) != (3, 3) {
            let (into, out) = (self.in_channels, self.out_channels);
            return wrong(format!(
                "it has {into} input and {out} output channels, must have 3 of each: red, green and blue"
            ));
        }
        if !(1..=16).contains(&levels) {
            return wrong(format!("channels must name 1 to 16 levels, not {levels}"));
        }
        for channels in std::iter::once(&self.base_channels).chain(&self.channels) {
            if *channels == 0 || channels % self.groups != 0 {
                let groups = self.groups;
                return wrong(format!("{channels} channels do not divide into {groups} groups"));
            }
        }
        if !self.attention_levels.is_sorted_by(|a, b| a < b) {
            return wrong("attention_levels must rise".to_owned());
        }
        if let Some(level) = self.attention_levels.iter().find(|level| **level >= levels) {
            return wrong(format!("attention_levels has {level}, the last level is {}", levels - 1));
        }
        if self.quantizer.kind == QuantizerKind::Gumbel && self.code_dim != self.latent_channels {
            let (code_dim, latent) = (self.code_dim, self.latent_channels);
            return wrong(format!("code_dim is {code_dim}, a Gumbel quantizer's must be latent_channels = {latent}"));
        }
        if !self.quantizer.beta.is_finite() || !self.quantizer.entropy_ratio.is_finite() {
            return wrong("the quantizer's weights must be finite".to_owned());
        }
        Ok(())
    }

    /// Every parameter's canonical name (that of taming) and shape, in the order of the forward pass.
    ///
    /// Convolutions are `[out, in, height, width]`, attention's projections are such with a 1x1 kernel, the codebook
    /// is `[codes, code_dim]`.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Parameters(Vec::new());
        let coarsest = self.channels.last().copied().unwrap_or(self.base_channels);
        let finest = self.channels.first().copied().unwrap_or(self.base_channels);
        let last = self.channels.len().saturating_sub(1);

        list.conv("encoder.conv_in", self.in_channels, self.base_channels, 3);
        let mut width = self.base_channels;
        for (level, &channels) in self.channels.iter().enumerate() {
            let at = format!("encoder.down.{level}");
            width = self.level(&mut list, &at, level, self.res_blocks, (width, channels));
            if level != last {
                list.conv(&format!("{at}.downsample.conv"), width, width, 3);
            }
        }
        self.middle(&mut list, "encoder", coarsest);
        list.norm("encoder.norm_out", coarsest);
        list.conv("encoder.conv_out", coarsest, self.latent_channels, 3);

        list.conv("quant_conv", self.latent_channels, self.code_dim, 1);
        if self.quantizer.kind == QuantizerKind::Gumbel {
            list.conv("quantize.proj", self.code_dim, self.codes, 1);
        }
        list.add(self.quantizer.codebook(), vec![self.codes, self.code_dim]);
        list.conv("post_quant_conv", self.code_dim, self.latent_channels, 1);

        list.conv("decoder.conv_in", self.latent_channels, coarsest, 3);
        self.middle(&mut list, "decoder", coarsest);
        width = coarsest;
        for (level, &channels) in self.channels.iter().enumerate().rev() {
            let at = format!("decoder.up.{level}");
            width = self.level(&mut list, &at, level, self.res_blocks + 1, (width, channels));
            if level != 0 {
                list.conv(&format!("{at}.upsample.conv"), width, width, 3);
            }
        }
        list.norm("decoder.norm_out", finest);
        list.conv("decoder.conv_out", finest, self.out_channels, 3);
        list.0
    }

    /// The blocks of one level, from `from` to `to` channels, which are the channels behind it.
    fn level(&self, list: &mut Parameters, at: &str, level: usize, blocks: usize, (from, to): (usize, usize)) -> usize {
        let attends = self.attention_levels.contains(&level);
        for block in 0..blocks {
            let from = if block == 0 { from } else { to };
            list.block(&format!("{at}.block.{block}"), from, to);
            if attends {
                list.attention(&format!("{at}.attn.{block}"), to);
            }
        }
        to
    }

    fn middle(&self, list: &mut Parameters, side: &str, channels: usize) {
        list.block(&format!("{side}.mid.block_1"), channels, channels);
        if self.mid_attention {
            list.attention(&format!("{side}.mid.attn_1"), channels);
        }
        list.block(&format!("{side}.mid.block_2"), channels, channels);
    }
}

/// Whether a canonical parameter is a 1x1 convolution that some files keep as a matrix.
pub(super) fn is_projection(canonical: &str) -> bool {
    let parts: Vec<&str> = canonical.split('.').collect();
    canonical.contains(".attn") && matches!(parts[..], [.., "q" | "k" | "v" | "proj_out", "weight"])
}

struct Parameters(Vec<(String, Vec<usize>)>);

impl Parameters {
    fn add(&mut self, name: &str, shape: Vec<usize>) {
        self.0.push((name.to_owned(), shape));
    }

    fn conv(&mut self, name: &str, from: usize, to: usize, kernel: usize) {
        self.add(&format!("{name}.weight"), vec![to, from, kernel, kernel]);
        self.add(&format!("{name}.bias"), vec![to]);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.add(&format!("{name}.weight"), vec![channels]);
        self.add(&format!("{name}.bias"), vec![channels]);
    }

    fn block(&mut self, name: &str, from: usize, to: usize) {
        self.norm(&format!("{name}.norm1"), from);
        self.conv(&format!("{name}.conv1"), from, to, 3);
        self.norm(&format!("{name}.norm2"), to);
        self.conv(&format!("{name}.conv2"), to, to, 3);
        if from != to {
            self.conv(&format!("{name}.nin_shortcut"), from, to, 1);
        }
    }

    fn attention(&mut self, name: &str, channels: usize) {
        self.norm(&format!("{name}.norm"), channels);
        for projection in ["q", "k", "v", "proj_out"] {
            self.conv(&format!("{name}.{projection}"), channels, channels, 1);
        }
    }
}
