//! What a run starts from: its weights, and for a resumed run all else that was saved.

use std::path::PathBuf;

use burn::tensor::{DType, Device};
use checkpoints::Architecture;
use checkpoints::run::{Checkpoint, RunStore};

use super::{Options, Resume, TrainError};
use crate::adversary::Adversary;
use crate::best::Best;
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
use crate::run_state::{self, Change, State};
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
    /// The step of the newest validation.
    pub(super) validated: Option<u64>,
    pub(super) best: Option<Best>,
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) description: String,
}

/// The checkpoint that `options` say to go on with; what is passed over is said on stderr.
pub(super) fn find_checkpoint(options: &Options, own: &RunStore) -> Result<Option<Checkpoint>, TrainError> {
    let (store, place) = match &options.resume {
        None => return Ok(None),
        Some(Resume::Checkpoint(path)) => return Ok(Some(RunStore::verified(path)?)),
        Some(Resume::Newest) => (None, &options.folder),
        Some(Resume::NewestOf(run)) => (Some(RunStore::read(run.join("checkpoints"))), run),
    };
    let newest = store.as_ref().unwrap_or(own).newest_usable(run_state::check)?;
    for (path, reason) in &newest.passed_over {
        eprintln!("passed over {}: {reason}", path.display());
    }
    match newest.checkpoint {
        Some(checkpoint) => Ok(Some(checkpoint)),
        None => Err(TrainError::NothingToResume(place.clone())),
    }
}

/// Refuses what would make it another run, but for what `allow` names.
fn check_changes(
    state: &State,
    batch_norm: bool,
    config: &Config,
    data: &Data,
    allow: &[String],
) -> Result<(), TrainError> {
    let mut changes = run_state::unsound_changes(&state.config, config, batch_norm);
    if state.pictures != data.pictures {
        let [then, now] = [&state.pictures, &data.pictures].map(ToString::to_string);
        changes.push(Change { key: "pictures".into(), then, now });
    }
    for name in allow.iter().filter(|name| !changes.iter().any(|change| change.is_named_by(name))) {
        eprintln!("--allow {name}: nothing of that name has changed");
    }
    let (allowed, refused): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| allow.iter().any(|name| change.is_named_by(name)));
    if !refused.is_empty() {
        return Err(TrainError::Changed(refused));
    }
    for change in allowed {
        eprintln!("allowed: {change}");
    }
    Ok(())
}

/// Refuses a run that has nothing left to do.
fn check_unfinished(state: &State, config: &Config) -> Result<(), TrainError> {
    let (step, steps) = (state.step, config.run.steps);
    // Asked to stop before its last validation, it still has that to do.
    if step > steps || step == steps && (state.validated == Some(step) || config.validation.images == 0) {
        return Err(TrainError::Finished { step, steps });
    }
    let patience = config.validation.patience;
    match state.best.filter(|best| best.metric == config.checkpoints.best) {
        Some(best) if patience > 0 && best.worse >= patience => {
            Err(TrainError::StoppedEarly { step, metric: best.metric.name(), patience })
        }
        _ => Ok(()),
    }
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
            validated: None,
            best: None,
            checkpoint: None,
            description: initial.description,
        })
    }

    pub(super) fn resume(
        loaded: &Loaded,
        checkpoint: Checkpoint,
        allow: &[String],
        device: &Selected,
        data: &Data,
    ) -> Result<Self, TrainError> {
        let config = &loaded.config;
        let wrong = |source| TrainError::State { path: checkpoint.path.clone(), source };
        let resumed = run_state::read(&checkpoint.path).map_err(wrong)?;
        check_changes(&resumed.state, resumed.batch_norm, config, data, allow)?;
        check_unfinished(&resumed.state, config)?;
        let (step, steps) = (resumed.state.step, config.run.steps);
        if steps != resumed.state.config.run.steps && config.schedule.kind != ScheduleKind::Constant {
            let planned = resumed.state.config.run.steps;
            eprintln!("the schedule is now that of a run of {steps} steps, and was that of {planned}");
        }
        let architecture = resumed.state.architecture;
        // Weights on the host are dropped as soon as they are on the device.
        let average = |weights: StateDict| VqGan::new(&architecture, &weights, &device.device, DType::F32);
        let keeps_average = config.ema.decay > 0.0;
        let ema = resumed.ema.filter(|_| keeps_average).map(average).transpose()?;
        let autodiff = device.device.clone().autodiff();
        let model = build(loaded, &architecture, &resumed.model, &autodiff)?;
        drop(resumed.model);
        let mut optimizer = ModelOptimizer::new(&config.optimizer);
        optimizer.load_state_dict(&model, &run_state::read_optimizer(&checkpoint.path).map_err(wrong)?)?;
        // Either may be new or gone only where that was allowed.
        let adversary = match (resumed.state.adversarial, config.losses.adversarial.weight != 0.0) {
            (Some(state), true) => {
                let (weights, optimizer) = run_state::read_discriminator(&checkpoint.path).map_err(wrong)?;
                let scaler = resumed.state.discriminator_loss_scale;
                Some(Adversary::resumed(config, &weights, &optimizer, state, scaler, &autodiff)?)
            }
            (None, true) => Some(Adversary::fresh(config, &autodiff)?),
            (_, false) => None,
        };
        let ema = match ema {
            Some(average) => Some(Ema::resumed(average, config.ema.decay)),
            None => keeps_average.then(|| Ema::new(&model, config.ema.decay)),
        };
        Ok(Self {
            adversary,
            model,
            ema,
            optimizer,
            scaler: match resumed.state.loss_scale {
                Some(state) => LossScaler::resumed(&config.precision, state),
                None => LossScaler::new(&config.precision),
            },
            step,
            before: resumed.state.before,
            validated: resumed.state.validated,
            best: resumed.state.best.filter(|best| best.metric == config.checkpoints.best),
            description: format!("from {}, step {step} of {steps}", checkpoint.path.display()),
            checkpoint: Some(checkpoint.path),
            architecture,
        })
    }
}
