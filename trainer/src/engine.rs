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
use crate::gradients::{GradientSum, added, global_norm};
use crate::losses::{
    Adversarial, AdversarialState, CodebookLoss, Half, Losses, NearestLoss, Seen, divergence, mean_logits,
};
use crate::memory::Phase;
use crate::models::VqGan;
use crate::models::blocks::statistics_dtype;
use crate::models::discriminator::{BatchStatistics, PatchGan};
use crate::models::quantizer::gumbel::Sampling;
use crate::models::quantizer::{NearestTerms, Quantized, Terms};
use crate::models::vqgan::surrogate;
use crate::precision::{self, Probe, compute_copy};

/// Some samples of an effective batch, still on the host.
pub trait MicroBatch {
    /// Number of samples.
    fn samples(&self) -> usize;

    /// The images on `device`, `[samples, 3, H, W]` in -1..1, without autodiff; `dtype` is f32 at least.
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
#[derive(Clone, Copy)]
pub struct StepSettings<'a> {
    /// The optimizer step, counted from 0.
    pub step: u64,
    /// Number of samples in the effective batch.
    pub effective: usize,
    /// What is kept for the backward pass through the model.
    pub checkpoint: Checkpoint,
    /// What the adversarial loss carries over from earlier steps.
    pub adversarial: AdversarialState,
    /// The type that copies of the networks compute in; `None` for the networks themselves.
    pub compute: Option<DType>,
    /// What the losses are multiplied with before the backward passes.
    pub loss_scales: LossScales,
    /// Whether to look for an overflow after each micro-batch, and then to leave out what is of no use any more. For a device
    /// that is not waited for by looking.
    pub stop_early: bool,
    /// Looks for the first value that is not finite, which makes a step slow.
    pub probe: Option<&'a Probe>,
    /// Lets micro-batches of so many samples count alike in all losses but the codebook's, which is wrong where the last one is
    /// smaller: to see that a sweep finds it.
    pub weigh_by_micro_batch: Option<usize>,
}

impl Default for StepSettings<'_> {
    /// The first step, of one sample, in the networks' own type.
    fn default() -> Self {
        Self {
            step: 0,
            effective: 1,
            checkpoint: Checkpoint::None,
            adversarial: AdversarialState::default(),
            compute: None,
            loss_scales: LossScales::default(),
            stop_early: false,
            probe: None,
            weigh_by_micro_batch: None,
        }
    }
}

impl StepSettings<'_> {
    /// What each of the `samples` of a micro-batch counts in the mean over the effective batch.
    fn per_sample(&self, samples: usize) -> f64 {
        match self.weigh_by_micro_batch {
            None => 1.0 / self.effective as f64,
            Some(micro) => 1.0 / (self.effective.div_ceil(micro) * samples) as f64,
        }
    }
}

/// The loss scale of each optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScales {
    /// Of the generator's losses.
    pub generator: f64,
    /// Of the discriminator's loss.
    pub discriminator: f64,
}

impl Default for LossScales {
    fn default() -> Self {
        Self { generator: 1.0, discriminator: 1.0 }
    }
}

/// What the engine says of a step while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// Another part of the step begins.
    Phase(Phase),
    /// So many more samples are done.
    Samples(usize),
}

/// What one effective batch says about the networks.
pub struct EffectiveBatch {
    /// Gradient of the generator's weighted losses, mean over the samples, times its loss scale; in f32 at least.
    pub generator: GradientsParams,
    /// Gradient of the discriminator's loss, mean over the samples, times its loss scale; empty in a step in which it does not
    /// learn.
    pub discriminator: GradientsParams,
    /// What the discriminator's norms saw, in order.
    pub statistics: Vec<BatchStatistics>,
    /// What the gradients are multiplied with.
    pub loss_scales: LossScales,
    sums: Sums,
}

