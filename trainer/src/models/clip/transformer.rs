//! The transformer in both towers of CLIP, with normalisation before attention and before the MLP and a residual around
//! each.
//!
//! The backward pass keeps as little as possible: weights are never tracked, so a linear layer does not keep its input.

use burn::module::{Module, Param};
use burn::tensor::activation::silu;
use burn::tensor::{Bool, Tensor, module};
use checkpoints::{Activation, Tower};

use crate::models::blocks::{softmax, statistics_dtype};
use crate::models::weights::{ModelError, WeightReader};

/// `x W^T + b`.
#[derive(Module, Debug)]
pub(super) struct Linear {
    /// `[out, in]`, as PyTorch has it.
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    pub(super) fn read(from: &WeightReader) -> Result<Self, ModelError> {
        Ok(Self { weight: from.param("weight")?, bias: Some(from.param("bias")?) })
    }

    /// Reads a layer without a bias.
    pub(super) fn read_projection(from: &WeightReader) -> Result<Self, ModelError> {
        Ok(Self { weight: from.param("weight")?, bias: None })
    }

    /// `[.., in]` to `[.., out]`.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        module::linear(x, self.weight.val().transpose(), self.bias.as_ref().map(Param::val))
    }
}

/// Layer normalisation (Ba et al. 2016, arXiv 1607.06450) in f32 at least; Burn's own computes bf16 in bf16.
///
/// The backward pass keeps only one full-size tensor, the centred input.
#[derive(Module, Debug)]
pub(super) struct LayerNorm {
    /// Scale, `[W]`.
    weight: Param<Tensor<1>>,
    /// Shift, `[W]`.
    bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    pub(super) fn read(from: &WeightReader, epsilon: f64) -> Result<Self, ModelError> {
        let from = from.wide();
        Ok(Self { weight: from.param("weight")?, bias: from.param("bias")?, epsilon })
    }

    /// `[.., W]` to the same.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let wide = statistics_dtype(dtype);
        let x = x.cast(wide);
        let centred = x.clone() - x.mean_dim(D - 1);
        let deviation = (centred.clone().square().mean_dim(D - 1) + self.epsilon).sqrt();
        let scale = self.weight.val().cast(wide).unsqueeze::<D>();
        let shift = self.bias.val().cast(wide).unsqueeze::<D>();
        (centred * deviation.recip() * scale + shift).cast(dtype)
    }
}

/// Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762).
#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn read(from: &WeightReader, heads: usize) -> Result<Self, ModelError> {
        let linear = |name| Linear::read(&from.at(name));
        let (q_proj, k_proj, v_proj) = (linear("q_proj")?, linear("k_proj")?, linear("v_proj")?);
        Ok(Self { q_proj, k_proj, v_proj, out_proj: linear("out_proj")?, heads })
    }

    /// `[N, T, W]` to the same; holds `N x heads x T^2` attention weights. Where `mask`, `[1, 1, T, T]`, is set, the
    /// row's token does not see the column's token.
    fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Tensor<3> {
        let [n, t, width] = x.dims();
        let size = width / self.heads;
        let heads = |x: Tensor<3>| x.reshape([n, t, self.heads, size]).swap_dims(1, 2);
        let q = heads(self.q_proj.forward(x.clone()) * (size as f64).powf(-0.5));
        let k = heads(self.k_proj.forward(x.clone()));
        let v = heads(self.v_proj.forward(x));

        let dtype = q.dtype();
        let scores = q.matmul(k.swap_dims(2, 3)).cast(statistics_dtype(dtype));
        let scores = match mask {
            Some(mask) => scores.mask_fill(mask.clone().expand([n, self.heads, t, t]), f64::NEG_INFINITY),
            None => scores,
        };
        let weights = softmax(scores).cast(dtype);
        self.out_proj.forward(weights.matmul(v).swap_dims(1, 2).reshape([n, t, width]))
    }
}

/// Two linear layers with the activation between them.
#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    quick: bool,
}

impl Mlp {
    fn read(from: &WeightReader, activation: Activation) -> Result<Self, ModelError> {
        let (fc1, fc2) = (Linear::read(&from.at("fc1"))?, Linear::read(&from.at("fc2"))?);
        Ok(Self { fc1, fc2, quick: activation == Activation::QuickGelu })
    }

    /// `[N, T, W]` to the same.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.fc1.forward(x);
        self.fc2.forward(if self.quick { quick_gelu(x) } else { gelu(x) })
    }
}

/// OpenAI's `x sigmoid(1.702 x)`. Scales first, so that the backward pass keeps the scaled input but not `x` as well.
fn quick_gelu(x: Tensor<3>) -> Tensor<3> {
    // A division's gradient uses the divisor's inverse in f32; a product's gradient is exact.
    silu(x * 1.702) * (1.0 / 1.702)
}

/// `x (1 + erf(x / sqrt 2)) / 2`. Burn's own has the same value, but on GPUs the gradient of the tanh approximation.
fn gelu(x: Tensor<3>) -> Tensor<3> {
    let scaled = x * std::f64::consts::FRAC_1_SQRT_2;
    scaled.clone() * (scaled.erf() + 1.0) * std::f64::consts::FRAC_1_SQRT_2
}

#[derive(Module, Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x), mask);
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}

/// A stack of layers.
#[derive(Module, Debug)]
pub(super) struct Transformer {
    layers: Vec<Layer>,
}

impl Transformer {
    pub(super) fn read(
        from: &WeightReader,
        tower: &Tower,
        activation: Activation,
        epsilon: f64,
    ) -> Result<Self, ModelError> {
        let layer = |index: usize| {
            let from = from.at("layers").at(&index.to_string());
            Ok(Layer {
                layer_norm1: LayerNorm::read(&from.at("layer_norm1"), epsilon)?,
                self_attn: Attention::read(&from.at("self_attn"), tower.heads)?,
                layer_norm2: LayerNorm::read(&from.at("layer_norm2"), epsilon)?,
                mlp: Mlp::read(&from.at("mlp"), activation)?,
            })
        };
        Ok(Self { layers: (0..tower.layers).map(layer).collect::<Result<_, _>>()? })
    }

    /// Returns the state after each layer, each `[N, T, W]`, for `x` of this shape.
    pub(super) fn states(&self, x: Tensor<3>) -> Vec<Tensor<3>> {
        let next = |x: &mut Tensor<3>, layer: &Layer| {
            *x = layer.forward(x.clone(), None);
            Some(x.clone())
        };
        self.layers.iter().scan(x, next).collect()
    }

    /// `[N, T, W]` to the same; `mask` as for attention.
    pub(super) fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| layer.forward(x, mask.as_ref()))
    }
}
