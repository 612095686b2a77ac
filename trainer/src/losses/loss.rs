//! The interfaces of a loss to the engine and to the configuration.

use burn::tensor::{DType, Device, Tensor};
use checkpoints::Quantizer as QuantizerSettings;

use super::adversarial::config::DiscriminatorConfig;
use super::adversarial::state::{DiscriminatorGradient, SavedDiscriminator};
use super::clip::config::ClipConfig;
use super::load::LossError;
use super::metrics::Metrics;
use super::phase::{Event, Phase};
use crate::models::VqGan;
use crate::models::quantizer::gumbel::Sampling;
use crate::models::quantizer::{Quantized, Quantizer};
use crate::optim::{OptimizerConfig, ScheduleConfig};
use crate::precision::{PrecisionConfig, Probe};

/// A loss of a run, with its networks.
///
/// A step calls, in this order: [`begin`](Self::begin); if a loss couples samples, a first pass as [`LossStep::needs`]
/// asks, and [`LossStep::couple`]; per micro-batch [`LossStep::add_gradient`]; and [`LossStep::finish`].
pub trait Loss: Sized {
    /// The tables `[losses.*]` that configure it.
    type Tables<'a>;

    /// Its metrics: the key in `metrics.jsonl`, and the `group/name` under which TensorBoard and the report show it.
    const METRICS: &'static [(&'static str, &'static str)];

    /// Fetches and reads its networks; `None` if it is off.
    ///
    /// # Errors
    /// If a network cannot be fetched or read, or a setting does not fit it.
    fn load(tables: Self::Tables<'_>, context: &mut LoadContext<'_>) -> Result<Option<Self>, LossError>;

    /// Whether it couples the samples of the effective batch in a step, counted from 0. Such a step needs a first pass.
    fn couples_samples(&self, _step: u64) -> bool {
        false
    }

    /// Begins an optimizer step; `None` if the loss takes no part in it.
    fn begin<'a>(&'a self, context: &'a StepContext<'a>) -> Option<Box<dyn LossStep + 'a>>;

    /// Returns an instance that needs no files, for checking the loss in every batch split and on every device.
    fn example() -> Option<Self> {
        None
    }

    /// Returns itself if it is a function of an original and its reconstruction alone.
    fn as_image_loss(&self) -> Option<&dyn ImageLoss> {
        None
    }
}

/// A loss in one optimizer step. All its state belongs to this step; a step that is repeated begins again.
pub trait LossStep {
    /// What it needs from the whole effective batch before it can compute a gradient.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Sees a micro-batch's latents in the first pass, `[n, D, h, w]`, before quantization and without autodiff.
    fn observe_latents(&mut self, _quantizer: &Quantizer, _latents: &Tensor<4>) {}

    /// Sees a micro-batch's reconstructions in the first pass. `at_image` is the gradient at them of the losses before
    /// this one, `[n, 3, H, W]`, if it [needs](Self::needs) that.
    ///
    /// # Errors
    /// If something that it needs for a sample is missing.
    fn observe_images(&mut self, _forward: &Forward, _at_image: Option<&Tensor<4>>) -> Result<(), LossError> {
        Ok(())
    }

    /// Ends the first pass: computes what couples the samples.
    fn couple(&mut self) {}

    /// Returns how to draw the codes of the samples at `draws` of the training stream, if this loss decides that.
    fn sampling(&self, _draws: &[u64]) -> Option<Sampling> {
        None
    }

    /// Adds the gradient of a micro-batch in the second pass, and its part of the metrics.
    ///
    /// # Errors
    /// If something that it needs for a sample is missing.
    fn add_gradient(&mut self, forward: &Forward, to: &mut Gradients, metrics: &mut Metrics) -> Result<(), LossError>;

    /// Ends the step: adds the metrics that belong to the effective batch as a whole.
    fn finish(&mut self, _metrics: &mut Metrics) {}

    /// Returns the gradient for its discriminator from the effective batch, if it has one that is trained in this step.
    fn take_discriminator_gradient(&mut self) -> Option<DiscriminatorGradient> {
        None
    }
}

/// What the first pass has to compute for a loss, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing: the loss does not couple samples.
    Nothing,
    /// The latents.
    Latents,
    /// The reconstructions.
    Images,
    /// The reconstructions, and the gradient at them of the losses before this one.
    ImageGradient,
}

/// The keys that every table `[losses.*]` has; [`loss_table!`](crate::losses::table::loss_table) implements it.
pub trait LossKeys {
    /// The table's name below `losses`.
    fn name(&self) -> &'static str;

    /// The key of its weight, such as `losses.pixel.weight`.
    fn weight_key(&self) -> &'static str;

    /// `weight`, `start` and `ramp`.
    fn weight(&self) -> Weight;

    /// Sets `weight`, `start` and `ramp`.
    fn set_weight(&mut self, weight: Weight);

    /// Whether the loss is on.
    fn is_on(&self) -> bool {
        self.weight().value != 0.0
    }
}

/// What a loss looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// The reconstruction and its original: these losses' gradient determines the adaptive weight.
    Images,
    /// The reconstruction, through a discriminator.
    Discriminator,
    /// The reconstruction, through CLIP.
    Clip,
    /// The latents and their codes.
    Latents,
}

