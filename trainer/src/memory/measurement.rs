//! What comes of a measurement in a child process. Data only: the child writes it, and the parent reads it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What to do with the gradient of the first step.
#[derive(Debug, Clone)]
pub enum Gradient {
    /// It is the reference: write it to this file.
    Write(PathBuf),
    /// Compare it with the reference in this file.
    Compare(PathBuf),
    /// Nothing.
    Ignore,
}

/// `||a - b|| / ||b||` of a gradient `a` from a reference `b`; `None` where it is not finite, as in a step that overflows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// Of all gradients together.
    pub whole: Option<f64>,
    /// Of the generator's.
    pub generator: Option<f64>,
    /// Of the discriminator's, if it learns.
    pub discriminator: Option<f64>,
}

/// What was measured in a few steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The device, in words.
    pub device: String,
    /// The largest peak of any step, in bytes. On a GPU the first step does not count: after it the pools are cleaned of what
    /// tuning and growing have left in them.
    pub peak_memory: u64,
    /// The size in bytes of a page by which a GPU's pools grow; 0 on the CPU.
    pub page: u64,
    /// Bytes by phase, the largest of any step.
    pub memory: Map<String, Value>,
    /// Over all steps but the first, which warms up, and those that were skipped.
    pub images_per_second: f64,
    /// The weighted sum of the losses in the first step; `None` where it is not finite at any loss scale.
    pub loss: Option<f64>,
    /// Steps in which the generator or the discriminator overflowed. They come on top of those that were asked for.
    pub skipped: u64,
    /// The deviation of the first step's gradient, where there is something to compare it with.
    pub deviation: Option<Deviation>,
}

/// How a measurement ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", content = "message", rename_all = "kebab-case")]
pub enum Status {
    /// It succeeded.
    Ok,
    /// It needed more memory than there is.
    OutOfMemory(String),
    /// It took too long.
    TimedOut(String),
    /// Its process was ended by a signal.
    Crashed(String),
    /// It ended with an error.
    Failed(String),
}

impl Status {
    /// In words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::OutOfMemory(_) => "out of memory",
            Self::TimedOut(_) => "timed out",
            Self::Crashed(_) => "crashed",
            Self::Failed(_) => "failed",
        }
    }

    /// The reason, where it did not succeed.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::OutOfMemory(text) | Self::TimedOut(text) | Self::Crashed(text) | Self::Failed(text) => Some(text),
        }
    }
}
