//! A run from its configuration to its last checkpoint.
//!
//! Of burn-train this uses what fits a run that is counted in optimizer steps: the `Interrupter` by which a run is asked to stop,
//! between two micro-batches as well, and the terminal dashboard with the types of metrics that it shows. The rest is its own,
//! because a resumed run has to be the same run:
//! - the loop, since burn-train's has one optimizer, no loss scale, and sums micro-batches instead of averaging samples;
//! - checkpoints ([`checkpoints::run`]), since burn-train's checkpointer saves by the epoch and writes each of a checkpoint's files
//!   in its place, without a hash, a sync, or a moment at which all of them become the newest checkpoint;
//! - the logs, since burn-train's event store is not open to others, and its loggers have a file for each metric and epoch, which
//!   cannot be taken back to a step;
//! - PSNR and SSIM, since `burn_train::metric::vision` comes with a downloader of weights in every build, pads images with zeros
//!   for SSIM, where the reference does not, and panics for images below its window; LPIPS and CLIP's similarity, since the
//!   run's losses have those networks already.

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
use crate::show::progress::check_terminal;

pub use self::deadline::Deadline;
pub use self::error::TrainError;
pub use self::fault::Fault;
pub use self::measure::{FirstGradient, Measured, measure};
pub use self::stop::{INTERRUPTED, Reason, Stop};

/// What the command line adds to a configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// What to go on with; nothing for a new run.
    pub resume: Option<Resume>,
    /// Changes of the configuration that a resumed run goes on with although they make it another run, by key or table.
    pub allow: Vec<String>,
    /// The run's folder.
    pub folder: PathBuf,
    /// Look for values that are not finite, and say where the first one of a step is.
    pub debug_numerics: bool,
    /// By when it has to be over.
    pub deadline: Option<Deadline>,
    /// Show the run on a dashboard that takes the terminal.
    pub dashboard: bool,
    /// What is to go wrong, to see what becomes of it.
    pub faults: Vec<Fault>,
    /// See [`StepSettings::weigh_by_micro_batch`](crate::engine::StepSettings::weigh_by_micro_batch).
    pub weigh_by_micro_batch: bool,
}

/// A checkpoint to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest of the run's own that is whole.
    Newest,
    /// The newest whole one of the run in this folder.
    NewestOf(PathBuf),
    /// The one in this folder.
    Checkpoint(PathBuf),
}

impl Resume {
    /// The folder of the run that the checkpoint is of, unless that is `folder`: then it is a branch that begins.
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
    /// Whether it was asked to stop before it was through.
    pub interrupted: bool,
    /// Whether it ended before its last step because it got no better.
    pub stopped_early: bool,
    /// Scores before the first step.
    pub before: Option<Scores>,
    /// Scores after the last step.
    pub after: Option<Scores>,
    /// The best validation, if the run looks for it.
    pub best: Option<Best>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Trains as `loaded` says, until the last step or until `stop` is asked, after which everything is saved.
///
/// # Errors
/// One line for the user each; what was saved before stays, and a run that could not begin leaves nothing.
pub fn train(loaded: &Loaded, options: Options, stop: &Stop) -> Result<Outcome, TrainError> {
    let dashboard = options.dashboard;
    if dashboard {
        check_terminal()?;
    }
    let prepared = catch_out_of_memory(|| Training::prepare(loaded, options, stop, Purpose::Run));
    let prepared = prepared.unwrap_or_else(|message| Err(cannot_begin(&loaded.config, 0, message)));
    let (mut training, made) = match prepared {
        Err(TrainError::Finished(outcome)) => return Ok(*outcome),
        prepared => prepared?,
    };
    if dashboard {
        training.shown.progress.show_dashboard(stop.interrupter(), stop.exit(), &METRICS);
    }
    let outcome = training.run(stop);
    // Without a step there is nothing in it but what it started from.
    if outcome.is_err() && training.step == 0 {
        drop(training);
        made.remove();
    }
    outcome
}

/// What steps are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// For what they do to the weights.
    Run,
    /// For their figures: as configured or not at all, without a measurement of its own.
    Measurement,
}

