//! The memory of an optimizer step: measure it, keep it within a limit, plan it, choose the micro-batch by it, and go on
//! with less when it runs out.
//!
//! What can be said without running a step belongs here. Steps run in [`training`](crate::training), which uses this module, as
//! [`verification`](crate::verification) and the commands do. It knows configuration, devices, losses and models.

mod advice;
mod cache;
mod child;
mod choose;
mod error;
mod fit;
mod forward;
mod limit;
mod measurement;
mod measurer;
mod meter;
mod plan;
pub mod random_networks;
mod recovery;
mod settings;
mod variant;

pub use advice::would_help;
pub use cache::CacheEntry;
pub use child::{Children, Stopped};
pub use choose::{Chosen, choose};
pub use error::{Exhausted, MemoryError};
pub use forward::{Attempt, ForwardMicro};
pub use limit::{Limit, limit_address_space};
pub use measurement::{Deviation, Gradient, Measurement, Status};
pub use measurer::{Measured, Measurer};
pub use meter::MemoryMeter;
pub use plan::{Plan, PlanRow, plan};
pub use recovery::{Recovery, Shortage, clear_pools};
pub use settings::{MemorySettings, depends_on_micro};
pub use variant::Variant;
