//! A run from its configuration to its last checkpoint.
//!
//! Of burn-train this uses what fits a run that is counted in optimizer steps: the `Interrupter` by which a run is asked to stop,
//! between two micro-batches as well, and the terminal dashboard with the types of figures that it shows. The rest is its own,
//! because a resumed run has to be the same run:
//! - the loop, since burn-train's has one optimizer, no loss scale, and sums micro-batches instead of averaging samples;
//! - checkpoints ([`checkpoints::run`]), since burn-train's checkpointer saves by the epoch and writes each of a checkpoint's files
//!   in its place, without a hash, a sync, or a moment at which all of them become the newest checkpoint;
//! - the logs, since burn-train's event store is not open to others, and its loggers have a file for each figure and epoch, which
//!   cannot be taken back to a step;
//! - PSNR and SSIM, since `burn_train::metric::vision` comes with a downloader of weights in every build, pads pictures with zeros
//!   for SSIM, where the reference does not, and panics for pictures below its window; LPIPS and CLIP's similarity, since the
//!   run's losses have those networks already.

mod deadline;
mod error;
mod fault;
mod folder;
mod loaders;
mod logs;
mod measure;
pub mod pretrained;
mod retry;
pub mod run_state;
mod start;
mod step;
mod stop;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::DType;
use checkpoints::Architecture;
use checkpoints::run::{BackgroundWriter, Keep, RunError, RunLock, SaveError, Saved, atomic_write};
use datasets::Loader;

use self::fault::Faults;
use self::folder::{Made, RunFolder, Taken};
use self::logs::Logs;
use self::retry::{cannot_begin, cutouts};
use self::run_state::{Snapshot, State, StateError};
use self::start::{Start, check_captions, check_precision, find_checkpoint};
use self::step::StepError;
use crate::config::{Compute, Config, Loaded};
use crate::data::{self, Data};
use crate::device::panics::{catch_out_of_memory, out_of_memory};
use crate::device::{Choice, Selected};
use crate::engine::MicroBatch;
use crate::evaluation::Best;
use crate::evaluation::grid_png;
use crate::evaluation::{Extent, Judges, Scores, Validated, ValidationError, validate};
use crate::losses::{Discriminator, LoadContext, Losses, METRICS};
use crate::memory::{self, CacheEntry, Chosen, Limit, MemoryMeter, MemorySettings, Recovery, depends_on_micro};
use crate::models::VqGan;
use crate::optim::{Ema, LossScaler, LrSchedule, ModelOptimizer};
use crate::precision::{Probe, Range, compute_copy};
use crate::show::progress::{Progress, check_terminal};
use crate::show::readable;
use crate::show::reporting::Reporter;

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
        training.progress.show_dashboard(stop.interrupter(), stop.exit(), &METRICS);
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
    architecture: Architecture,
    folder: PathBuf,
    _lock: RunLock,
    writer: BackgroundWriter<StateError>,
    logs: Logs,
    deadline: Option<Deadline>,
    device: Selected,
    data: Data,
    losses: Losses,
    schedule: LrSchedule,
    /// `None` only while the optimizer has it.
    model: Option<VqGan>,
    ema: Option<Ema<VqGan>>,
    optimizer: ModelOptimizer,
    scaler: LossScaler,
    /// Only while faults are looked for.
    probe: Option<Probe>,
    memory: MemoryMeter,
    /// Sees the gradients of the next step, if anyone asked; not part of its memory.
    first_gradient: Option<FirstGradient>,
    /// The settings of the next step that decide its memory.
    memory_settings: MemorySettings,
    recovery: Recovery,
    /// The choice of a micro-batch that no step has confirmed yet.
    unconfirmed: Option<CacheEntry>,
    faults: Faults,
    weigh_by_micro_batch: bool,
    progress: Progress,
    reporter: Reporter,
    /// The step that this process begins with, counted from 0.
    first_step: u64,
    step: u64,
    /// The newest checkpoint that is safe.
    saved: Option<(u64, PathBuf)>,
    /// The step of the newest checkpoint that the writer was given, and when.
    handed_over: (Option<u64>, Instant),
    before: Option<Scores>,
    /// The newest validation of this process.
    after: Option<(u64, Scores)>,
    /// The step of the newest validation, of this process or one before.
    validated: Option<u64>,
    best: Option<Best>,
}

