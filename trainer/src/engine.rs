//! The gradient of one effective batch, in the memory of one micro-batch.
//!
//! It does not depend on how the batch is cut: every sample counts by `1 / effective`, never by its micro-batch, and what
//! couples samples goes through a first pass that keeps statistics and no graph (Gao et al. 2021, arXiv 2101.06983).

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Device, Tensor, Transaction};

use crate::losses::{EntropyCoupling, Losses, sum_probabilities};
use crate::models::VqGan;
use crate::models::quantizer::{Quantized, count_codes};

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
    /// Mean of each loss over the samples, unweighted, by its name.
    pub losses: Vec<(&'static str, Tensor<1>)>,
    /// The weighted sum of the losses, `[1]`.
    pub total: Tensor<1>,
    /// How often each code was chosen, `[codes]`.
    pub code_counts: Tensor<1>,
}

/// Computes the gradient of `losses` at optimizer step `step` over an effective batch of `effective` samples. Each of the two
/// passes gets the same samples one micro-batch at a time, and only one micro-batch is in memory at any time.
///
/// `model` is on an autodiff device. A pass's micro-batches add up to `effective` samples; `first_pass` is not touched unless
/// a loss couples samples.
///
/// # Errors
/// The first error of the micro-batches.
pub fn effective_batch_gradient<B: MicroBatch, E>(
    model: &VqGan,
    losses: &Losses,
    step: u64,
    effective: usize,
    first_pass: impl Iterator<Item = Result<B, E>>,
    second_pass: impl Iterator<Item = Result<B, E>>,
    progress: impl Fn(usize),
) -> Result<EffectiveBatch, E> {
    let pass = Pass { model, losses, step, per_sample: 1.0 / effective as f64, place: Place::of(model) };
    let mut sums = Sums::new(&pass);

    let coupling = losses.are_coupled().then(|| pass.couple(first_pass)).transpose()?;
    if let Some(coupling) = &coupling {
        sums.add_entropy(coupling.shared_value());
    }

    let mut gradients = GradientsAccumulator::new();
    for batch in second_pass {
        let batch = batch?;
        let gradient = pass.micro_batch_gradient(&batch, coupling.as_ref(), &mut sums);
        gradients.accumulate(model, gradient);
        progress(batch.samples());
    }
    Ok(sums.finish(&pass, gradients.grads()))
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
    losses: &'a Losses,
    step: u64,
    per_sample: f64,
    place: Place,
}

impl Pass<'_> {
    fn images(&self, batch: &impl MicroBatch) -> Tensor<4> {
        batch.images(&self.place.device, self.place.dtype)
    }

    /// The statistics that couple the samples, without a graph and without the decoder.
    fn couple<B: MicroBatch, E>(&self, batches: impl Iterator<Item = Result<B, E>>) -> Result<EntropyCoupling, E> {
        let frozen = self.model.valid();
        let Place { device, dtype } = &self.place;
        let mut sum = Tensor::<1>::zeros([frozen.quantizer().codes()], (device, *dtype));
        let mut tokens = 0;
        for batch in batches {
            let (vectors, codebook) = frozen.quantizer().compared(frozen.encode(self.images(&batch?)));
            tokens += vectors.dims()[0];
            sum = sum + sum_probabilities(vectors, codebook);
        }
        Ok(EntropyCoupling::new(sum, tokens.max(1)))
    }

    fn micro_batch_gradient(
        &self,
        batch: &impl MicroBatch,
        coupling: Option<&EntropyCoupling>,
        sums: &mut Sums,
    ) -> GradientsParams {
        let original = self.images(batch);
        let (reconstruction, quantized) = self.model.reconstruct(original.clone().autodiff());
        sums.add_codes(&quantized);

        let at_image = self.image_gradient(original, reconstruction.clone().without_autodiff(), sums);
        let through_image = (reconstruction * at_image.autodiff()).sum();
        let through_latent = self.codebook_surrogate(quantized, coupling, sums);
        let mut gradients = (through_image + through_latent).backward();
        GradientsParams::from_module(&mut gradients, self.model)
    }

    /// Gradient of the weighted image losses at the reconstruction, `[n, 3, H, W]`. Each loss has a graph of its own, which
    /// is gone before the next loss runs: the memory is that of the largest loss and not of their sum.
    fn image_gradient(&self, original: Tensor<4>, reconstruction: Tensor<4>, sums: &mut Sums) -> Tensor<4> {
        let mut sum = reconstruction.zeros_like();
        for (index, (weight, loss)) in self.losses.image.iter().enumerate() {
            let leaf = reconstruction.clone().autodiff().require_grad();
            let value = loss.per_sample(original.clone().autodiff(), leaf.clone()).sum() * self.per_sample;
            sums.add_image_loss(index, value.clone().without_autodiff());
            let weight = weight.at(self.step);
            if weight == 0.0 {
                continue;
            }
            let mut gradients = (value * weight).backward();
            if let Some(gradient) = leaf.grad_remove(&mut gradients) {
                sum = sum + gradient;
            }
        }
        sum
    }

    /// A scalar whose gradient is that of the weighted codebook loss.
    fn codebook_surrogate(
        &self,
        quantized: Quantized,
        coupling: Option<&EntropyCoupling>,
        sums: &mut Sums,
    ) -> Tensor<1> {
        let (weight, loss) = &self.losses.codebook;
        let weight = weight.at(self.step);
        let value = loss.per_sample(&quantized).sum() * self.per_sample;
        sums.add_codebook_loss(value.clone().without_autodiff());
        let Some(coupling) = coupling else { return value * weight };

        let Quantized { vectors, codebook_vectors, .. } = quantized;
        let entropy =
            coupling.gradient(vectors.clone().without_autodiff(), codebook_vectors.clone().without_autodiff());
        sums.add_entropy(entropy.sample_entropy);
        let surrogate =
            (vectors * entropy.vectors.autodiff()).sum() + (codebook_vectors * entropy.codebook.autodiff()).sum();
        (value + surrogate * loss.entropy) * weight
    }
}

