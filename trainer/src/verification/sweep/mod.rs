//! `train sweep`: memory, speed and the exactness of the gradient at other micro-batches, precisions and resolutions.
//!
//! Each row is a run of a few steps in a process of its own, so that a row that runs out of memory is a row like any other.

mod bars;
pub mod gradient_file;
pub mod measure;
mod output;
mod rows;
mod run;

pub use bars::{Bars, judge, unmet_lines};
pub use output::{Report, markdown, table};
pub use rows::{Bar, Row, Sweep, SweepError};
pub use run::{run, variants};
