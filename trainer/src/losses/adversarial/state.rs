//! What a discriminator gets from a step, and its state in a checkpoint.

use burn::optim::GradientsParams;
use serde::{Deserialize, Serialize};

use super::gan_loss::LeCam;
use crate::models::discriminator::BatchStatistics;
use crate::models::weights::StateDict;
use crate::optim::ScalerState;

/// The adversarial loss's state between steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdversarialState {
    /// The adaptive weight of the last step that had one.
    #[serde(rename = "balance")]
    pub adaptive_weight: Option<f64>,
    /// Moving averages of the logits.
    pub lecam: LeCam,
}

impl AdversarialState {
    /// The state before the first step; `lecam_decay` is the share of an average that one step keeps.
    pub fn new(lecam_decay: f64) -> Self {
        Self { adaptive_weight: None, lecam: LeCam::new(lecam_decay) }
    }
}

/// The gradient that trains the discriminator, from one effective batch.
#[derive(Default)]
pub struct DiscriminatorGradient {
    /// Gradient of its loss, mean over the samples, times its loss scale; in f32 at least.
    pub gradients: GradientsParams,
    /// The statistics of its norms, in order.
    pub statistics: Vec<BatchStatistics>,
}

/// A discriminator in training, as stored in a checkpoint.
pub struct SavedDiscriminator {
    /// Its weights.
    pub weights: StateDict,
    /// Its optimizer's state.
    pub optimizer: StateDict,
    /// The loss's state between steps.
    pub state: AdversarialState,
    /// Its loss scale.
    pub scaler: Option<ScalerState>,
}