/// The values that add up over the micro-batches; they stay on the device until the step is over.
struct Sums {
    image: Vec<Tensor<1>>,
    codebook: Tensor<1>,
    entropy: Tensor<1>,
    code_counts: Tensor<1>,
}

impl Sums {
    fn new(pass: &Pass) -> Self {
        let Place { device, dtype } = &pass.place;
        let zero = || Tensor::<1>::zeros([1], (device, *dtype));
        let codes = pass.model.quantizer().codes();
        Self {
            image: pass.losses.image.iter().map(|_| zero()).collect(),
            codebook: zero(),
            entropy: zero(),
            code_counts: Tensor::zeros([codes], (device, DType::F32)),
        }
    }

    fn add_codes(&mut self, quantized: &Quantized) {
        let codes = self.code_counts.dims()[0];
        self.code_counts = self.code_counts.clone() + count_codes(quantized.codes.clone(), codes);
    }

    fn add_image_loss(&mut self, index: usize, value: Tensor<1>) {
        self.image[index] = self.image[index].clone() + value;
    }

    fn add_codebook_loss(&mut self, value: Tensor<1>) {
        self.codebook = self.codebook.clone() + value;
    }

    fn add_entropy(&mut self, value: Tensor<1>) {
        self.entropy = self.entropy.clone() + value;
    }

    fn finish(self, pass: &Pass, gradients: GradientsParams) -> EffectiveBatch {
        let (codebook_weight, codebook_loss) = &pass.losses.codebook;
        let codebook = self.codebook + self.entropy.clone() * codebook_loss.entropy;
        let mut total = codebook.clone() * codebook_weight.at(pass.step);
        let mut losses = Vec::new();
        for ((weight, loss), value) in pass.losses.image.iter().zip(self.image) {
            total = total + value.clone() * weight.at(pass.step);
            losses.push((loss.name(), value));
        }
        losses.push(("codebook", codebook));
        if codebook_loss.is_coupled() {
            losses.push(("entropy", self.entropy));
        }
        EffectiveBatch { gradients, losses, total, code_counts: self.code_counts }
    }
}

/// An [`EffectiveBatch`]'s figures, read back from the device at once.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Mean of each loss over the samples, unweighted.
    pub losses: Vec<(&'static str, f64)>,
    /// The weighted sum of the losses.
    pub total: f64,
    /// The gradient's global norm, before clipping.
    pub grad_norm: f64,
    /// How often each code was chosen.
    pub code_counts: Vec<f32>,
}

impl EffectiveBatch {
    /// Waits for the device and reads all figures in one transfer.
    ///
    /// # Errors
    /// What the device says, if it failed anywhere in the step.
    pub fn read(&self, grad_norm: Tensor<1>) -> Result<Figures, String> {
        let mut transaction = Transaction::default().register(self.total.clone()).register(grad_norm);
        for (_, value) in &self.losses {
            transaction = transaction.register(value.clone());
        }
        let data = transaction.register(self.code_counts.clone()).try_execute().map_err(|e| e.to_string())?;
        let mut data = data.into_iter().map(|d| d.convert::<f32>().try_into_vec::<f32>().unwrap_or_default());
        let mut scalar = || data.next().and_then(|v| v.first().copied()).map_or(f64::NAN, f64::from);
        let (total, grad_norm) = (scalar(), scalar());
        let losses = self.losses.iter().map(|(name, _)| (*name, scalar())).collect();
        let code_counts = data.next().unwrap_or_default();
        Ok(Figures { losses, total, grad_norm, code_counts })
    }
}

#[cfg(test)]
mod tests;
