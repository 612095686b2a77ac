//! Builds the state that a run starts from.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use checkpoints::Architecture;
use checkpoints::run::{Checkpoint, RunStore};
use datasets::{ImageError, ImageProblem};

use super::{Options, Outcome, Resume, TrainError};
use crate::config::{Compute, Config, Loaded, PrecisionConfig, Problem, ScheduleKind};
use crate::data::Data;
use crate::device::Selected;
use crate::evaluation::Best;
use crate::evaluation::Scores;
use crate::losses::{LossKeys, SavedDiscriminator};
use crate::models::VqGan;
use crate::models::weights::StateDict;
use crate::optim::Ema;
use crate::optim::LossScaler;
use crate::optim::LrSchedule;
use crate::optim::ModelOptimizer;
use crate::optim::{Trainable, freeze};
use crate::training::pretrained;
use crate::training::run_state::{self, Change, State};

/// What a run starts from: weights, and for a resumed run everything else that was saved.
pub(super) struct Start {
    pub(super) architecture: Architecture,
    pub(super) model: VqGan,
    pub(super) ema: Option<Ema<VqGan>>,
    pub(super) optimizer: ModelOptimizer,
    /// The discriminator of the checkpoint.
    pub(super) discriminator: Option<SavedDiscriminator>,
    pub(super) scaler: LossScaler,
    pub(super) step: u64,
    pub(super) before: Option<Scores>,
    /// The step of the newest validation.
    pub(super) validated: Option<u64>,
    pub(super) best: Option<Best>,
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) description: String,
}

/// Finds the checkpoint that `options` say to resume. Names the checkpoints that it passes over on stderr.
pub(super) fn find_checkpoint(options: &Options, own: &RunStore) -> Result<Option<Checkpoint>, TrainError> {
    let (store, place) = match &options.resume {
        None => return Ok(None),
        Some(Resume::Checkpoint(path)) => return Ok(Some(RunStore::verified(path)?)),
        Some(Resume::Newest) => (None, &options.folder),
        Some(Resume::NewestOf(run)) => (Some(RunStore::read(run.join("checkpoints"))), run),
    };
    let newest = store.as_ref().unwrap_or(own).newest_usable(run_state::check)?;
    for (path, reason) in &newest.passed_over {
        note!("passed over {}: {reason}", path.display());
    }
    match newest.checkpoint {
        Some(checkpoint) => Ok(Some(checkpoint)),
        None => Err(TrainError::NothingToResume(place.clone())),
    }
}

/// Refuses changes that make the resumed run another run, except those that `allow` names.
fn check_changes(
    state: &State,
    batch_norm: bool,
    config: &Config,
    data: &Data,
    allow: &[String],
) -> Result<(), TrainError> {
    let mut changes = run_state::unsound_changes(&state.config, config, batch_norm);
    if state.images != data.images {
        let [then, mut now] = [&state.images, &data.images].map(ToString::to_string);
        for reason in &data.version_differences {
            now += &format!("; {reason}");
        }
        changes.push(Change { key: "images".into(), then, now });
    }
    for name in allow.iter().filter(|name| !changes.iter().any(|change| change.is_named_by(name))) {
        note!("--allow {name}: nothing of that name has changed");
    }
    let (allowed, refused): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| allow.iter().any(|name| change.is_named_by(name)));
    if !refused.is_empty() {
        return Err(TrainError::Changed(refused));
    }
    for change in allowed {
        note!("allowed: {change}");
    }
    Ok(())
}

/// Ends a run that has nothing left to do, and tells the user why and how to continue it.
fn check_unfinished(state: &State, config: &Config, checkpoint: &Path) -> Result<(), TrainError> {
    let (step, steps) = (state.step, config.run.steps);
    let patience = config.validation.patience;
    let best = state.best.filter(|best| best.metric == config.checkpoints.best);
    let out_of_patience = best.filter(|best| patience > 0 && best.worse >= patience);
    // A run that was stopped before its last validation still has to do that.
    let is_through = step > steps || step == steps && (state.validated == Some(step) || config.validation.images == 0);
    match out_of_patience {
        _ if is_through => note!("the run is finished at step {step} of {steps}; raise run.steps to continue"),
        Some(best) => note!(
            "the run is finished: it ended at step {step}, with no better {} in {patience} validations; raise \
             validation.patience to continue",
            best.metric.name()
        ),
        None => return Ok(()),
    }
    Err(TrainError::Finished(Box::new(Outcome {
        step,
        interrupted: false,
        stopped_early: !is_through,
        before: state.before,
        after: None,
        best,
        grid: None,
        checkpoint: checkpoint.to_owned(),
    })))
}

/// Tells the user how another number of steps changes a resumed run's learning rate: the schedule ends with the run.
fn tell_schedule(before: &Config, now: &Config, step: u64) {
    let (then, steps) = (before.run.steps, now.run.steps);
    if then == steps || now.schedule.kind == ScheduleKind::Constant {
        return;
    }
    let rate = |config: &Config| LrSchedule::new(&config.schedule, &config.optimizer, config.run.steps).at(step);
    note!(
        "run.steps is {steps} and was {then}: the schedule now ends at step {steps}, and the learning rate is \
         {:.2e} instead of {:.2e}",
        rate(now),
        rate(before)
    );
}

