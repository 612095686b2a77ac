//! Fine-tunes a VQGAN with a large effective batch in the memory of one micro-batch.
//!
//! [`engine`] computes the gradient of an effective batch, [`training`] is the run around it, [`models`] and [`losses`] are
//! what it trains and what for, [`config`] is what a user says about all of it.

// First, for its macro.
#[macro_use]
mod terminal;

pub mod adversary;
pub mod best;
pub mod check;
pub mod commands;
pub mod config;
pub mod cutouts;
pub mod data;
pub mod device;
mod download;
pub mod ema;
pub mod engine;
pub mod freezing;
pub mod gradients;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernels;
pub mod losses;
pub mod lr_schedule;
pub mod memory;
pub mod models;
pub mod optimizer;
mod panics;
pub mod precision;
pub mod pretrained;
pub mod progress;
pub mod random_networks;
pub mod reporting;
pub mod run_state;
pub mod samples;
pub mod ssim;
pub mod sweep;
pub mod training;
pub mod validation;
