//! The logs of a run: a line for each optimizer step, and one for each validation.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use checkpoints::run::{MetricsLog, RunError};
use serde_json::Value;

use super::TrainError;
use crate::evaluation::Scores;

/// File with a line for each optimizer step.
pub(super) const STEPS: &str = "metrics.jsonl";

/// File with a line for each validation.
pub(super) const VALIDATIONS: &str = "validation.jsonl";

/// The open logs of a run.
pub(super) struct Logs {
    steps: MetricsLog,
    validations: MetricsLog,
}

impl Logs {
    /// Opens the logs of a run that has done `step` optimizer steps (0 for a new run), with its newest validation at
    /// step `validated`. Removes later lines, since the run does these steps again.
    pub(super) fn open(folder: &Path, step: u64, validated: Option<u64>) -> Result<Self, RunError> {
        let validations = folder.join(VALIDATIONS);
        if validated.is_none() {
            match fs::remove_file(&validations) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(RunError::io("remove", &validations)(error));
                }
                _ => {}
            }
        }
        Ok(Self {
            steps: MetricsLog::open(&folder.join(STEPS), step)?,
            validations: MetricsLog::open(&validations, validated.unwrap_or(0))?,
        })
    }

    /// Copies the logs of the run in `other`, of which this run is a branch.
    pub(super) fn copy(other: &Path, folder: &Path) -> Result<(), RunError> {
        for name in [STEPS, VALIDATIONS] {
            let from = other.join(name);
            match fs::copy(&from, folder.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(RunError::io("copy", &from)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the line of an optimizer step.
    pub(super) fn append(&mut self, line: &Value) -> Result<(), RunError> {
        self.steps.append(line)
    }

    /// Adds the line of a validation at `step`.
    pub(super) fn validation(&mut self, step: u64, scores: &Scores) -> Result<(), TrainError> {
        let line = serde_json::to_value(scores).map_err(std::io::Error::from);
        let mut line = line.map_err(RunError::io("write", Path::new(VALIDATIONS)))?;
        line["step"] = step.into();
        Ok(self.validations.append(&line)?)
    }

    /// Writes the lines so far to the disk, so that they survive a power failure.
    pub(super) fn sync(&self) -> Result<(), RunError> {
        self.steps.sync()?;
        self.validations.sync()
    }
}
