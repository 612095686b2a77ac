//! Prepares a run from its options, until it is ready for its first step.

use std::fs;
use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::DType;
use checkpoints::run::{BackgroundWriter, RunError, atomic_write};
use datasets::Loader;

use super::error::TrainError;
use super::fault::Faults;
use super::folder::{ClaimedFolder, CreatedFolders, RunFolder};
use super::learned::Learned;
use super::logs::Logs;
use super::report::Display;
use super::retry::{cannot_begin, cutouts};
use super::run_state;
use super::saves::Saves;
use super::start::{Start, check_captions, check_precision, find_checkpoint};
use super::step::{Debugging, StepMemory};
use super::stop::Stop;
use super::validate::ScoreHistory;
use super::{Options, Purpose, Resume, Training};
use crate::config::{Compute, Config, Loaded, load_saved};
use crate::data::{self, Data, ImageCounts};
use crate::device::{Choice, Selected};
use crate::engine::MicroBatch;
use crate::losses::{Discriminator, LoadContext, Losses, METRICS};
use crate::memory::{self, Chosen, Limit, MemoryMeter, MemorySettings, Recovery, depends_on_micro};
use crate::models::VqGan;
use crate::optim::LrSchedule;
use crate::precision::{Probe, Range};
use crate::show::progress::Progress;
use crate::show::reporting::Reporter;
use crate::show::{log_file, readable};

impl Training {
    pub(super) fn prepare(
        loaded: &Loaded,
        mut options: Options,
        stop: &Stop,
        purpose: Purpose,
    ) -> Result<(Self, CreatedFolders), TrainError> {
        let config = loaded.config.clone();
        let faults = Faults::new(std::mem::take(&mut options.faults));
        let folder = options.folder.clone();
        if options.resume == Some(Resume::Newest) && !folder.is_dir() {
            return Err(TrainError::NothingToResume(folder));
        }
        let place = RunFolder::find(&folder)?;
        let other = options.resume.as_ref().and_then(|resume| resume.other_run(&folder));
        let resumes_own = options.resume.is_some() && other.is_none();
        if !resumes_own && !place.store().steps()?.is_empty() {
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
        // Everything that the first step needs has its memory by now. If that failed, the run does not begin.
        let waited = faults.wait().and_then(|()| device.device.sync().map_err(|error| error.to_string()));
        waited.map_err(|message| cannot_begin(&config, start.step, message))?;
        let probe = options.debug_numerics.then(|| Probe::new(&start.model));
        announce(&config, &start, &chosen, limit, &data, &folder);
        if config.precision.compute == Compute::Fp16 {
            advise_on_range(&start.model, &data, &device)?;
        }

        stop.run_begins();
        let ClaimedFolder { lock, store, mut created } = place.claim()?;
        log_file::open(&folder.join("log.txt"));
        let (step, own) = (start.step, start.checkpoint.filter(|_| resumes_own));
        if let Some(other) = other {
            // A checkpoint that was moved away has no logs beside it.
            if other.join("checkpoints").is_dir() {
                Logs::copy(&other, &folder)?;
            }
        } else if let Some(Resume::Checkpoint(_)) = options.resume {
            for aside in store.set_aside(step)? {
                note!("set aside, since the run resumes at step {step}: {}", aside.display());
            }
        }
        let batch_norm = losses.discriminator().is_some_and(Discriminator::has_batch_norm);
        let fixed_micro = depends_on_micro(&config, batch_norm);
        let recovery = Recovery::new(limit, &config, &device, fixed_micro, cutouts(&losses));
        let saves = faults.of_saves();
        let store = store.with_hook(move |what| saves.wrote(what));
        let own_step = own.is_some().then_some(step);
        let mut training = Self {
            learned: Learned {
                architecture: start.architecture,
                model: Some(start.model),
                ema: start.ema,
                optimizer: start.optimizer,
                schedule: LrSchedule::new(&config.schedule, &config.optimizer, config.run.steps),
                clip_norm: config.optimizer.clip_norm,
                scaler: start.scaler,
                losses,
            },
            memory: StepMemory {
                meter: MemoryMeter::new(&device),
                settings: chosen.settings,
                recovery: if purpose == Purpose::Run { recovery } else { recovery.off() },
                unconfirmed: chosen.unconfirmed,
            },
            shown: Display {
                logs: Logs::open(&folder, step, start.validated)?,
                progress: Progress::new(step, config.run.steps, config.batch.effective),
                reporter: Reporter::start(&folder, step, config.run.tensorboard, &METRICS)?,
            },
            scores: ScoreHistory { before: start.before, after: None, validated: start.validated, best: start.best },
            saves: Saves {
                folder,
                _lock: lock,
                writer: BackgroundWriter::new(store),
                saved: own.map(|path| (step, path)),
                handed_over: (own_step, Instant::now()),
            },
            debug: Debugging {
                faults,
                probe,
                first_gradient: None,
                weigh_by_micro_batch: options.weigh_by_micro_batch,
            },
            deadline: options.deadline,
            first_step: step,
            step,
            config,
            device,
            data,
        };
        training.set_memory_settings(chosen.settings);
        write_config(&training.config, training.step, &training.saves.folder)?;
        created.keep();
        Ok((training, created))
    }
}

fn announce(config: &Config, start: &Start, chosen: &Chosen, limit: Option<Limit>, data: &Data, folder: &Path) {
    let Config { batch, .. } = config;
    note!("model: {}", start.description);
    note!("data: {}", ImageCounts::of(data, config));
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
    let origin = chosen.origin.as_ref().map(|origin| format!("{origin}; ")).unwrap_or_default();
    let passes = match batch.effective.div_ceil(micro) {
        1 => "1 pass".to_owned(),
        passes => format!("{passes} passes"),
    };
    config.losses_that_never_count().iter().for_each(|line| note!("{line}"));
    let left_out = config.scores_left_out();
    if !left_out.is_empty() {
        note!("validations leave out {}: the weights are random", left_out.join(" and "));
    }
    let blocks = if recompute == config.memory.recompute { "" } else { ", blocks recomputed" };
    let limit = limit.map(|limit| format!("; memory limit {}", readable(limit.bytes))).unwrap_or_default();
    note!(
        "batch: effective {}, micro-batch {micro} ({origin}{passes}){blocks}{limit}; run folder: {}",
        batch.effective,
        folder.display()
    );
}

/// Warns if the model's values for the first image come near the largest f16.
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

/// Writes the configuration that is in force from `step` on into the run's folder. One that says something else is kept
/// beside it.
fn write_config(config: &Config, step: u64, folder: &Path) -> Result<(), TrainError> {
    let path = folder.join("config.toml");
    if load_saved(&path, &[]).is_ok_and(|there| there.config == *config) {
        return Ok(());
    }
    let earlier = folder.join(format!("config.before-step-{step:06}.toml"));
    if step > 0 && path.is_file() && !earlier.exists() {
        fs::copy(&path, &earlier).map_err(RunError::io("copy", &path))?;
    }
    let text = toml::to_string(config).map_err(|error| RunError::io("write", &path)(std::io::Error::other(error)))?;
    Ok(atomic_write(&path, text.as_bytes())?)
}
