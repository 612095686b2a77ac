//! The building blocks shared by the encoder and the decoder of every VQGAN family.
//!
//! All of them map `[N, C, H, W]` to `[N, C', H', W']`, and none mixes samples, so a block's output for a sample does
//! not depend on the batch it comes in.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, Tensor};

use super::weights::{ModelError, WeightReader};

/// Every VQGAN family normalises with this epsilon (taming's `Normalize`, LlamaGen's likewise, diffusers' resnets).
const EPSILON: f64 = 1e-6;

/// Group normalisation (Wu and He 2018, arXiv 1803.08494) whose statistics are taken in f32 at least.
///
/// The only full-size tensor that a backward pass keeps is the centred input; in half precision the normalised input, in half
/// precision itself.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// Scale, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    groups: usize,
}

impl GroupNorm {
    pub(super) fn read(from: &WeightReader, groups: usize) -> Result<Self, ModelError> {
        let from = from.wide();
        Ok(Self { weight: from.param("weight")?, bias: from.param("bias")?, groups })
    }

    /// `[N, C, H, W]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let dtype = x.dtype();
        let wide = statistics_dtype(dtype);
        if wide != dtype && x.is_autodiff() {
            return self.forward_in_half(x);
        }
        let per_group = x.cast(wide).reshape([n, self.groups, c / self.groups * h * w]);
        let centred = per_group.clone() - per_group.mean_dim(2);
        let deviation = (centred.clone().square().mean_dim(2) + EPSILON).sqrt();

        let per_channel = deviation.expand([n, self.groups, c / self.groups]).reshape([n, c, 1]);
        let scale = self.weight.val().cast(wide).reshape([1, c, 1]) / per_channel;
        let shift = self.bias.val().cast(wide).reshape([1, c, 1]);
        // One flat axis for the pixels: the gradients of scale and shift are then sums along contiguous memory.
        (centred.reshape([n, c, h * w]) * scale + shift).cast(dtype).reshape([n, c, h, w])
    }

    /// The same values, with the same derivatives, from a graph in which nothing of full size is wider than `x`.
    ///
    /// The output is written as a function of x alone, mean m, deviation d, scale w and shift b being what they are, plus what
    /// they change to first order: terms whose value is zero and whose derivative is not. With v = (x - m) / d, it is
    /// `(x - m) w / d + b - w / d * zero(m) + v * zero(w d / d)`, and `d = zero(mean(v * (x - m) / d)) * d` up to a constant.
    fn forward_in_half(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let dtype = x.dtype();
        let wide = statistics_dtype(dtype);
        let (groups, channels) = ([n, self.groups, c / self.groups * h * w], [n, c, 1]);
        let each_channel = |of_group: Tensor<3>| of_group.expand([n, self.groups, c / self.groups]).reshape(channels);
        let (weight, bias) =
            (self.weight.val().cast(wide).reshape([1, c, 1]), self.bias.val().cast(wide).reshape([1, c, 1]));

        let plain = x.clone().without_autodiff().cast(wide).reshape(groups);
        let mean = plain.clone().mean_dim(2);
        let deviation = ((plain - mean.clone()).square().mean_dim(2) + EPSILON).sqrt();
        let (mean, deviation) = (mean.autodiff(), deviation.autodiff());

        let x = x.cast(wide).reshape(groups);
        let moved_mean = each_channel(zero(x.clone().mean_dim(2)));
        let centred = x - mean;
        let normalised = (centred.clone() / deviation.clone()).cast(dtype);
        let constant = normalised.clone().detach();
        let moved_deviation = zero((normalised * constant.clone()).cast(wide).mean_dim(2)) * deviation.clone();

        let per_channel = each_channel(deviation.clone());
        let scale = weight.clone().detach() / per_channel.clone();
        let shift = zero(bias.clone()) - scale.clone() * moved_mean;
        let output = centred.reshape([n, c, h * w]) * scale + bias.detach() + shift;
        let moved_scale = zero(weight / each_channel(deviation + moved_deviation) * per_channel);
        // By rows, whose gradients are added up in f32: sums over a whole channel are too much for f16.
        let by_rows = moved_scale.reshape([n, c, 1, 1]).expand([n, c, h, 1]).cast(dtype);
        output.cast(dtype).reshape([n, c, h, w]) + constant.reshape([n, c, h, w]) * by_rows
    }
}

/// Zero, with the derivative of `x`.
fn zero(x: Tensor<3>) -> Tensor<3> {
    x.clone() - x.detach()
}

/// Half precision takes statistics in f32, wider types in themselves.
pub(crate) fn statistics_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// A 3x3 convolution that keeps the size.
pub(super) fn conv3x3(from: &WeightReader) -> Result<Conv2d, ModelError> {
    conv(from, 3, 1, PaddingConfig2d::Explicit(1, 1, 1, 1))
}

/// A 1x1 convolution.
pub(super) fn conv1x1(from: &WeightReader) -> Result<Conv2d, ModelError> {
    conv(from, 1, 1, PaddingConfig2d::Valid)
}

fn conv(from: &WeightReader, kernel: usize, stride: usize, padding: PaddingConfig2d) -> Result<Conv2d, ModelError> {
    Ok(Conv2d {
        weight: from.param("weight")?,
        bias: Some(from.param("bias")?),
        stride: [stride; 2],
        kernel_size: [kernel; 2],
        dilation: [1; 2],
        groups: 1,
        padding,
    })
}

