//! What a run takes at other cuts, precisions and resolutions, and whether its gradient stays the same: `train sweep`.
//!
//! Each row is a run of a few steps in a process of its own, so that one that dies of its memory is a row like any other.

mod bars;
mod child;
pub mod gradient_file;
pub mod measure;
mod output;
pub mod random;
mod rows;

pub use bars::{Bar, Bars, judge, unmet_lines};
pub use child::{Children, Stopped};
pub use output::{Report, markdown, table};
pub(crate) use rows::measure_cut;
pub use rows::{Cut, Row, Status, Sweep, SweepError, cuts, reference_of, run};
