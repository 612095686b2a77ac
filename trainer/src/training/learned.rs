//! What a run learns: the model with its optimizer, schedule, loss scale and average, and the losses. One of the losses
//! may have a discriminator that is trained beside the model.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use checkpoints::Architecture;

use super::run_state::{Snapshot, State, StateError};
use crate::engine::EffectiveBatch;
use crate::losses::{LossScales, Losses, StepMetrics};
use crate::models::VqGan;
use crate::optim::{Ema, LossScaler, LrSchedule, ModelOptimizer, global_norm, norms_by_block, unscale_and_clip};

/// The networks that a run trains, and what trains them.
pub(super) struct Learned {
    pub(super) architecture: Architecture,
    /// `None` only while the optimizer has it.
    pub(super) model: Option<VqGan>,
    pub(super) ema: Option<Ema<VqGan>>,
    pub(super) optimizer: ModelOptimizer,
    pub(super) schedule: LrSchedule,
    /// Largest global norm of the model's gradient; 0 does not clip.
    pub(super) clip_norm: f64,
    pub(super) scaler: LossScaler,
    pub(super) losses: Losses,
}

/// What an optimizer did in a step.
pub(super) struct Update {
    pub(super) learning_rate: f64,
    /// The loss scale that the step was computed with.
    pub(super) loss_scale: f64,
    /// Whether the step was skipped because something was not finite. Then only the loss scale changed.
    pub(super) skipped: bool,
}

/// What the optimizers did in a step.
pub(super) struct Updates {
    pub(super) generator: Update,
    /// `None` in a step in which the discriminator does not learn.
    pub(super) discriminator: Option<Update>,
}

impl Learned {
    pub(super) fn model(&self) -> &VqGan {
        self.model.as_ref().expect("the optimizer gives the model back before the step goes on")
    }

    /// The factors by which the losses of the next step are multiplied.
    pub(super) fn loss_scales(&self) -> LossScales {
        LossScales {
            generator: self.scaler.scale(),
            discriminator: self.losses.discriminator().map_or(1.0, |own| own.scaler().scale()),
        }
    }

    /// Reads the metrics of a step and its gradients' norms from `device`.
    pub(super) fn read_metrics(&self, batch: &EffectiveBatch, device: &Device) -> Result<StepMetrics, String> {
        let generator = global_norm(self.model(), &batch.generator).unwrap_or_else(|| Tensor::zeros([1], device));
        let discriminator = self.losses.discriminator().and_then(|own| own.grad_norm(&batch.discriminator));
        batch.read(generator, discriminator)
    }

    /// Computes the norms of the parameters' gradients by block, without the loss scale.
    pub(super) fn gradient_norms(&self, batch: &EffectiveBatch) -> Result<BTreeMap<String, Vec<f64>>, String> {
        let mut norms = norms_by_block(self.model(), &batch.generator)?;
        norms.values_mut().flatten().for_each(|norm| *norm /= batch.loss_scales.generator);
        Ok(norms)
    }

    /// Takes step `step`, counted from 0: unscales and clips the gradients, lets the optimizers step, updates the
    /// average. An optimizer whose gradient is not finite skips the step. The schedules count only steps taken.
    pub(super) fn update(&mut self, step: u64, batch: EffectiveBatch, metrics: &StepMetrics) -> Updates {
        let EffectiveBatch { generator, discriminator, statistics, .. } = batch;
        let (loss_scale, taken) = (self.scaler.scale(), self.scaler.taken(step));
        let learning_rate = self.schedule.at(taken);
        let finite = metrics.grad_norm.is_finite() && metrics.total.is_finite();
        if finite {
            let gradients = unscale_and_clip(self.model(), generator, loss_scale, metrics.grad_norm, self.clip_norm);
            // Moved through the optimizer, not cloned: each old parameter is freed as soon as its new one exists.
            self.model = self.model.take().map(|model| self.optimizer.step(learning_rate, model, gradients));
            self.ema = self.ema.take().map(|ema| ema.updated(self.model(), taken));
        }
        self.scaler.update(finite);

        let discriminator = self.losses.discriminator_mut().and_then(|own| {
            own.remember(metrics.next_adaptive_weight.filter(|_| finite));
            let norm = metrics.discriminator_grad_norm?;
            let (learning_rate, loss_scale) = (own.learning_rate(step), own.scaler().scale());
            let logits = metrics.get("logits_real").zip(metrics.get("logits_fake")).map(|(real, fake)| [real, fake]);
            let finite = own.step(step, discriminator, norm, logits, statistics);
            Some(Update { learning_rate, loss_scale, skipped: !finite })
        });
        Updates { generator: Update { learning_rate, loss_scale, skipped: !finite }, discriminator }
    }

    /// Counts the newest steps in a row that the generator or the discriminator skipped.
    pub(super) fn skips_in_a_row(&self) -> u64 {
        let of_discriminator = self.losses.discriminator().map_or(0, |own| own.scaler().state().in_a_row);
        self.scaler.state().in_a_row.max(of_discriminator)
    }

    /// Copies everything that is saved into host memory.
    pub(super) fn snapshot(&self, state: State) -> Result<Snapshot, StateError> {
        let ema = self.ema.as_ref().map(Ema::model);
        Snapshot::take(state, self.model(), ema, &self.optimizer, self.losses.discriminator())
    }

    /// About how many bytes a checkpoint has: weights, moments and average of the model, weights and moments of the
    /// discriminator, all in f32.
    pub(super) fn bytes_of_checkpoint(&self) -> u64 {
        let model = self.model().num_params() * (3 + usize::from(self.ema.is_some()));
        let discriminator = self.losses.discriminator().map_or(0, |own| own.model().num_params() * 3);
        4 * (model + discriminator) as u64
    }
}