/// What the discriminator takes from an effective batch.
#[derive(Default)]
struct Learned {
    /// Of pictures and of reconstructions, which cancel in part: of each it is known by itself whether f16 holds it.
    gradients: [GradientSum; 2],
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
    observe: impl Fn(Event),
) -> Result<EffectiveBatch, E> {
    // Once per step, and not per micro-batch.
    let copy = settings.compute.map(|dtype| compute_copy(networks.vqgan, dtype));
    let vqgan = copy.as_ref().unwrap_or(networks.vqgan);
    let plain = vqgan.valid();
    let pass = Pass::new(networks.discriminator, &plain, losses, settings, &observe);
    let probe = settings.probe;
    let mut sums = Sums::default();
    let (mut generator, mut learned) = (GradientSum::default(), Learned::default());

    let coupling = match losses.are_coupled(&settings) {
        true => {
            pass.enter(Phase::FirstPass);
            pass.couple(first_pass)?
        }
        false => Coupling::default(),
    };
    let (mut last_layer, mut first) = (LastLayerGradients::default(), 0);
    let mut overflow = Overflow { generator: false, discriminator: pass.discriminator.is_none() };
    for batch in second_pass {
        let batch = batch?;
        pass.enter(Phase::Forward);
        if overflow.generator {
            // The discriminator's step is another one, for which reconstructions are enough.
            if !overflow.discriminator {
                let original = pass.images(&batch);
                // The way that all other steps go: without a graph, half precision rounds otherwise.
                let (images, sampling) = (original.clone(), pass.sampling(&batch));
                let (_, reconstruction) =
                    Reconstruct::forward(vqgan, &plain, images, sampling, settings.checkpoint, None);
                pass.discriminator_gradient(
                    &pass.seen(&batch, first, original, reconstruction),
                    &mut learned,
                    &mut sums,
                );
            }
        } else {
            let original = pass.images(&batch);
            let (images, sampling) = (original.clone(), pass.sampling(&batch));
            let (through_model, reconstruction) =
                Reconstruct::forward(vqgan, &plain, images, sampling, settings.checkpoint, probe);
            let seen = pass.seen(&batch, first, original, reconstruction);

            let at_image = pass.at_image(&seen, through_model.last_input(), &coupling, &mut last_layer, &mut sums);
            if !overflow.discriminator {
                pass.discriminator_gradient(&seen, &mut learned, &mut sums);
            }
            pass.enter(Phase::Backward);
            let codebook = pass.codebook_surrogate(through_model.quantized(), &coupling, &mut sums);
            through_model.backward(at_image, codebook, &mut generator, probe);
        }
        first += batch.samples();
        observe(Event::Samples(batch.samples()));
        if settings.stop_early && first < settings.effective {
            overflow.look(networks, &generator, &learned.gradients);
        }
    }
    pass.finish(&coupling, &last_layer, &mut sums);
    overflow.leave_out(&mut sums);
    let Learned { gradients, statistics } = learned;
    let generator = generator.into_gradients(vqgan);
    let discriminator = match &pass.discriminator {
        Some((_, discriminator)) => {
            let [real, fake] = gradients.map(|sum| sum.into_gradients(discriminator));
            added(discriminator, real, fake)
        }
        None => GradientsParams::new(),
    };
    Ok(EffectiveBatch { generator, discriminator, statistics, loss_scales: settings.loss_scales, sums })
}

/// Which gradients of a step are known not to be finite, so that the rest of them is of no use; of a discriminator that does
/// not learn there is none that is.
struct Overflow {
    generator: bool,
    discriminator: bool,
}

impl Overflow {
    /// Once found, an overflow stays.
    fn look(&mut self, networks: Networks, generator: &GradientSum, discriminator: &[GradientSum; 2]) {
        fn is_finite<M: Module>(module: &M, gradients: &GradientSum) -> bool {
            global_norm(module, gradients.so_far()).is_none_or(|norm| precision::is_finite(&norm))
        }
        self.generator = self.generator || !is_finite(networks.vqgan, generator);
        let learns = networks.discriminator.filter(|_| !self.discriminator);
        self.discriminator |=
            learns.is_some_and(|module| !discriminator.iter().all(|gradients| is_finite(module, gradients)));
    }

