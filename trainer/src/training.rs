//! A run from its configuration to its last checkpoint.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use burn_train::Interrupter;
use checkpoints::Architecture;
use checkpoints::run::{MetricsLog, RunError, RunLock, RunStore, SaveError, atomic_write};
use datasets::{Batch, DataError, Loader};
use serde_json::json;

use crate::adversary::Adversary;
use crate::config::{Config, ConfigError, Loaded, Recompute, ScheduleKind};
use crate::data::{self, Data};
use crate::device::{Choice, DeviceError, Selected};
use crate::ema::Ema;
use crate::engine::{Checkpoint, EffectiveBatch, Figures, Networks, StepSettings, effective_batch_gradient};
use crate::freezing::{FreezingError, Trainable, freeze};
use crate::gradients::{clip_by_global_norm, global_norm};
use crate::losses::load::LossError;
use crate::losses::{ClipGuidance, Losses};
use crate::lr_schedule::LrSchedule;
use crate::memory::MemoryMeter;
use crate::models::VqGan;
use crate::models::quantizer::CodebookUse;
use crate::models::weights::{ModelError, StateDict};
use crate::optimizer::ModelOptimizer;
use crate::pretrained::{self, PretrainedError};
use crate::progress::{Progress, Shown};
use crate::run_state::{self, State, StateError};
use crate::samples::grid_png;
use crate::validation::{Scores, ValidationError, validate};

