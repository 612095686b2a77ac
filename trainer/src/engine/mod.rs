//! Computes the gradient of one effective batch in the memory of one micro-batch. Depends on models and the list of
//! losses, but on no single loss.
//!
//! The gradient does not depend on the batch split: every sample has the weight `1 / effective` in any micro-batch.
//! What couples samples goes through a first pass that keeps statistics, no graph (Gao et al. 2021, arXiv 2101.06983).

mod chain;
mod first_pass;
mod reconstruct;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

pub use self::chain::Recompute;
use self::reconstruct::Reconstruct;
use crate::losses::adversarial::DiscriminatorGradient;
use crate::losses::load::LossError;
use crate::losses::phase::Phase;
use crate::losses::{
    Event, Forward, Gradients, Images, LossScales, LossStep, Losses, Metrics, StepContext, StepMetrics,
};
use crate::models::VqGan;
use crate::models::blocks::statistics_dtype;
use crate::models::discriminator::BatchStatistics;
use crate::models::quantizer::gumbel::Sampling;
use crate::optim::GradientSum;
use crate::precision::{Probe, compute_copy};

/// Some samples of an effective batch, still on the host.
pub trait MicroBatch {
    /// Number of samples.
    fn samples(&self) -> usize;

    /// The images on `device`, `[samples, 3, H, W]` in -1..1, without autodiff; `dtype` is f32 at least.
    fn images(&self, device: &Device, dtype: DType) -> Tensor<4>;

    /// Each sample's position in the training stream: the key of all its random numbers.
    fn draws(&self) -> &[u64];

    /// Each sample's caption, if it has one.
    fn captions(&self) -> &[Option<String>];
}

/// How a step is computed.
#[derive(Clone, Copy)]
pub struct StepSettings<'a> {
    /// The optimizer step, counted from 0.
    pub step: u64,
    /// Number of samples in the effective batch.
    pub effective: usize,
    /// What the backward pass through the model recomputes.
    pub recompute: Recompute,
    /// The type of the networks' copies that compute; `None` to compute with the networks themselves.
    pub compute: Option<DType>,
    /// Factors of the losses before the backward passes.
    pub loss_scales: LossScales,
    /// Finds the first value that is not finite, which makes a step slow.
    pub probe: Option<&'a Probe>,
    /// Gives all micro-batches of this size the same weight in all losses but the codebook's. This is wrong where the
    /// last one is smaller; it is for testing that a sweep finds the error.
    pub weigh_by_micro_batch: Option<usize>,
}

impl Default for StepSettings<'_> {
    /// The first step, with one sample, in the networks' own type.
    fn default() -> Self {
        Self {
            step: 0,
            effective: 1,
            recompute: Recompute::None,
            compute: None,
            loss_scales: LossScales::default(),
            probe: None,
            weigh_by_micro_batch: None,
        }
    }
}

/// The gradients and metrics of one effective batch.
pub struct EffectiveBatch {
    /// Gradient of the generator's weighted losses, mean over the samples, times its loss scale; in f32 at least.
    pub generator: GradientsParams,
    /// Gradient of the discriminator's loss, mean over the samples, times its loss scale; empty if it is not trained.
    pub discriminator: GradientsParams,
    /// The statistics of the discriminator's norms, in order.
    pub statistics: Vec<BatchStatistics>,
    /// The factors of the gradients.
    pub loss_scales: LossScales,
    metrics: Metrics,
}

/// Why a step has no gradient.
#[derive(Debug, thiserror::Error)]
pub enum StepFailure<E> {
    /// A micro-batch could not be loaded.
    #[error("{0}")]
    Batch(E),
    /// A loss cannot be computed for a sample.
    #[error(transparent)]
    Loss(LossError),
}

