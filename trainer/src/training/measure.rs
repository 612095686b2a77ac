//! A few steps of a run for their figures alone.

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

/// Sees the gradients of the first step before they are unscaled and clipped.
pub type FirstGradient = Box<dyn FnOnce(&VqGan, Option<&PatchGan>, &EffectiveBatch, &StepMetrics)>;

/// What a few steps were like.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The device, in words.
    pub device: String,
    /// Each step's line of `metrics.jsonl`.
    pub lines: Vec<Value>,
    /// Bytes of a page by which a GPU's memory pools grow; `None` on the CPU.
    pub page: Option<u64>,
}

/// Takes the first steps of the run that `loaded` describes, in the empty folder of `options`, without validating or saving
/// anything, until `steps` of them were not skipped for an overflow: those take less time and memory than others.
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
    /// Shows the gradients of the step that is on, of which `batch` and `figures` are what was computed. After an overflow
    /// that a smaller loss scale may cure they are computed again, until they are finite or the scale is its smallest.
    pub(super) fn show_gradient(
        &self,
        see: FirstGradient,
        batch: &EffectiveBatch,
        figures: &StepMetrics,
        interrupter: &Interrupter,
    ) -> Result<(), StepError> {
        // The step's own loss scales: the next step's are not known yet.
        let mut settings = StepSettings { loss_scales: batch.loss_scales, ..self.step_settings() };
        let rule = self.config.precision.scaling().ok();
        let smaller = |settings: &StepSettings, figures: &StepMetrics| {
            let rule = rule.as_ref()?;
            let mut scales = settings.loss_scales;
            let lower = |scale: f64| (scale * rule.backoff_factor).max(rule.min);
            if !(figures.grad_norm.is_finite() && figures.total.is_finite()) {
                scales.generator = lower(scales.generator);
            }
            if figures.discriminator_grad_norm.is_some_and(|norm| !norm.is_finite()) {
                scales.discriminator = lower(scales.discriminator);
            }
            (scales != settings.loss_scales).then_some(scales)
        };
        let (mut next, mut again) = (smaller(&settings, figures), None::<(EffectiveBatch, StepMetrics)>);
        while let Some(scales) = next {
            settings.loss_scales = scales;
            let batch = self.gradients_again(settings, interrupter)?;
            let figures = self
                .learned
                .read_metrics(&batch, &self.device.device)
                .map_err(|message| self.device_failed(message))?;
            next = smaller(&settings, &figures);
            again = Some((batch, figures));
        }
        let (batch, figures) = again.as_ref().map_or((batch, figures), |(batch, figures)| (batch, figures));
        see(self.learned.model(), self.learned.losses.discriminator().map(Discriminator::model), batch, figures);
        Ok(())
    }
}