impl Training {
    fn prepare(
        loaded: &Loaded,
        mut options: Options,
        stop: &Stop,
        purpose: Purpose,
    ) -> Result<(Self, Made), TrainError> {
        let config = loaded.config.clone();
        let faults = Faults::new(std::mem::take(&mut options.faults));
        let folder = options.folder.clone();
        if options.resume == Some(Resume::Newest) && !folder.is_dir() {
            return Err(TrainError::NothingToResume(folder));
        }
        let place = RunFolder::find(&folder)?;
        let other = options.resume.as_ref().and_then(|resume| resume.other_run(&folder));
        let goes_on = options.resume.is_some() && other.is_none();
        if !goes_on && !place.store().steps()?.is_empty() {
            return Err(TrainError::Occupied(folder));
        }
        let choice: Choice = config.run.device.parse()?;
        let device = choice.open()?;
        note!("device: {}", device.description);
        if let Some(note) = device.first_use() {
            note!("{note}");
        }
        check_precision(loaded, &device)?;
        let data = data::open(&config)?;
        let checkpoint = find_checkpoint(&options, &place.store())?;
        let limit = Limit::of(&config, &device);
        let path = checkpoint.as_ref().map(|checkpoint| checkpoint.path.as_path());
        let chosen = match purpose {
            Purpose::Run => stop.while_measuring(|stopped| {
                let resumed = path.and_then(|path| run_state::saved_memory_settings(path, &config));
                memory::choose(loaded, resumed, &device, limit, stopped)
            }),
            Purpose::Measurement => Chosen::as_configured(loaded),
        };
        let chosen = chosen.map_err(|error| TrainError::of_memory(error, 1, "nothing has been made".to_owned()))?;
        let mut start = match checkpoint {
            Some(checkpoint) => Start::resume(loaded, checkpoint, &options.allow, &device, &data)?,
            None => Start::fresh(loaded, &device)?,
        };
        check_captions(&config, &data)?;
        let losses = Losses::load(
            &config.losses,
            LoadContext {
                around: config.surroundings(),
                quantizer: &start.architecture.quantizer,
                device: &device.device.clone().autodiff(),
                frozen: config.precision.frozen().dtype(),
                discriminator: start.discriminator.take(),
            },
        )?;
        faults.meet(0, "start");
        // All that there has to be before the first step has its memory by now, or the run does not begin.
        let waited = faults.wait().and_then(|()| device.device.sync().map_err(|error| error.to_string()));
        waited.map_err(|message| cannot_begin(&config, start.step, message))?;
        let probe = options.debug_numerics.then(|| Probe::new(&start.model));
        announce(&config, &start, &chosen, limit, &data, &folder);
        if config.precision.compute == Compute::Fp16 {
            advise_on_range(&start.model, &data, &device)?;
        }

        stop.run_begins();
        let Taken { lock, store, mut made } = place.take()?;
        let (step, own) = (start.step, start.checkpoint.filter(|_| goes_on));
        if let Some(other) = other {
            // A checkpoint that was moved away has no logs beside it.
            if other.join("checkpoints").is_dir() {
                Logs::copy(&other, &folder)?;
            }
        } else if let Some(Resume::Checkpoint(_)) = options.resume {
            for aside in store.set_aside(step)? {
                note!("set aside, since the run goes on from step {step}: {}", aside.display());
            }
        }
        let batch_norm = losses.discriminator().is_some_and(Discriminator::has_batch_norm);
        let fixed_micro = depends_on_micro(&config, batch_norm);
        let recovery = Recovery::new(limit, &config, &device, fixed_micro, cutouts(&losses));
        let saves = faults.of_saves();
        let store = store.with_hook(move |what| saves.wrote(what));
        let mut training = Self {
            logs: Logs::open(&folder, step, start.validated)?,
            losses,
            schedule: LrSchedule::new(&config.schedule, &config.optimizer, config.run.steps),
            memory: MemoryMeter::new(&device),
            first_gradient: None,
            progress: Progress::new(step, config.run.steps, config.batch.effective),
            reporter: Reporter::start(&folder, step, config.run.tensorboard, &METRICS)?,
            architecture: start.architecture,
            model: Some(start.model),
            ema: start.ema,
            optimizer: start.optimizer,
            scaler: start.scaler,
            probe,
            memory_settings: chosen.settings,
            recovery: if purpose == Purpose::Run { recovery } else { recovery.off() },
            unconfirmed: chosen.unconfirmed,
            faults,
            weigh_by_micro_batch: options.weigh_by_micro_batch,
            first_step: step,
            step,
            handed_over: (own.is_some().then_some(step), Instant::now()),
            saved: own.map(|path| (step, path)),
            before: start.before,
            after: None,
            validated: start.validated,
            best: start.best,
            config,
            folder,
            _lock: lock,
            writer: BackgroundWriter::new(store),
            deadline: options.deadline,
            device,
            data,
        };
        training.set_memory_settings(chosen.settings);
        write_config(&training.config, loaded, &training.folder)?;
        made.keep();
        Ok((training, made))
    }