/// Why a run ended before its last step.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device.
    #[error("`run.device`: {0}")]
    Device(#[from] DeviceError),
    /// The pretrained weights.
    #[error("`model.pretrained`: {0}")]
    Pretrained(PretrainedError),
    /// The architecture of a model with random weights.
    #[error(transparent)]
    Architecture(PretrainedError),
    /// A loss's network.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// What `model.train` says.
    #[error("`model.train`: {0}")]
    Freezing(#[from] FreezingError),
    /// The pictures.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A loss needs captions.
    #[error("{name} has no caption, which {loss} needs: put one into a .txt file of the same name")]
    NoCaption {
        /// The first picture without one.
        name: String,
        /// The loss's key.
        loss: &'static str,
    },
    /// The run's folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Save(#[from] SaveError<StateError>),
    /// A checkpoint that verifies holds something unexpected.
    #[error("{}: {source}", path.display())]
    State {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// The weights do not make a model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Validation.
    #[error(transparent)]
    Validation(#[from] ValidationError),
    /// A sample grid could not be encoded.
    #[error("cannot encode the sample grid: {0}")]
    Samples(#[from] image::ImageError),
    /// The run's folder holds a run, and `--resume` was not given.
    #[error(
        "{} already holds a run: go on with it by --resume, or choose another folder by --run-dir",
        .0.display()
    )]
    Occupied(PathBuf),
    /// `--resume` without anything to resume.
    #[error("{} holds no checkpoint to resume", .0.display())]
    NothingToResume(PathBuf),
    /// The configuration of a resumed run differs where that would make it another run.
    #[error("the run to resume was started with another configuration: {}", .0.join(", "))]
    Changed(Vec<String>),
    /// The checkpoint is past the end of the run.
    #[error("the run is at step {step} and run.steps is {steps}: it is finished; raise run.steps to go on")]
    Finished {
        /// Steps done.
        step: u64,
        /// Steps asked for.
        steps: u64,
    },
    /// Something is not a number any more. Nothing of that step was kept.
    #[error("{what} is not finite at step {step}; a lower optimizer.learning_rate often helps; {saved}")]
    NotFinite {
        /// A loss or the gradient.
        what: String,
        /// The optimizer step, counted from 1.
        step: u64,
        /// The last checkpoint.
        saved: String,
    },
    /// The device failed.
    #[error("the device failed at step {step}: {message}; {saved}")]
    DeviceFailed {
        /// The optimizer step, counted from 1.
        step: u64,
        /// What the device said.
        message: String,
        /// The last checkpoint.
        saved: String,
    },
}

impl TrainError {
    /// Whether the weights are still those of the last whole step, so that they are worth saving.
    fn leaves_the_run_sound(&self) -> bool {
        !matches!(self, Self::DeviceFailed { .. } | Self::NotFinite { .. } | Self::Save(_))
    }
}

impl From<PretrainedError> for TrainError {
    fn from(error: PretrainedError) -> Self {
        match error {
            PretrainedError::Architecture(_) => Self::Architecture(error),
            _ => Self::Pretrained(error),
        }
    }
}

/// What the command line adds to a configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Go on with the newest checkpoint.
    pub resume: bool,
    /// The run's folder.
    pub folder: PathBuf,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Steps done.
    pub step: u64,
    /// Whether it was asked to stop before its last step.
    pub interrupted: bool,
    /// Scores before the first step.
    pub before: Option<Scores>,
    /// Scores after the last step.
    pub after: Option<Scores>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Trains as `loaded` says, until the last step or until `interrupter` asks to stop, after which everything is saved.
///
/// # Errors
/// One line for the user each; what was saved before stays.
pub fn train(loaded: &Loaded, options: &Options, interrupter: &Interrupter) -> Result<Outcome, TrainError> {
    let mut training = Training::prepare(loaded, options)?;
    training.run(interrupter)
}

/// A run that is ready for its next step.
struct Training {
    config: Config,
    architecture: Architecture,
    folder: PathBuf,
    _lock: RunLock,
    store: RunStore,
    log: MetricsLog,
    device: Selected,
    data: Data,
    losses: Losses,
    schedule: LrSchedule,
    /// `None` only while the optimizer has it.
    model: Option<VqGan>,
    ema: Option<Ema<VqGan>>,
    optimizer: ModelOptimizer,
    adversary: Option<Adversary>,
    memory: MemoryMeter,
    progress: Progress,
    step: u64,
    saved: Option<(u64, PathBuf)>,
    before: Option<Scores>,
    /// The newest validation, and the step that it was at.
    after: Option<(u64, Scores)>,
}

/// What a run starts from: weights, and for a resumed run everything else.
struct Start {
    architecture: Architecture,
    model: VqGan,
    ema: Option<Ema<VqGan>>,
    optimizer: ModelOptimizer,
    adversary: Option<Adversary>,
    step: u64,
    before: Option<Scores>,
    checkpoint: Option<PathBuf>,
    description: String,
}

impl Training {
    fn prepare(loaded: &Loaded, options: &Options) -> Result<Self, TrainError> {
        let config = loaded.config.clone();
        let folder = options.folder.clone();
        let (lock, store) = open_folder(&folder, options.resume)?;
        let choice: Choice = config.run.device.parse()?;
        let device = choice.open()?;
        eprintln!("device: {}", device.description);
        let data = data::open(&config)?;
        let start = if options.resume {
            Start::resume(loaded, &store, &folder, &device, &data)?
        } else {
            Start::fresh(loaded, &device)?
        };
        check_captions(&config, &data)?;
        let losses = Losses::load(&config, &start.architecture.quantizer, &device.device.clone().autodiff())?;
        announce(&config, &start, &data, &folder);

        let log = MetricsLog::open(&folder.join("metrics.jsonl"), start.step)?;
        write_config(&config, loaded, &folder)?;
        Ok(Self {
            log,
            losses,
            schedule: LrSchedule::new(&config.schedule, &config.optimizer, config.run.steps),
            memory: MemoryMeter::new(&device.device),
            progress: Progress::new(start.step, config.run.steps, config.batch.effective),
            architecture: start.architecture,
            model: Some(start.model),
            ema: start.ema,
            optimizer: start.optimizer,
            adversary: start.adversary,
            step: start.step,
            saved: start.checkpoint.map(|path| (start.step, path)),
            before: start.before,
            after: None,
            config,
            folder,
            _lock: lock,
            store,
            device,
            data,
        })
    }

    /// What can still be saved is saved before an error is returned.
    fn run(&mut self, interrupter: &Interrupter) -> Result<Outcome, TrainError> {
        if let Err(error) = self.steps(interrupter) {
            if error.leaves_the_run_sound() && self.step > 0 {
                let _ = self.save();
            }
            return Err(error);
        }
        let checkpoint = self.save()?;
        self.progress.finish();
        let after = self.after.filter(|(step, _)| *step == self.step);
        Ok(Outcome {
            step: self.step,
            interrupted: self.step < self.config.run.steps,
            before: self.before,
            after: after.map(|(_, scores)| scores),
            checkpoint,
        })
    }

    fn steps(&mut self, interrupter: &Interrupter) -> Result<(), TrainError> {
        let mut loaders = self.start_loaders()?;
        if self.step == 0 {
            self.before = self.validate()?;
        }
        let steps = self.config.run.steps;
        while self.step < steps && !interrupter.should_stop() {
            match self.one_step(&mut loaders, interrupter) {
                Ok(()) => {}
                Err(StepError::Interrupted) => break,
                Err(StepError::Failed(error)) => return Err(error),
            }
            // Saved first: a validation that fails costs no steps.
            if self.step == steps || every(self.config.checkpoints.every_steps, self.step) {
                self.save()?;
            }
            if self.step == steps || every(self.config.validation.every_steps, self.step) {
                self.after = self.validate()?.map(|scores| (self.step, scores));
            }
        }
        Ok(())
    }

    fn start_loaders(&self) -> Result<Loaders, TrainError> {
        Ok(Loaders { first_pass: None, second_pass: self.start_loader()? })
    }

    fn start_loader(&self) -> Result<Loader, TrainError> {
        let Config { batch, data, run, .. } = &self.config;
        let (first, last) = (self.step * batch.effective as u64, run.steps * batch.effective as u64);
        let stream = self.data.training.clone();
        Ok(Loader::start(stream, first, Some(last - first), data.workers, data.prefetch)?)
    }

    fn step_settings(&self) -> StepSettings {
        StepSettings {
            step: self.step,
            effective: self.config.batch.effective,
            checkpoint: match self.config.memory.checkpoint {
                Recompute::None => Checkpoint::None,
                Recompute::Blocks => Checkpoint::Blocks,
            },
            adversarial: self.adversary.as_ref().map(|adversary| adversary.state).unwrap_or_default(),
        }
    }

    /// One optimizer step: gradients of the effective batch, clip, update, average, report.
    fn one_step(&mut self, loaders: &mut Loaders, interrupter: &Interrupter) -> Result<(), StepError> {
        let settings = self.step_settings();
        // A loader that has missed steps is of no use any more.
        loaders.first_pass = match (self.losses.are_coupled(&settings), loaders.first_pass.take()) {
            (true, None) => Some(self.start_loader()?),
            (true, first_pass) => first_pass,
            (false, _) => None,
        };
        let (started, waited) = (Instant::now(), loaders.wait_seconds());
        self.memory.start();
        let Loaders { first_pass, second_pass } = loaders;
        let first_pass = first_pass.iter_mut().flat_map(|loader| micro_batches(loader, &self.config, interrupter));
        let discriminator = self.adversary.as_ref().map(Adversary::model);
        let batch = effective_batch_gradient(
            Networks { vqgan: self.model(), discriminator },
            &self.losses,
            settings,
            first_pass,
            micro_batches(second_pass, &self.config, interrupter),
            |samples| self.progress.samples(samples),
        )?;
        let figures = self.read_figures(&batch).map_err(|message| self.device_failed(message))?;
        self.check_finite(&figures)?;
        let learning_rates = self.update(batch, &figures);
        self.step += 1;
        self.report(&figures, learning_rates, started, loaders.wait_seconds() - waited)?;
        Ok(())
    }

    fn read_figures(&self, batch: &EffectiveBatch) -> Result<Figures, String> {
        let zero = || Tensor::zeros([1], &self.device.device);
        let generator = global_norm(self.model(), &batch.generator).unwrap_or_else(zero);
        let discriminator = self.adversary.as_ref().and_then(|adversary| adversary.grad_norm(&batch.discriminator));
        batch.read(generator, discriminator)
    }

    /// Clips, and lets the optimizers take their step. Returns the learning rates of the generator and the discriminator.
    fn update(&mut self, batch: EffectiveBatch, figures: &Figures) -> LearningRates {
        let clip = self.config.optimizer.clip_norm;
        let gradients = match clip > 0.0 {
            true => clip_by_global_norm(self.model(), batch.generator, figures.grad_norm, clip),
            false => batch.generator,
        };
        let learning_rate = self.schedule.at(self.step);
        // Moved through the optimizer and not cloned: each old parameter is freed as soon as its new one is there.
        self.model = self.model.take().map(|model| self.optimizer.step(learning_rate, model, gradients));
        self.ema = self.ema.take().map(|ema| ema.updated(self.model(), self.step));

        let step = self.step;
        let discriminator = self.adversary.as_mut().and_then(|adversary| {
            let norm = figures.discriminator_grad_norm;
            if let Some(norm) = norm {
                adversary.step(step, batch.discriminator, norm, batch.statistics);
            }
            let logits = figures.get("logits_real").zip(figures.get("logits_fake")).map(|(real, fake)| [real, fake]);
            adversary.remember(logits, figures.next_balance);
            norm.map(|_| adversary.learning_rate(step))
        });
        LearningRates { generator: learning_rate, discriminator }
    }

    fn report(
        &mut self,
        figures: &Figures,
        learning_rates: LearningRates,
        started: Instant,
        wait: f64,
    ) -> Result<(), TrainError> {
        let seconds = started.elapsed().as_secs_f64();
        let shown = Shown {
            step: self.step,
            loss: figures.total,
            images_per_second: self.config.batch.effective as f64 / seconds,
            peak_memory: self.memory.peak(),
            loss_scale: 1.0,
        };
        let codes = CodebookUse::from_counts(&figures.code_counts);
        let mut line = json!({
            "step": shown.step,
            "loss": shown.loss,
            "learning_rate": learning_rates.generator,
            "grad_norm": figures.grad_norm,
            "loss_scale": shown.loss_scale,
            "skipped": false,
            "images_per_second": shown.images_per_second,
            "data_wait": wait,
            "peak_memory": shown.peak_memory,
            "micro": self.config.batch.micro,
            "codes_used": codes.used,
            "perplexity": codes.perplexity,
        });
        for (name, value) in &figures.losses {
            line[*name] = json!(value);
        }
        if let Some((norm, rate)) = figures.discriminator_grad_norm.zip(learning_rates.discriminator) {
            line["discriminator_grad_norm"] = json!(norm);
            line["discriminator_learning_rate"] = json!(rate);
        }
        self.log.append(&line)?;
        for warning in self.data.training.take_warnings() {
            self.progress.line(&format!("skipped {warning}"));
        }
        if let Some(caption) = self.losses.clip.as_ref().and_then(ClipGuidance::take_truncated) {
            let beginning: String = caption.chars().take(80).collect();
            self.progress.line(&format!("CLIP does not see the end of captions as long as this one: {beginning}"));
        }
        self.progress.step(shown);
        Ok(())
    }

    fn model(&self) -> &VqGan {
        self.model.as_ref().expect("the optimizer gives the model back before the step goes on")
    }

    fn validate(&mut self) -> Result<Option<Scores>, TrainError> {
        let settings = &self.config.validation;
        if self.data.validation.is_empty() || settings.images == 0 {
            return Ok(None);
        }
        let plain;
        let model = match &self.ema {
            Some(ema) => ema.model(),
            None => {
                plain = burn::module::Module::valid(self.model());
                &plain
            }
        };
        let micro = self.config.batch.micro;
        let validated = validate(model, &self.data.validation, settings.images, micro, settings.samples)?;
        for warning in self.data.validation.take_warnings() {
            self.progress.line(&format!("skipped {warning}"));
        }
        if !validated.samples.is_empty() {
            let png = grid_png(&validated.samples, self.config.data.resolution)?;
            let samples = self.folder.join("samples");
            std::fs::create_dir_all(&samples).map_err(RunError::io("create", &samples))?;
            atomic_write(&samples.join(format!("step-{:06}.png", self.step)), &png)?;
        }
        let Scores { l1, psnr, .. } = validated.scores;
        self.progress.line(&format!("step {}: validation error {l1:.4}, PSNR {psnr:.2} dB", self.step));
        Ok(Some(validated.scores))
    }

    /// Saves the run as it is after its newest step, unless that is saved already.
    fn save(&mut self) -> Result<PathBuf, TrainError> {
        if let Some((step, path)) = &self.saved
            && *step == self.step
        {
            return Ok(path.clone());
        }
        // Before the checkpoint, which is thus never ahead of the log.
        self.log.sync()?;
        let state = State {
            step: self.step,
            architecture: self.architecture.clone(),
            config: self.config.clone(),
            before: self.before,
            pictures: self.data.pictures.clone(),
            adversarial: self.adversary.as_ref().map(|adversary| adversary.state),
        };
        let ema = self.ema.as_ref().map(Ema::model);
        let path = self.store.save(self.step, &mut |folder: &Path| {
            run_state::write(folder, &state, self.model(), ema, &self.optimizer, self.adversary.as_ref())
        })?;
        self.saved = Some((self.step, path.clone()));
        let keep = &self.config.checkpoints;
        self.store.prune(keep.keep_last, (keep.keep_every > 0).then_some(keep.keep_every))?;
        Ok(path)
    }

    fn check_finite(&self, figures: &Figures) -> Result<(), TrainError> {
        let loss = figures.losses.iter().find(|(_, value)| !value.is_finite());
        let what = match loss {
            Some((name, _)) => format!("the loss `{name}`"),
            None if !figures.grad_norm.is_finite() => "the gradient".to_owned(),
            None if figures.discriminator_grad_norm.is_some_and(|norm| !norm.is_finite()) => {
                "the discriminator's gradient".to_owned()
            }
            None => return Ok(()),
        };
        Err(TrainError::NotFinite { what, step: self.step + 1, saved: self.last_saved() })
    }

    fn device_failed(&self, message: String) -> TrainError {
        TrainError::DeviceFailed { step: self.step + 1, message, saved: self.last_saved() }
    }

    fn last_saved(&self) -> String {
        match &self.saved {
            Some((step, _)) => format!("the last checkpoint is that of step {step}"),
            None => "there is no checkpoint yet".to_owned(),
        }
    }
}

/// Takes the run's folder for this process: a new one, or to resume one that is there.
fn open_folder(folder: &Path, resume: bool) -> Result<(RunLock, RunStore), TrainError> {
    if resume && !folder.is_dir() {
        return Err(TrainError::NothingToResume(folder.to_owned()));
    }
    let lock = RunLock::acquire(folder)?;
    if !lock.is_enforced() {
        eprintln!("{} knows no locks: let no other process train there", folder.display());
    }
    let store = RunStore::open(folder.join("checkpoints"))?;
    if !resume && !store.steps()?.is_empty() {
        return Err(TrainError::Occupied(folder.to_owned()));
    }
    Ok((lock, store))
}

fn announce(config: &Config, start: &Start, data: &Data, folder: &Path) {
    let (training, validation) = (data.training.len(), data.validation.len());
    let Config { batch, .. } = config;
    eprintln!("model: {}", start.description);
    eprintln!("data: {training} pictures to train on, {validation} to validate on");
    eprintln!("batch: {} at a time, {} together; run folder: {}", batch.micro, batch.effective, folder.display());
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

/// Of one optimizer step.
struct LearningRates {
    generator: f64,
    /// Only if it learns in that step.
    discriminator: Option<f64>,
}

/// Names the first picture without a caption, if a loss needs one.
fn check_captions(config: &Config, data: &Data) -> Result<(), TrainError> {
    if !config.losses.needs_captions() {
        return Ok(());
    }
    let by_text = config.losses.clip_text.weight != 0.0 && config.losses.clip_text.prompts.is_empty();
    let loss = if by_text { "losses.clip_text" } else { "losses.clip_contrastive" };
    match data.training.first_without_caption() {
        Some(name) => Err(TrainError::NoCaption { name, loss }),
        None => Ok(()),
    }
}

/// One for each pass over an effective batch: the second pass reads the samples again, so that they need not be kept.
struct Loaders {
    /// Only in steps in which a loss couples samples.
    first_pass: Option<Loader>,
    second_pass: Loader,
}

impl Loaders {
    /// How long steps have waited for samples so far, in seconds.
    fn wait_seconds(&self) -> f64 {
        self.first_pass.iter().chain([&self.second_pass]).map(Loader::wait_seconds).sum()
    }
}

enum StepError {
    Interrupted,
    Failed(TrainError),
}

impl<E: Into<TrainError>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The micro-batches of one effective batch; the last may be smaller. A request to stop ends it between two of them.
fn micro_batches<'a>(
    loader: &'a mut Loader,
    config: &Config,
    interrupter: &'a Interrupter,
) -> impl Iterator<Item = Result<Batch, StepError>> + 'a {
    let (mut left, micro) = (config.batch.effective, config.batch.micro);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        if interrupter.should_stop() {
            return Some(Err(StepError::Interrupted));
        }
        let count = micro.min(left);
        left -= count;
        Some(loader.next_batch(count).map_err(StepError::from))
    })
}

