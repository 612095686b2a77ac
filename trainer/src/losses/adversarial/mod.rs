//! The adversarial loss: how a discriminator, which is trained with the model, judges the reconstruction
//! (Esser et al. 2021, arXiv 2012.09841).

mod adaptive_weight;
pub mod config;
mod discriminator;
mod gan_loss;
pub mod state;
mod table;

use burn::module::Module;
use burn::tensor::Tensor;

use self::adaptive_weight::LastLayerGradients;
pub use self::adaptive_weight::adaptive_weight;
pub use self::config::DiscriminatorConfig;
pub use self::discriminator::Discriminator;
pub use self::gan_loss::{GanLoss, LeCam, RealOrFake, mean_logits};
pub use self::state::{AdversarialState, DiscriminatorGradient, SavedDiscriminator};
pub use self::table::{Adaptive, AdversarialConfig};
use super::load::LossError;
use super::loss::{Forward, Gradients, Images, LoadContext, Loss, LossStep, Needs, StepContext, Weight};
use super::metrics::Metrics;
use crate::losses::phase::Phase;
use crate::models::discriminator::{BatchStatistics, PatchGan};
use crate::optim::{GradientSum, add_gradients};
use crate::precision::compute_copy;

/// The loss `adversarial` with its discriminator.
pub struct Adversarial {
    /// Weight in the generator's loss.
    pub weight: Weight,
    /// The pair of losses.
    pub kind: GanLoss,
    /// How the adaptive weight is computed, by which `weight` is multiplied.
    pub adaptive: Adaptive,
    /// Weight of the LeCam term in the discriminator's loss; 0 disables it.
    pub lecam: f64,
    /// First optimizer step at which the discriminator is trained, counted from 0.
    pub discriminator_start: u64,
    /// The discriminator in training.
    pub discriminator: Discriminator,
}

impl Loss for Adversarial {
    type Tables<'a> = (&'a AdversarialConfig,);

    const METRICS: &'static [(&'static str, &'static str)] = &[
        ("adversarial", "loss/adversarial"),
        ("adaptive_weight", "discriminator/adaptive_weight"),
        ("discriminator", "discriminator/loss"),
        ("logits_real", "discriminator/logits_real"),
        ("logits_fake", "discriminator/logits_fake"),
    ];

    fn load((table,): Self::Tables<'_>, context: &mut LoadContext<'_>) -> Result<Option<Self>, LossError> {
        if table.weight == 0.0 {
            return Ok(None);
        }
        let LoadContext { around, device, discriminator: saved, .. } = context;
        Ok(Some(Self {
            weight: Weight { value: table.weight, start: table.start, ramp: table.ramp },
            kind: table.kind,
            adaptive: table.adaptive,
            lecam: table.lecam,
            discriminator_start: around.discriminator.start(table),
            discriminator: match saved.take() {
                Some(saved) => Discriminator::resumed(table, around, saved, device)?,
                None => Discriminator::fresh(table, around, device)?,
            },
        }))
    }

    /// The adaptive weight of the effective batch comes from its summed gradients, which need a pass before.
    fn couples_samples(&self, step: u64) -> bool {
        let couples = match self.adaptive {
            Adaptive::EffectiveBatch => true,
            Adaptive::PreviousStep => self.discriminator.state.adaptive_weight.is_none(),
            Adaptive::MicroBatch | Adaptive::Off => false,
        };
        couples && self.weight.at(step) != 0.0
    }

    fn begin<'a>(&'a self, context: &'a StepContext<'a>) -> Option<Box<dyn LossStep + 'a>> {
        let weight = self.weight.at(context.step);
        let (counts, learns) = (weight != 0.0, context.step >= self.discriminator_start);
        if !(counts || learns) {
            return None;
        }
        let discriminator = match context.compute {
            Some(dtype) => compute_copy(self.discriminator.model(), dtype),
            None => self.discriminator.model().clone(),
        };
        Some(Box::new(AdversarialStep {
            loss: self,
            weight,
            context,
            frozen: counts.then(|| discriminator.clone().no_grad()),
            learning: learns.then_some(discriminator),
            of_first_pass: LastLayerGradients::default(),
            of_second_pass: LastLayerGradients::default(),
            gradients: Default::default(),
            statistics: Vec::new(),
        }))
    }
}

/// The adversarial loss in one optimizer step.
struct AdversarialStep<'a> {
    loss: &'a Adversarial,
    weight: f64,
    context: &'a StepContext<'a>,
    /// The discriminator that passes gradients to the generator; only in a step in which the loss has a weight.
    frozen: Option<PatchGan>,
    /// The discriminator in training; only in a step that trains it.
    learning: Option<PatchGan>,
    of_first_pass: LastLayerGradients,
    of_second_pass: LastLayerGradients,
    /// From real and from fake images. They partly cancel, so f16 may hold their sum but not each one; hence two sums.
    gradients: [GradientSum; 2],
    statistics: Vec<BatchStatistics>,
}

const PLACE: &str = "the loss adversarial";

