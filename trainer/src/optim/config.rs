//! `[optimizer]` and `[schedule]`, and the keys that the discriminator can override.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[optimizer]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The algorithm.
    pub name: OptimizerName,
    /// The highest learning rate of the schedule.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub learning_rate: f64,
    /// Decay of the running mean and of the running square.
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    pub betas: [f64; 2],
    /// Guard against division by zero.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub epsilon: f64,
    /// Weight decay: decoupled in `adamw`, part of the gradient in `adam`.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 does not clip.
    #[schemars(range(min = 0.0))]
    pub clip_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adam,
            learning_rate: 4.5e-6 * 16.0,
            betas: [0.5, 0.9],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
        }
    }
}

/// An algorithm of `[optimizer]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Kingma and Ba 2014, arXiv 1412.6980.
    Adam,
    /// Loshchilov and Hutter 2017, arXiv 1711.05101.
    AdamW,
}

/// `[schedule]`, in optimizer steps.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the learning rate grows from 0.
    pub warmup: u64,
    /// Learning rate of the last step, as a share of the highest; `constant` does not use it. Without it the rate
    /// reaches 0 one step after the last step, so that every step has an effect.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<f64>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Constant, warmup: 0, last: None }
    }
}

/// The shape of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// The rate stays the same.
    Constant,
    /// Half a cosine (Loshchilov and Hutter 2016, arXiv 1608.03983).
    Cosine,
    /// A straight line.
    Linear,
}

/// `[discriminator.optimizer]`: a key that is not set has the value of `[optimizer]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PartialOptimizerConfig {
    /// The algorithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<OptimizerName>,
    /// Highest learning rate of the schedule.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Decay of the running mean and of the running square.
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Guard against division by zero.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// Weight decay: decoupled in `adamw`, part of the gradient in `adam`.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Largest global norm of the gradient; 0 does not clip.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

impl PartialOptimizerConfig {
    /// Returns the keys that are set here, and the other keys of `base`.
    pub fn over(&self, base: &OptimizerConfig) -> OptimizerConfig {
        OptimizerConfig {
            name: self.name.unwrap_or(base.name),
            learning_rate: self.learning_rate.unwrap_or(base.learning_rate),
            betas: self.betas.unwrap_or(base.betas),
            epsilon: self.epsilon.unwrap_or(base.epsilon),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            clip_norm: self.clip_norm.unwrap_or(base.clip_norm),
        }
    }
}

/// `[discriminator.schedule]`, in optimizer steps: a key that is not set has the value of `[schedule]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PartialScheduleConfig {
    /// The shape after the warm-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ScheduleKind>,
    /// Steps over which the learning rate grows from nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<u64>,
    /// Learning rate of the last step, as a share of the highest; `constant` does not use it.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<f64>,
}

impl PartialScheduleConfig {
    /// Returns the keys that are set here, and the other keys of `base`.
    pub fn over(&self, base: &ScheduleConfig) -> ScheduleConfig {
        ScheduleConfig {
            kind: self.kind.unwrap_or(base.kind),
            warmup: self.warmup.unwrap_or(base.warmup),
            last: self.last.or(base.last),
        }
    }
}
