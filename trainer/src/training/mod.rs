//! A run from its configuration to its last checkpoint. It depends on all but commands and verification.
//!
//! From burn-train this module uses what fits a run that is counted in optimizer steps: the `Interrupter`, which asks a
//! run to stop, also between two micro-batches. The rest is its own, because a resumed run has to be the same run:
//! - the loop: burn-train's has one optimizer, no loss scale, and sums micro-batches in place of averaging samples;
//! - checkpoints ([`checkpoints::run`]): burn-train saves by the epoch and overwrites each file of a checkpoint in
//!   place, without a hash, a sync, or a moment at which all files together become the newest checkpoint;
//! - the logs: burn-train's event store is private, and its loggers write a file for each metric and epoch, which
//!   cannot be cut back to a step;
//! - the dashboard: burn-train's counts epochs and items, has bars without labels, and ends the process by a panic;
//! - PSNR and SSIM: `burn_train::metric::vision` brings a downloader of weights into every build, pads images with
//!   zeros for SSIM, where the reference does not, and panics for images below its window;
//! - LPIPS and CLIP similarity: the run's losses have these networks already.

mod deadline;
mod error;
mod fault;
mod folder;
mod learned;
mod loaders;
mod logs;
mod measure;
mod prepare;
pub mod pretrained;
pub mod preview;
mod report;
mod retry;
pub mod run_state;
mod saves;
mod start;
mod step;
mod stop;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn_train::Interrupter;

use self::error::StepError;
use self::learned::{Learned, Updates};
use self::loaders::Loaders;
use self::report::Display;
use self::retry::cannot_begin;
use self::saves::Saves;
use self::step::{Debugging, StepMemory};
use self::validate::ScoreHistory;
use crate::config::{Config, Loaded};
use crate::data::Data;
use crate::device::panics::catch_out_of_memory;
use crate::device::{Choice, Selected};
use crate::engine::EffectiveBatch;
use crate::evaluation::{Best, Scores};
use crate::losses::{METRICS, StepMetrics};
use crate::show::log_file;
use crate::show::progress::check_terminal;

pub use self::deadline::Deadline;
pub use self::error::TrainError;
pub use self::fault::Fault;
pub use self::measure::{FirstGradient, Measured, measure};
pub use self::stop::{INTERRUPTED, Reason, Stop};

/// What the command line adds to a configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// The checkpoint to resume; `None` for a new run.
    pub resume: Option<Resume>,
    /// Keys or tables of the configuration that may change although that makes the resumed run another run.
    pub allow: Vec<String>,
    /// The run's folder.
    pub folder: PathBuf,
    /// Look for values that are not finite, and say where the first one of a step is.
    pub debug_numerics: bool,
    /// The time by which the run must end.
    pub deadline: Option<Deadline>,
    /// Show the run on a dashboard that takes the terminal.
    pub dashboard: bool,
    /// Faults to inject, for tests.
    pub faults: Vec<Fault>,
    /// See [`StepSettings::weigh_by_micro_batch`](crate::engine::StepSettings::weigh_by_micro_batch).
    pub weigh_by_micro_batch: bool,
}

/// A checkpoint to resume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest whole checkpoint of the run itself.
    Newest,
    /// The newest whole checkpoint of the run in this folder.
    NewestOf(PathBuf),
    /// The checkpoint in this folder.
    Checkpoint(PathBuf),
}

