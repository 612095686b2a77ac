//! Whole-program tests: the real binary on real files, and parity with the reference implementations.
#![allow(clippy::print_stdout, reason = "what a test prints is for whoever runs it")]

mod bad_input;
mod check;
mod command;
mod config;
mod disk;
#[cfg(unix)]
mod documentation;
mod dry_run;
mod evaluate;
mod export;
mod first_run;
mod gumbel;
mod habits;
mod hub;
mod killed;
mod losses;
mod memory;
mod parity;
mod pools;
mod precision;
mod reconstruct;
mod report;
mod resume;
mod run;
mod stand_in_hub;
mod stop;
mod sweep;
mod terminal;
