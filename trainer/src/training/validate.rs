//! Validates the model during a run.

use std::path::PathBuf;

use burn::module::Module;
use checkpoints::run::{RunError, atomic_write};

use super::error::TrainError;
use super::stop::Stop;
use super::{Training, every};
use crate::device::panics::{catch_out_of_memory, out_of_memory};
use crate::evaluation::{
    Best, Extent, Judges, Scores, Validated, ValidationError, before_and_after_png, grid_png, validate,
};
use crate::models::VqGan;
use crate::precision::compute_copy;

/// The scores of a run's validations.
pub(super) struct ScoreHistory {
    /// Before the first step.
    pub(super) before: Option<Scores>,
    /// The newest scores of this process, and their step.
    pub(super) after: Option<(u64, Scores)>,
    /// The step of the newest validation, by this process or an earlier one.
    pub(super) validated: Option<u64>,
    pub(super) best: Option<Best>,
}

impl Training {
    /// Whether `validation.patience` is used up.
    pub(super) fn is_out_of_patience(&self) -> bool {
        let patience = self.config.validation.patience;
        patience > 0 && self.scores.best.is_some_and(|best| best.worse >= patience)
    }

    pub(super) fn validation_is_due(&self) -> bool {
        let (step, steps) = (self.step, self.config.run.steps);
        let due = step == 0 || step == steps || every(self.config.validation.every_steps, step);
        due && self.scores.validated != Some(step)
    }

    /// Validates the model, and returns whether this validation is the best so far.
    pub(super) fn validate(&mut self, stop: &Stop) -> Result<bool, TrainError> {
        let settings = &self.config.validation;
        if self.data.validation.is_empty() || settings.images == 0 {
            self.scores.validated = Some(self.step);
            return Ok(false);
        }
        let plain;
        let model = match &self.learned.ema {
            Some(ema) => ema.model(),
            None => {
                plain = self.learned.model().valid();
                &plain
            }
        };
        // Validates in the type that steps compute in, so that its memory does not exceed the steps' peak.
        let copy = self.compute().map(|dtype| compute_copy(model, dtype));
        let model = copy.as_ref().unwrap_or(model);
        let Some(validated) = self.validate_in_memory(model, stop)? else { return Ok(false) };
        for warning in self.data.validation.take_warnings() {
            self.shown.progress.line(&format!("skipped {warning}"));
        }
        if !validated.samples.is_empty() {
            let png = grid_png(&validated.samples, self.config.data.resolution)?;
            let samples = self.saves.folder.join("samples");
            std::fs::create_dir_all(&samples).map_err(RunError::io("create", &samples))?;
            atomic_write(&samples.join(sample_name(self.step)), &png)?;
            self.shown.reporter.samples(self.step, &png, &self.shown.progress);
        }
        let scores = validated.scores;
        self.shown.logs.validation(self.step, &scores)?;
        self.shown.reporter.validation(self.step, &scores, &self.shown.progress);
        self.shown.progress.line(&format!("step {}: {}", self.step, in_words(&scores)));
        if self.step == 0 {
            self.scores.before = Some(scores);
        }
        self.scores.after = Some((self.step, scores));
        self.scores.validated = Some(self.step);
        // An earlier checkpoint of this step does not have these scores.
        self.saves.handed_over.0 = None;
        self.scores.best = Best::after(self.scores.best, self.config.checkpoints.best, self.step, &scores);
        Ok(self.scores.best.is_some_and(|best| best.step == self.step))
    }

    /// Writes the samples of the first validation and of that at `step` into one image. Returns its path; `None` if there
    /// are no such samples.
    pub(super) fn before_and_after_grid(&self, step: u64) -> Result<Option<PathBuf>, TrainError> {
        let samples = self.saves.folder.join("samples");
        let read = |step: u64| std::fs::read(samples.join(sample_name(step))).ok();
        let Some((before, after)) = read(0).zip(read(step)).filter(|_| step > 0) else { return Ok(None) };
        let Some(png) = before_and_after_png(&before, &after)? else { return Ok(None) };
        let path = samples.join("before-and-after.png");
        atomic_write(&path, &png)?;
        Ok(Some(path))
    }

    /// Validates `model`, by single images if memory is too small for a micro-batch. Returns `None` if `stop` was
    /// asked.
    fn validate_in_memory(&self, model: &VqGan, stop: &Stop) -> Result<Option<Validated>, TrainError> {
        let (settings, set) = (&self.config.validation, &self.data.validation);
        let images = settings.images.min(set.len());
        let mut micro = self.memory.settings.micro;
        loop {
            let extent = Extent { images: settings.images, micro, samples: settings.samples };
            let progress = |count| self.shown.progress.validated(count, images);
            let validated = catch_out_of_memory(|| {
                self.debug.faults.meet(self.step, "validation");
                let say = |line: &str| self.shown.progress.line(line);
                validate(model, Judges::of(&self.learned.losses), set, extent, || stop.is_asked(), progress, say)
            });
            let message = match validated {
                Err(message) => message,
                Ok(Err(ValidationError::Device(message))) if out_of_memory(&message).is_some() => message,
                Ok(finished) => return Ok(finished?),
            };
            let place = format!("step {}, validation", self.step);
            if micro == 1 {
                return Err(self.failed(&place, message, true));
            }
            self.clear_pools()?;
            self.shown.progress.line(&format!("{place}: out of memory ({message}); one image at a time"));
            self.shown.progress.step_again();
            micro = 1;
        }
    }
}

fn sample_name(step: u64) -> String {
    format!("step-{step:06}.png")
}

/// Formats the scores for the user.
fn in_words(scores: &Scores) -> String {
    let Scores { l1, psnr, ssim, lpips, clip, .. } = scores;
    let mut text = format!("validation error {l1:.4}, PSNR {psnr:.2} dB");
    for (name, value) in [("SSIM", ssim), ("LPIPS", lpips), ("CLIP", clip)] {
        if let Some(value) = value {
            text += &format!(", {name} {value:.4}");
        }
    }
    text
}
