//! Computes the gradient of an optimizer step, and ends a run in which too many steps overflow.

use burn::tensor::DType;
use burn_train::Interrupter;

use super::error::{StepError, TrainError};
use super::fault::Faults;
use super::loaders::{Loaders, micro_batches};
use super::measure::FirstGradient;
use super::{Training, every};
use crate::config::{Compute, Recompute};
use crate::engine::{EffectiveBatch, MicroBatch, StepFailure, StepSettings, effective_batch_gradient};
use crate::losses::{Event, LossScales, Phase, StepMetrics};
use crate::memory::{CacheEntry, MemoryMeter, MemorySettings, Recovery};
use crate::precision::Probe;

/// Steps between measurements of a GPU's phases, which cost a wait for the GPU at each border between phases.
const PHASES_EVERY: u64 = 50;

/// Measures and limits the memory of steps.
pub(super) struct StepMemory {
    pub(super) meter: MemoryMeter,
    /// The memory settings of the next step.
    pub(super) settings: MemorySettings,
    pub(super) recovery: Recovery,
    /// The choice of a micro-batch that no step has confirmed yet.
    pub(super) unconfirmed: Option<CacheEntry>,
}

/// Options to find faults or to inject them.
pub(super) struct Debugging {
    pub(super) faults: Faults,
    /// Finds values that are not finite, if that was asked for.
    pub(super) probe: Option<Probe>,
    /// Receives the gradients of the next step, if that was asked for. Its memory does not count as the step's.
    pub(super) first_gradient: Option<FirstGradient>,
    pub(super) weigh_by_micro_batch: bool,
}

