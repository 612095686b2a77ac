//! `train check`: whether a device computes the same results as the CPU.
//!
//! Each part can be run alone. [`layers`] compares every block, network and loss with the CPU in f32. [`step`] compares the
//! gradients of whole steps, with every loss and at several batch splits. [`resume`] compares a run that was stopped and resumed
//! with one that never stopped. [`memory`] starts a run for which the device has too little memory.

pub mod layers;
pub mod memory;
mod piece;
pub mod resume;
mod sizes;
pub mod step;

use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;

use crate::config::{Compute, ConfigError};
use crate::memory::MemoryError;
use crate::memory::random_networks::RandomError;
use crate::models::weights::ModelError;

/// A part of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Part {
    /// Every block, network and loss, forward and backward
    Layers,
    /// The gradient of whole steps, at several batch splits
    Step,
    /// A run that was stopped and resumed
    Resume,
    /// A run with too little memory on the device
    #[value(alias = "room")]
    Memory,
}

/// The sizes that layers are checked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// Narrow layers on small images: for a CPU that plays a GPU
    Small,
    /// Those of the f16 VQGAN with 16,384 codes and of ViT-B/32
    Full,
}

/// One thing that was checked.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Where it belongs.
    pub part: Part,
    /// What it is.
    pub name: String,
    /// What it was computed in.
    pub precision: Compute,
    /// Deviation of the values from the reference's, `||a - b|| / ||b||`.
    pub output: Option<f64>,
    /// Deviation of the gradients, the largest of those at inputs and at parameters.
    pub gradient: Option<f64>,
    /// The most that either may be.
    pub limit: f64,
    /// What went wrong, or what else there is to say.
    pub message: Option<String>,
    /// Whether all is as it should be.
    pub met: bool,
    /// What it took on the device, compilation of kernels included.
    pub seconds: f64,
}

/// What a piece deviates by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviations {
    /// See [`Row::output`].
    pub output: Option<f64>,
    /// See [`Row::gradient`].
    pub gradient: Option<f64>,
}

impl Row {
    /// Holds the result to `limit`. An error is never met.
    pub fn new(
        part: Part,
        name: impl Into<String>,
        precision: Compute,
        result: Result<Deviations, String>,
        limit: f64,
        started: Instant,
    ) -> Self {
        let (found, message) = match result {
            Ok(found) => (found, None),
            Err(message) => (Deviations::default(), Some(message)),
        };
        // Not a number exceeds every limit.
        let within = |value: Option<f64>| value.is_none_or(|value| value <= limit);
        Self {
            part,
            name: name.into(),
            precision,
            output: found.output,
            gradient: found.gradient,
            limit,
            met: message.is_none() && within(found.output) && within(found.gradient),
            message,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// Why there is no check, apart from what it finds.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The configuration of its steps and runs.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its processes.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its random networks.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// A model of its own.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The disk, or the system's processes.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// `||a - b|| / ||b||`, in f64; not a number where either is not finite, infinite where their sizes differ.
fn deviation(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let pairs = || a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let difference: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
    let reference: f64 = pairs().map(|(_, b)| b * b).sum();
    if difference == 0.0 { 0.0 } else { (difference / reference).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_or_of_another_size_is_not_met() {
        let row = |output| {
            let found = Deviations { output: Some(output), gradient: None };
            Row::new(Part::Layers, "x", Compute::Fp32, Ok(found), 1e-3, Instant::now()).met
        };
        assert!(row(1e-3) && row(0.0));
        assert!(!row(1.1e-3));
        assert!(!row(deviation(&[1.0, f32::NAN], &[1.0, 1.0])));
        assert!(!row(deviation(&[1.0], &[1.0, 1.0])));
        assert!(!row(deviation(&[1.0], &[0.0])));
        assert_eq!(deviation(&[3.0, 0.0], &[3.0, 4.0]), 0.8);
        let failed = Row::new(Part::Step, "x", Compute::Fp32, Err("no".into()), f64::INFINITY, Instant::now());
        assert!(!failed.met);
    }
}
