//! Weights and run checkpoints.

pub mod run;