impl Resume {
    /// The folder of the checkpoint's run, unless that is `folder`. Another folder makes the resumed run a branch.
    fn other_run(&self, folder: &Path) -> Option<PathBuf> {
        let run = match self {
            Self::Newest => return None,
            Self::NewestOf(run) => run.canonicalize().ok()?,
            Self::Checkpoint(path) => path.canonicalize().ok()?.ancestors().nth(2)?.to_owned(),
        };
        (folder.canonicalize().ok().as_ref() != Some(&run)).then_some(run)
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Steps done.
    pub step: u64,
    /// Whether the run was asked to stop before it was complete.
    pub interrupted: bool,
    /// Whether the run ended before its last step because its validations got no better.
    pub stopped_early: bool,
    /// Scores before the first step.
    pub before: Option<Scores>,
    /// Scores after the last step.
    pub after: Option<Scores>,
    /// The best validation, if the run keeps track of it.
    pub best: Option<Best>,
    /// Originals with their reconstructions before and after training, if the run has been validated from its start.
    pub grid: Option<PathBuf>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Trains as `loaded` says, until the last step or until `stop` is asked. Then it saves everything.
///
/// # Errors
/// Each error is one line for the user. Earlier checkpoints stay, and a run that could not begin leaves nothing behind.
pub fn train(loaded: &Loaded, options: Options, stop: &Stop) -> Result<Outcome, TrainError> {
    let dashboard = options.dashboard;
    if dashboard {
        check_terminal()?;
    }
    let prepared = catch_out_of_memory(|| Training::prepare(loaded, options, stop, Purpose::Run));
    let prepared = prepared.unwrap_or_else(|message| Err(cannot_begin(&loaded.config, 0, message)));
    let (mut training, created) = match prepared {
        Err(TrainError::Finished(outcome)) => return Ok(*outcome),
        prepared => prepared?,
    };
    if dashboard {
        training.shown.progress.show_dashboard(stop.interrupter(), &METRICS);
    }
    let outcome = training.run(stop);
    // Without a step the folder holds nothing but what the run started from.
    if outcome.is_err() && training.step == 0 {
        drop(training);
        log_file::close();
        created.remove();
    }
    outcome
}

/// Why steps are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To train the model.
    Run,
    /// To measure them: exactly as configured, without choosing or lowering memory settings.
    Measurement,
}

/// A run that is ready for its next step.
struct Training {
    config: Config,
    device: Selected,
    /// The images.
    data: Data,
    learned: Learned,
    /// Measures and limits the memory of steps.
    memory: StepMemory,
    deadline: Option<Deadline>,
    scores: ScoreHistory,
    saves: Saves,
    shown: Display,
    debug: Debugging,
    /// The first step of this process, counted from 0.
    first_step: u64,
    step: u64,
}

impl Training {
    fn steps(&mut self, stop: &Stop) -> Result<(), TrainError> {
        let mut loaders = self.start_loaders();
        if self.validation_is_due() && self.validate(stop)? {
            self.save()?;
        }
        while self.step < self.config.run.steps && !stop.is_asked() && !self.is_out_of_patience() {
            if self.deadline.as_ref().is_some_and(|deadline| !deadline.allows_a_step()) {
                stop.ask(Reason::MaxTime);
                break;
            }
            let started = Instant::now();
            self.poll_writer()?;
            match self.optimizer_step(&mut loaders, stop.interrupter()) {
                Ok(()) => {}
                Err(StepError::Interrupted | StepError::OverLimit) => break,
                Err(StepError::Failed(error)) => return Err(error),
            }
            if let Some(deadline) = &mut self.deadline {
                deadline.step_took(started.elapsed());
            }
            // Validates first: the checkpoint then has the scores, and a resumed run does not validate again.
            let better = self.validation_is_due() && self.validate(stop)?;
            if better || self.checkpoint_is_due() {
                self.save()?;
            }
        }
        Ok(())
    }

