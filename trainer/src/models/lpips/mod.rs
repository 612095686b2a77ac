//! LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924): the weighted distance of two images' features in a network trained
//! on ImageNet, at five depths of that network.
//!
//! burn-train's own is no loss for training. Its norms are in the images' type, which overflows in half precision, and
//! its gradient is NaN where all features are zero. It keeps the features of both images and both sides of every ReLU.

use burn::module::{Module, Param};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::tensor::{DType, Tensor};
use checkpoints::LpipsNetwork;

use super::ops::conv2d::Conv2d;
use super::statistics_dtype;
use super::weights::{ModelError, WeightReader};

/// Added to the length of a feature vector, as in the package `lpips`.
const EPSILON: f64 = 1e-10;

/// Smallest squared length: far below `EPSILON`, but not 0, where the root's slope is infinite.
const LEAST_SQUARE: f64 = 1e-36;

/// Normalisation of the networks' inputs, for images in -1..1 (`ScalingLayer`).
const SHIFT: [f64; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f64; 3] = [0.458, 0.448, 0.450];

/// Compares images of any size that [`Lpips::smallest_input`] allows; it is never trained.
#[derive(Module, Debug)]
pub struct Lpips {
    stages: Vec<Stage>,
}

/// The convolutions before one comparison, and the weights of the comparison.
#[derive(Module, Debug)]
struct Stage {
    pool: Option<MaxPool2d>,
    convolutions: Vec<Conv2d>,
    /// Weight of each channel, `[1, C, 1, 1]`.
    linear: Param<Tensor<4>>,
}

/// A convolution by its index in torchvision's `features`.
struct Convolution {
    index: usize,
    channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

/// The size of a stage's pooling, which runs before its convolutions; every pooling has stride 2.
type Plan = (Option<usize>, Vec<Convolution>);

fn vgg16() -> Vec<Plan> {
    let stage = |pool, channels, indices: &[usize]| {
        let convolution = |&index| Convolution { index, channels, kernel: 3, stride: 1, padding: 1 };
        (pool, indices.iter().map(convolution).collect())
    };
    vec![
        stage(None, 64, &[0, 2]),
        stage(Some(2), 128, &[5, 7]),
        stage(Some(2), 256, &[10, 12, 14]),
        stage(Some(2), 512, &[17, 19, 21]),
        stage(Some(2), 512, &[24, 26, 28]),
    ]
}

fn alexnet() -> Vec<Plan> {
    let stage = |pool, index, channels, kernel, stride, padding| {
        (pool, vec![Convolution { index, channels, kernel, stride, padding }])
    };
    vec![
        stage(None, 0, 64, 11, 4, 2),
        stage(Some(3), 3, 192, 5, 1, 2),
        stage(Some(3), 6, 384, 3, 1, 1),
        stage(None, 8, 256, 3, 1, 1),
        stage(None, 10, 256, 3, 1, 1),
    ]
}

impl Lpips {
    /// Reads `network`: torchvision's `features.<index>.weight` and `bias`, and `lin0.weight` to `lin4.weight`.
    ///
    /// # Errors
    /// If one is missing or its shape does not match `network`.
    pub fn read(from: &WeightReader, network: LpipsNetwork) -> Result<Self, ModelError> {
        let plans = match network {
            LpipsNetwork::Vgg16 => vgg16(),
            LpipsNetwork::AlexNet => alexnet(),
        };
        let mut channels = 3;
        let stage = |(index, (pool, plan)): (usize, Plan)| {
            let mut convolutions = Vec::new();
            for convolution in plan {
                convolutions.push(convolution.read(from, channels)?);
                channels = convolution.channels;
            }
            Ok(Stage {
                pool: pool.map(|size| MaxPool2dConfig::new([size; 2]).with_strides([2; 2]).init()),
                convolutions,
                linear: from.at(&format!("lin{index}")).shaped("weight", [1, channels, 1, 1])?,
            })
        };
        let stages = plans.into_iter().enumerate().map(stage).collect::<Result<_, _>>()?;
        Ok(Self { stages }.no_grad())
    }

