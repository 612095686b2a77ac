//! Fine-tunes a VQGAN with a large effective batch in the memory of one micro-batch.
//!
//! [`engine`] computes the gradient of an effective batch, [`training`] is the run around it, [`models`] and [`losses`] are
//! what it trains and what for, [`config`] is what a user says about all of it.

// First, for its macro.
#[macro_use]
mod terminal;

pub mod best;
pub mod check;
pub mod commands;
pub mod config;
pub mod data;
pub mod device;
mod download;
pub mod engine;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernels;
pub mod losses;
pub mod memory;
pub mod models;
pub mod optim;
mod panics;
pub mod precision;
pub mod pretrained;
mod problem;
pub mod progress;
pub mod random_networks;
pub mod reporting;
pub mod run_state;
pub mod samples;
pub mod ssim;
pub mod sweep;
pub mod training;
pub mod validation;
