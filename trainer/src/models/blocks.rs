//! The building blocks shared by the encoder and the decoder of every VQGAN family.
//!
//! All of them map `[N, C, H, W]` to `[N, C', H', W']`, and none mixes samples, so a block's output for a sample does
//! not depend on the batch it comes in.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, Tensor};

use super::ops::conv2d::Conv2d;
use super::ops::group_norm::GroupNorm;
use super::weights::{ModelError, WeightReader};

/// The type that statistics are computed in: f32 for half precision, otherwise `dtype` itself.
pub(crate) fn statistics_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// Softmax over the last dimension. It uses the same operations with and without autodiff, so that a recomputed block
/// rounds exactly as in its first run. Burn's own softmax is a fused kernel only without autodiff.
pub(crate) fn softmax<const D: usize>(scores: Tensor<D>) -> Tensor<D> {
    let largest = scores.clone().detach().max_dim(D - 1);
    let weights = (scores - largest).exp();
    weights.clone() / weights.sum_dim(D - 1)
}

/// A 3x3 convolution that keeps the size.
pub(super) fn conv3x3(from: &WeightReader) -> Result<Conv2d, ModelError> {
    conv(from, 1, [[1, 1], [1, 1]])
}

/// A 1x1 convolution.
pub(super) fn conv1x1(from: &WeightReader) -> Result<Conv2d, ModelError> {
    conv(from, 1, [[0, 0], [0, 0]])
}

fn conv(from: &WeightReader, stride: usize, padding: [[usize; 2]; 2]) -> Result<Conv2d, ModelError> {
    Ok(Conv2d { weight: from.param("weight")?, bias: Some(from.param("bias")?), stride: [stride; 2], padding })
}

/// Two normalised 3x3 convolutions and a shortcut around them, which is a 1x1 convolution where the channels change.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(super) fn read(from: &WeightReader, groups: usize) -> Result<Self, ModelError> {
        let shortcut = from.at("nin_shortcut");
        Ok(Self {
            norm1: GroupNorm::read(&from.at("norm1"), groups)?,
            conv1: conv3x3(&from.at("conv1"))?,
            norm2: GroupNorm::read(&from.at("norm2"), groups)?,
            conv2: conv3x3(&from.at("conv2"))?,
            nin_shortcut: shortcut.has("weight").then(|| conv1x1(&shortcut)).transpose()?,
        })
    }

    /// `[N, C, H, W]` to `[N, C', H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.second_half(self.first_half(x.clone()));
        self.shortcut(x) + h
    }

    /// Runs the part before the second normalisation, `[N, C, H, W]` to `[N, C', H, W]`.
    pub fn first_half(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv1.forward(self.norm1.forward_silu(x))
    }

    /// Runs the rest, whose output is added to the shortcut, `[N, C', H, W]` to the same.
    pub fn second_half(&self, h: Tensor<4>) -> Tensor<4> {
        self.conv2.forward(self.norm2.forward_silu(h))
    }

    /// Runs the shortcut, `[N, C, H, W]` to `[N, C', H, W]`.
    pub fn shortcut(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.nin_shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        }
    }
}

/// Single-head self-attention over all positions, with a residual.
#[derive(Module, Debug)]
pub struct AttnBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
}

impl AttnBlock {
    pub(super) fn read(from: &WeightReader, groups: usize) -> Result<Self, ModelError> {
        Ok(Self {
            norm: GroupNorm::read(&from.at("norm"), groups)?,
            q: conv1x1(&from.at("q"))?,
            k: conv1x1(&from.at("k"))?,
            v: conv1x1(&from.at("v"))?,
            proj_out: conv1x1(&from.at("proj_out"))?,
        })
    }

    /// `[N, C, H, W]` to the same; holds `N x (HW)^2` attention weights.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let normed = self.norm.forward(x.clone());
        let tokens = |conv: &Conv2d| conv.forward(normed.clone()).reshape([n, c, h * w]);
        let (q, k, v) = (tokens(&self.q), tokens(&self.k), tokens(&self.v));
        let dtype = q.dtype();
        let scores = (q * (c as f64).powf(-0.5)).swap_dims(1, 2).matmul(k);
        let weights = softmax(scores.cast(statistics_dtype(dtype))).cast(dtype);
        let attended = v.matmul(weights.swap_dims(1, 2)).reshape([n, c, h, w]);
        x + self.proj_out.forward(attended)
    }
}

/// Halves the size with a 3x3 convolution of stride 2, padded on the right and at the bottom only.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub(super) fn read(from: &WeightReader) -> Result<Self, ModelError> {
        Ok(Self { conv: conv(&from.at("conv"), 2, [[0, 1], [0, 1]])? })
    }

    /// `[N, C, H, W]` to `[N, C, H/2, W/2]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }
}

/// Doubles the size by repeating pixels, then smooths with a 3x3 convolution.
#[derive(Module, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(super) fn read(from: &WeightReader) -> Result<Self, ModelError> {
        Ok(Self { conv: conv3x3(&from.at("conv"))? })
    }

    /// `[N, C, H, W]` to `[N, C, 2H, 2W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let doubled = interpolate(x, InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]));
        self.conv.forward(doubled)
    }
}

/// One block of an encoder's or decoder's chain. A chain runs block by block, forward or backward with recomputation.
#[derive(Debug, Clone, Copy)]
pub enum Block<'a> {
    /// A plain convolution.
    Conv(&'a Conv2d),
    /// Two convolutions around a shortcut.
    Resnet(&'a ResnetBlock),
    /// Attention over all positions.
    Attn(&'a AttnBlock),
    /// Halves the size.
    Downsample(&'a Downsample),
    /// Doubles the size.
    Upsample(&'a Upsample),
    /// Normalisation and SiLU.
    NormSilu(&'a GroupNorm),
}

impl Block<'_> {
    /// `[N, C, H, W]` to `[N, C', H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Resnet(block) => block.forward(x),
            Self::Attn(block) => block.forward(x),
            Self::Downsample(block) => block.forward(x),
            Self::Upsample(block) => block.forward(x),
            Self::NormSilu(norm) => norm.forward_silu(x),
        }
    }

    /// Calls `visitor` with the block's parameters.
    pub fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match self {
            Self::Conv(conv) => conv.visit(visitor),
            Self::Resnet(block) => block.visit(visitor),
            Self::Attn(block) => block.visit(visitor),
            Self::Downsample(block) => block.visit(visitor),
            Self::Upsample(block) => block.visit(visitor),
            Self::NormSilu(norm) => norm.visit(visitor),
        }
    }

    /// Whether any of its parameters is trained: it is on an autodiff device and not frozen.
    pub fn is_trained(&self) -> bool {
        any_trained(|visitor| self.visit(visitor))
    }
}

/// Records whether a visited parameter is trained.
pub(crate) struct AnyTrained(bool);

impl ModuleVisitor for AnyTrained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.val().is_require_grad();
    }
}

/// Whether any of the parameters that `visit` visits is trained: it is on an autodiff device and not frozen.
pub(crate) fn any_trained(visit: impl FnOnce(&mut AnyTrained)) -> bool {
    let mut any = AnyTrained(false);
    visit(&mut any);
    any.0
}