/// The weight of a loss over the optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight {
    /// The weight after the ramp.
    pub value: f64,
    /// First optimizer step at which the weight applies.
    pub start: u64,
    /// Number of optimizer steps over which it grows from 0 to `value`.
    pub ramp: u64,
}

impl Weight {
    /// Returns a weight that is the same from the first step.
    pub fn constant(value: f64) -> Self {
        Self { value, start: 0, ramp: 0 }
    }

    /// Returns the weight at an optimizer step, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        match step.checked_sub(self.start) {
            None => 0.0,
            Some(since) if since < self.ramp => self.value * (since + 1) as f64 / (self.ramp + 1) as f64,
            Some(_) => self.value,
        }
    }
}

/// The rest of the configuration, as far as a loss may use it.
pub struct Surroundings<'a> {
    /// `run.seed`
    pub seed: u64,
    /// `run.steps`
    pub steps: u64,
    /// `batch.effective`
    pub effective: usize,
    /// `data.resolution`, in pixels.
    pub resolution: u32,
    /// `[precision]`
    pub precision: &'a PrecisionConfig,
    /// `[optimizer]`
    pub optimizer: &'a OptimizerConfig,
    /// `[schedule]`
    pub schedule: &'a ScheduleConfig,
    /// `[discriminator]`
    pub discriminator: &'a DiscriminatorConfig,
    /// `[clip]`
    pub clip: &'a ClipConfig,
    /// `validation.clip`
    pub judge_by_clip: bool,
    /// The losses that are on, what they look at and their weights.
    pub losses: Vec<(Sees, Weight)>,
}

/// What a loss needs to read its networks.
pub struct LoadContext<'a> {
    /// The rest of the configuration.
    pub around: Surroundings<'a>,
    /// The quantizer's settings from the checkpoint.
    pub quantizer: &'a QuantizerSettings,
    /// The autodiff device for the networks.
    pub device: &'a Device,
    /// The type that networks that are not trained are stored in and compute in.
    pub frozen: DType,
    /// The discriminator in the run's checkpoint, if there is one.
    pub discriminator: Option<SavedDiscriminator>,
}

/// The optimizer step, as far as a loss may use it.
pub struct StepContext<'a> {
    /// The optimizer step, counted from 0.
    pub step: u64,
    /// Number of samples in the effective batch.
    pub effective: usize,
    /// The model without autodiff, in the type that it computes in.
    pub model: &'a VqGan,
    /// The type of the networks' copies that compute; `None` to compute with the networks themselves.
    pub compute: Option<DType>,
    /// Factors of the losses before the backward passes.
    pub loss_scales: LossScales,
    /// Finds values that are not finite.
    pub probe: Option<&'a Probe>,
    /// The device, without autodiff.
    pub device: Device,
    /// The type of images and losses: f32 at least.
    pub dtype: DType,
    /// Called at each phase.
    pub observe: &'a dyn Fn(Event),
}

impl StepContext<'_> {
    /// Returns `value` as `[1]`, in the type of losses.
    pub fn scalar(&self, value: f64) -> Tensor<1> {
        Tensor::full([1], value, (&self.device, self.dtype))
    }

    /// Reports that a phase begins.
    pub fn enter(&self, phase: Phase) {
        (self.observe)(Event::Phase(phase));
    }

    /// Returns the gradient at `image` of the scalar `loss(image)`; the probe checks it under `name`.
    pub fn gradient_at(&self, name: &str, image: &Tensor<4>, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> Tensor<4> {
        let at_image = gradient_at(image, loss);
        self.probe_gradient(name, &at_image);
        at_image
    }

    /// Checks a loss's gradient at the image, if there is a probe.
    pub fn probe_gradient(&self, name: &str, at_image: &Tensor<4>) {
        if let Some(probe) = self.probe {
            probe.loss(name, at_image);
        }
    }

    /// Checks a loss's value, `[1]`, if there is a probe.
    pub fn probe_value(&self, name: &str, value: &Tensor<1>) {
        if let Some(probe) = self.probe {
            probe.forward(|| name.to_owned(), value);
        }
    }
}

/// A micro-batch's images.
#[derive(Debug, Clone)]
pub struct Images<'a> {
    /// The optimizer step, counted from 0.
    pub step: u64,
    /// Weight of a sample in the mean over the effective batch.
    pub per_sample: f64,
    /// Factor of the gradients at the reconstruction.
    pub loss_scale: f64,
    /// The originals, `[n, 3, H, W]` in -1..1, in f32 at least and without autodiff.
    pub original: Tensor<4>,
    /// The reconstructions, `[n, 3, H, W]`, likewise.
    pub reconstruction: Tensor<4>,
    /// Index of the first sample in the effective batch.
    pub first: usize,
    /// Each sample's position in the training stream: the key of its random numbers.
    pub draws: &'a [u64],
    /// Each sample's caption, if it has one.
    pub captions: &'a [Option<String>],
}