    /// What can still be saved is saved before an error is returned.
    fn run(&mut self, stop: &Stop) -> Result<Outcome, TrainError> {
        if let Some(deadline) = &mut self.deadline {
            deadline.expect_checkpoint(bytes_of_checkpoint(self.model.as_ref(), self.ema.is_some()));
        }
        let steps = catch_out_of_memory(|| self.steps(stop));
        let too_little = |message| Err(self.failed(&format!("after step {}", self.step), message, true));
        if let Err(mut error) = steps.unwrap_or_else(too_little) {
            if error.leaves_the_run_sound() && self.step > 0 {
                let _ = catch_out_of_memory(|| self.save());
            }
            let _ = self.wait_for_writer();
            error.set_saved(|| self.last_saved());
            self.progress.finish();
            self.reporter.finish(&self.progress);
            return Err(error);
        }
        self.save()?;
        self.wait_for_writer()?;
        self.progress.finish();
        self.reporter.finish(&self.progress);
        let (step, steps) = (self.step, self.config.run.steps);
        let stopped_early = self.gets_no_better();
        let after = self.after.filter(|(at, _)| *at == step);
        Ok(Outcome {
            step,
            interrupted: !stopped_early && (step < steps || self.validated != Some(step)),
            stopped_early: stopped_early && step < steps,
            before: self.before,
            after: after.map(|(_, scores)| scores),
            best: self.best,
            checkpoint: self.saved.as_ref().map(|(_, path)| path.clone()).unwrap_or_default(),
        })
    }

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
            match self.one_step(&mut loaders, stop.interrupter()) {
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

    /// Whether the host's memory is what `memory.limit` is about, so that a checkpoint that is being written counts.
    fn limits_host(&self) -> bool {
        self.recovery.has_limit() && self.device.choice == Choice::Cpu
    }

    /// Whether `validation.patience` is at its end.
    fn gets_no_better(&self) -> bool {
        let patience = self.config.validation.patience;
        patience > 0 && self.best.is_some_and(|best| best.worse >= patience)
    }

    fn validation_is_due(&self) -> bool {
        let (step, steps) = (self.step, self.config.run.steps);
        let due = step == 0 || step == steps || every(self.config.validation.every_steps, step);
        due && self.validated != Some(step)
    }

    fn checkpoint_is_due(&self) -> bool {
        let settings = &self.config.checkpoints;
        let minutes = Duration::from_secs_f64(60.0 * settings.every_minutes);
        let by_the_clock = !minutes.is_zero() && self.handed_over.1.elapsed() >= minutes;
        self.step == self.config.run.steps || every(settings.every_steps, self.step) || by_the_clock
    }

    fn model(&self) -> &VqGan {
        self.model.as_ref().expect("the optimizer gives the model back before the step goes on")
    }

    /// The type of the copies that compute; `None` where the networks compute themselves.
    fn compute(&self) -> Option<DType> {
        match self.config.precision.compute {
            Compute::Fp32 => None,
            half => Some(half.dtype()),
        }
    }

    /// Returns whether this validation is the best so far.
    fn validate(&mut self, stop: &Stop) -> Result<bool, TrainError> {
        let settings = &self.config.validation;
        if self.data.validation.is_empty() || settings.images == 0 {
            self.validated = Some(self.step);
            return Ok(false);
        }
        let plain;
        let model = match &self.ema {
            Some(ema) => ema.model(),
            None => {
                plain = self.model().valid();
                &plain
            }
        };
        // In the type that steps compute in: their peak of memory is not to be topped by a validation.
        let copy = self.compute().map(|dtype| compute_copy(model, dtype));
        let model = copy.as_ref().unwrap_or(model);
        let Some(validated) = self.validated_with_what_there_is(model, stop)? else { return Ok(false) };
        for warning in self.data.validation.take_warnings() {
            self.progress.line(&format!("skipped {warning}"));
        }
        if !validated.samples.is_empty() {
            let png = grid_png(&validated.samples, self.config.data.resolution)?;
            let samples = self.folder.join("samples");
            std::fs::create_dir_all(&samples).map_err(RunError::io("create", &samples))?;
            atomic_write(&samples.join(format!("step-{:06}.png", self.step)), &png)?;
            self.reporter.samples(self.step, &png, &self.progress);
        }
        let scores = validated.scores;
        self.logs.validation(self.step, &scores)?;
        self.reporter.validation(self.step, &scores, &self.progress);
        self.progress.line(&format!("step {}: {}", self.step, in_words(&scores)));
        if self.step == 0 {
            self.before = Some(scores);
        }
        self.after = Some((self.step, scores));
        self.validated = Some(self.step);
        // A checkpoint of this step that was there before does not know of it.
        self.handed_over.0 = None;
        self.best = Best::after(self.best, self.config.checkpoints.best, self.step, &scores);
        Ok(self.best.is_some_and(|best| best.step == self.step))
    }

    /// The validation of `model`, one picture at a time if there is too little memory for a micro-batch; nothing if `stop` was
    /// asked.
    fn validated_with_what_there_is(&self, model: &VqGan, stop: &Stop) -> Result<Option<Validated>, TrainError> {
        let (settings, set) = (&self.config.validation, &self.data.validation);
        let images = settings.images.min(set.len());
        let mut micro = self.memory_settings.micro;
        loop {
            let extent = Extent { images: settings.images, micro, samples: settings.samples };
            let progress = |count| self.progress.validated(count, images);
            let validated = catch_out_of_memory(|| {
                self.faults.meet(self.step, "validation");
                let say = |line: &str| self.progress.line(line);
                validate(model, Judges::of(&self.losses), set, extent, || stop.is_asked(), progress, say)
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
            self.progress.line(&format!("{place}: out of memory ({message}); one picture at a time"));
            self.progress.step_again();
            micro = 1;
        }
    }

    /// Hands the run as it is after its newest step to the writer, unless that has it already.
    fn save(&mut self) -> Result<(), TrainError> {
        if self.handed_over.0 == Some(self.step) {
            return Ok(());
        }
        // There is never more than one copy of the run in the host's memory.
        self.wait_for_writer()?;
        // Before the checkpoint, which is thus never ahead of the logs.
        self.logs.sync()?;
        let state = State {
            step: self.step,
            architecture: self.architecture.clone(),
            config: self.config.clone(),
            before: self.before,
            memory_settings: Some(self.memory_settings),
            pictures: self.data.images.clone(),
            adversarial: self.losses.discriminator().map(|own| own.state),
            loss_scale: Some(self.scaler.state()),
            discriminator_loss_scale: self.losses.discriminator().map(|own| own.scaler().state()),
            validated: self.validated,
            best: self.best,
        };
        let ema = self.ema.as_ref().map(Ema::model);
        let snapshot = Snapshot::take(state, self.model(), ema, &self.optimizer, self.losses.discriminator());
        let path = || self.folder.join("checkpoints").join(format!("step-{:06}", self.step));
        let snapshot = snapshot.map_err(|source| SaveError::Write { path: path(), source })?;
        let settings = &self.config.checkpoints;
        let keep = Keep {
            // Where steps are skipped, the newest checkpoints may be of no use, and those before them still are.
            last: if self.skips_in_a_row() > 0 { usize::MAX } else { settings.keep_last },
            every: (settings.keep_every > 0).then_some(settings.keep_every),
            best: self.best.map(|best| best.step),
        };
        self.faults.save_begins(self.step);
        let saves = self.faults.of_saves();
        self.writer.save(self.step, keep, move |folder| snapshot.write(folder, |name| saves.wrote(name)))?;
        self.handed_over = (Some(self.step), Instant::now());
        if self.limits_host() {
            // The copy that is being written would be in the next step's peak.
            self.wait_for_writer()?;
        }
        Ok(())
    }

    /// Takes note of a checkpoint that has become safe. An error of the writer comes up here.
    fn poll_writer(&mut self) -> Result<(), TrainError> {
        let saved = self.writer.poll()?;
        self.note(saved);
        Ok(())
    }

    fn wait_for_writer(&mut self) -> Result<(), TrainError> {
        let saved = self.writer.wait()?;
        self.note(saved);
        Ok(())
    }

    fn note(&mut self, saved: Option<Saved>) {
        let Some(Saved { step, path, took }) = saved else { return };
        if let Some(deadline) = &mut self.deadline {
            deadline.save_took(took);
        }
        self.saved = Some((step, path));
    }
}

/// Of weights, moments and average, all in f32.
fn bytes_of_checkpoint(model: Option<&VqGan>, keeps_average: bool) -> u64 {
    let parameters = model.map_or(0, VqGan::num_params) as u64;
    parameters * 4 * (3 + u64::from(keeps_average))
}

/// For the line that a validation has on the screen.
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

fn announce(config: &Config, start: &Start, chosen: &Chosen, limit: Option<Limit>, data: &Data, folder: &Path) {
    let (training, validation) = (data.training.len(), data.validation.len());
    let Config { batch, .. } = config;
    note!("model: {}", start.description);
    note!("data: {training} pictures to train on, {validation} to validate on");
    data.notes.iter().for_each(|line| note!("data: {line}"));
    let Config { precision, .. } = config;
    let scale = match precision.scaling() {
        Ok(rule) => format!("dynamic from {}", rule.init),
        Err(fixed) => fixed.to_string(),
    };
    note!(
        "precision: {}, frozen networks in {}; weights and sums in fp32; loss scale {scale}",
        precision.compute.name(),
        precision.frozen().name()
    );
    let MemorySettings { micro, recompute, .. } = chosen.settings;
    let origin = chosen.origin.as_ref().map(|origin| format!(" ({origin})")).unwrap_or_default();
    config.losses_that_never_count().iter().for_each(|line| note!("{line}"));
    let blocks = if recompute == config.memory.recompute { "" } else { ", blocks computed again" };
    let limit = limit.map(|limit| format!("; memory limit {}", readable(limit.bytes))).unwrap_or_default();
    note!(
        "batch: {micro} at a time{origin}{blocks}, {} together{limit}; run folder: {}",
        batch.effective,
        folder.display()
    );
}

/// Says so where the model's values come near the end of f16, by the first picture.
fn advise_on_range(model: &VqGan, data: &Data, device: &Selected) -> Result<(), TrainError> {
    let first = Loader::start(data.training.clone(), 0, Some(1), 1, 1).next_batch(1)?;
    if first.is_empty() {
        return Ok(());
    }
    let range = Range::of(&model.valid(), first.images(&device.device, DType::F32));
    if !range.fits_f16() {
        let other = if device.supports(Compute::Bf16) { Compute::Bf16 } else { Compute::Fp32 };
        note!("precision: {}", range.advice(other.name()));
    }
    Ok(())
}

/// The resolved configuration, unless the run goes by that very file.
fn write_config(config: &Config, loaded: &Loaded, folder: &Path) -> Result<(), TrainError> {
    let path = folder.join("config.toml");
    if loaded.is_from(&path) {
        return Ok(());
    }
    let text = toml::to_string(config).map_err(|error| RunError::io("write", &path)(std::io::Error::other(error)))?;
    Ok(atomic_write(&path, text.as_bytes())?)
}

/// Whether `step` is a multiple of `interval`, which is never for 0.
fn every(interval: u64, step: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}