/// A run that is ready for its next step.
struct Training {
    config: Config,
    device: Selected,
    /// What is read.
    data: Data,
    learned: Learned,
    /// What steps keep to.
    memory: StepMemory,
    deadline: Option<Deadline>,
    scores: ScoreHistory,
    saves: Saves,
    shown: Display,
    debug: Debugging,
    /// The step that this process begins with, counted from 0.
    first_step: u64,
    step: u64,
}

impl Training {
    fn steps(&mut self, stop: &Stop) -> Result<(), TrainError> {
        let mut loaders = self.start_loaders();
        if self.validation_is_due() && self.validate(stop)? {
            self.save()?;
        }
        while self.step < self.config.run.steps && !stop.is_asked() && !self.gets_no_better() {
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
            // Validated first: a checkpoint knows how good it is, and a resumed run does not validate again.
            let better = self.validation_is_due() && self.validate(stop)?;
            if better || self.checkpoint_is_due() {
                self.save()?;
            }
        }
        Ok(())
    }

    /// One optimizer step: the gradient of the effective batch, unscaled, clipped, handed to the optimizers; then the average, the
    /// loss scale, and what is said of it.
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
        let not_finite = self.too_many_skips(loss_scales, interrupter)?;
        let (peak, micro) = (self.memory.meter.peak(), self.memory.settings.micro);
        let within = self.memory.recovery.exceeded(peak).is_none();
        let over_limit = self.keep_to_limit(peak);

        self.step += 1;
        // Loaders that were started anew count from zero.
        let waited = (loaders.wait_seconds() - waited).max(0.0);
        self.report(&metrics, &updates, (started, waited), (peak, micro, loaders.bytes_waiting()))?;
        self.shown.reporter.gradient_norms(self.step, &norms, &self.shown.progress);
        match not_finite.or(over_limit) {
            Some(error) => Err(error.into()),
            None if within => Ok(self.keep_settings()?),
            None => Ok(()),
        }
    }

    /// Lets the optimizers take the step. If it fails, some weights may have moved and others not.
    fn update(&mut self, batch: EffectiveBatch, metrics: &StepMetrics) -> Result<Updates, TrainError> {
        let updates = catch_out_of_memory(|| {
            self.debug.faults.meet(self.step + 1, "update");
            self.learned.update(self.step, batch, metrics)
        });
        let updates = updates.and_then(|updates| self.debug.faults.wait().map(|()| updates));
        let failed = |message| self.failed(&format!("step {}, update", self.step + 1), message, false);
        let updates = updates.map_err(failed)?;
        if self.device.choice != Choice::Cpu {
            // What fails in the update must not come up in the next step, as something that can be taken again.
            self.device.device.sync().map_err(|error| failed(error.to_string()))?;
        }
        Ok(updates)
    }

    /// The norms of the parameters' gradients by block, in a step in which they are shown.
    fn gradient_norms(&self, batch: &EffectiveBatch) -> Result<BTreeMap<String, Vec<f64>>, TrainError> {
        let run = &self.config.run;
        match run.tensorboard && every(run.gradient_histograms, self.step + 1) {
            true => self.learned.gradient_norms(batch).map_err(|message| self.device_failed(message)),
            false => Ok(BTreeMap::new()),
        }
    }

    /// What can still be saved is saved before an error is returned.
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
        let stopped_early = self.gets_no_better();
        let after = self.scores.after.filter(|(at, _)| *at == step);
        Ok(Outcome {
            step,
            interrupted: !stopped_early && (step < steps || self.scores.validated != Some(step)),
            stopped_early: stopped_early && step < steps,
            before: self.scores.before,
            after: after.map(|(_, scores)| scores),
            best: self.scores.best,
            checkpoint: self.saves.saved.as_ref().map(|(_, path)| path.clone()).unwrap_or_default(),
        })
    }
}

/// Whether `step` is a multiple of `interval`, which is never for 0.
fn every(interval: u64, step: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}