/// The model in training, with what `model.train` leaves out frozen.
fn build(
    loaded: &Loaded,
    architecture: &Architecture,
    weights: &StateDict,
    device: &Device,
) -> Result<VqGan, TrainError> {
    let config = &loaded.config;
    config.check_against(architecture).map_err(|problem| loaded.locate(problem))?;
    let model = VqGan::new(architecture, weights, device, DType::F32)?;
    let names: Vec<&str> = weights.keys().map(String::as_str).collect();
    let trained = Trainable::new(&config.model.train, &names)?;
    Ok(freeze(model, &trained))
}

impl Start {
    fn fresh(loaded: &Loaded, device: &Selected) -> Result<Self, TrainError> {
        let config = &loaded.config;
        let initial = pretrained::initial(config)?;
        let autodiff = device.device.clone().autodiff();
        let model = build(loaded, &initial.architecture, &initial.weights, &autodiff)?;
        let adversary = config.losses.adversarial.weight != 0.0;
        Ok(Self {
            ema: (config.ema.decay > 0.0).then(|| Ema::new(&model, config.ema.decay)),
            adversary: adversary.then(|| Adversary::fresh(config, &autodiff)).transpose()?,
            model,
            architecture: initial.architecture,
            optimizer: ModelOptimizer::new(&config.optimizer),
            step: 0,
            before: None,
            checkpoint: None,
            description: initial.description,
        })
    }

