//! Takes a step that ran out of memory again with less, for the same samples and the same random draws.

use burn_train::Interrupter;

use super::Training;
use super::error::{StepError, TrainError};
use super::loaders::Loaders;
use crate::config::Config;
use crate::device::panics::{catch_out_of_memory, out_of_memory};
use crate::engine::EffectiveBatch;
use crate::losses::{Losses, StepMetrics};
use crate::memory::{MemoryError, MemorySettings, Shortage, clear_pools, would_help};

impl Training {
    /// Computes the gradient and metrics of a step, which changes nothing yet. Retries with less if it is out of
    /// memory.
    pub(super) fn compute_gradient(
        &mut self,
        loaders: &mut Loaders,
        interrupter: &Interrupter,
    ) -> Result<(EffectiveBatch, StepMetrics), StepError> {
        loop {
            if !self.memory.recovery.can_help(self.memory.settings) {
                return self.attempt(loaders, interrupter);
            }
            let shortage = match catch_out_of_memory(|| self.attempt(loaders, interrupter)) {
                Err(message) => Shortage::Device(message),
                Ok(Err(StepError::Failed(TrainError::DeviceFailed { message, step, saved }))) => {
                    match out_of_memory(&message) {
                        Some(line) => Shortage::Device(line.to_owned()),
                        None => return Err(TrainError::DeviceFailed { message, step, saved }.into()),
                    }
                }
                Ok(Err(StepError::OverLimit)) => match self.memory.recovery.exceeded(self.memory.meter.peak_so_far()) {
                    Some(shortage) => shortage,
                    None => continue,
                },
                Ok(finished) => return finished,
            };
            self.recover(&shortage, "and the step is taken again")?;
            *loaders = self.start_loaders();
            self.shown.progress.step_again();
        }
    }

    /// Checks that the step's peak so far does not exceed the limit.
    pub(super) fn check_limit(&self) -> Result<(), StepError> {
        match self.memory.recovery.exceeded(self.memory.meter.peak_so_far()) {
            Some(_) => Err(StepError::OverLimit),
            None => Ok(()),
        }
    }

    /// Lowers the settings of the next steps if the step that just changed the weights exceeded the limit, since it
    /// cannot be taken again. Returns the error that ends the run if nothing is left to lower.
    pub(super) fn keep_to_limit(&mut self, peak: u64) -> Option<TrainError> {
        let shortage = self.memory.recovery.exceeded(peak)?;
        self.recover(&shortage, "from the next step on").err()
    }

    /// After a step within the limit: stores the chosen micro-batch for later runs, and frees unused pool memory.
    pub(super) fn keep_settings(&mut self) -> Result<(), TrainError> {
        let settings = self.memory.settings;
        let as_measured = settings.recompute == self.config.memory.recompute;
        if let Some(choice) = self.memory.unconfirmed.take().filter(|_| as_measured) {
            choice.keep(settings.micro);
        }
        let cleaned = self.memory.recovery.clean_pools_once(settings);
        cleaned.map(drop).map_err(|error| self.memory_failed(error))
    }

    /// Lowers the memory settings of the next attempt. `then` tells the user what follows.
    fn recover(&mut self, shortage: &Shortage, then: &str) -> Result<(), TrainError> {
        let recovered = self.memory.recovery.recover(self.memory.settings, shortage, self.memory.meter.phase());
        let (settings, said) = recovered.map_err(|error| self.memory_failed(error))?;
        self.set_memory_settings(settings);
        if let Some(said) = said {
            self.shown.progress.line(&format!("step {}, {said}, {then}", self.step + 1));
        }
        Ok(())
    }

    /// Frees unused memory of the device's pools.
    pub(super) fn clear_pools(&self) -> Result<(), TrainError> {
        clear_pools(&self.device).map_err(|error| self.memory_failed(error))
    }

    fn memory_failed(&self, error: MemoryError) -> TrainError {
        TrainError::of_memory(error, self.step + 1, self.last_saved())
    }

    pub(super) fn set_memory_settings(&mut self, settings: MemorySettings) {
        self.memory.settings = settings;
        if let Some(clip) = &mut self.learned.losses.clip {
            clip.views.at_once = settings.cutouts_at_once;
        }
    }

    /// Converts the device's `message` into the error that ends the run, and recognizes too little memory. `sound` says
    /// whether the weights are those of a whole step.
    pub(super) fn failed(&self, place: &str, message: String, sound: bool) -> TrainError {
        let Some(line) = out_of_memory(&message) else { return self.device_failed(message) };
        TrainError::OutOfMemoryIn {
            place: place.to_owned(),
            message: line.to_owned(),
            help: self.memory.recovery.help(self.memory.settings),
            saved: self.last_saved(),
            sound,
        }
    }
}

/// The number of cutouts that the losses of a run take of a sample, if any.
pub(super) fn cutouts(losses: &Losses) -> Option<usize> {
    let clip = losses.clip.as_ref().filter(|clip| clip.needs_cutouts())?;
    Some(clip.views.cutouts.settings().count)
}

/// Converts the device's `message` from before the first step, with `step` steps done, into the error that ends the
/// run. Most likely there is too little memory for what the first step needs on the device.
pub(super) fn cannot_begin(config: &Config, step: u64, message: String) -> TrainError {
    let (place, saved) = ("before the first step".to_owned(), "nothing has been changed".to_owned());
    match out_of_memory(&message).map(str::to_owned) {
        Some(message) => {
            TrainError::OutOfMemoryIn { place, message, help: would_help(config).join(", "), saved, sound: true }
        }
        None => TrainError::DeviceFailed { step: step + 1, message, saved },
    }
}
