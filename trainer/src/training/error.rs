//! Why a run ends early.

use std::path::PathBuf;

use checkpoints::run::{RunError, SaveError};
use datasets::DataError;

use super::Outcome;
use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::evaluation::ValidationError;
use crate::losses::load::LossError;
use crate::memory::{Exhausted, MemoryError};
use crate::models::weights::ModelError;
use crate::optim::FreezingError;
use crate::training::pretrained::PretrainedError;
use crate::training::run_state::{Change, StateError};

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
    /// `model.train` is wrong.
    #[error("`model.train`: {0}")]
    Freezing(#[from] FreezingError),
    /// The images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The memory of a step could not be measured.
    #[error("cannot measure the memory of a step: {0}")]
    Measuring(MemoryError),
    /// A loss needs captions.
    #[error("{name} has no caption, which losses.{loss} needs: {reason}; put one into a .txt file of the same name")]
    NoCaption {
        /// The first image without one.
        name: String,
        /// The loss's key.
        loss: &'static str,
        /// Where a caption was looked for, and why none was used.
        reason: String,
    },
    /// The run's folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A dashboard without a terminal.
    #[error(transparent)]
    NoTerminal(#[from] crate::show::progress::NoTerminal),
    /// TensorBoard's event file.
    #[error(transparent)]
    TensorBoard(#[from] report::tensorboard::WriteError),
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
    /// The run's folder holds a run already, and `--resume` was not given.
    #[error(
        "{} already holds a run: resume it with --resume, or choose another folder with --run-dir",
        .0.display()
    )]
    Occupied(PathBuf),
    /// `--resume` without anything to resume.
    #[error("{} holds no checkpoint to resume", .0.display())]
    NothingToResume(PathBuf),
    /// The configuration or the images of a resumed run changed in a way that makes it another run.
    #[error(
        "the run to resume was started with another configuration: {}; to resume anyway, add --allow {}",
        .0.iter().map(Change::to_string).collect::<Vec<_>>().join(", "),
        .0.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(" --allow ")
    )]
    Changed(Vec<Change>),
    /// The run to resume has nothing left to do. [`train`](super::train) returns the outcome in place of this error.
    #[error("the run is finished")]
    Finished(Box<Outcome>),
    /// Too many steps in a row were skipped because of values that are not finite. They changed no weights.
    #[error(
        "{skips} steps in a row, up to step {step}, were skipped because of values that are not finite, the last of them \
         first after {place}; {advice}; {saved}"
    )]
    NotFinite {
        /// Number of skipped steps.
        skips: u64,
        /// Where the newest of these steps had its first such value.
        place: String,
        /// The newest of these steps, counted from 1.
        step: u64,
        /// What often helps.
        advice: &'static str,
        /// The last checkpoint.
        saved: String,
    },
    /// A step needs more memory than there is, and no setting is left that lowers it without changing what is learned.
    #[error("step {step}: {exhausted}; {saved}")]
    OutOfMemory {
        /// The optimizer step, counted from 1.
        step: u64,
        /// What it needs, and what would help.
        exhausted: Exhausted,
        /// The last checkpoint.
        saved: String,
    },
    /// There is too little memory for something that is not tried again with less.
    #[error("{place}: out of memory ({message}); what would help: {help}; {saved}")]
    OutOfMemoryIn {
        /// Where and when it happened.
        place: String,
        /// What the device said.
        message: String,
        /// What the user could change.
        help: String,
        /// The last checkpoint.
        saved: String,
        /// Whether the weights are those of a whole step.
        sound: bool,
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
    pub(super) fn leaves_the_run_sound(&self) -> bool {
        !matches!(
            self,
            Self::DeviceFailed { .. }
                | Self::OutOfMemoryIn { sound: false, .. }
                | Self::NotFinite { .. }
                | Self::Save(_)
        )
    }
}

impl TrainError {
    /// Converts `error` into the end of the run in `step`, counted from 1. `saved` names the last checkpoint.
    pub(super) fn of_memory(error: MemoryError, step: u64, saved: String) -> Self {
        match error {
            MemoryError::Config(error) => error.into(),
            MemoryError::Exhausted(exhausted) => Self::OutOfMemory { step, exhausted, saved },
            MemoryError::Device(message) => Self::DeviceFailed { step, message, saved },
            error => Self::Measuring(error),
        }
    }

    /// Updates what the error says about the last checkpoint, which may have become safe since.
    pub(super) fn set_saved(&mut self, newest: impl FnOnce() -> String) {
        if let Self::OutOfMemory { saved, .. }
        | Self::OutOfMemoryIn { saved, .. }
        | Self::NotFinite { saved, .. }
        | Self::DeviceFailed { saved, .. } = self
        {
            *saved = newest();
        }
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

/// Why an attempt at a step has no result.
pub(super) enum StepError {
    /// The run was asked to stop.
    Interrupted,
    /// The step exceeds the memory limit.
    OverLimit,
    /// The run ends.
    Failed(TrainError),
}

impl<E: Into<TrainError>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
