//! PatchGAN (Isola et al. 2017, arXiv 1611.07004), as trained in taming: a discriminator that judges image patches.
//!
//! Its parameters have taming's names, `main.<index>.weight`. Activations have an index too, but no parameter.

use burn::module::{Module, Param};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{DType, Tensor};
use checkpoints::HostTensor;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::initialize::rng_for;
use super::ops::conv2d::Conv2d;
use super::ops::group_norm::GroupNorm;
use super::statistics_dtype;
use super::weights::{ModelError, StateDict, WeightReader};

/// Kernel size of every convolution.
const KERNEL: usize = 4;

/// Slope of the leaky ReLU below zero.
const LEAK: f64 = 0.2;

/// PyTorch's defaults for BatchNorm, which taming uses.
const BATCH_EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// The normalisation between the convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiscriminatorNorm {
    /// GroupNorm: no sample's logits depend on another sample. It uses the VQGAN's epsilon, 1e-6.
    Group,
    /// taming's BatchNorm: in training, a sample's logits depend on the micro-batch, and so does the gradient.
    Batch,
}

/// The structure of a PatchGAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchGanConfig {
    /// Channels after the first convolution (`ndf`); each further one doubles them, up to eight times as many.
    pub channels: usize,
    /// Convolutions that halve the size (`n_layers`), at least 1.
    pub layers: usize,
    /// Normalisation.
    pub norm: DiscriminatorNorm,
}

/// One convolution of a PatchGAN.
struct Convolution {
    index: usize,
    inputs: usize,
    outputs: usize,
    stride: usize,
    normed: bool,
}

impl PatchGanConfig {
    /// Finds the structure from the names and shapes of the weights in `state`.
    ///
    /// # Errors
    /// If they are not those of a PatchGAN.
    pub fn of(state: &StateDict) -> Result<Self, ModelError> {
        let missing = |name: &str| ModelError::Missing(name.to_owned());
        let index = |name: &String| name.strip_prefix("main.")?.strip_suffix(".weight")?.parse::<usize>().ok();
        let last = state.keys().filter_map(index).max().ok_or_else(|| missing("main.0.weight"))?;
        // The first convolution and its activation, three entries for each normalised one, and the last one.
        let layers = last.checked_sub(2).map(|entries| entries.div_ceil(3)).filter(|&layers| layers > 0);
        let layers = layers.ok_or_else(|| missing("main.5.weight"))?;
        let first = state.get("main.0.weight").ok_or_else(|| missing("main.0.weight"))?;
        let norm = match state.contains_key("main.3.running_mean") {
            true => DiscriminatorNorm::Batch,
            false => DiscriminatorNorm::Group,
        };
        Ok(Self { channels: first.shape.first().copied().unwrap_or(0), layers, norm })
    }

    /// The smallest height and width of an image; with one pixel less there is no logit.
    pub fn smallest_input(&self) -> usize {
        // Each of the two convolutions of stride 1 takes one pixel.
        2_usize.saturating_pow(u32::try_from(self.layers).unwrap_or(u32::MAX)).saturating_mul(3)
    }

    fn plan(&self) -> Vec<Convolution> {
        let width = |level: usize| self.channels * (1 << level.min(3));
        let mut plan = vec![Convolution { index: 0, inputs: 3, outputs: width(0), stride: 2, normed: false }];
        for level in 1..=self.layers {
            let stride = if level < self.layers { 2 } else { 1 };
            let (inputs, outputs) = (width(level - 1), width(level));
            plan.push(Convolution { index: 3 * level - 1, inputs, outputs, stride, normed: true });
        }
        let (index, inputs) = (3 * self.layers + 2, width(self.layers));
        plan.push(Convolution { index, inputs, outputs: 1, stride: 1, normed: false });
        plan
    }

    /// Whether a convolution has a bias. One before BatchNorm has none, because BatchNorm would subtract it again.
    fn has_bias(&self, convolution: &Convolution) -> bool {
        !convolution.normed || self.norm == DiscriminatorNorm::Group
    }
}

/// Returns the groups of a GroupNorm: the largest power of two up to 32 that gives multiples of four channels, or 1.
fn groups(channels: usize) -> usize {
    [32, 16, 8, 4, 2].into_iter().find(|groups| channels.is_multiple_of(4 * groups)).unwrap_or(1)
}

/// The discriminator.
#[derive(Module, Debug)]
pub struct PatchGan {
    /// By index; `None` for an activation, which has no parameters.
    main: Vec<Option<Layer>>,
}

#[derive(Module, Debug)]
enum Layer {
    Convolution(Conv2d),
    GroupNorm(GroupNorm),
    BatchNorm(BatchNorm),
}

