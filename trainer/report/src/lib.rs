//! What a run's folder shows of the run: TensorBoard's event files while it goes on, and a page to read in a browser.
//!
//! Neither needs the trainer: all is read from the files that a run leaves.

mod curve;
pub mod keys;
mod page;
mod run;
pub mod tensorboard;

pub use curve::Curve;
pub use page::{MOST_RUNS, page};
pub use run::{NoRun, Run, Sample};
