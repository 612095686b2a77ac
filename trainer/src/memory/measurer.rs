//! Measures variants of one configuration, each in a process of its own.

use std::fmt;
use std::fs;
use std::time::Duration;

use super::{Children, Gradient, Measurement, MemoryError, Status, Variant};
use crate::config::Loaded;
use crate::memory::random_networks::Networks;

/// A measurement, or why there is none; and how long it took.
pub type Measured = (Result<Measurement, Status>, Duration);

/// What all measurements of one configuration have in common.
#[derive(Clone, Copy)]
pub struct Measurer<'a> {
    /// The configuration.
    pub loaded: &'a Loaded,
    /// Its networks.
    pub networks: &'a Networks,
    /// The processes that measure.
    pub children: &'a Children,
}

/// Why a variant could not be measured.
pub(super) struct Failure {
    pub(super) variant: Variant,
    pub(super) status: Status,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variant, status } = self;
        write!(f, "{variant}: {}: {}", status.name(), status.message().unwrap_or_default())
    }
}

impl Measurer<'_> {
    /// Measures `variant` in a process of its own.
    ///
    /// # Errors
    /// If processes or files cannot be had, or if a signal came. A process that fails is no error.
    pub fn measure(&self, variant: &Variant, gradient: &Gradient) -> Result<Measured, MemoryError> {
        let folder = tempfile::tempdir_in(self.networks.folder()).map_err(MemoryError::io("make a row's folder"))?;
        let config = self.networks.config(variant.apply(&self.loaded.config));
        let path = folder.path().join("row.toml");
        fs::write(&path, toml::to_string(&config)?).map_err(MemoryError::io("write a row's configuration"))?;
        self.children.measure(&path, folder.path(), gradient)
    }

    /// Measures the peak of `variant` with two micro-batches, since the second one meets the gradient of the first.
    pub(super) fn peak(&self, variant: Variant) -> Result<Result<Measurement, Failure>, MemoryError> {
        note!("measuring {variant}");
        let variant = Variant { effective: 2 * variant.micro, ..variant };
        let mut loaded = self.loaded.clone();
        // Once in a while a worker would read an image at the moment of the peak, and be part of it.
        loaded.config.data.workers = 0;
        let (measured, _) = Measurer { loaded: &loaded, ..*self }.measure(&variant, &Gradient::Ignore)?;
        Ok(measured.map_err(|status| Failure { variant, status }))
    }

    /// Whether a process gets through a few steps of `variant`, with no more samples than two micro-batches.
    pub(super) fn succeeds(&self, variant: Variant) -> Result<Result<(), Status>, MemoryError> {
        let variant = Variant { effective: variant.effective.min(2 * variant.micro), ..variant };
        let (measured, _) = self.measure(&variant, &Gradient::Ignore)?;
        Ok(measured.map(drop))
    }
}
