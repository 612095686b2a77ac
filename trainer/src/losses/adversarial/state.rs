//! What a discriminator takes from a step, and what of it is saved.

use burn::optim::GradientsParams;
use serde::{Deserialize, Serialize};

use super::gan_loss::LeCam;
use crate::models::discriminator::BatchStatistics;
use crate::models::weights::StateDict;
use crate::optim::ScalerState;

/// What the adversarial loss carries over from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdversarialState {
    /// The adaptive weight of the newest step that had one.
    #[serde(rename = "balance")]
    pub adaptive_weight: Option<f64>,
    /// Moving averages of the logits.
    pub lecam: LeCam,
}

impl AdversarialState {
    /// Before the first step; `lecam_decay` is the share of an average that one step leaves.
    pub fn new(lecam_decay: f64) -> Self {
        Self { adaptive_weight: None, lecam: LeCam::new(lecam_decay) }
    }
}

/// What a discriminator learns from an effective batch.
#[derive(Default)]
pub struct DiscriminatorGradient {
    /// Of its loss, mean over the samples, times its loss scale; in f32 at least.
    pub gradients: GradientsParams,
    /// What its norms saw, in order.
    pub statistics: Vec<BatchStatistics>,
}

/// A discriminator in training, as a checkpoint has it.
pub struct SavedDiscriminator {
    /// Its weights.
    pub weights: StateDict,
    /// Its optimizer's state.
    pub optimizer: StateDict,
    /// What the loss carries over.
    pub state: AdversarialState,
    /// Its loss scale.
    pub scaler: Option<ScalerState>,
}
