//! Writes and reads a checkpoint of a run.
//!
//! A checkpoint is a folder of safetensors and one `state.json`, with a manifest of sizes and hashes. `model` and `ema`
//! are weights by taming's names in f32. `optimizer` holds `<parameter>.moment_1`, `.moment_2` and `.time`.
//! `discriminator` and `discriminator_optimizer` exist if there is an adversarial loss. The sampler, the schedules and
//! all randomness are functions of the step and the seed, so they need no state.

mod changes;

use std::path::Path;

use checkpoints::run::{FileRecord, FileRecords, advice};
use checkpoints::{Architecture, SafetensorsError, WeightsFile, write_safetensors};
use serde::{Deserialize, Serialize};

use crate::config::{Config, saved_config};
use crate::data::ImageSet;
use crate::evaluation::Best;
use crate::evaluation::Scores;
use crate::losses::{AdversarialState, Discriminator};
use crate::memory::MemorySettings;
use crate::models::VqGan;
use crate::models::weights::{ModelError, StateDict, state_dict};
use crate::optim::ScalerState;
use crate::optim::{MOMENT_1, MOMENT_2, ModelOptimizer, TIME};

pub use self::changes::{Change, unsound_changes};

const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const DISCRIMINATOR: &str = "discriminator.safetensors";
const DISCRIMINATOR_OPTIMIZER: &str = "discriminator_optimizer.safetensors";
const STATE: &str = "state.json";

/// Why a run's state could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file.
    #[error("{file}: {message}")]
    File {
        /// Which of the checkpoint's files.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A run with values that are not finite is not saved.
    #[error("{file}: `{tensor}` is no longer finite; a lower optimizer.learning_rate often helps")]
    NotFinite {
        /// Which of the checkpoint's files.
        file: &'static str,
        /// Which tensor of the file.
        tensor: String,
    },
    /// The weights do not make a model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

fn file(file: &'static str) -> impl Fn(&dyn std::fmt::Display) -> StateError {
    move |error| StateError::File { file, message: error.to_string() }
}

/// A run's state without its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// The model's architecture.
    pub architecture: Architecture,
    /// The run's configuration.
    #[serde(deserialize_with = "saved_config")]
    pub config: Config,
    /// Scores before the first step.
    pub before: Option<Scores>,
    /// The images that the samples come from: other images would be split and shuffled in another way.
    #[serde(rename = "pictures")]
    pub images: ImageSet,
    /// The run's current memory settings: as configured, chosen, or lowered.
    #[serde(default, rename = "footprint", skip_serializing_if = "Option::is_none")]
    pub memory_settings: Option<MemorySettings>,
    /// What the adversarial loss keeps from step to step, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<AdversarialState>,
    /// The generator's loss scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<ScalerState>,
    /// The discriminator's loss scale, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discriminator_loss_scale: Option<ScalerState>,
    /// The step of the newest validation, if there has been one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validated: Option<u64>,
    /// The best validation so far, if the run keeps track of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
}

/// A run's saved state, without the optimizer's.
pub struct Resumed {
    /// Everything but tensors.
    pub state: State,
    /// The weights.
    pub model: StateDict,
    /// The average of the weights, if the run keeps one.
    pub ema: Option<StateDict>,
    /// Whether there is a discriminator with BatchNorm, so that a step depends on the micro-batches.
    pub batch_norm: bool,
}

/// A checkpoint in host memory. Later steps of the run do not change it.
pub struct Snapshot {
    state: State,
    files: Vec<(&'static str, StateDict)>,
}

impl Snapshot {
    /// Copies everything from the device. Needs host memory for all weights, averages and moments, and none on the
    /// device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take(
        state: State,
        model: &VqGan,
        ema: Option<&VqGan>,
        optimizer: &ModelOptimizer,
        discriminator: Option<&Discriminator>,
    ) -> Result<Self, StateError> {
        let mut files = vec![(MODEL, state_dict(model)?)];
        if let Some(ema) = ema {
            files.push((EMA, state_dict(ema)?));
        }
        files.push((OPTIMIZER, optimizer.state_dict(model)?));
        if let Some(discriminator) = discriminator {
            let model = discriminator.model();
            files.push((DISCRIMINATOR, state_dict(model)?));
            files.push((DISCRIMINATOR_OPTIMIZER, discriminator.optimizer().state_dict(model)?));
        }
        Ok(Self { state, files })
    }

