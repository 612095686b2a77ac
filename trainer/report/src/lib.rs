//! What a run's folder shows of the run: TensorBoard's event files while it goes on, and a page to read in a browser.
//!
//! Neither needs the trainer: all is read from the files that a run leaves.

pub mod keys;
pub mod tensorboard;