    /// Leaves out figures that are not of the whole step.
    fn leave_out(&self, sums: &mut Sums) {
        const OF_DISCRIMINATOR: [&str; 3] = ["discriminator", "logits_real", "logits_fake"];
        if self.generator {
            sums.leave_out(|name| !OF_DISCRIMINATOR.contains(&name));
            sums.leave_out_total();
        }
        if self.discriminator {
            sums.leave_out(|name| OF_DISCRIMINATOR.contains(&name));
        }
    }
}

/// What stays the same throughout one effective batch.
struct Pass<'a> {
    /// The generator without autodiff.
    plain: &'a VqGan,
    losses: &'a Losses,
    settings: StepSettings<'a>,
    device: Device,
    /// Of images and losses: f32 at least.
    wide: DType,
    /// Only in a step in which the adversarial loss counts, with its adversary, through which gradients go and to which they
    /// do not.
    adversarial: Option<(&'a Adversarial, PatchGan)>,
    /// Only in a step in which it learns.
    discriminator: Option<(&'a Adversarial, PatchGan)>,
    observe: &'a dyn Fn(Event),
}

impl<'a> Pass<'a> {
    fn new(
        discriminator: Option<&PatchGan>,
        plain: &'a VqGan,
        losses: &'a Losses,
        settings: StepSettings<'a>,
        observe: &'a dyn Fn(Event),
    ) -> Self {
        let (device, dtype) = plain.place();
        let copy = |discriminator: &PatchGan| match settings.compute {
            Some(dtype) => compute_copy(discriminator, dtype),
            None => discriminator.clone(),
        };
        let both = losses.adversarial.as_ref().zip(discriminator.map(copy));
        Self {
            plain,
            losses,
            settings,
            device,
            wide: statistics_dtype(dtype),
            adversarial: both
                .clone()
                .filter(|(loss, _)| loss.weight.at(settings.step) != 0.0)
                .map(|(loss, discriminator)| (loss, discriminator.no_grad())),
            discriminator: both.filter(|(loss, _)| settings.step >= loss.discriminator_start),
            observe,
        }
    }

    fn enter(&self, phase: Phase) {
        (self.observe)(Event::Phase(phase));
    }

    fn images(&self, batch: &impl MicroBatch) -> Tensor<4> {
        batch.images(&self.device, self.wide)
    }

    /// How a Gumbel quantizer draws the codes of `batch`, the same in both passes.
    fn sampling(&self, batch: &impl MicroBatch) -> Option<Sampling> {
        self.losses.codebook.1.sampling(self.settings.step, batch.draws())
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
            per_sample: self.settings.per_sample(batch.samples()),
            loss_scale: self.settings.loss_scales.generator,
            original,
            reconstruction,
            first,
            draws: batch.draws(),
            captions: batch.captions(),
        }
    }

    /// Gradient of the weighted sum of all image losses, times the loss scale, at the reconstruction, `[n, 3, H, W]`. Each loss
    /// network has a graph of its own, which is gone before the next one runs: the memory is that of the largest and not of
    /// their sum.
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
            sum = sum + at_image * weight.reshape([1, 1, 1, 1]);
        }
        if let Some(clip) = &self.losses.clip {
            self.enter(Phase::Loss("clip"));
            let record = &mut |name, value: Tensor<1>, weight| sums.add_loss(name, value, weight);
            if let Some(at_image) = clip.gradient(seen, coupling.contrastive.as_ref(), record) {
                self.probe_gradient("the loss clip", &at_image);
                sum = sum + at_image;
            }
        }
        sum
    }

    fn probe_value(&self, place: &str, value: &Tensor<1>) {
        if let Some(probe) = self.settings.probe {
            probe.forward(|| place.to_owned(), value);
        }
    }

    fn probe_gradient(&self, place: &str, at_image: &Tensor<4>) {
        if let Some(probe) = self.settings.probe {
            probe.loss(place, at_image);
        }
    }

    /// Gradient at the reconstruction of the losses that compare it with the original, `[n, 3, H, W]`.
    fn reconstruction_gradient(&self, seen: &Seen, sums: &mut Sums) -> Tensor<4> {
        let mut sum = seen.reconstruction.zeros_like();
        for (weight, loss) in &self.losses.image {
            let weight = weight.at(self.settings.step);
            if weight == 0.0 {
                continue;
            }
            self.enter(Phase::Loss(loss.name()));
            let at_image = gradient_at(&seen.reconstruction, |leaf| {
                let value = loss.per_sample(seen.original.clone().autodiff(), leaf).sum() * seen.per_sample;
                let plain = value.clone().without_autodiff();
                self.probe_value(&format!("the loss {}", loss.name()), &plain);
                sums.add_loss(loss.name(), plain, weight);
                value * (weight * seen.loss_scale)
            });
            self.probe_gradient(&format!("the loss {}", loss.name()), &at_image);
            sum = sum + at_image;
        }
        sum
    }

    /// Gradient of the unweighted adversarial loss, times the loss scale, at the reconstruction, and the loss, `[1]`.
    fn adversarial_gradient(
        &self,
        loss: &Adversarial,
        discriminator: &PatchGan,
        seen: &Seen,
    ) -> (Tensor<4>, Tensor<1>) {
        self.enter(Phase::Loss("adversarial"));
        let mut value = None;
        let at_image = gradient_at(&seen.reconstruction, |leaf| {
            let loss = loss.generator(discriminator.forward(leaf)).sum() * seen.per_sample;
            value = Some(loss.clone().without_autodiff());
            loss * seen.loss_scale
        });
        let value = value.unwrap_or_else(|| self.scalar(0.0));
        self.probe_value("the loss adversarial", &value);
        self.probe_gradient("the loss adversarial", &at_image);
        (at_image, value)
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
        let add_to =
            |last_layer: &mut LastLayerGradients| last_layer.add(self.plain.last_layer(), last_input, gradients);
        let of_all = || coupling.balance(seen.loss_scale);
        let balance = match loss.adaptive {
            Adaptive::Off => None,
            Adaptive::EffectiveBatch => of_all(),
            Adaptive::MicroBatch => {
                let mut own = LastLayerGradients::default();
                let samples = gradients[0].dims()[0] as f64;
                add_to(&mut own);
                own.balance(1.0 / (samples * seen.per_sample * seen.loss_scale))
            }
            Adaptive::PreviousStep => {
                add_to(last_layer);
                self.settings.adversarial.balance.map(|balance| self.scalar(balance)).or_else(of_all)
            }
        };
        balance.unwrap_or_else(|| self.scalar(1.0))
    }

    /// `[1]`, in the type of losses.
    fn scalar(&self, value: f64) -> Tensor<1> {
        Tensor::full([1], value, (&self.device, self.wide))
    }

    /// Adds the gradient of the discriminator's loss, on the same reconstructions as the generator's. Originals and
    /// reconstructions have a graph each, one after the other.
    fn discriminator_gradient(&self, seen: &Seen, learned: &mut Learned, sums: &mut Sums) {
        let Some((loss, discriminator)) = &self.discriminator else { return };
        self.enter(Phase::Loss("discriminator"));
        let StepSettings { adversarial: AdversarialState { lecam, .. }, probe, loss_scales, .. } = &self.settings;
        let halves = [(Half::Real, "logits_real", &seen.original), (Half::Fake, "logits_fake", &seen.reconstruction)];
        for ((half, name, images), sum) in halves.into_iter().zip(&mut learned.gradients) {
            let (logits, statistics) = discriminator.forward_with_statistics(images.clone().autodiff());
            learned.statistics.push(statistics);
            sums.add(name, mean_logits(logits.clone().without_autodiff()).sum() * seen.per_sample);
            let value = loss.discriminator(half, logits, lecam).sum() * seen.per_sample;
            sums.add("discriminator", value.clone().without_autodiff());
            self.probe_value("the discriminator", &value);
            let mut gradients = (value * loss_scales.discriminator).backward();
            sum.add_module(&mut gradients, discriminator);
            if let Some(probe) = probe {
                probe.module("the discriminator", discriminator, sum.so_far());
            }
        }
    }

    /// A scalar whose gradient is that of the weighted codebook loss, times the loss scale.
    fn codebook_surrogate(&self, quantized: &Quantized, coupling: &Coupling, sums: &mut Sums) -> Tensor<1> {
        sums.add_codes(quantized, self.plain.quantizer().codes());
        let (weight, loss) = &self.losses.codebook;
        let (weight, loss_scale) = (weight.at(self.settings.step), self.settings.loss_scales.generator);
        match (loss, &quantized.terms) {
            (CodebookLoss::Nearest(loss), Terms::Nearest(terms)) => {
                self.nearest_surrogate((weight, loss), terms, coupling, sums) * (weight * loss_scale)
            }
            (CodebookLoss::Gumbel(loss), Terms::Gumbel(terms)) => {
                let effective = self.settings.effective as f64;
                let (kl_weight, share) = (loss.training.kl_weight, terms.samples() as f64 / effective);
                let (kl, surrogate) = divergence(terms);
                sums.add_loss("codebook", kl.clone() * (kl_weight / effective), weight);
                sums.add("kl", kl / effective);
                sums.add("temperature", self.scalar(loss.temperature(self.settings.step) * share));
                surrogate * (kl_weight / effective * weight * loss_scale)
            }
            _ => unreachable!("the codebook loss is that of the model's quantizer"),
        }
    }

    /// A scalar whose gradient is that of the unweighted loss of a quantizer that takes the nearest code.
    fn nearest_surrogate(
        &self,
        (weight, loss): (f64, &NearestLoss),
        terms: &NearestTerms,
        coupling: &Coupling,
        sums: &mut Sums,
    ) -> Tensor<1> {
        let value = loss.per_sample(terms).sum() / self.settings.effective as f64;
        sums.add_loss("codebook", value.clone().without_autodiff(), weight);
        let Some(coupling) = &coupling.entropy else { return value };

        let NearestTerms { vectors, codebook_vectors, .. } = terms;
        let entropy =
            coupling.gradient(vectors.clone().without_autodiff(), codebook_vectors.clone().without_autodiff());
        sums.add_loss("entropy", entropy.sample_entropy, weight * loss.entropy);
        let surrogate =
            surrogate(vectors.clone(), entropy.vectors) + surrogate(codebook_vectors.clone(), entropy.codebook);
        value + surrogate * loss.entropy
    }

    /// What belongs to the effective batch as a whole.
    fn finish(&self, coupling: &Coupling, last_layer: &LastLayerGradients, sums: &mut Sums) {
        let step = self.settings.step;
        if let (Some(entropy), (weight, CodebookLoss::Nearest(loss))) = (&coupling.entropy, &self.losses.codebook) {
            sums.add_loss("entropy", entropy.shared_value(), weight.at(step) * loss.entropy);
        }
        if let Some((value, weight)) = coupling.contrastive.as_ref().map(|c| (c.value.clone(), c.weight)) {
            sums.add_loss("clip_contrastive", value, weight);
        }
        if let Some(balance) = last_layer.balance(1.0 / self.settings.loss_scales.generator) {
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
    /// a step in which it learns, of the discriminator's, `[1]` each, out of which it takes the loss scales.
    ///
    /// # Errors
    /// What the device says, if it failed anywhere in the step.
    pub fn read(&self, generator: Tensor<1>, discriminator: Option<Tensor<1>>) -> Result<Figures, String> {
        let mut figures = self.sums.read(generator, discriminator)?;
        figures.grad_norm /= self.loss_scales.generator;
        figures.discriminator_grad_norm =
            figures.discriminator_grad_norm.map(|norm| norm / self.loss_scales.discriminator);
        Ok(figures)
    }
}

#[cfg(test)]
mod tests;