impl PatchGan {
    /// Builds the discriminator of `config` from `main.<index>.weight` and so on.
    ///
    /// # Errors
    /// If one is missing or its shape does not match `config`.
    pub fn read(from: &WeightReader, config: &PatchGanConfig) -> Result<Self, ModelError> {
        let mut main = Vec::new();
        for convolution in config.plan() {
            let at = |index: usize| from.at(&format!("main.{index}"));
            let bias = config.has_bias(&convolution);
            main.push(Some(Layer::Convolution(convolution.read(&at(convolution.index), bias)?)));
            if convolution.normed {
                let (from, channels) = (at(convolution.index + 1), convolution.outputs);
                main.push(Some(match config.norm {
                    DiscriminatorNorm::Group => {
                        for name in ["weight", "bias"] {
                            from.shaped::<1>(name, [channels])?;
                        }
                        Layer::GroupNorm(GroupNorm::read(&from, groups(channels))?)
                    }
                    DiscriminatorNorm::Batch => Layer::BatchNorm(BatchNorm::read(&from, channels)?),
                }));
            }
            main.push(None);
        }
        // No activation follows the last convolution.
        main.pop();
        Ok(Self { main })
    }

    /// Draws random weights as taming does (`weights_init`), as a pure function of `seed`: convolutions from N(0,
    /// 0.02), their biases uniformly as in PyTorch, scales of norms from N(1, 0.02).
    pub fn random_weights(config: &PatchGanConfig, seed: u64) -> StateDict {
        let mut state = StateDict::new();
        let mut put = |name: String, shape: &[usize], draw: &dyn Fn(&str, usize) -> Vec<f32>| {
            let values = draw(&name, shape.iter().product());
            state.insert(name, HostTensor::from_f32(shape, &values));
        };
        let normal = |mean: f64| move |name: &str, len: usize| normal(seed, name, len, mean, 0.02);
        let constant = |value: f32| move |_: &str, len: usize| vec![value; len];
        for convolution in config.plan() {
            let Convolution { index, inputs, outputs, normed, .. } = convolution;
            put(format!("main.{index}.weight"), &[outputs, inputs, KERNEL, KERNEL], &normal(0.0));
            if config.has_bias(&convolution) {
                let bound = ((inputs * KERNEL * KERNEL) as f64).powf(-0.5);
                put(format!("main.{index}.bias"), &[outputs], &|name, len| {
                    let mut rng = rng_for(seed, name);
                    (0..len).map(|_| rng.random_range(-bound..=bound) as f32).collect()
                });
            }
            if normed {
                let norm = index + 1;
                put(format!("main.{norm}.weight"), &[outputs], &normal(1.0));
                put(format!("main.{norm}.bias"), &[outputs], &constant(0.0));
                if config.norm == DiscriminatorNorm::Batch {
                    put(format!("main.{norm}.running_mean"), &[outputs], &constant(0.0));
                    put(format!("main.{norm}.running_var"), &[outputs], &constant(1.0));
                }
            }
        }
        state
    }

    /// Maps images `[N, 3, H, W]` in -1..1 to logits `[N, 1, h, w]`, high for real, in training mode: BatchNorm
    /// normalises with the statistics of these images.
    ///
    /// # Panics
    /// If the images are smaller than [`PatchGanConfig::smallest_input`].
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        self.forward_with_statistics(images).0
    }

    /// Like [`forward`](Self::forward), and returns the statistics that the BatchNorms computed.
    pub fn forward_with_statistics(&self, images: Tensor<4>) -> (Tensor<4>, BatchStatistics) {
        let mut seen = Vec::new();
        let logits = self.run(images, |norm, x| {
            let moments = Moments::of(&x);
            let y = norm.forward(x, moments.clone());
            seen.push(moments.unbiased().without_autodiff());
            y
        });
        (logits, BatchStatistics(seen))
    }

    /// Maps images to logits in evaluation mode: BatchNorm normalises with its running statistics, so no sample's
    /// logits depend on another sample.
    pub fn evaluate(&self, images: Tensor<4>) -> Tensor<4> {
        self.run(images, |norm, x| {
            let running = norm.running();
            norm.forward(x, running)
        })
    }

    fn dtype(&self) -> DType {
        let convolution = self.main.iter().flatten().find_map(|layer| match layer {
            Layer::Convolution(convolution) => Some(convolution.weight.val().dtype()),
            _ => None,
        });
        convolution.unwrap_or(DType::F32)
    }

    fn run(&self, images: Tensor<4>, mut batch_norm: impl FnMut(&BatchNorm, Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let images = images.cast(self.dtype());
        self.main.iter().fold(images, |x, layer| match layer {
            Some(Layer::Convolution(convolution)) => convolution.forward(x),
            Some(Layer::GroupNorm(norm)) => norm.forward(x),
            Some(Layer::BatchNorm(norm)) => batch_norm(norm, x),
            None => leaky_relu(x, LEAK),
        })
    }

    /// Whether a norm mixes the samples of a micro-batch.
    pub fn has_batch_norm(&self) -> bool {
        self.main.iter().any(|layer| matches!(layer, Some(Layer::BatchNorm(_))))
    }

    /// Returns the discriminator with its running statistics moved towards `seen`. Training does not use them, so this
    /// changes neither its logits nor its gradients. taming does it for each micro-batch, real and fake alike.
    #[must_use]
    pub fn with_statistics(mut self, seen: BatchStatistics) -> Self {
        let norms = self.main.iter_mut().filter_map(|layer| match layer {
            Some(Layer::BatchNorm(norm)) => Some(norm),
            _ => None,
        });
        for (norm, moments) in norms.zip(seen.0) {
            norm.move_towards(moments);
        }
        self
    }
}

