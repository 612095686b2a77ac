//! The gradient of one effective batch, in the memory of one micro-batch.
//!
//! It does not depend on how the batch is cut: every sample counts by `1 / effective`, never by its micro-batch, and what
//! couples samples goes through a first pass that keeps statistics and no graph (Gao et al. 2021, arXiv 2101.06983).

mod chain;
mod figures;
mod reconstruct;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

pub use self::chain::Checkpoint;
pub use self::figures::Figures;
use self::figures::Sums;
use self::reconstruct::Reconstruct;
use crate::gradients::GradientSum;
use crate::losses::{EntropyCoupling, Losses, sum_probabilities};
use crate::models::VqGan;
use crate::models::quantizer::Quantized;

/// Some samples of an effective batch, still on the host.
pub trait MicroBatch {
    /// Number of samples.
    fn samples(&self) -> usize;

    /// The images on `device`, `[samples, 3, H, W]` in -1..1, without autodiff.
    fn images(&self, device: &Device, dtype: DType) -> Tensor<4>;
}

/// What one effective batch says about the model.
pub struct EffectiveBatch {
    /// Gradient of the weighted sum of all losses, mean over the samples.
    pub gradients: GradientsParams,
    /// What is read back once the step is over.
    sums: Sums,
}

/// How a step is computed.
#[derive(Debug, Clone, Copy)]
pub struct StepSettings {
    /// The optimizer step, counted from 0.
    pub step: u64,
    /// Number of samples in the effective batch.
    pub effective: usize,
    /// What is kept for the backward pass through the model.
    pub checkpoint: Checkpoint,
}

/// Computes the gradient of `losses` over an effective batch. Each of the two passes gets the same samples one micro-batch at
/// a time, and only one micro-batch is in memory at any time.
///
/// `model` is on an autodiff device. A pass's micro-batches add up to the effective batch; `first_pass` is not touched unless
/// a loss couples samples.
///
/// # Errors
/// The first error of the micro-batches.
pub fn effective_batch_gradient<B: MicroBatch, E>(
    model: &VqGan,
    losses: &Losses,
    settings: StepSettings,
    first_pass: impl Iterator<Item = Result<B, E>>,
    second_pass: impl Iterator<Item = Result<B, E>>,
    progress: impl Fn(usize),
) -> Result<EffectiveBatch, E> {
    let plain = model.valid();
    let pass = Pass { model, plain: &plain, losses, settings, place: Place::of(model) };
    let (mut sums, mut gradients) = (Sums::default(), GradientSum::default());

    let coupling = losses.are_coupled().then(|| pass.couple(first_pass, &mut sums)).transpose()?;
    for batch in second_pass {
        let batch = batch?;
        pass.micro_batch(&batch, coupling.as_ref(), &mut sums, &mut gradients);
        progress(batch.samples());
    }
    Ok(EffectiveBatch { gradients: gradients.into_inner(), sums })
}

/// Where a model's parameters are and in which type.
#[derive(Debug, Clone)]
struct Place {
    device: Device,
    dtype: DType,
}

impl Place {
    fn of(model: &VqGan) -> Self {
        let (device, dtype) = model.place();
        Self { device: device.without_autodiff(), dtype }
    }
}

/// What stays the same throughout one effective batch.
struct Pass<'a> {
    model: &'a VqGan,
    /// The same model without autodiff.
    plain: &'a VqGan,
    losses: &'a Losses,
    settings: StepSettings,
    place: Place,
}