impl AdversarialStep<'_> {
    /// Returns the gradient of the unweighted loss at the reconstruction, times the loss scale, and the loss, `[1]`.
    fn gradient(&self, discriminator: &PatchGan, images: &Images) -> (Tensor<4>, Tensor<1>) {
        self.context.enter(Phase::Loss("adversarial"));
        let mut value = None;
        let at_image = self.context.gradient_at(PLACE, &images.reconstruction, |leaf| {
            let loss = self.loss.kind.generator(discriminator.forward(leaf)).sum() * images.per_sample;
            let plain = loss.clone().without_autodiff();
            self.context.probe_value(PLACE, &plain);
            value = Some(plain);
            loss * images.loss_scale
        });
        (at_image, value.unwrap_or_else(|| self.context.scalar(0.0)))
    }

    /// Returns the adaptive weight, `[1]`. `at_image` are the previous losses' and this loss's gradients at the image.
    fn adaptive_weight(&mut self, forward: &Forward, at_image: [&Tensor<4>; 2]) -> Tensor<1> {
        let Forward { images, last_input, .. } = forward;
        let layer = self.context.model.last_layer();
        let of_first_pass = || self.of_first_pass.weight(1.0 / images.loss_scale);
        let weight = match self.loss.adaptive {
            Adaptive::Off => None,
            Adaptive::EffectiveBatch => of_first_pass(),
            Adaptive::MicroBatch => {
                let mut own = LastLayerGradients::default();
                own.add(layer, last_input, at_image);
                let samples = images.original.dims()[0] as f64;
                own.weight(1.0 / (samples * images.per_sample * images.loss_scale))
            }
            Adaptive::PreviousStep => {
                self.of_second_pass.add(layer, last_input, at_image);
                let previous = self.loss.discriminator.state.adaptive_weight;
                previous.map(|weight| self.context.scalar(weight)).or_else(of_first_pass)
            }
        };
        weight.unwrap_or_else(|| self.context.scalar(1.0))
    }

    /// Adds the gradient of the discriminator's loss, on the same reconstructions as the generator's. Originals and
    /// reconstructions have separate graphs, one after the other.
    fn learn(&mut self, images: &Images, metrics: &mut Metrics) {
        let Some(discriminator) = &self.learning else { return };
        self.context.enter(Phase::Loss("discriminator"));
        let (loss, lecam) = (self.loss, &self.loss.discriminator.state.lecam);
        let kinds = [
            (RealOrFake::Real, "logits_real", &images.original),
            (RealOrFake::Fake, "logits_fake", &images.reconstruction),
        ];
        for ((kind, name, images_of_kind), sum) in kinds.into_iter().zip(&mut self.gradients) {
            let (logits, statistics) = discriminator.forward_with_statistics(images_of_kind.clone().autodiff());
            self.statistics.push(statistics);
            metrics.add(name, mean_logits(logits.clone().without_autodiff()).sum() * images.per_sample);
            let value = loss.kind.discriminator_of(kind, logits, lecam, loss.lecam).sum() * images.per_sample;
            metrics.add("discriminator", value.clone().without_autodiff());
            self.context.probe_value("the discriminator", &value);
            let mut gradients = (value * self.context.loss_scales.discriminator).backward();
            sum.add_module(&mut gradients, discriminator);
            if let Some(probe) = self.context.probe {
                probe.module("the discriminator", discriminator, sum.so_far());
            }
        }
    }
}

impl LossStep for AdversarialStep<'_> {
    fn needs(&self) -> Needs {
        if self.loss.couples_samples(self.context.step) { Needs::ImageGradient } else { Needs::Nothing }
    }

    fn observe_images(&mut self, forward: &Forward, at_image: Option<&Tensor<4>>) -> Result<(), LossError> {
        if let (Some(discriminator), Some(at_image)) = (&self.frozen, at_image) {
            let (own, _) = self.gradient(discriminator, &forward.images);
            self.of_first_pass.add(self.context.model.last_layer(), forward.last_input, [at_image, &own]);
        }
        Ok(())
    }

    fn add_gradient(&mut self, forward: &Forward, to: &mut Gradients, metrics: &mut Metrics) -> Result<(), LossError> {
        let images = &forward.images;
        if let Some(discriminator) = &self.frozen {
            let (at_image, value) = self.gradient(discriminator, images);
            let adaptive = self.adaptive_weight(forward, [&to.at_image, &at_image]);
            if self.loss.adaptive != Adaptive::Off {
                let share = images.draws.len() as f64 * images.per_sample;
                metrics.add("adaptive_weight", adaptive.clone() * share);
            }
            let weight = adaptive * self.weight;
            metrics.add("adversarial", value.clone());
            metrics.add_to_total(value * weight.clone());
            to.add_at_image(at_image * weight.reshape([1, 1, 1, 1]));
        }
        self.learn(images, metrics);
        Ok(())
    }

    fn finish(&mut self, metrics: &mut Metrics) {
        if let Some(weight) = self.of_second_pass.weight(1.0 / self.context.loss_scales.generator) {
            metrics.carry(weight);
        }
    }

    fn take_discriminator_gradient(&mut self) -> Option<DiscriminatorGradient> {
        let discriminator = self.learning.as_ref()?;
        let [real, fake] = std::mem::take(&mut self.gradients).map(|sum| sum.into_gradients(discriminator));
        let statistics = std::mem::take(&mut self.statistics);
        Some(DiscriminatorGradient { gradients: add_gradients(discriminator, real, fake), statistics })
    }
}

#[cfg(test)]
mod tests;
