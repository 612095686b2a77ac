//! The gradient of one effective batch, in the memory of one micro-batch.
//!
//! It does not depend on how the batch is cut: every sample counts by `1 / effective`, never by its micro-batch, and what
//! couples samples goes through a first pass that keeps statistics and no graph (Gao et al. 2021, arXiv 2101.06983).

mod adaptive;
mod chain;
mod coupling;
mod figures;
mod reconstruct;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

use self::adaptive::LastLayerGradients;
pub use self::chain::Checkpoint;
use self::coupling::Coupling;
pub use self::figures::Figures;
use self::figures::Sums;
use self::reconstruct::Reconstruct;
use crate::config::Adaptive;
use crate::gradients::GradientSum;
use crate::losses::{Adversarial, AdversarialState, Half, Losses, Seen, mean_logits};
use crate::models::VqGan;
use crate::models::blocks::statistics_dtype;
use crate::models::discriminator::{BatchStatistics, PatchGan};
use crate::models::quantizer::Quantized;

/// Some samples of an effective batch, still on the host.
pub trait MicroBatch {
    /// Number of samples.
    fn samples(&self) -> usize;

    /// The images on `device`, `[samples, 3, H, W]` in -1..1, without autodiff.
    fn images(&self, device: &Device, dtype: DType) -> Tensor<4>;

    /// Each sample's position in the training stream: the key of all its randomness.
    fn draws(&self) -> &[u64];

    /// What each sample shows, where that is known.
    fn captions(&self) -> &[Option<String>];
}

/// The networks that a step trains, on an autodiff device.
#[derive(Clone, Copy)]
pub struct Networks<'a> {
    /// The generator.
    pub vqgan: &'a VqGan,
    /// Its adversary, if there is an adversarial loss.
    pub discriminator: Option<&'a PatchGan>,
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
    /// What the adversarial loss carries over from earlier steps.
    pub adversarial: AdversarialState,
}

/// What one effective batch says about the networks.
pub struct EffectiveBatch {
    /// Gradient of the generator's weighted losses, mean over the samples.
    pub generator: GradientsParams,
    /// Gradient of the discriminator's loss, mean over the samples; empty in a step in which it does not learn.
    pub discriminator: GradientsParams,
    /// What the discriminator's norms saw, in order.
    pub statistics: Vec<BatchStatistics>,
    sums: Sums,
}

/// What the discriminator takes from an effective batch.
#[derive(Default)]
struct Learned {
    gradients: GradientSum,
    statistics: Vec<BatchStatistics>,
}

/// Computes the gradients of `losses` over an effective batch. Each of the two passes gets the same samples one micro-batch
/// at a time, and only one micro-batch is in memory at any time.
///
/// A pass's micro-batches add up to the effective batch; `first_pass` is not touched unless a loss couples samples in this
/// step ([`Losses::are_coupled`]).
///
/// # Errors
/// The first error of the micro-batches.
pub fn effective_batch_gradient<B: MicroBatch, E>(
    networks: Networks,
    losses: &Losses,
    settings: StepSettings,
    first_pass: impl Iterator<Item = Result<B, E>>,
    second_pass: impl Iterator<Item = Result<B, E>>,
    progress: impl Fn(usize),
) -> Result<EffectiveBatch, E> {
    let plain = networks.vqgan.valid();
    let pass = Pass::new(networks, &plain, losses, settings);
    let mut sums = Sums::default();
    let (mut generator, mut learned) = (GradientSum::default(), Learned::default());

    let coupling = match losses.are_coupled(&settings) {
        true => pass.couple(first_pass)?,
        false => Coupling::default(),
    };
    let (mut last_layer, mut first) = (LastLayerGradients::default(), 0);
    for batch in second_pass {
        let batch = batch?;
        let original = pass.images(&batch);
        let (through_model, reconstruction) =
            Reconstruct::forward(networks.vqgan, &plain, original.clone(), settings.checkpoint);
        let seen = pass.seen(&batch, first, original, reconstruction);

        let at_image = pass.at_image(&seen, through_model.last_input(), &coupling, &mut last_layer, &mut sums);
        pass.discriminator_gradient(&seen, &mut learned, &mut sums);
        let codebook = pass.codebook_surrogate(through_model.quantized(), &coupling, &mut sums);
        through_model.backward(at_image, codebook, &mut generator);

        first += batch.samples();
        progress(batch.samples());
    }
    pass.finish(&coupling, &last_layer, &mut sums);
    let Learned { gradients, statistics } = learned;
    Ok(EffectiveBatch { generator: generator.into_inner(), discriminator: gradients.into_inner(), statistics, sums })
}

