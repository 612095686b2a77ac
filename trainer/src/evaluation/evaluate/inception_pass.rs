//! What InceptionV3 measures in a pass: rFID and the Inception Score.

use std::path::Path;

use burn::tensor::Tensor;
use checkpoints::NpzError;
use serde::{Deserialize, Serialize};

use super::EvaluationError;
use super::frechet::{FeatureSums, Statistics, frechet_distance};
use super::inception_score::{ClassSums, InceptionScore, SPLITS};
use crate::models::inception::{Inception, InceptionOutput, WIDTH};

/// The file, in the folder of the progress, with the statistics of the originals.
pub const ORIGINALS: &str = "originals.npz";

/// The network, and what the reconstructions are compared with.
pub struct InceptionJudge<'a> {
    /// The network.
    pub network: &'a Inception,
    /// The statistics of the reference; `None` takes those of the originals, in the same pass.
    pub reference: Option<Statistics>,
}

/// What was measured of a micro-batch, row by row: features `[N, 2048]`, logits `[N, 1008]`.
pub(super) struct InceptionMeasured {
    originals: Option<Vec<f32>>,
    reconstructions: Vec<f32>,
    logits: Vec<f32>,
}

/// The sums of a pass.
pub(super) struct InceptionSums {
    originals: Option<FeatureSums>,
    reconstructions: FeatureSums,
    classes: ClassSums,
    /// The files that the next save writes: not those of the last one.
    slot: u8,
}

/// What is saved of the sums beside their files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct InceptionState {
    classes: ClassSums,
    slot: u8,
}

impl InceptionJudge<'_> {
    /// Measures images and their reconstructions, `[N, 3, H, W]` in -1..1.
    ///
    /// # Errors
    /// What the device says.
    pub(super) fn measure(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Result<InceptionMeasured, String> {
        let read = |rows: Tensor<2>| rows.try_into_vec_as::<f32>().map_err(|error| error.to_string());
        let originals = self.reference.is_none().then(|| read(self.network.forward(original).features)).transpose()?;
        let InceptionOutput { features, logits } = self.network.forward(reconstruction);
        Ok(InceptionMeasured { originals, reconstructions: read(features)?, logits: read(logits)? })
    }

    /// The sums at the beginning of a pass, or where it was saved.
    pub(super) fn resume(&self, folder: &Path, saved: Option<&InceptionState>) -> Result<InceptionSums, NpzError> {
        let needs_originals = self.reference.is_none();
        let Some(InceptionState { classes, slot }) = saved else {
            return Ok(InceptionSums {
                originals: needs_originals.then(|| FeatureSums::new(WIDTH)),
                reconstructions: FeatureSums::new(WIDTH),
                classes: ClassSums::new(SPLITS),
                slot: 0,
            });
        };
        let read = |name: &str| FeatureSums::read(&folder.join(file(name, *slot)), WIDTH);
        Ok(InceptionSums {
            originals: needs_originals.then(|| read("originals")).transpose()?,
            reconstructions: read("reconstructions")?,
            classes: classes.clone(),
            slot: 1 - slot,
        })
    }

    /// Returns rFID, if it is finite, and the Inception Score of the reconstructions. Writes the statistics of the originals
    /// if this pass has taken them.
    pub(super) fn result(
        &self,
        sums: &InceptionSums,
        folder: &Path,
    ) -> Result<(Option<f64>, Option<InceptionScore>), EvaluationError> {
        let reconstructions = sums.reconstructions.statistics().map_err(EvaluationError::Device)?;
        let own = sums.originals.as_ref().map(FeatureSums::statistics).transpose().map_err(EvaluationError::Device)?;
        if let Some(own) = &own {
            own.write(&folder.join(ORIGINALS))?;
        }
        let distance = match self.reference.as_ref().or(own.as_ref()) {
            Some(reference) => frechet_distance(reference, &reconstructions).map_err(EvaluationError::Device)?,
            None => None,
        };
        Ok((distance, sums.classes.score()))
    }
}

impl InceptionSums {
    /// Adds a micro-batch by the positions of its images.
    pub(super) fn add(&mut self, positions: &[u64], measured: &InceptionMeasured) {
        let classes = measured.logits.len() / positions.len().max(1);
        for (position, logits) in positions.iter().zip(measured.logits.chunks_exact(classes.max(1))) {
            self.classes.add(*position, logits);
        }
        if let Some((sums, features)) = self.originals.as_mut().zip(measured.originals.as_ref()) {
            sums.add(features);
        }
        self.reconstructions.add(&measured.reconstructions);
    }

    /// Writes the sums of features beside those of the last save, which stay until the state that is returned is saved.
    pub(super) fn save(&mut self, folder: &Path) -> Result<InceptionState, NpzError> {
        let slot = self.slot;
        self.reconstructions.write(&folder.join(file("reconstructions", slot)))?;
        if let Some(originals) = &self.originals {
            originals.write(&folder.join(file("originals", slot)))?;
        }
        self.slot = 1 - slot;
        Ok(InceptionState { classes: self.classes.clone(), slot })
    }
}

fn file(name: &str, slot: u8) -> String {
    format!("{name}-features-{slot}.npz")
}