    /// The smallest height and width of an image; with one pixel less a stage has no pixel.
    pub fn smallest_input(network: LpipsNetwork) -> usize {
        match network {
            LpipsNetwork::Vgg16 => 16,
            LpipsNetwork::AlexNet => 31,
        }
    }

    /// Returns features of images `[N, 3, H, W]` in -1..1, stage by stage: `[N, C, h, w]`, of length 1 over the
    /// channels, in f32 at least. The iterator computes each stage on demand, so a comparison holds only one at a time.
    pub fn features(&self, images: Tensor<4>) -> impl Iterator<Item = Tensor<4>> {
        let mut last = Some(scaled(images).cast(self.dtype()));
        self.stages.iter().map_while(move |stage| {
            let features = stage.forward(last.take()?);
            last = Some(features.clone());
            Some(unit(features))
        })
    }

    fn dtype(&self) -> DType {
        self.stages.first().map_or(DType::F32, |stage| stage.linear.val().dtype())
    }

    /// Returns the distance of each sample of `reconstruction`, `[N, 3, H, W]` in -1..1, from the image whose
    /// [`features`](Self::features) are `original`: `[N]`, in f32 at least.
    pub fn distance(&self, original: impl IntoIterator<Item = Tensor<4>>, reconstruction: Tensor<4>) -> Tensor<1> {
        let zero =
            Tensor::zeros([reconstruction.dims()[0]], (&reconstruction.device(), statistics_dtype(self.dtype())));
        let features = original.into_iter().zip(self.features(reconstruction));
        self.stages.iter().zip(features).fold(zero, |sum, (stage, (a, b))| sum + stage.distance(a, b))
    }
}

impl Convolution {
    fn read(&self, from: &WeightReader, inputs: usize) -> Result<Conv2d, ModelError> {
        let from = from.at(&format!("features.{}", self.index));
        Ok(Conv2d {
            weight: from.shaped("weight", [self.channels, inputs, self.kernel, self.kernel])?,
            bias: Some(from.shaped("bias", [self.channels])?),
            stride: [self.stride; 2],
            padding: [[self.padding; 2]; 2],
        })
    }
}

impl Stage {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let pooled = match &self.pool {
            Some(pool) => pool.forward(x),
            None => x,
        };
        self.convolutions.iter().fold(pooled, |x, convolution| relu(convolution.forward(x)))
    }

    /// Returns each channel's mean square over the pixels, weighted: `[N]`. It weights the means and not the pixels,
    /// which saves one full-size tensor.
    fn distance(&self, a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
        let [n, c, h, w] = a.dims();
        let per_channel = (a - b).square().reshape([n, c, h * w]).mean_dim(2);
        let linear = self.linear.val().cast(per_channel.dtype()).reshape([1, c, 1]);
        (per_channel * linear).sum_dim(1).reshape([n])
    }
}

/// Keeps a mask for the backward pass. Burn's `relu` keeps its input, and the next layer keeps its output as well.
fn relu(x: Tensor<4>) -> Tensor<4> {
    let negative = x.clone().lower_equal_elem(0.0);
    x.mask_fill(negative, 0.0)
}

fn scaled(images: Tensor<4>) -> Tensor<4> {
    let place = (&images.device(), images.dtype());
    let per_channel = |values: [f64; 3]| Tensor::<1>::from_data(values, place).reshape([1, 3, 1, 1]);
    (images - per_channel(SHIFT)) / per_channel(SCALE)
}

/// Scales each pixel's features to length 1.
fn unit(features: Tensor<4>) -> Tensor<4> {
    let dtype = statistics_dtype(features.dtype());
    let features = features.cast(dtype);
    let length = features.clone().square().sum_dim(1).clamp_min(LEAST_SQUARE).sqrt();
    features / (length + EPSILON)
}

#[cfg(test)]
pub(crate) mod tests;
