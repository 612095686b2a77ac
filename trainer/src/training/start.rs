//! What a run starts from: its folder, its weights, and for a resumed run all else that was saved.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use checkpoints::Architecture;
use checkpoints::run::{RunLock, RunStore};

use super::TrainError;
use crate::adversary::Adversary;
use crate::config::{Compute, Config, Loaded, Problem, ScheduleKind};
use crate::data::Data;
use crate::device::Selected;
use crate::ema::Ema;
use crate::freezing::{Trainable, freeze};
use crate::models::VqGan;
use crate::models::weights::StateDict;
use crate::optimizer::ModelOptimizer;
use crate::precision::LossScaler;
use crate::pretrained;
use crate::run_state;
use crate::validation::Scores;

/// What a run starts from: weights, and for a resumed run everything else.
pub(super) struct Start {
    pub(super) architecture: Architecture,
    pub(super) model: VqGan,
    pub(super) ema: Option<Ema<VqGan>>,
    pub(super) optimizer: ModelOptimizer,
    pub(super) adversary: Option<Adversary>,
    pub(super) scaler: LossScaler,
    pub(super) step: u64,
    pub(super) before: Option<Scores>,
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) description: String,
}

/// Takes the run's folder for this process: a new one, or to resume one that is there.
pub(super) fn open_folder(folder: &Path, resume: bool) -> Result<(RunLock, RunStore), TrainError> {
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

/// Refuses a precision that the device cannot compute in.
pub(super) fn check_precision(loaded: &Loaded, device: &Selected) -> Result<(), TrainError> {
    let precision = &loaded.config.precision;
    for (key, compute) in [("precision.compute", precision.compute), ("precision.frozen", precision.frozen())] {
        if !device.supports(compute) {
            let others: Vec<&str> =
                Compute::ALL.into_iter().filter(|c| device.supports(*c)).map(Compute::name).collect();
            let message = format!(
                "is \"{}\", which {} cannot compute in; it can compute in {}",
                compute.name(),
                device.description,
                others.join(" and "),
            );
            return Err(loaded.locate(Problem { key, message }).into());
        }
    }
    Ok(())
}

/// Names the first picture without a caption, if a loss needs one.
pub(super) fn check_captions(config: &Config, data: &Data) -> Result<(), TrainError> {
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
    pub(super) fn fresh(loaded: &Loaded, device: &Selected) -> Result<Self, TrainError> {
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
            scaler: LossScaler::new(&config.precision),
            step: 0,
            before: None,
            checkpoint: None,
            description: initial.description,
        })
    }

    pub(super) fn resume(
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
                let scaler = resumed.state.discriminator_loss_scale;
                Some(Adversary::resumed(config, &weights, &optimizer, state, scaler, &autodiff)?)
            }
            None => None,
        };
        Ok(Self {
            adversary,
            model,
            ema: ema.map(|average| Ema::resumed(average, config.ema.decay)),
            optimizer,
            scaler: match resumed.state.loss_scale {
                Some(state) => LossScaler::resumed(&config.precision, state),
                None => LossScaler::new(&config.precision),
            },
            step,
            before: resumed.state.before,
            description: format!("from {}, step {step} of {steps}", checkpoint.path.display()),
            checkpoint: Some(checkpoint.path),
            architecture,
        })
    }
}