/// What stays the same throughout one effective batch.
struct Pass<'a> {
    /// The generator without autodiff.
    plain: &'a VqGan,
    losses: &'a Losses,
    settings: StepSettings,
    device: Device,
    dtype: DType,
    /// Only in a step in which the adversarial loss counts, with its adversary, through which gradients go and to which they
    /// do not.
    adversarial: Option<(&'a Adversarial, PatchGan)>,
    /// Only in a step in which it learns.
    discriminator: Option<(&'a Adversarial, &'a PatchGan)>,
}

impl<'a> Pass<'a> {
    fn new(networks: Networks<'a>, plain: &'a VqGan, losses: &'a Losses, settings: StepSettings) -> Self {
        let (device, dtype) = plain.place();
        let both = losses.adversarial.as_ref().zip(networks.discriminator);
        Self {
            plain,
            losses,
            settings,
            device,
            dtype,
            adversarial: both
                .filter(|(loss, _)| loss.weight.at(settings.step) != 0.0)
                .map(|(loss, discriminator)| (loss, discriminator.clone().no_grad())),
            discriminator: both.filter(|(loss, _)| settings.step >= loss.discriminator_start),
        }
    }

    fn images(&self, batch: &impl MicroBatch) -> Tensor<4> {
        batch.images(&self.device, self.dtype)
    }

