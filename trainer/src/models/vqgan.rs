//! The VQGAN (Esser, Rombach, Ommer 2021, arXiv 2012.09841) in the variants that checkpoints exist for:
//! taming-transformers and latent-diffusion, LlamaGen (arXiv 2406.06525), diffusers' `VQModel`.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use checkpoints::Architecture;

use super::blocks::{Block, conv1x1};
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::ops::conv2d::Conv2d;
use super::quantizer::gumbel::Sampling;
use super::quantizer::{Quantized, Quantizer};
use super::statistics_dtype;
use super::weights::{ModelError, StateDict, WeightReader};

/// Encoder, codebook and decoder. The fields have the names used in checkpoints.
#[derive(Module, Debug)]
pub struct VqGan {
    encoder: Encoder,
    quant_conv: Conv2d,
    quantize: Quantizer,
    post_quant_conv: Conv2d,
    decoder: Decoder,
}

impl VqGan {
    /// Builds the model of `architecture` from its weights, as tensors of `dtype` on `device`.
    ///
    /// # Errors
    /// If the state dict lacks a tensor or has one of another rank.
    pub fn new(
        architecture: &Architecture,
        state: &StateDict,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, ModelError> {
        let from = WeightReader::new(state, device, dtype);
        Ok(Self {
            encoder: Encoder::read(&from.at("encoder"), architecture)?,
            quant_conv: conv1x1(&from.at("quant_conv"))?,
            quantize: Quantizer::read(&from.at("quantize"), architecture)?,
            post_quant_conv: conv1x1(&from.at("post_quant_conv"))?,
            decoder: Decoder::read(&from.at("decoder"), architecture)?,
        })
    }

    /// Maps images `[N, 3, H, W]` in -1..1, in f32 at least, to latents `[N, code dim, H/f, W/f]`, before quantization.
    pub fn encode(&self, images: Tensor<4>) -> Tensor<4> {
        forward(&self.encoder_blocks(), images.cast(self.place().1))
    }

    /// The blocks that [`encode`](Self::encode) runs, in order.
    pub fn encoder_blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = self.encoder.blocks();
        blocks.push(Block::Conv(&self.quant_conv));
        blocks
    }

    /// Maps latents to codes, with the terms of the codebook loss.
    pub fn quantize(&self, latent: Tensor<4>) -> Quantized {
        self.quantize.forward(latent)
    }

    /// Like [`quantize`](Self::quantize), but a Gumbel quantizer draws its codes by `sampling`.
    pub fn quantize_in_training(&self, latent: Tensor<4>, sampling: Option<Sampling>) -> Quantized {
        self.quantize.forward_in_training(latent, sampling)
    }

    /// Maps quantized latents `[N, code dim, H/f, W/f]` to images `[N, 3, H, W]`, about -1..1, unclamped, f32 at least.
    pub fn decode(&self, quantized: Tensor<4>) -> Tensor<4> {
        let dtype = self.place().1;
        forward(&self.decoder_blocks(), quantized.cast(dtype)).cast(statistics_dtype(dtype))
    }

    /// The blocks that [`decode`](Self::decode) runs, in order; the last one is the last layer.
    pub fn decoder_blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = vec![Block::Conv(&self.post_quant_conv)];
        blocks.extend(self.decoder.blocks());
        blocks
    }

    /// The convolution that outputs the image; the adaptive weight uses the gradients at its weights.
    pub fn last_layer(&self) -> &Conv2d {
        self.decoder.last_layer()
    }

    /// Runs the whole model: images `[N, 3, H, W]` in -1..1 to their reconstructions and codes.
    pub fn reconstruct(&self, images: Tensor<4>) -> (Tensor<4>, Quantized) {
        let quantized = self.quantize(self.encode(images));
        (self.decode(quantized.latent.clone()), quantized)
    }

    /// The device of the parameters, and the type that the model computes in.
    pub fn place(&self) -> (Device, DType) {
        let weight = self.quant_conv.weight.val();
        (weight.device(), weight.dtype())
    }

    /// The codebook.
    pub fn quantizer(&self) -> &Quantizer {
        &self.quantize
    }
}

/// Runs `x` through all `blocks`, one after the other.
pub fn forward(blocks: &[Block], x: Tensor<4>) -> Tensor<4> {
    blocks.iter().fold(x, |h, block| block.forward(h))
}