/// Two normalised 3x3 convolutions around a shortcut, which is a 1x1 convolution where the channels change.
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

    /// What comes before the second normalisation, `[N, C, H, W]` to `[N, C', H, W]`.
    pub fn first_half(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv1.forward(silu(self.norm1.forward(x)))
    }

    /// From there to what is added to the shortcut, `[N, C', H, W]` to the same.
    pub fn second_half(&self, h: Tensor<4>) -> Tensor<4> {
        self.conv2.forward(silu(self.norm2.forward(h)))
    }

    /// The way around both, `[N, C, H, W]` to `[N, C', H, W]`.
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
        let weights = softmax(scores.cast(statistics_dtype(dtype)), 2).cast(dtype);
        let attended = v.matmul(weights.swap_dims(1, 2)).reshape([n, c, h, w]);
        x + self.proj_out.forward(attended)
    }
}

/// Halves the size by a 3x3 convolution of stride 2, padded on the right and at the bottom only.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub(super) fn read(from: &WeightReader) -> Result<Self, ModelError> {
        Ok(Self { conv: conv(&from.at("conv"), 3, 2, PaddingConfig2d::Explicit(0, 0, 1, 1))? })
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

/// One link of an encoder's or decoder's chain: a chain is run forward, or backward and recomputed, link by link.
#[derive(Debug, Clone, Copy)]
pub enum Block<'a> {
    /// A plain convolution.
    Conv(&'a Conv2d),
    /// Two convolutions around a shortcut.
    Resnet(&'a ResnetBlock),
    /// Attention over all positions.
    Attn(&'a AttnBlock),
    /// To half the size.
    Downsample(&'a Downsample),
    /// To twice the size.
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
            Self::NormSilu(norm) => silu(norm.forward(x)),
        }
    }

    /// Shows `visitor` its parameters.
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

    /// Whether any of its parameters is trained: on an autodiff device and not frozen.
    pub fn is_trained(&self) -> bool {
        struct Any(bool);
        impl ModuleVisitor for Any {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0 |= param.val().is_require_grad();
            }
        }
        let mut any = Any(false);
        self.visit(&mut any);
        any.0
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const SHAPE: [usize; 4] = [2, 8, 6, 5];

    /// Numbers that f16 and bf16 have too.
    fn numbers(seed: u64, count: usize, around: f64) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| (random.random_range(-1.0..1.0_f64) * 64.0).round() / 32.0 + around).collect()
    }

    fn values<const D: usize>(seed: u64, shape: [usize; D], around: f64, device: &Device, dtype: DType) -> Tensor<D> {
        let data = TensorData::new(numbers(seed, shape.iter().product(), around), shape);
        Tensor::from_data(data, (device, dtype))
    }

    /// Its parameters are in f32, as in a copy that computes in half precision, or wider.
    fn norm(device: &Device, dtype: DType) -> GroupNorm {
        let param = |seed, around| Param::from_tensor(values(seed, [8], around, device, dtype));
        GroupNorm { weight: param(1, 1.5), bias: param(2, -0.5), groups: 2 }
    }

    /// Output and gradients at the input, the scale and the shift.
    fn run(dtype: DType) -> [Vec<f64>; 4] {
        let device = Device::flex().autodiff();
        let norm = norm(&device, statistics_dtype(dtype));
        let x = values(3, SHAPE, 3.0, &device, dtype).require_grad();
        let y = norm.forward(x.clone());
        let upstream = values(4, SHAPE, 0.25, &device, dtype);
        let gradients = (y.clone().cast(DType::F64) * upstream.cast(DType::F64)).sum().backward();
        fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
            tensor.cast(DType::F64).into_data().try_into_vec().unwrap()
        }
        let of = |param: &Param<Tensor<1>>| read(param.val().grad(&gradients).unwrap());
        [read(y), read(x.grad(&gradients).unwrap()), of(&norm.weight), of(&norm.bias)]
    }

    #[test]
    fn a_norm_in_half_precision_has_the_derivatives_of_a_wide_one() {
        let reference = run(DType::F64);
        for (dtype, most) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1.5e-2)] {
            for (name, (half, wide)) in ["output", "x", "scale", "shift"].iter().zip(run(dtype).iter().zip(&reference))
            {
                let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
                let difference = squares(&mut half.iter().zip(wide).map(|(a, b)| a - b));
                let deviation = (difference / squares(&mut wide.iter().copied())).sqrt();
                println!("{dtype:?}, {name}: {deviation:.1e}");
                assert!(deviation < most, "{dtype:?}, {name}: {deviation}");
            }
        }
    }

    #[test]
    fn a_graph_does_not_change_what_a_norm_in_half_precision_gives() {
        let device = Device::flex();
        for dtype in [DType::F16, DType::BF16] {
            let plain = norm(&device, DType::F32).forward(values(3, SHAPE, 3.0, &device, dtype));
            let device = device.clone().autodiff();
            let tracked = norm(&device, DType::F32).forward(values(3, SHAPE, 3.0, &device, dtype).require_grad());
            assert_eq!(plain.into_data(), tracked.without_autodiff().into_data(), "{dtype:?}");
        }
    }
}
