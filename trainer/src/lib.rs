//! Fine-tunes a VQGAN with a large effective batch in the memory of one micro-batch.
//!
//! [`engine`] computes the gradient of an effective batch, [`training`] is the run around it, [`models`] and [`losses`] are
//! what it trains and what for, [`config`] is what a user says about all of it. Modules stand here from the top down: each uses
//! those below it and none above.

// First, for its macro.
#[macro_use]
mod show;

pub mod commands;
pub mod verification;

pub mod training;

pub mod evaluation;
pub mod memory;

pub mod data;

pub mod config;
pub mod engine;
pub mod losses;
pub mod optim;

pub mod device;
pub mod models;
pub mod precision;
mod problem;
