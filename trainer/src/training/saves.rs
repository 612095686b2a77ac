//! Saves the checkpoints of a run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use checkpoints::run::{BackgroundWriter, Keep, RunLock, SaveError, Saved};

use super::error::TrainError;
use super::run_state::{State, StateError};
use super::{Training, every};
use crate::device::Choice;

/// The run's folder and its checkpoints.
pub(super) struct Saves {
    pub(super) folder: PathBuf,
    pub(super) _lock: RunLock,
    pub(super) writer: BackgroundWriter<StateError>,
    /// The newest checkpoint that is safe.
    pub(super) saved: Option<(u64, PathBuf)>,
    /// The step of the newest checkpoint that was handed to the writer, and when that was.
    pub(super) handed_over: (Option<u64>, Instant),
}

impl Training {
    pub(super) fn checkpoint_is_due(&self) -> bool {
        let settings = &self.config.checkpoints;
        let minutes = Duration::from_secs_f64(60.0 * settings.every_minutes);
        let by_the_clock = !minutes.is_zero() && self.saves.handed_over.1.elapsed() >= minutes;
        self.step == self.config.run.steps || every(settings.every_steps, self.step) || by_the_clock
    }

    /// Hands the run after its newest step to the writer, unless the writer has it already.
    pub(super) fn save(&mut self) -> Result<(), TrainError> {
        if self.saves.handed_over.0 == Some(self.step) {
            return Ok(());
        }
        // At most one copy of the run is in host memory.
        self.wait_for_writer()?;
        // Syncs before it saves, so that a checkpoint is never ahead of the logs.
        self.shown.logs.sync()?;
        let state = State {
            step: self.step,
            architecture: self.learned.architecture.clone(),
            config: self.config.clone(),
            before: self.scores.before,
            memory_settings: Some(self.memory.settings),
            images: self.data.images.clone(),
            adversarial: self.learned.losses.discriminator().map(|own| own.state),
            loss_scale: Some(self.learned.scaler.state()),
            discriminator_loss_scale: self.learned.losses.discriminator().map(|own| own.scaler().state()),
            validated: self.scores.validated,
            best: self.scores.best,
        };
        let path = || self.saves.folder.join("checkpoints").join(format!("step-{:06}", self.step));
        let snapshot = self.learned.snapshot(state).map_err(|source| SaveError::Write { path: path(), source })?;
        let settings = &self.config.checkpoints;
        let keep = Keep {
            // While steps are skipped, the newest checkpoints may be useless, and earlier ones are still good.
            last: if self.learned.skips_in_a_row() > 0 { usize::MAX } else { settings.keep_last },
            every: (settings.keep_every > 0).then_some(settings.keep_every),
            best: self.scores.best.map(|best| best.step),
        };
        self.debug.faults.save_begins(self.step);
        let saves = self.debug.faults.of_saves();
        self.saves.writer.save(self.step, keep, move |folder| snapshot.write(folder, |name| saves.wrote(name)))?;
        self.saves.handed_over = (Some(self.step), Instant::now());
        if self.memory.recovery.has_limit() && self.device.choice == Choice::Cpu {
            // The limit counts host memory, and the copy that is being written would add to the next step's peak.
            self.wait_for_writer()?;
        }
        Ok(())
    }

    /// Records a checkpoint that has become safe. Returns the writer's error if it failed.
    pub(super) fn poll_writer(&mut self) -> Result<(), TrainError> {
        let saved = self.saves.writer.poll()?;
        self.note(saved);
        Ok(())
    }

    pub(super) fn wait_for_writer(&mut self) -> Result<(), TrainError> {
        let saved = self.saves.writer.wait()?;
        self.note(saved);
        Ok(())
    }

    fn note(&mut self, saved: Option<Saved>) {
        let Some(Saved { step, path, took }) = saved else { return };
        if let Some(deadline) = &mut self.deadline {
            deadline.save_took(took);
        }
        self.saves.saved = Some((step, path));
    }

    pub(super) fn last_saved(&self) -> String {
        match &self.saves.saved {
            Some((step, _)) => format!("the last checkpoint is that of step {step}"),
            None => "there is no checkpoint yet".to_owned(),
        }
    }
}
