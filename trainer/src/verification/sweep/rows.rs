//! The rows of a sweep and what they are held to. Data only: `sweep.json` has it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigError, Recompute};
use crate::memory::{MemoryError, Status, Variant};

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The values that it varies.
    #[serde(flatten)]
    pub variant: Variant,
    /// The other recomputation, in a row that compares two references. Such a row has a deviation and a loss alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Recompute>,
    /// How its measurement ended.
    #[serde(flatten)]
    pub status: Status,
    /// Bytes, without those for the comparison with the reference.
    pub peak_memory: Option<u64>,
    /// Over all steps but the first.
    pub images_per_second: Option<f64>,
    /// The deviation of the first step's whole gradient from the reference's, `||a - b|| / ||b||`.
    pub deviation: Option<f64>,
    /// The same of the generator alone.
    pub deviation_generator: Option<f64>,
    /// The same of the discriminator alone.
    pub deviation_discriminator: Option<f64>,
    /// The loss of the first step.
    pub loss: Option<f64>,
    /// Steps that overflowed and were skipped, on top of those that were asked for.
    pub skipped: Option<u64>,
    /// Bytes by phase.
    pub memory: Map<String, Value>,
    /// How long the row took, with its start.
    pub seconds: f64,
}

impl Row {
    /// Its name among the rows of its sweep.
    pub fn name(&self) -> String {
        match self.against {
            Some(other) => format!("{} against {other}", self.variant),
            None => self.variant.to_string(),
        }
    }

    /// Whether `other` is the same row of another sweep.
    pub fn is_as(&self, other: &Row) -> bool {
        (self.variant, self.against) == (other.variant, other.against)
    }
}

/// The reference for the rows of one effective batch, resolution and recomputation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// How it was computed.
    #[serde(flatten)]
    pub variant: Variant,
    /// How its measurement ended; unless it is `ok`, its rows have no deviation.
    #[serde(flatten)]
    pub status: Status,
    /// The loss of the first step.
    pub loss: Option<f64>,
    /// The file of its gradient, while the sweep runs.
    #[serde(skip)]
    pub(super) gradient: PathBuf,
}

/// A whole sweep, as `sweep.json` has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sweep {
    /// The configuration's name.
    pub config: String,
    /// The device, in words, if any row got so far.
    pub device: Option<String>,
    /// Which networks had random weights, if any had.
    pub random_weights: Vec<String>,
    /// Optimizer steps of each row.
    pub steps: u64,
    /// What the rows were compared with.
    pub references: Vec<Reference>,
    /// By resolution, effective batch, precision, recomputation and micro-batch, each in the order asked for. Then come rows that
    /// compare the references with and without recomputation, where both were asked for.
    pub rows: Vec<Row>,
    /// What each row was held to.
    #[serde(default)]
    pub bars: Vec<Bar>,
}

/// A row held to a bar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// `max_memory`, `max_deviation`, `min_images_per_second`, `baseline_memory` or `baseline_speed`.
    pub bar: String,
    /// The row's number, counted from 0.
    pub row: usize,
    /// The most or the least that is let pass.
    pub limit: f64,
    /// What the row has; nothing if it has no such figure.
    pub value: Option<f64>,
    /// Whether it is let pass.
    pub met: bool,
    /// In words.
    pub text: String,
}

/// Why there is no sweep, apart from what becomes of single rows.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its rows could not be measured.
    #[error(transparent)]
    Measuring(#[from] MemoryError),
    /// Every combination has a micro-batch that exceeds its effective batch.
    #[error("no row is left: every micro-batch exceeds the effective batch")]
    NoRows,
    /// A baseline that cannot be read.
    #[error("--baseline {}: {message}", path.display())]
    Baseline {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// `1.2e-7`; a plain 0 for no deviation at all.
pub(super) fn deviation_text(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{value:.1e}") }
}

/// Three digits, which is as well as it can be known.
pub(super) fn speed_text(value: f64) -> String {
    let digits = match value {
        100.0.. => 0,
        10.0..100.0 => 1,
        0.1..10.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Compute;

    pub(in crate::verification::sweep) fn row(micro: usize, status: Status, measured: Option<(u64, f64, f64)>) -> Row {
        Row {
            variant: Variant {
                micro,
                effective: 8,
                precision: Compute::Fp32,
                resolution: 32,
                recompute: Recompute::None,
            },
            against: None,
            status,
            peak_memory: measured.map(|(peak, _, _)| peak),
            images_per_second: measured.map(|(_, speed, _)| speed),
            deviation: measured.map(|(_, _, deviation)| deviation),
            deviation_generator: measured.map(|(_, _, deviation)| deviation),
            deviation_discriminator: None,
            loss: measured.map(|_| 0.25),
            skipped: measured.map(|_| 0),
            memory: Map::new(),
            seconds: 1.5,
        }
    }

    pub(in crate::verification::sweep) fn sweep(rows: Vec<Row>) -> Sweep {
        Sweep {
            config: "ci.toml".into(),
            device: Some("cpu, 2 threads".into()),
            random_weights: Vec::new(),
            steps: 3,
            references: Vec::new(),
            rows,
            bars: Vec::new(),
        }
    }

    #[test]
    fn the_rows_of_an_earlier_sweep_are_read() {
        let row = row(2, Status::OutOfMemory("much".into()), None);
        let json = serde_json::to_string(&row).unwrap();
        assert!(json.contains(r#""recompute":"none""#), "{json}");
        let older = json.replace("recompute", "checkpoint");
        assert_eq!(serde_json::from_str::<Row>(&older).unwrap(), row);
    }
}
