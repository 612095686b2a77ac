//! Turns gradients into new weights: sums, norms and clipping, optimizers and schedules, the loss scale, the average of
//! the weights, and which parameters are trained. Depends on models and precision only.

mod config;
mod ema;
mod freezing;
mod gradients;
mod optimizer;
mod scaler;
mod schedule;

pub use config::{
    OptimizerConfig, OptimizerName, PartialOptimizerConfig, PartialScheduleConfig, ScheduleConfig, ScheduleKind,
};
pub use ema::Ema;
pub use freezing::{FreezingError, Trainable, check_pattern, freeze};
pub use gradients::{
    GradientSum, add_gradients, global_norm, norms_by_block, overflow_as, relative_deviation, unscale_and_clip,
};
pub use optimizer::ModelOptimizer;
pub(crate) use optimizer::{MOMENT_1, MOMENT_2, TIME};
pub use scaler::{LossScaler, ScalerState};
pub use schedule::LrSchedule;
