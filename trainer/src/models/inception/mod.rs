//! InceptionV3 (Szegedy et al. 2016, arXiv 1512.00567) as FID has it: TensorFlow's network of 2015-12-05 with its poolings,
//! by the weights of torch-fidelity and pytorch-fid.
//!
//! burn-train's own takes images in ImageNet's normalisation by default, and goes on with random weights, after a warning,
//! when its weights fail to load.

mod plan;
mod resize;
#[cfg(test)]
pub(crate) mod tests;

use burn::module::Param;
use burn::nn::PaddingConfig2d;
use burn::nn::pool::{AvgPool2d, AvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::tensor::{DType, Device, Tensor};

use self::plan::{CLASSES, FEATURES, Plan, network};
pub use self::resize::FidPackage;
use super::ops::conv2d::Conv2d;
use super::weights::{ModelError, StateDict, WeightReader};

/// Values of an image's features.
pub const WIDTH: usize = FEATURES;

/// Added to the variance in every norm.
const EPSILON: f64 = 1e-3;

/// The network, in f32, without autodiff.
#[derive(Debug)]
pub struct Inception {
    layers: Vec<Layer>,
    /// `[FEATURES, CLASSES]`.
    classifier: Tensor<2>,
    package: FidPackage,
}

/// What the network makes of images.
pub struct InceptionOutput {
    /// The features of FID, `[N, 2048]`.
    pub features: Tensor<2>,
    /// The logits of the Inception Score, without the classifier's bias as in the authors' code, `[N, 1008]`.
    pub logits: Tensor<2>,
}

#[derive(Debug)]
enum Layer {
    /// With its norm folded in, and a ReLU.
    Convolution(Box<Conv2d>),
    AveragePool(AvgPool2d),
    MaxPool(MaxPool2d),
    /// Side by side, joined by their channels.
    Branches(Vec<Vec<Layer>>),
}

impl Inception {
    /// Reads the network from the weights by the names of torch-fidelity and pytorch-fid. It prepares images as `package`
    /// does.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn read(state: &StateDict, device: &Device, package: FidPackage) -> Result<Self, ModelError> {
        let from = WeightReader::frozen(state, device, DType::F32);
        let mut channels = 3;
        let layers = read_all(&from, &network(), &mut channels)?;
        let classifier = from.at("fc").shaped("weight", [CLASSES, FEATURES])?.val().transpose();
        Ok(Self { layers, classifier, package })
    }

    /// Maps images `[N, 3, H, W]` in -1..1, of any size, to their features and logits. They are rounded to 8 bits first, as
    /// files of images are.
    pub fn forward(&self, images: Tensor<4>) -> InceptionOutput {
        let levels = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().cast(DType::F32);
        let maps = run(&self.layers, self.package.prepare(levels));
        let [n, channels, height, width] = maps.dims();
        let features = maps.reshape([n, channels, height * width]).mean_dim(2).reshape([n, channels]);
        InceptionOutput { logits: features.clone().matmul(self.classifier.clone()), features }
    }
}

fn run(layers: &[Layer], x: Tensor<4>) -> Tensor<4> {
    layers.iter().fold(x, |x, layer| match layer {
        Layer::Convolution(convolution) => convolution.forward(x).clamp_min(0.0),
        Layer::AveragePool(pool) => pool.forward(x),
        Layer::MaxPool(pool) => pool.forward(x),
        Layer::Branches(branches) => Tensor::cat(branches.iter().map(|branch| run(branch, x.clone())).collect(), 1),
    })
}

/// Reads layers that follow each other. `channels` are those of the input, and then those of the output.
fn read_all(from: &WeightReader, plans: &[Plan], channels: &mut usize) -> Result<Vec<Layer>, ModelError> {
    let mut layers = Vec::new();
    for plan in plans {
        layers.push(match plan {
            Plan::Convolution { name, outputs, kernel, stride, padding } => {
                let shape = [*outputs, *channels, kernel[0], kernel[1]];
                *channels = *outputs;
                Layer::Convolution(Box::new(read_convolution(&from.at(name), shape, *stride, *padding)?))
            }
            // TensorFlow does not count what lies beyond the border.
            Plan::AveragePool => Layer::AveragePool(
                AvgPool2dConfig::new([3, 3])
                    .with_strides([1, 1])
                    .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                    .with_count_include_pad(false)
                    .init(),
            ),
            Plan::MaxPool { stride, padding } => {
                let [p, s] = [*padding, *stride];
                let padding = PaddingConfig2d::Explicit(p, p, p, p);
                Layer::MaxPool(MaxPool2dConfig::new([3, 3]).with_strides([s, s]).with_padding(padding).init())
            }
            Plan::Block { name, branches } => {
                let inner;
                let from = if name.is_empty() {
                    from
                } else {
                    inner = from.at(name);
                    &inner
                };
                let inputs = std::mem::take(channels);
                let mut read = Vec::new();
                for branch in branches {
                    let mut outputs = inputs;
                    read.push(read_all(from, branch, &mut outputs)?);
                    *channels += outputs;
                }
                Layer::Branches(read)
            }
        });
    }
    Ok(layers)
}

/// Reads a convolution without a bias, and the norm after it.
fn read_convolution(
    from: &WeightReader,
    shape: [usize; 4],
    stride: usize,
    [rows, columns]: [usize; 2],
) -> Result<Conv2d, ModelError> {
    let [outputs, ..] = shape;
    let weight = from.at("conv").shaped("weight", shape)?.val();
    let norm = from.at("bn");
    let of_norm = |name: &str| Ok::<_, ModelError>(norm.shaped(name, [outputs])?.val());
    let scale: Tensor<1> = of_norm("weight")? / (of_norm("running_var")? + EPSILON).sqrt();
    let bias = of_norm("bias")? - of_norm("running_mean")? * scale.clone();
    Ok(Conv2d {
        weight: Param::from_tensor(weight * scale.reshape([outputs, 1, 1, 1])),
        bias: Some(Param::from_tensor(bias)),
        stride: [stride; 2],
        padding: [[rows; 2], [columns; 2]],
    })
}