/// The statistics that the BatchNorms of a [`PatchGan`] computed for one micro-batch, without autodiff; can be empty.
#[derive(Debug, Clone)]
pub struct BatchStatistics(Vec<Moments>);

impl Convolution {
    fn read(&self, from: &WeightReader, bias: bool) -> Result<Conv2d, ModelError> {
        Ok(Conv2d {
            weight: from.shaped("weight", [self.outputs, self.inputs, KERNEL, KERNEL])?,
            bias: bias.then(|| from.shaped("bias", [self.outputs])).transpose()?,
            stride: [self.stride; 2],
            padding: [[1; 2]; 2],
        })
    }
}

/// Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) with statistics in f32 at least.
///
/// It makes the gradient depend on the batch split. The running statistics are parameters without a gradient: they are
/// saved with the others, but no optimizer changes them.
#[derive(Module, Debug)]
struct BatchNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_var: Param<Tensor<1>>,
}

impl BatchNorm {
    fn read(from: &WeightReader, channels: usize) -> Result<Self, ModelError> {
        let from = from.wide();
        let running = |name| from.shaped(name, [channels]).map(|param| param.set_require_grad(false));
        Ok(Self {
            weight: from.shaped("weight", [channels])?,
            bias: from.shaped("bias", [channels])?,
            running_mean: running("running_mean")?,
            running_var: running("running_var")?,
        })
    }

    /// `[N, C, H, W]` to the same; applies one scale and one shift per channel.
    fn forward(&self, x: Tensor<4>, moments: Moments) -> Tensor<4> {
        let ([n, c, h, w], dtype) = (x.dims(), x.dtype());
        let wide = statistics_dtype(dtype);
        let scale = self.weight.val().cast(wide) / (moments.variance + BATCH_EPSILON).sqrt();
        let shift = self.bias.val().cast(wide) - moments.mean * scale.clone();
        let per_channel = |t: Tensor<1>| t.cast(dtype).reshape([1, c, 1]);
        // Flattens the pixels to one axis, as in GroupNorm.
        (x.reshape([n, c, h * w]) * per_channel(scale) + per_channel(shift)).reshape([n, c, h, w])
    }

    fn running(&self) -> Moments {
        let wide = |param: &Param<Tensor<1>>| {
            let value = param.val();
            let dtype = statistics_dtype(value.dtype());
            value.cast(dtype)
        };
        Moments { mean: wide(&self.running_mean), variance: wide(&self.running_var), values: 0 }
    }

    fn move_towards(&mut self, seen: Moments) {
        let blend = |param: &mut Param<Tensor<1>>, new: Tensor<1>| {
            *param = param.clone().map(|old| {
                let new = if old.is_autodiff() { new.autodiff() } else { new };
                let dtype = old.dtype();
                old * (1.0 - MOMENTUM) + new.cast(dtype) * MOMENTUM
            });
        };
        blend(&mut self.running_mean, seen.mean);
        blend(&mut self.running_var, seen.variance);
    }
}

/// Mean and variance of each channel, `[C]`.
#[derive(Debug, Clone)]
struct Moments {
    mean: Tensor<1>,
    variance: Tensor<1>,
    /// Number of values per channel that they are computed from.
    values: usize,
}

impl Moments {
    fn of(x: &Tensor<4>) -> Self {
        let [n, c, h, w] = x.dims();
        let flat = x.clone().cast(statistics_dtype(x.dtype())).reshape([n, c, h * w]);
        let mean_of = |t: Tensor<3>| t.mean_dim(2).mean_dim(0);
        let mean = mean_of(flat.clone());
        let variance = mean_of((flat - mean.clone()).square());
        Self { mean: mean.reshape([c]), variance: variance.reshape([c]), values: n * h * w }
    }

    /// Applies Bessel's correction, as PyTorch does to the running variance but not to the one that it normalises with.
    fn unbiased(self) -> Self {
        let correction = self.values as f64 / (self.values.max(2) - 1) as f64;
        Self { variance: self.variance * correction, ..self }
    }

    fn without_autodiff(self) -> Self {
        Self { mean: self.mean.without_autodiff(), variance: self.variance.without_autodiff(), ..self }
    }
}

/// Draws normally distributed values (Box and Muller 1958).
fn normal(seed: u64, name: &str, len: usize, mean: f64, deviation: f64) -> Vec<f32> {
    let mut rng = rng_for(seed, name);
    let mut draw = || {
        // In (0, 1], so that the logarithm is finite.
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    (0..len).map(|_| (mean + deviation * draw()) as f32).collect()
}

#[cfg(test)]
mod tests;
