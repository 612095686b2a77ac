//! Shows a run: TensorBoard's event files while it is going on, and an HTML page made from the files in its folder.
//!
//! Nothing here depends on the trainer.

mod curve;
pub mod keys;
mod page;
mod run;
pub mod tensorboard;

pub use curve::Curve;
pub use page::{MOST_RUNS, page};
pub use run::{NoRun, Run, Sample};