    /// Takes one optimizer step: computes the gradient of the effective batch, unscales and clips it, lets the
    /// optimizers step, updates the average and the loss scale, and reports the step.
    fn optimizer_step(&mut self, loaders: &mut Loaders, interrupter: &Interrupter) -> Result<(), StepError> {
        let (started, waited) = (Instant::now(), loaders.wait_seconds());
        let first_gradient = self.debug.first_gradient.take();
        let (batch, metrics) = self.compute_gradient(loaders, interrupter)?;
        if let Some(show) = first_gradient {
            self.memory.meter.apart(|| self.show_gradient(show, &batch, &metrics, interrupter))?;
        }
        let norms = self.gradient_norms(&batch)?;
        let loss_scales = batch.loss_scales;
        let updates = self.update(batch, &metrics)?;
        let not_finite = self.check_skips(loss_scales, interrupter)?;
        let (peak, micro) = (self.memory.meter.peak(), self.memory.settings.micro);
        let within = self.memory.recovery.exceeded(peak).is_none();
        let over_limit = self.keep_to_limit(peak);

        self.step += 1;
        // Loaders that were restarted count from zero.
        let waited = (loaders.wait_seconds() - waited).max(0.0);
        self.report(&metrics, &updates, (started, waited), (peak, micro, loaders.bytes_waiting()))?;
        self.shown.reporter.gradient_norms(self.step, &norms, &self.shown.progress);
        match not_finite.or(over_limit) {
            Some(error) => Err(error.into()),
            None if within => Ok(self.keep_settings()?),
            None => Ok(()),
        }
    }

    /// Lets the optimizers take the step. After an error some weights may have changed and others not.
    fn update(&mut self, batch: EffectiveBatch, metrics: &StepMetrics) -> Result<Updates, TrainError> {
        let updates = catch_out_of_memory(|| {
            self.debug.faults.meet(self.step + 1, "update");
            self.learned.update(self.step, batch, metrics)
        });
        let updates = updates.and_then(|updates| self.debug.faults.wait().map(|()| updates));
        let failed = |message| self.failed(&format!("step {}, update", self.step + 1), message, false);
        let updates = updates.map_err(failed)?;
        if self.device.choice != Choice::Cpu {
            // A failure of the update must not appear in the next step, which would then be taken again.
            self.device.device.sync().map_err(|error| failed(error.to_string()))?;
        }
        Ok(updates)
    }

    /// Computes the norms of the parameters' gradients by block, in a step in which they are logged.
    fn gradient_norms(&self, batch: &EffectiveBatch) -> Result<BTreeMap<String, Vec<f64>>, TrainError> {
        let run = &self.config.run;
        match run.tensorboard && every(run.gradient_histograms, self.step + 1) {
            true => self.learned.gradient_norms(batch).map_err(|message| self.device_failed(message)),
            false => Ok(BTreeMap::new()),
        }
    }

    /// Takes all steps and saves. After an error, saves what can still be saved, and then returns the error.
    fn run(&mut self, stop: &Stop) -> Result<Outcome, TrainError> {
        if let Some(deadline) = &mut self.deadline {
            deadline.expect_checkpoint(self.learned.bytes_of_checkpoint());
        }
        let steps = catch_out_of_memory(|| self.steps(stop));
        let too_little = |message| Err(self.failed(&format!("after step {}", self.step), message, true));
        if let Err(mut error) = steps.unwrap_or_else(too_little) {
            if error.leaves_the_run_sound() && self.step > 0 {
                let _ = catch_out_of_memory(|| self.save());
            }
            let _ = self.wait_for_writer();
            error.set_saved(|| self.last_saved());
            self.shown.progress.finish();
            self.shown.reporter.finish(&self.shown.progress);
            return Err(error);
        }
        self.save()?;
        self.wait_for_writer()?;
        self.shown.progress.finish();
        self.shown.reporter.finish(&self.shown.progress);
        let (step, steps) = (self.step, self.config.run.steps);
        let stopped_early = self.is_out_of_patience();
        let after = self.scores.after.filter(|(at, _)| *at == step);
        Ok(Outcome {
            step,
            interrupted: !stopped_early && (step < steps || self.scores.validated != Some(step)),
            stopped_early: stopped_early && step < steps,
            before: self.scores.before,
            after: after.map(|(_, scores)| scores),
            best: self.scores.best,
            grid: if self.scores.validated == Some(step) { self.before_and_after_grid(step)? } else { None },
            checkpoint: self.saves.saved.as_ref().map(|(_, path)| path.clone()).unwrap_or_default(),
        })
    }
}

/// Whether `step` is a multiple of `interval`; never for an interval of 0.
fn every(interval: u64, step: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}
