//! A run from its configuration to its last checkpoint.

mod error;
mod loaders;
mod start;
mod step;

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn_train::Interrupter;
use checkpoints::Architecture;
use checkpoints::run::{MetricsLog, RunError, RunLock, RunStore, atomic_write};

use self::start::{Start, check_captions, check_precision, open_folder};
use self::step::StepError;
use crate::adversary::Adversary;
use crate::config::{Compute, Config, Loaded};
use crate::data::{self, Data};
use crate::device::{Choice, Selected};
use crate::ema::Ema;
use crate::losses::Losses;
use crate::lr_schedule::LrSchedule;
use crate::memory::MemoryMeter;
use crate::models::VqGan;
use crate::optimizer::ModelOptimizer;
use crate::precision::{LossScaler, Probe, compute_copy};
use crate::progress::Progress;
use crate::run_state::{self, State};
use crate::samples::grid_png;
use crate::validation::{Scores, validate};

pub use self::error::TrainError;

/// What the command line adds to a configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Go on with the newest checkpoint.
    pub resume: bool,
    /// The run's folder.
    pub folder: PathBuf,
    /// Look for values that are not finite, and say where the first one of a step is.
    pub debug_numerics: bool,
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
    scaler: LossScaler,
    /// Only while faults are looked for.
    probe: Option<Probe>,
    memory: MemoryMeter,
    progress: Progress,
    step: u64,
    saved: Option<(u64, PathBuf)>,
    before: Option<Scores>,
    /// The newest validation, and the step that it was at.
    after: Option<(u64, Scores)>,
}

impl Training {
    fn prepare(loaded: &Loaded, options: &Options) -> Result<Self, TrainError> {
        let config = loaded.config.clone();
        let folder = options.folder.clone();
        let (lock, store) = open_folder(&folder, options.resume)?;
        let choice: Choice = config.run.device.parse()?;
        let device = choice.open()?;
        eprintln!("device: {}", device.description);
        check_precision(loaded, &device)?;
        let data = data::open(&config)?;
        let start = if options.resume {
            Start::resume(loaded, &store, &folder, &device, &data)?
        } else {
            Start::fresh(loaded, &device)?
        };
        check_captions(&config, &data)?;
        let losses = Losses::load(&config, &start.architecture.quantizer, &device.device.clone().autodiff())?;
        let probe = options.debug_numerics.then(|| Probe::new(&start.model));
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
            scaler: start.scaler,
            probe,
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
        // In the type that steps compute in: their peak of memory is not to be topped by a validation.
        let copy = self.compute().map(|dtype| compute_copy(model, dtype));
        let model = copy.as_ref().unwrap_or(model);
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
            loss_scale: Some(self.scaler.state()),
            discriminator_loss_scale: self.adversary.as_ref().map(|adversary| adversary.scaler().state()),
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
}

fn announce(config: &Config, start: &Start, data: &Data, folder: &Path) {
    let (training, validation) = (data.training.len(), data.validation.len());
    let Config { batch, .. } = config;
    eprintln!("model: {}", start.description);
    eprintln!("data: {training} pictures to train on, {validation} to validate on");
    let Config { precision, .. } = config;
    let scale = match precision.scaling() {
        Ok(rule) => format!("dynamic from {}", rule.init),
        Err(fixed) => fixed.to_string(),
    };
    eprintln!(
        "precision: {}, frozen networks in {}; weights and sums in fp32; loss scale {scale}",
        precision.compute.name(),
        precision.frozen().name()
    );
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
