//! Weights and run checkpoints.