/// Refuses a precision that the device cannot compute in.
pub(super) fn check_precision(loaded: &Loaded, device: &Selected) -> Result<(), TrainError> {
    match unsupported(&loaded.config.precision, &device.description, |compute| device.supports(compute)) {
        Some(problem) => Err(loaded.locate(problem).into()),
        None => Ok(()),
    }
}

/// Finds a key of `precision` that the device called `name` cannot compute in, and names what it can.
fn unsupported(precision: &PrecisionConfig, name: &str, supports: impl Fn(Compute) -> bool) -> Option<Problem> {
    let asked_for = [("precision.compute", precision.compute), ("precision.frozen", precision.frozen())];
    let (key, compute) = asked_for.into_iter().find(|(_, compute)| !supports(*compute))?;
    let others: Vec<&str> = Compute::ALL.into_iter().filter(|other| supports(*other)).map(Compute::name).collect();
    let message = format!(
        "is \"{}\", which {name} cannot compute in; it can compute in {}",
        compute.name(),
        others.join(" and ")
    );
    Some(Problem { key, message })
}

/// Fails at the first image without a caption, if a loss needs captions.
pub(super) fn check_captions(config: &Config, data: &Data) -> Result<(), TrainError> {
    let Some(loss) = config.losses.first_that_needs_captions() else { return Ok(()) };
    match data.training.first_without_caption() {
        Some(ImageError { name, problem: ImageProblem::NoCaption(reason) }) => {
            Err(TrainError::NoCaption { name, loss, reason })
        }
        Some(error) => Err(TrainError::NoCaption { name: error.name, loss, reason: error.problem.to_string() }),
        None => Ok(()),
    }
}

/// Builds the model to train. Parameters that `model.train` does not name are frozen.
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
        let average = || VqGan::new(&initial.architecture, &initial.weights, &device.device, DType::F32);
        let average = (config.ema.decay > 0.0).then(average).transpose()?;
        let mut optimizer = ModelOptimizer::new(&config.optimizer);
        optimizer.allocate(&model);
        Ok(Self {
            ema: average.map(|average| Ema::new(average, config.ema.decay)),
            discriminator: None,
            model,
            architecture: initial.architecture,
            optimizer,
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
        check_unfinished(&resumed.state, config, &checkpoint.path)?;
        let (step, steps) = (resumed.state.step, config.run.steps);
        tell_schedule(&resumed.state.config, config, step);
        let architecture = resumed.state.architecture;
        // Weights on the host are dropped as soon as they are on the device.
        let average = |weights: &StateDict| VqGan::new(&architecture, weights, &device.device, DType::F32);
        let average = match (config.ema.decay > 0.0, resumed.ema) {
            (false, _) => None,
            (true, Some(saved)) => Some(average(&saved)?),
            (true, None) => Some(average(&resumed.model)?),
        };
        let autodiff = device.device.clone().autodiff();
        let model = build(loaded, &architecture, &resumed.model, &autodiff)?;
        drop(resumed.model);
        let mut optimizer = ModelOptimizer::new(&config.optimizer);
        optimizer.load_state_dict(&model, &run_state::read_optimizer(&checkpoint.path).map_err(wrong)?)?;
        optimizer.allocate(&model);
        // The loss or the saved discriminator may be missing only if that change was allowed.
        let discriminator = match resumed.state.adversarial.filter(|_| config.losses.adversarial.is_on()) {
            Some(state) => {
                let (weights, optimizer) = run_state::read_discriminator(&checkpoint.path).map_err(wrong)?;
                let scaler = resumed.state.discriminator_loss_scale;
                Some(SavedDiscriminator { weights, optimizer, state, scaler })
            }
            None => None,
        };
        Ok(Self {
            discriminator,
            model,
            ema: average.map(|average| Ema::new(average, config.ema.decay)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Override, load};

    /// The error's line for a device that computes in `supported`.
    fn refused(sets: &[(&str, &str)], supported: &[Compute]) -> Option<String> {
        let overrides: Vec<Override> = sets.iter().map(|(key, value)| Override::new(key, value)).collect();
        let loaded = load("from-scratch-cpu.toml", &overrides).unwrap();
        let problem = unsupported(&loaded.config.precision, "wgpu:0, A100", |compute| supported.contains(&compute));
        problem.map(|problem| loaded.locate(problem).to_string())
    }

    #[test]
    fn a_precision_that_the_device_cannot_compute_in_is_refused_with_those_that_it_can() {
        use Compute::{Fp16, Fp32};
        let bf16 = [("precision.compute", "bf16")];
        let said = "--set precision.compute=bf16: `precision.compute` is \"bf16\", which wgpu:0, A100 cannot compute in; \
                    it can compute in fp32 and fp16";
        assert_eq!(refused(&bf16, &[Fp32, Fp16]).as_deref(), Some(said));
        let frozen = [("precision.frozen", "fp16")];
        let said = "--set precision.frozen=fp16: `precision.frozen` is \"fp16\", which wgpu:0, A100 cannot compute in; \
                    it can compute in fp32";
        assert_eq!(refused(&frozen, &[Fp32]).as_deref(), Some(said));
        // The error points at the key that asks for the precision.
        let error = refused(&[("precision.compute", "fp16"), ("precision.frozen", "fp32")], &[Fp32]).unwrap();
        assert!(error.starts_with("--set precision.compute=fp16: `precision.compute` is \"fp16\""), "{error}");
        for sets in [&bf16[..], &frozen, &[]] {
            assert_eq!(refused(sets, &Compute::ALL), None, "{sets:?}");
        }
    }
}