/// A micro-batch after its forward pass.
#[derive(Debug)]
pub struct Forward<'a> {
    /// Originals and reconstructions.
    pub images: Images<'a>,
    /// The input of the model's last layer, `[n, C, H, W]`, without autodiff.
    pub last_input: &'a Tensor<4>,
    /// The codes; in the second pass with a graph back to the latents and the codebook.
    pub quantized: &'a Quantized,
}

/// What a micro-batch's backward pass through the model starts from.
#[derive(Debug)]
pub struct Gradients {
    /// Gradient of the weighted losses at the reconstruction, times the loss scale, `[n, 3, H, W]`.
    pub at_image: Tensor<4>,
    /// A scalar whose gradient at latents and codes is that of the weighted losses, times the loss scale.
    pub at_codes: Option<Tensor<1>>,
}

impl Gradients {
    /// Returns zero gradients.
    pub fn zero(images: &Images) -> Self {
        Self { at_image: images.reconstruction.zeros_like(), at_codes: None }
    }

    /// Adds a gradient at the reconstruction, `[n, 3, H, W]`.
    pub fn add_at_image(&mut self, gradient: Tensor<4>) {
        self.at_image = self.at_image.clone() + gradient;
    }
}

/// Returns the gradient at `image` of the scalar `loss(image)`, and frees the loss's graph.
pub fn gradient_at(image: &Tensor<4>, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> Tensor<4> {
    let leaf = image.clone().autodiff().require_grad();
    let mut gradients = loss(leaf.clone()).backward();
    leaf.grad_remove(&mut gradients).unwrap_or_else(|| image.zeros_like())
}

/// The loss scale of each optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScales {
    /// Scale of the generator's losses.
    pub generator: f64,
    /// Scale of the discriminator's loss.
    pub discriminator: f64,
}

impl Default for LossScales {
    fn default() -> Self {
        Self { generator: 1.0, discriminator: 1.0 }
    }
}

/// A loss that compares an original with its reconstruction, sample by sample.
pub trait ImageLoss: Send {
    /// Its key in the configuration and in metrics.
    fn name(&self) -> &'static str;

    /// Returns the value for each sample, `[N]`, of `reconstruction` given `original`, both `[N, 3, H, W]` in -1..1.
    ///
    /// No sample's value may depend on another sample, because the batch can be split anywhere.
    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1>;
}

/// Loads an [`ImageLoss`] from its table; [`Weighted`] makes it a [`Loss`].
pub trait LoadImageLoss: ImageLoss + Sized {
    /// Its table `[losses.*]`.
    type Table: LossKeys;

    /// Its one metric, as in [`Loss::METRICS`].
    const METRIC: (&'static str, &'static str);

    /// Fetches and reads its networks, if it has any. Called only if the loss is on.
    ///
    /// # Errors
    /// As for [`Loss::load`].
    fn load(table: &Self::Table, context: &LoadContext<'_>) -> Result<Self, LossError>;

    /// See [`Loss::example`].
    fn example() -> Option<Self>;
}

/// An [`ImageLoss`] with its weight.
#[derive(Debug)]
pub struct Weighted<L> {
    /// Its weight in each step.
    pub weight: Weight,
    /// The loss.
    pub loss: L,
}

impl<L: LoadImageLoss + 'static> Loss for Weighted<L> {
    type Tables<'a> = (&'a L::Table,);

    const METRICS: &'static [(&'static str, &'static str)] = &[L::METRIC];

    fn load((table,): Self::Tables<'_>, context: &mut LoadContext<'_>) -> Result<Option<Self>, LossError> {
        let load = || Ok(Self { weight: table.weight(), loss: L::load(table, context)? });
        table.is_on().then(load).transpose()
    }

    fn begin<'a>(&'a self, context: &'a StepContext<'a>) -> Option<Box<dyn LossStep + 'a>> {
        let weight = self.weight.at(context.step);
        (weight != 0.0).then(|| Box::new(ImageLossStep { loss: &self.loss, weight, context }) as Box<dyn LossStep>)
    }

    fn example() -> Option<Self> {
        Some(Self { weight: Weight::constant(1.0), loss: L::example()? })
    }

    fn as_image_loss(&self) -> Option<&dyn ImageLoss> {
        Some(&self.loss)
    }
}

struct ImageLossStep<'a> {
    loss: &'a dyn ImageLoss,
    weight: f64,
    context: &'a StepContext<'a>,
}

impl LossStep for ImageLossStep<'_> {
    fn add_gradient(&mut self, forward: &Forward, to: &mut Gradients, metrics: &mut Metrics) -> Result<(), LossError> {
        let images = &forward.images;
        let (name, place) = (self.loss.name(), format!("the loss {}", self.loss.name()));
        self.context.enter(Phase::Loss(name));
        let at_image = self.context.gradient_at(&place, &images.reconstruction, |leaf| {
            let value = self.loss.per_sample(images.original.clone().autodiff(), leaf).sum() * images.per_sample;
            let plain = value.clone().without_autodiff();
            self.context.probe_value(&place, &plain);
            metrics.add_loss(name, plain, self.weight);
            value * (self.weight * images.loss_scale)
        });
        to.add_at_image(at_image);
        Ok(())
    }
}