    fn resume(
        loaded: &Loaded,
        store: &RunStore,
        folder: &Path,
        device: &Selected,
        data: &Data,
    ) -> Result<Self, TrainError> {
        let config = &loaded.config;
        let newest = store.newest()?;
        for (path, reason) in &newest.passed_over {
            eprintln!("passed over {}: {reason}", path.display());
        }
        let checkpoint = newest.checkpoint.ok_or_else(|| TrainError::NothingToResume(folder.to_owned()))?;
        let wrong = |source| TrainError::State { path: checkpoint.path.clone(), source };
        let resumed = run_state::read(&checkpoint.path).map_err(wrong)?;
        let mut changed = run_state::unsound_changes(&resumed.state.config, config, resumed.batch_norm);
        if resumed.state.pictures != data.pictures {
            changed.push(format!("the pictures: {} -> {}", resumed.state.pictures, data.pictures));
        }
        if !changed.is_empty() {
            return Err(TrainError::Changed(changed));
        }
        let (step, steps) = (resumed.state.step, config.run.steps);
        if steps != resumed.state.config.run.steps && config.schedule.kind != ScheduleKind::Constant {
            let planned = resumed.state.config.run.steps;
            eprintln!("the schedule is now that of a run of {steps} steps, and was that of {planned}");
        }
        if step >= steps {
            return Err(TrainError::Finished { step, steps });
        }
        let architecture = resumed.state.architecture;
        // Weights on the host are dropped as soon as they are on the device.
        let average = |weights: StateDict| VqGan::new(&architecture, &weights, &device.device, DType::F32);
        let ema = resumed.ema.map(average).transpose()?;
        let autodiff = device.device.clone().autodiff();
        let model = build(loaded, &architecture, &resumed.model, &autodiff)?;
        drop(resumed.model);
        let mut optimizer = ModelOptimizer::new(&config.optimizer);
        optimizer.load_state_dict(&model, &run_state::read_optimizer(&checkpoint.path).map_err(wrong)?)?;
        let adversary = match resumed.state.adversarial {
            Some(state) => {
                let (weights, optimizer) = run_state::read_discriminator(&checkpoint.path).map_err(wrong)?;
                Some(Adversary::resumed(config, &weights, &optimizer, state, &autodiff)?)
            }
            None => None,
        };
        Ok(Self {
            adversary,
            model,
            ema: ema.map(|average| Ema::resumed(average, config.ema.decay)),
            optimizer,
            step,
            before: resumed.state.before,
            description: format!("from {}, step {step} of {steps}", checkpoint.path.display()),
            checkpoint: Some(checkpoint.path),
            architecture,
        })
    }
}