impl Pass<'_> {
    fn images(&self, batch: &impl MicroBatch) -> Tensor<4> {
        batch.images(&self.place.device, self.place.dtype)
    }

    fn per_sample(&self) -> f64 {
        1.0 / self.settings.effective as f64
    }

    /// The statistics that couple the samples, without a graph and without the decoder.
    fn couple<B: MicroBatch, E>(
        &self,
        batches: impl Iterator<Item = Result<B, E>>,
        sums: &mut Sums,
    ) -> Result<EntropyCoupling, E> {
        let Place { device, dtype } = &self.place;
        let mut sum = Tensor::<1>::zeros([self.plain.quantizer().codes()], (device, *dtype));
        let mut tokens = 0;
        for batch in batches {
            let (vectors, codebook) = self.plain.quantizer().compared(self.plain.encode(self.images(&batch?)));
            tokens += vectors.dims()[0];
            sum = sum + sum_probabilities(vectors, codebook);
        }
        let coupling = EntropyCoupling::new(sum, tokens.max(1));
        let (weight, loss) = &self.losses.codebook;
        let weight = weight.at(self.settings.step);
        sums.add("entropy", coupling.shared_value());
        sums.add_to_total(coupling.shared_value() * (weight * loss.entropy));
        Ok(coupling)
    }

    /// Forward, every loss down to its gradient at the image, backward.
    fn micro_batch(
        &self,
        batch: &impl MicroBatch,
        coupling: Option<&EntropyCoupling>,
        sums: &mut Sums,
        gradients: &mut GradientSum,
    ) {
        let original = self.images(batch);
        let (through_model, reconstruction) =
            Reconstruct::forward(self.model, self.plain, original.clone(), self.settings.checkpoint);
        sums.add_codes(through_model.quantized(), self.model.quantizer().codes());

        let at_image = self.image_gradient(original, reconstruction, sums);
        let codebook = self.codebook_surrogate(through_model.quantized(), coupling, sums);
        through_model.backward(at_image, codebook, gradients);
    }

    /// Gradient of the weighted image losses at the reconstruction, `[n, 3, H, W]`. Each loss has a graph of its own, which
    /// is gone before the next loss runs: the memory is that of the largest loss and not of their sum.
    fn image_gradient(&self, original: Tensor<4>, reconstruction: Tensor<4>, sums: &mut Sums) -> Tensor<4> {
        let mut sum = reconstruction.zeros_like();
        for (weight, loss) in &self.losses.image {
            let weight = weight.at(self.settings.step);
            if weight == 0.0 {
                continue;
            }
            let at_image = gradient_at(&reconstruction, |leaf| {
                let value = loss.per_sample(original.clone().autodiff(), leaf).sum() * self.per_sample();
                sums.add(loss.name(), value.clone().without_autodiff());
                let weighted = value * weight;
                sums.add_to_total(weighted.clone().without_autodiff());
                weighted
            });
            sum = sum + at_image;
        }
        sum
    }

    /// A scalar whose gradient is that of the weighted codebook loss.
    fn codebook_surrogate(
        &self,
        quantized: &Quantized,
        coupling: Option<&EntropyCoupling>,
        sums: &mut Sums,
    ) -> Tensor<1> {
        let (weight, loss) = &self.losses.codebook;
        let weight = weight.at(self.settings.step);
        let value = loss.per_sample(quantized).sum() * self.per_sample();
        sums.add("codebook", value.clone().without_autodiff());
        sums.add_to_total(value.clone().without_autodiff() * weight);
        let Some(coupling) = coupling else { return value * weight };

        let Quantized { vectors, codebook_vectors, .. } = quantized;
        let entropy =
            coupling.gradient(vectors.clone().without_autodiff(), codebook_vectors.clone().without_autodiff());
        sums.add("entropy", entropy.sample_entropy.clone());
        sums.add_to_total(entropy.sample_entropy * (weight * loss.entropy));
        let surrogate = (vectors.clone() * entropy.vectors.autodiff()).sum()
            + (codebook_vectors.clone() * entropy.codebook.autodiff()).sum();
        (value + surrogate * loss.entropy) * weight
    }
}

/// Gradient at `image` of the scalar that `loss` makes of it; the loss's graph is gone on return.
fn gradient_at(image: &Tensor<4>, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> Tensor<4> {
    let leaf = image.clone().autodiff().require_grad();
    let mut gradients = loss(leaf.clone()).backward();
    leaf.grad_remove(&mut gradients).unwrap_or_else(|| image.zeros_like())
}

impl EffectiveBatch {
    /// Waits for the device and reads all figures in one transfer; `grad_norm` is the gradient's global norm, `[1]`.
    ///
    /// # Errors
    /// What the device says, if it failed anywhere in the step.
    pub fn read(&self, grad_norm: Tensor<1>) -> Result<Figures, String> {
        self.sums.read(grad_norm)
    }
}

#[cfg(test)]
mod tests;