/// Computes the gradients of `losses` over an effective batch. Both passes get the same samples, one micro-batch at a
/// time, and only one micro-batch is in memory at any time.
///
/// The micro-batches of a pass add up to the effective batch. `first_pass` is used only if a loss couples samples in
/// this step ([`Losses::couple_samples`]).
///
/// # Errors
/// The first error of the micro-batches or of a loss.
pub fn effective_batch_gradient<B: MicroBatch, E>(
    model: &VqGan,
    losses: &Losses,
    settings: StepSettings,
    first_pass: impl Iterator<Item = Result<B, E>>,
    second_pass: impl Iterator<Item = Result<B, E>>,
    observe: impl Fn(Event),
) -> Result<EffectiveBatch, StepFailure<E>> {
    // Once per step, not per micro-batch.
    let copy = settings.compute.map(|dtype| compute_copy(model, dtype));
    let model = copy.as_ref().unwrap_or(model);
    let plain = model.valid();
    let context = step_context(&plain, settings, &observe);
    let couple = losses.couple_samples(settings.step);
    let mut losses = losses.begin(&context);
    let pass = Pass { model, settings, context: &context };

    if couple {
        context.enter(Phase::FirstPass);
        pass.observe(&mut losses, first_pass)?;
        losses.iter_mut().for_each(|loss| loss.couple());
    }
    let (mut generator, mut metrics, mut first) = (GradientSum::default(), Metrics::default(), 0);
    for batch in second_pass {
        let batch = batch.map_err(StepFailure::Batch)?;
        context.enter(Phase::Forward);
        let (original, sampling) = (pass.images(&batch), sampling(&losses, &batch));
        let (through_model, reconstruction) = pass.forward(original.clone(), sampling);
        let forward = Forward {
            images: pass.make_images(&batch, first, original, reconstruction),
            last_input: through_model.last_input(),
            quantized: through_model.quantized(),
        };
        // Each loss network's graph is freed before the next one runs: memory for the largest, not for their sum.
        let mut gradients = Gradients::zero(&forward.images);
        for loss in &mut losses {
            loss.add_gradient(&forward, &mut gradients, &mut metrics).map_err(StepFailure::Loss)?;
        }
        drop(forward);
        context.enter(Phase::Backward);
        through_model.backward(gradients, &mut generator, settings.probe);
        first += batch.samples();
        observe(Event::Samples(batch.samples()));
    }
    losses.iter_mut().rev().for_each(|loss| loss.finish(&mut metrics));

    let learned = losses.iter_mut().find_map(|loss| loss.take_discriminator_gradient());
    let DiscriminatorGradient { gradients: discriminator, statistics } = learned.unwrap_or_default();
    let generator = generator.into_gradients(model);
    Ok(EffectiveBatch { generator, discriminator, statistics, loss_scales: settings.loss_scales, metrics })
}

fn step_context<'a>(plain: &'a VqGan, settings: StepSettings<'a>, observe: &'a dyn Fn(Event)) -> StepContext<'a> {
    let (device, dtype) = plain.place();
    let StepSettings { step, effective, compute, loss_scales, probe, .. } = settings;
    let dtype = statistics_dtype(dtype);
    StepContext { step, effective, model: plain, compute, loss_scales, probe, device, dtype, observe }
}

/// The settings shared by all micro-batches of one effective batch.
struct Pass<'a> {
    model: &'a VqGan,
    settings: StepSettings<'a>,
    context: &'a StepContext<'a>,
}

impl<'a> Pass<'a> {
    fn images(&self, batch: &impl MicroBatch) -> Tensor<4> {
        batch.images(&self.context.device, self.context.dtype)
    }

    fn forward(&self, images: Tensor<4>, sampling: Option<Sampling>) -> (Reconstruct<'a>, Tensor<4>) {
        let StepSettings { recompute, probe, .. } = self.settings;
        Reconstruct::forward(self.model, self.context.model, images, sampling, recompute, probe)
    }

    fn make_images<'b>(
        &self,
        batch: &'b impl MicroBatch,
        first: usize,
        original: Tensor<4>,
        reconstruction: Tensor<4>,
    ) -> Images<'b> {
        let StepSettings { step, effective, loss_scales, weigh_by_micro_batch, .. } = self.settings;
        let per_sample = match weigh_by_micro_batch {
            None => 1.0 / effective as f64,
            Some(micro) => 1.0 / (effective.div_ceil(micro) * batch.samples()) as f64,
        };
        Images {
            step,
            per_sample,
            loss_scale: loss_scales.generator,
            original,
            reconstruction,
            first,
            draws: batch.draws(),
            captions: batch.captions(),
        }
    }
}

/// How to draw the codes of `batch`, the same in both passes.
fn sampling(losses: &[Box<dyn LossStep + '_>], batch: &impl MicroBatch) -> Option<Sampling> {
    losses.iter().find_map(|loss| loss.sampling(batch.draws()))
}

impl EffectiveBatch {
    /// Waits for the device and reads all metrics in one transfer. `generator` and `discriminator`, `[1]` each, are the
    /// global norms of the gradients, the second only in a step that trains it; this divides them by the loss scales.
    ///
    /// # Errors
    /// The device's error, if it failed anywhere in the step.
    pub fn read(&self, generator: Tensor<1>, discriminator: Option<Tensor<1>>) -> Result<StepMetrics, String> {
        let mut metrics = self.metrics.read(generator, discriminator)?;
        metrics.grad_norm /= self.loss_scales.generator;
        metrics.discriminator_grad_norm =
            metrics.discriminator_grad_norm.map(|norm| norm / self.loss_scales.discriminator);
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests;