impl Training {
    pub(super) fn step_settings(&self) -> StepSettings<'_> {
        StepSettings {
            step: self.step,
            effective: self.config.batch.effective,
            recompute: match self.memory.settings.recompute {
                // With a separate graph for each block the probe can tell in which one the first such value is.
                Recompute::None if self.debug.probe.is_none() => Recompute::None,
                Recompute::None | Recompute::Blocks => Recompute::Blocks,
            },
            compute: self.compute(),
            loss_scales: self.learned.loss_scales(),
            probe: self.debug.probe.as_ref(),
            weigh_by_micro_batch: self.debug.weigh_by_micro_batch.then_some(self.memory.settings.micro),
        }
    }

    /// The type of the copies that compute; `None` if the networks themselves compute.
    pub(super) fn compute(&self) -> Option<DType> {
        match self.config.precision.compute {
            Compute::Fp32 => None,
            half => Some(half.dtype()),
        }
    }

    /// Tries once to compute the gradient and metrics of a step, which changes nothing yet.
    pub(super) fn attempt(
        &self,
        loaders: &mut Loaders,
        interrupter: &Interrupter,
    ) -> Result<(EffectiveBatch, StepMetrics), StepError> {
        let settings = self.step_settings();
        // A loader that missed steps cannot be used again.
        loaders.first_pass = match (self.learned.losses.couple_samples(settings.step), loaders.first_pass.take()) {
            (true, None) => Some(self.start_loader()),
            (true, first_pass) => first_pass,
            (false, _) => None,
        };
        self.memory.meter.start(self.step == self.first_step || every(PHASES_EVERY, self.step + 1));
        self.debug.faults.meet(self.step + 1, &Phase::Weights.to_string());
        let proceed = || match interrupter.should_stop() {
            true => Err(StepError::Interrupted),
            false => self.check_limit(),
        };
        let batch = self.gradients(settings, loaders, &proceed)?;
        self.observe(Event::Phase(Phase::Optimizer));
        let metrics = self.debug.faults.wait().and_then(|()| self.learned.read_metrics(&batch, &self.device.device));
        let metrics = metrics.map_err(|message| self.device_failed(message))?;
        self.memory.meter.peak();
        self.check_limit()?;
        Ok((batch, metrics))
    }

    fn gradients(
        &self,
        settings: StepSettings,
        loaders: &mut Loaders,
        proceed: &dyn Fn() -> Result<(), StepError>,
    ) -> Result<EffectiveBatch, StepError> {
        let Loaders { first_pass, second_pass } = loaders;
        let split = (self.config.batch.effective, self.memory.settings.micro);
        let say = |line: &str| self.shown.progress.line(line);
        let first_pass = first_pass.iter_mut().flat_map(|loader| micro_batches(loader, split, proceed, &say));
        let first_pass =
            first_pass.inspect(|batch| self.shown.progress.first_pass(batch.as_ref().map_or(0, MicroBatch::samples)));
        let second_pass = micro_batches(second_pass, split, proceed, &say);
        let observe = |event| self.observe(event);
        let batch = effective_batch_gradient(
            self.learned.model(),
            &self.learned.losses,
            settings,
            first_pass,
            second_pass,
            observe,
        );
        batch.map_err(|failure| match failure {
            StepFailure::Batch(error) => error,
            StepFailure::Loss(error) => error.into(),
        })
    }

    /// Computes the gradients of the current step once more.
    pub(super) fn gradients_again(
        &self,
        settings: StepSettings,
        interrupter: &Interrupter,
    ) -> Result<EffectiveBatch, StepError> {
        let coupled = self.learned.losses.couple_samples(settings.step);
        let first_pass = if coupled { Some(self.start_loader()) } else { None };
        let mut loaders = Loaders { first_pass, second_pass: self.start_loader() };
        let proceed = || if interrupter.should_stop() { Err(StepError::Interrupted) } else { Ok(()) };
        self.gradients(settings, &mut loaders, &proceed)
    }

    fn observe(&self, event: Event) {
        match event {
            Event::Phase(phase) => {
                self.memory.meter.enter(phase);
                // Losses in the first pass count as the first pass.
                self.debug.faults.meet(self.step + 1, &self.memory.meter.phase().to_string());
            }
            Event::Samples(count) => self.shown.progress.samples(count),
        }
    }

    /// Returns the error that ends the run if more than `precision.max_skips` steps in a row were skipped. In that case
    /// it computes the step once more, with its `loss_scales`, to find its first value that is not finite.
    pub(super) fn check_skips(
        &mut self,
        loss_scales: LossScales,
        interrupter: &Interrupter,
    ) -> Result<Option<TrainError>, StepError> {
        let skips = self.learned.skips_in_a_row();
        if skips <= self.config.precision.max_skips {
            return Ok(None);
        }
        let probe = self.debug.probe.take().unwrap_or_else(|| Probe::new(self.learned.model()));
        let found = match probe.take() {
            Some(found) => Some(found),
            None => {
                let settings = StepSettings {
                    loss_scales,
                    recompute: Recompute::Blocks,
                    probe: Some(&probe),
                    ..self.step_settings()
                };
                self.gradients_again(settings, interrupter)?;
                probe.take()
            }
        };
        let place = found.map_or_else(|| "a sum over the effective batch".to_owned(), |found| found.to_string());
        let saved = self.last_saved();
        Ok(Some(TrainError::NotFinite { skips, place, step: self.step + 1, advice: self.advice(), saved }))
    }

    /// The most likely remedy for values that are not finite.
    fn advice(&self) -> &'static str {
        match self.config.precision.compute {
            Compute::Fp16 if self.device.supports(Compute::Bf16) => {
                "precision.compute = \"bf16\" has the range of fp32, and a lower optimizer.learning_rate often helps"
            }
            Compute::Fp16 => "precision.compute = \"fp32\" or a lower optimizer.learning_rate often helps",
            Compute::Fp32 | Compute::Bf16 => "a lower optimizer.learning_rate often helps",
        }
    }

    pub(super) fn device_failed(&self, message: String) -> TrainError {
        TrainError::DeviceFailed { step: self.step + 1, message, saved: self.last_saved() }
    }
}
