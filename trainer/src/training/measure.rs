//! Takes a few steps of a run only to measure them.

use burn_train::Interrupter;
use checkpoints::run::RunError;
use serde_json::Value;

use super::error::StepError;
use super::logs::STEPS;
use super::{Options, Purpose, Stop, TrainError, Training};
use crate::config::Loaded;
use crate::engine::{EffectiveBatch, StepSettings};
use crate::losses::{Discriminator, StepMetrics};
use crate::models::VqGan;
use crate::models::discriminator::PatchGan;

/// Receives the gradients of the first step before they are unscaled and clipped.
pub type FirstGradient = Box<dyn FnOnce(&VqGan, Option<&PatchGan>, &EffectiveBatch, &StepMetrics)>;

/// The measurements of a few steps.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The device, in words.
    pub device: String,
    /// Each step's line of `metrics.jsonl`.
    pub lines: Vec<Value>,
    /// Page size by which a GPU's memory pools grow, in bytes; `None` on the CPU.
    pub page: Option<u64>,
}

/// Takes the first steps of the run that `loaded` describes, in the empty folder of `options`; validates and saves
/// nothing. Ends once `steps` steps were taken: steps that are skipped on overflow take less time and memory.
///
/// # Errors
/// As for a run.
pub fn measure(
    loaded: &Loaded,
    options: Options,
    steps: u64,
    first_gradient: FirstGradient,
) -> Result<Measured, TrainError> {
    let path = options.folder.join(STEPS);
    let stop = Stop::default();
    let (mut training, _) = Training::prepare(loaded, options, &stop, Purpose::Measurement)?;
    training.debug.first_gradient = Some(first_gradient);
    let mut loaders = training.start_loaders();
    while training.learned.scaler.taken(training.step) < steps {
        match training.optimizer_step(&mut loaders, stop.interrupter()) {
            Ok(()) => {}
            Err(StepError::Interrupted | StepError::OverLimit) => break,
            Err(StepError::Failed(error)) => return Err(error),
        }
    }
    let text = std::fs::read_to_string(&path).map_err(RunError::io("read", &path))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(Measured { device: training.device.description.clone(), lines, page: training.memory.meter.page() })
}

impl Training {
    /// Passes the gradients of the current step to `see`, with its `batch` and `metrics`. After an overflow it first
    /// computes them again with smaller loss scales, until they are finite or the scale is at its minimum.
    pub(super) fn show_gradient(
        &self,
        see: FirstGradient,
        batch: &EffectiveBatch,
        metrics: &StepMetrics,
        interrupter: &Interrupter,
    ) -> Result<(), StepError> {
        // The step's own loss scales: the next step's are not known yet.
        let mut settings = StepSettings { loss_scales: batch.loss_scales, ..self.step_settings() };
        let rule = self.config.precision.scaling().ok();
        let smaller = |settings: &StepSettings, metrics: &StepMetrics| {
            let rule = rule.as_ref()?;
            let mut scales = settings.loss_scales;
            let lower = |scale: f64| (scale * rule.backoff_factor).max(rule.min);
            if !(metrics.grad_norm.is_finite() && metrics.total.is_finite()) {
                scales.generator = lower(scales.generator);
            }
            if metrics.discriminator_grad_norm.is_some_and(|norm| !norm.is_finite()) {
                scales.discriminator = lower(scales.discriminator);
            }
            (scales != settings.loss_scales).then_some(scales)
        };
        let (mut next, mut again) = (smaller(&settings, metrics), None::<(EffectiveBatch, StepMetrics)>);
        while let Some(scales) = next {
            settings.loss_scales = scales;
            let batch = self.gradients_again(settings, interrupter)?;
            let metrics = self
                .learned
                .read_metrics(&batch, &self.device.device)
                .map_err(|message| self.device_failed(message))?;
            next = smaller(&settings, &metrics);
            again = Some((batch, metrics));
        }
        let (batch, metrics) = again.as_ref().map_or((batch, metrics), |(batch, metrics)| (batch, metrics));
        see(self.learned.model(), self.learned.losses.discriminator().map(Discriminator::model), batch, metrics);
        Ok(())
    }
}
