//! Why memory could not be measured, or is not enough.

use std::io;

use crate::config::ConfigError;
use crate::memory::random_networks::RandomError;

/// Why nothing is known of a step's memory, or why there is too little of it.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The networks that a measurement needs.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The configuration cannot be written for the process that measures.
    #[error("the row's configuration cannot be written: {0}")]
    Toml(#[from] toml::ser::Error),
    /// The disk, or the system's processes.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No measurement succeeded.
    #[error("nothing could be measured: {0}")]
    Nothing(String),
    /// A process that measures was about to start another.
    #[error("a process that is measured does not measure ({0} is set)")]
    Nested(&'static str),
    /// A signal.
    #[error("interrupted")]
    Interrupted,
    /// The device failed, and not because of its memory.
    #[error("the device failed: {0}")]
    Device(String),
    /// There is too little memory.
    #[error(transparent)]
    Exhausted(Exhausted),
}

impl MemoryError {
    /// Whether the command line and the configuration alone are to blame.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Config(_) => true,
            Self::Random(error) => error.is_wrong_usage(),
            _ => false,
        }
    }

    /// Wraps an error of the system with what was tried.
    pub(super) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// A step needs more memory than there is, and nothing can be lowered without changing what is learned.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; {lowered}: nothing is left to lower; what would still help: {help}")]
pub struct Exhausted {
    /// What the step needs.
    pub cause: String,
    /// What has been lowered as far as possible.
    pub lowered: String,
    /// What the user could change.
    pub help: String,
}
