//! The settings in which measurements of one configuration differ.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::{Compute, Config, Micro, Recompute, SweepConfig};

/// The values of a configuration that a measurement varies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// `batch.micro`
    pub micro: usize,
    /// `batch.effective`
    pub effective: usize,
    /// `precision.compute`
    pub precision: Compute,
    /// `data.resolution`, in pixels.
    pub resolution: u32,
    /// `memory.recompute`, whose name was once `memory.checkpoint`.
    #[serde(alias = "checkpoint")]
    pub recompute: Recompute,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { micro, effective, precision, resolution, recompute } = self;
        write!(f, "micro {micro} of {effective}, {precision}, {resolution} px, recompute {recompute}")
    }
}

impl Variant {
    /// The values that `config` has; `batch.micro = "auto"` counts as 1.
    pub fn of(config: &Config) -> Self {
        Self {
            micro: config.batch.micro.samples().unwrap_or(1),
            effective: config.batch.effective,
            precision: config.precision.compute,
            resolution: config.data.resolution,
            recompute: config.memory.recompute,
        }
    }

    /// `config` with these values. Every loss that is on counts from the first step, so that a few steps show what the whole
    /// run needs.
    pub fn apply(&self, config: &Config) -> Config {
        let mut config = config.clone();
        // Enough for the steps that replace skipped ones.
        config.run.steps = config.run.steps.max(1000);
        config.batch.micro = Micro::Samples(self.micro);
        config.memory.limit = None;
        config.batch.effective = self.effective;
        config.precision.compute = self.precision;
        config.data.resolution = self.resolution;
        config.memory.recompute = self.recompute;
        config.sweep = SweepConfig::default();
        config.losses.all_from_the_first_step();
        config.discriminator.start = None;
        config
    }

    /// What it is compared with: the same effective batch in f32, one image at a time, with the same recomputation.
    pub fn reference(self) -> Self {
        Self { micro: 1, precision: Compute::Fp32, ..self }
    }
}