    /// Writes all files of a checkpoint into `folder`, and returns records of the files of tensors. Frees each file's
    /// tensors as soon as it is written. Calls `after` with the name of each file.
    ///
    /// # Errors
    /// If a value is not finite or a file cannot be written.
    pub fn write(self, folder: &Path, after: impl Fn(&'static str)) -> Result<FileRecords, StateError> {
        let json = serde_json::to_vec_pretty(&self.state).map_err(|e| file(STATE)(&e))?;
        std::fs::write(folder.join(STATE), json).map_err(|e| cannot_write(STATE, &e))?;
        after(STATE);
        let write = |(name, tensors): (&'static str, StateDict)| {
            let record = write_tensors(folder, name, &tensors)?;
            after(name);
            Ok((name.to_owned(), record))
        };
        self.files.into_iter().map(write).collect()
    }
}

/// Writes one file. Refuses values that are not finite: the newest checkpoint must be usable.
fn write_tensors(folder: &Path, name: &'static str, tensors: &StateDict) -> Result<FileRecord, StateError> {
    let broken = tensors.iter().find(|(_, tensor)| !tensor.is_finite());
    if let Some((tensor, _)) = broken {
        return Err(StateError::NotFinite { file: name, tensor: tensor.clone() });
    }
    write_safetensors(&folder.join(name), tensors, None).map_err(|error| match error {
        SafetensorsError::Io(error) => cannot_write(name, &error),
        other => file(name)(&other),
    })
}

fn cannot_write(name: &'static str, error: &std::io::Error) -> StateError {
    file(name)(&format!("{error}{}", advice(error)))
}

/// Reads a checkpoint without the optimizer's state, which is twice as large as the model and only of use to a run.
///
/// # Errors
/// If a file is missing or is not what it should be.
pub fn read(folder: &Path) -> Result<Resumed, StateError> {
    let state = read_state(folder)?;
    let ema = folder.join(EMA).exists().then(|| tensors(folder, EMA)).transpose()?;
    Ok(Resumed { state, model: tensors(folder, MODEL)?, ema, batch_norm: has_batch_norm(folder)? })
}

/// Reads everything but the tensors.
///
/// # Errors
/// If the file is missing or is not what it should be.
pub fn read_state(folder: &Path) -> Result<State, StateError> {
    let json = std::fs::read(folder.join(STATE)).map_err(|e| file(STATE)(&e))?;
    serde_json::from_slice(&json).map_err(|e| file(STATE)(&e))
}

/// Reads the memory settings and the step of the checkpoint in `folder`. `None` if `config` differs in a relevant key.
pub fn saved_memory_settings(folder: &Path, config: &Config) -> Option<(MemorySettings, u64)> {
    let state = read_state(folder).ok()?;
    let then = &state.config;
    let unchanged = then.batch == config.batch
        && then.memory == config.memory
        && then.clip.cutouts_at_once == config.clip.cutouts_at_once
        && then.run.device == config.run.device;
    Some((state.memory_settings.filter(|_| unchanged)?, state.step))
}

/// Checks that a run can be resumed from the checkpoint in `folder`, without reading its tensors. A checkpoint may be
/// whole although its files come from two runs or from another version of this program.
///
/// # Errors
/// What does not fit, and in which file.
pub fn check(folder: &Path) -> Result<(), StateError> {
    let state = read_state(folder)?;
    state.architecture.check().map_err(|e| file(STATE)(&e))?;
    let model = open(folder, MODEL)?;
    let ema = (state.config.ema.decay > 0.0).then(|| open(folder, EMA)).transpose()?;
    let optimizer = open(folder, OPTIMIZER)?;
    for (parameter, shape) in state.architecture.parameters() {
        check_shape(MODEL, &model, &parameter, &shape)?;
        if let Some(ema) = &ema {
            check_shape(EMA, ema, &parameter, &shape)?;
        }
        // Frozen parameters have no moments.
        if optimizer.info(&format!("{parameter}.{TIME}")).is_some() {
            for moment in [MOMENT_1, MOMENT_2] {
                check_shape(OPTIMIZER, &optimizer, &format!("{parameter}.{moment}"), &shape)?;
            }
        }
    }
    if state.adversarial.is_some() {
        open(folder, DISCRIMINATOR)?;
        open(folder, DISCRIMINATOR_OPTIMIZER)?;
    }
    Ok(())
}

fn open(folder: &Path, name: &'static str) -> Result<WeightsFile, StateError> {
    WeightsFile::open(folder.join(name)).map_err(|e| file(name)(&e))
}

fn check_shape(name: &'static str, weights: &WeightsFile, tensor: &str, expected: &[usize]) -> Result<(), StateError> {
    match weights.info(tensor) {
        Some((_, found)) if found == expected => Ok(()),
        Some((_, found)) => {
            let shapes = format!("{found:?}, must be {expected:?}");
            Err(file(name)(&ModelError::Shape { name: tensor.to_owned(), shapes }))
        }
        None => Err(file(name)(&ModelError::Missing(tensor.to_owned()))),
    }
}

fn tensors(folder: &Path, name: &'static str) -> Result<StateDict, StateError> {
    let weights = open(folder, name)?;
    let read = |key: &str| Ok((key.to_owned(), weights.read(key).map_err(|e| file(name)(&e))?));
    weights.names().map(read).collect()
}

/// Reads the optimizer's state.
///
/// # Errors
/// If the file is missing or is not what it should be.
pub fn read_optimizer(folder: &Path) -> Result<StateDict, StateError> {
    tensors(folder, OPTIMIZER)
}

/// Reads the discriminator's weights and its optimizer's state.
///
/// # Errors
/// If a file is missing or is not what it should be.
pub fn read_discriminator(folder: &Path) -> Result<(StateDict, StateDict), StateError> {
    Ok((tensors(folder, DISCRIMINATOR)?, tensors(folder, DISCRIMINATOR_OPTIMIZER)?))
}

fn has_batch_norm(folder: &Path) -> Result<bool, StateError> {
    if !folder.join(DISCRIMINATOR).exists() {
        return Ok(false);
    }
    let weights = open(folder, DISCRIMINATOR)?;
    Ok(weights.names().any(|name| name.ends_with(".running_mean")))
}

/// Whether `folder` looks like a checkpoint of a run.
pub fn is_checkpoint(folder: &Path) -> bool {
    folder.join(STATE).is_file() && folder.join(MODEL).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

    use crate::config::{DiscriminatorConfig, Metric, Recompute};
    use crate::losses::LeCam;
    use crate::models::discriminator::DiscriminatorNorm;
    use crate::models::initialize::random_weights;
    use crate::models::tests::tiny_architecture;

    /// `serde_json` reads numbers to the last bit only with its feature `float_roundtrip`.
    #[test]
    fn what_the_adversarial_loss_carries_over_survives_to_the_last_bit() {
        let mut state = AdversarialState::new(0.999);
        for step in 0..500 {
            let logit = f64::from((step as f32 * 0.37).sin());
            state.lecam = state.lecam.updated(logit, -0.7 * logit);
            state.adaptive_weight = Some(logit.abs());
            let text = serde_json::to_string_pretty(&state).unwrap();
            assert_eq!(serde_json::from_str::<AdversarialState>(&text).unwrap(), state, "{text}");
        }
    }

    /// Saves a run with an adversarial loss, and reads it back.
    fn saved(state: &State, norm: DiscriminatorNorm) -> Resumed {
        let (device, mut config) = (Device::flex().autodiff(), state.config.clone());
        config.discriminator = DiscriminatorConfig { norm, channels: 4, layers: 2, ..Default::default() };
        let weights = random_weights(&state.architecture, 0);
        let model = VqGan::new(&state.architecture, &weights, &device, DType::F32).unwrap();
        let discriminator = Discriminator::fresh(&config.losses.adversarial, &config.surroundings(), &device).unwrap();
        let optimizer = ModelOptimizer::new(&config.optimizer);
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::take(state.clone(), &model, None, &optimizer, Some(&discriminator)).unwrap();
        snapshot.write(folder.path(), |_| {}).unwrap();
        read(folder.path()).unwrap()
    }

    fn state() -> State {
        // A parser that rounds at every digit reads these decimals as their neighbours.
        let lecam = LeCam { real: 0.49953704122816117, fake: 0.49640886271421963, decay: 0.999 };
        State {
            step: 3,
            architecture: tiny_architecture(),
            config: Config::default(),
            before: None,
            memory_settings: Some(MemorySettings { micro: 2, recompute: Recompute::Blocks, cutouts_at_once: 0 }),
            images: ImageSet { count: 1, names: String::new() },
            adversarial: Some(AdversarialState { adaptive_weight: Some(0.49077241870406396), lecam }),
            loss_scale: Some(ScalerState { scale: 4096.0, since_change: 7, skipped: 4, in_a_row: 0 }),
            discriminator_loss_scale: None,
            validated: Some(2),
            best: Some(Best { metric: Metric::Psnr, step: 2, value: 17.812345678901234, worse: 0 }),
        }
    }

    #[test]
    fn numbers_come_back_to_the_last_bit() {
        let state = state();
        let back = saved(&state, DiscriminatorNorm::Group).state;
        assert_eq!(back, state);
        let bits = |state: &State| {
            let AdversarialState { adaptive_weight, lecam } = state.adversarial.unwrap();
            [adaptive_weight.unwrap(), lecam.real, lecam.fake].map(f64::to_bits)
        };
        assert_eq!(bits(&back), bits(&state));
    }

    /// The key `recompute` was once called `checkpoint`.
    #[test]
    fn the_state_of_an_older_run_is_read() {
        let mut state = state();
        state.config.memory.recompute = Recompute::Blocks;
        state.config.sweep.recompute = vec![Recompute::Blocks];
        let text = serde_json::to_string(&state).unwrap();
        let older = text.replace("recompute", "checkpoint");
        assert!(older.contains("footprint") && older.matches(r#""checkpoint""#).count() == 3, "{older}");
        assert_eq!(serde_json::from_str::<State>(&older).unwrap(), state);
    }

    #[test]
    fn a_checkpoint_tells_the_discriminators_norm() {
        assert!(saved(&state(), DiscriminatorNorm::Batch).batch_norm);
        assert!(!saved(&state(), DiscriminatorNorm::Group).batch_norm);
    }
}