    fn seen<'b>(
        &self,
        batch: &'b impl MicroBatch,
        first: usize,
        original: Tensor<4>,
        reconstruction: Tensor<4>,
    ) -> Seen<'b> {
        Seen {
            step: self.settings.step,
            per_sample: 1.0 / self.settings.effective as f64,
            original,
            reconstruction,
            first,
            draws: batch.draws(),
            captions: batch.captions(),
        }
    }

    /// Gradient of the weighted sum of all image losses at the reconstruction, `[n, 3, H, W]`. Each loss network has a graph
    /// of its own, which is gone before the next one runs: the memory is that of the largest and not of their sum.
    fn at_image(
        &self,
        seen: &Seen,
        last_input: &Tensor<4>,
        coupling: &Coupling,
        last_layer: &mut LastLayerGradients,
        sums: &mut Sums,
    ) -> Tensor<4> {
        let mut sum = self.reconstruction_gradient(seen, sums);
        if let Some((loss, discriminator)) = &self.adversarial {
            let (at_image, value) = self.adversarial_gradient(loss, discriminator, seen);
            let balance = self.balance(loss, seen, last_input, [&sum, &at_image], coupling, last_layer);
            if loss.adaptive != Adaptive::Off {
                let share = seen.draws.len() as f64 * seen.per_sample;
                sums.add("adaptive_weight", balance.clone() * share);
            }
            let weight = balance * loss.weight.at(self.settings.step);
            sums.add("adversarial", value.clone());
            sums.add_to_total(value * weight.clone());
            sum = sum + at_image * weight.cast(self.dtype).reshape([1, 1, 1, 1]);
        }
        if let Some(clip) = &self.losses.clip {
            let record = &mut |name, value: Tensor<1>, weight| sums.add_loss(name, value, weight);
            if let Some(at_image) = clip.gradient(seen, coupling.contrastive.as_ref(), record) {
                sum = sum + at_image;
            }
        }
        sum
    }

    /// Gradient at the reconstruction of the losses that compare it with the original, `[n, 3, H, W]`.
    fn reconstruction_gradient(&self, seen: &Seen, sums: &mut Sums) -> Tensor<4> {
        let mut sum = seen.reconstruction.zeros_like();
        for (weight, loss) in &self.losses.image {
            let weight = weight.at(self.settings.step);
            if weight == 0.0 {
                continue;
            }
            let at_image = gradient_at(&seen.reconstruction, |leaf| {
                let value = loss.per_sample(seen.original.clone().autodiff(), leaf).sum() * seen.per_sample;
                sums.add_loss(loss.name(), value.clone().without_autodiff(), weight);
                value * weight
            });
            sum = sum + at_image;
        }
        sum
    }

    /// Gradient of the unweighted adversarial loss at the reconstruction, and the loss, `[1]`.
    fn adversarial_gradient(
        &self,
        loss: &Adversarial,
        discriminator: &PatchGan,
        seen: &Seen,
    ) -> (Tensor<4>, Tensor<1>) {
        let mut value = None;
        let at_image = gradient_at(&seen.reconstruction, |leaf| {
            let loss = loss.generator(discriminator.forward(leaf)).sum() * seen.per_sample;
            value = Some(loss.clone().without_autodiff());
            loss
        });
        (at_image, value.unwrap_or_else(|| self.scalar(0.0)))
    }

    /// What the adversarial loss's weight is multiplied by so that its pull on the last layer is that of the reconstruction
    /// losses, `[1]`. `gradients` are those of both at the image.
    fn balance(
        &self,
        loss: &Adversarial,
        seen: &Seen,
        last_input: &Tensor<4>,
        gradients: [&Tensor<4>; 2],
        coupling: &Coupling,
        last_layer: &mut LastLayerGradients,
    ) -> Tensor<1> {
        let add_to = |last_layer: &mut LastLayerGradients, scale: f64| {
            last_layer.add(self.plain.last_layer(), last_input, gradients, scale);
        };
        let balance = match loss.adaptive {
            Adaptive::Off => None,
            Adaptive::EffectiveBatch => coupling.balance(),
            Adaptive::MicroBatch => {
                let mut own = LastLayerGradients::default();
                let samples = gradients[0].dims()[0] as f64;
                add_to(&mut own, 1.0 / (samples * seen.per_sample));
                own.balance()
            }
            Adaptive::PreviousStep => {
                add_to(last_layer, 1.0);
                self.settings.adversarial.balance.map(|balance| self.scalar(balance)).or_else(|| coupling.balance())
            }
        };
        balance.unwrap_or_else(|| self.scalar(1.0))
    }

    /// `[1]`, in the type of losses.
    fn scalar(&self, value: f64) -> Tensor<1> {
        Tensor::full([1], value, (&self.device, statistics_dtype(self.dtype)))
    }

    /// Adds the gradient of the discriminator's loss, on the same reconstructions as the generator's. Originals and
    /// reconstructions have a graph each, one after the other.
    fn discriminator_gradient(&self, seen: &Seen, learned: &mut Learned, sums: &mut Sums) {
        let Some((loss, discriminator)) = self.discriminator else { return };
        let lecam = &self.settings.adversarial.lecam;
        for (half, name, images) in
            [(Half::Real, "logits_real", &seen.original), (Half::Fake, "logits_fake", &seen.reconstruction)]
        {
            let (logits, statistics) = discriminator.forward_with_statistics(images.clone().autodiff());
            learned.statistics.push(statistics);
            sums.add(name, mean_logits(logits.clone().without_autodiff()).sum() * seen.per_sample);
            let value = loss.discriminator(half, logits, lecam).sum() * seen.per_sample;
            sums.add("discriminator", value.clone().without_autodiff());
            learned.gradients.add_module(&mut value.backward(), discriminator);
        }
    }

    /// A scalar whose gradient is that of the weighted codebook loss.
    fn codebook_surrogate(&self, quantized: &Quantized, coupling: &Coupling, sums: &mut Sums) -> Tensor<1> {
        sums.add_codes(quantized, self.plain.quantizer().codes());
        let (weight, loss) = &self.losses.codebook;
        let weight = weight.at(self.settings.step);
        let value = loss.per_sample(quantized).sum() / self.settings.effective as f64;
        sums.add_loss("codebook", value.clone().without_autodiff(), weight);
        let Some(coupling) = &coupling.entropy else { return value * weight };

        let Quantized { vectors, codebook_vectors, .. } = quantized;
        let entropy =
            coupling.gradient(vectors.clone().without_autodiff(), codebook_vectors.clone().without_autodiff());
        sums.add_loss("entropy", entropy.sample_entropy, weight * loss.entropy);
        let surrogate = (vectors.clone() * entropy.vectors.autodiff()).sum()
            + (codebook_vectors.clone() * entropy.codebook.autodiff()).sum();
        (value + surrogate * loss.entropy) * weight
    }

    /// What belongs to the effective batch as a whole.
    fn finish(&self, coupling: &Coupling, last_layer: &LastLayerGradients, sums: &mut Sums) {
        let step = self.settings.step;
        if let Some(entropy) = &coupling.entropy {
            let (weight, loss) = &self.losses.codebook;
            sums.add_loss("entropy", entropy.shared_value(), weight.at(step) * loss.entropy);
        }
        if let Some((value, weight)) = coupling.contrastive.as_ref().map(|c| (c.value.clone(), c.weight)) {
            sums.add_loss("clip_contrastive", value, weight);
        }
        if let Some(balance) = last_layer.balance() {
            sums.set_next_balance(balance);
        }
    }
}

/// Gradient at `image` of the scalar that `loss` makes of it; the loss's graph is gone on return.
pub(crate) fn gradient_at(image: &Tensor<4>, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> Tensor<4> {
    let leaf = image.clone().autodiff().require_grad();
    let mut gradients = loss(leaf.clone()).backward();
    leaf.grad_remove(&mut gradients).unwrap_or_else(|| image.zeros_like())
}

impl EffectiveBatch {
    /// Waits for the device and reads all figures in one transfer, with the global norms of the generator's gradient and, in
    /// a step in which it learns, of the discriminator's, `[1]` each.
    ///
    /// # Errors
    /// What the device says, if it failed anywhere in the step.
    pub fn read(&self, generator: Tensor<1>, discriminator: Option<Tensor<1>>) -> Result<Figures, String> {
        self.sums.read(generator, discriminator)
    }
}

#[cfg(test)]
mod tests;
