//! The command line: a file for each verb, with its arguments, what it prints and its exit code. It may use all other
//! modules, and none uses it.

mod ballast;
mod check;
mod config;
mod devices;
mod dry_run;
mod export;
mod finished_run;
mod habits;
mod images;
mod init;
mod measure;
mod overrides;
mod plan;
mod reconstruct;
mod report;
mod signals;
mod sweep;
mod train;

use std::convert::Infallible;
use std::panic;
use std::process::ExitCode;
#[cfg(unix)]
use std::sync::{Arc, atomic::AtomicBool};

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Override};
use crate::device::panics;
use crate::device::{Choice, DeviceError};
use crate::losses::load::LossError;
use crate::memory::MemoryError;
use crate::show::terminal::write_result;
use crate::training::TrainError;
use crate::training::pretrained::PretrainedError;
use crate::verification::check::CheckError;
use crate::verification::sweep::SweepError;
use crate::verification::sweep::measure::MeasureError;

/// Exit code of a usage or configuration error.
const WRONG_USAGE: u8 = 2;

/// Exit code of a sweep in which a bar that the user set is not met.
const BAR_NOT_MET: u8 = 3;

/// Fine-tunes a VQGAN with a large effective batch in the memory of one micro-batch.
#[derive(Debug, Parser)]
#[command(name = "train", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CommandLine {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    train: train::TrainArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a configuration for this machine, to start from
    Init(init::InitArgs),
    /// Encode and decode images with a trained model
    Reconstruct(reconstruct::ReconstructArgs),
    /// Write a trained model in the form that taming-transformers, LlamaGen or diffusers load
    Export(export::ExportArgs),
    /// Write a page to read one or several runs by: curves, samples, what differs
    Report(report::ReportArgs),
    /// Measure memory, speed and the gradient's exactness at other micro-batches, precisions and resolutions
    Sweep(Box<sweep::SweepArgs>),
    /// Say what other micro-batches would take, from a few measured steps
    Plan(plan::PlanArgs),
    /// Measure one row of a sweep
    #[command(hide = true)]
    Measure(measure::MeasureArgs),
    /// Print the built-in configurations, and what keys of a configuration do
    Config(config::ConfigArgs),
    /// List the devices that this program can compute on
    Devices(devices::DevicesArgs),
    /// Check that a device computes the same results as the CPU
    Check(check::CheckArgs),
    /// Occupy a device's memory until standard input ends
    #[command(hide = true)]
    Ballast(ballast::BallastArgs),
    /// What is no verb
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

#[derive(Debug, Args)]
struct Json {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("--device: {0}")]
    Device(#[from] DeviceError),
    #[error("--checkpoint: {0}")]
    Checkpoint(#[from] PretrainedError),
    #[error(transparent)]
    Weights(#[from] checkpoints::WeightsError),
    #[error(transparent)]
    Tensors(checkpoints::SafetensorsError),
    #[error(transparent)]
    Model(#[from] crate::models::weights::ModelError),
    #[error(transparent)]
    Write(#[from] checkpoints::run::RunError),
    #[error(transparent)]
    Image(#[from] datasets::ImageError),
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    #[error("{option}: {source}")]
    Judge { option: &'static str, source: Box<LossError> },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Sweep(#[from] SweepError),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("the device failed: {0}")]
    Compute(String),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => WRONG_USAGE,
            Self::Device(DeviceError::Unknown(_) | DeviceError::NotBuiltIn { .. }) => WRONG_USAGE,
            Self::Train(TrainError::Config(_) | TrainError::Architecture(_) | TrainError::Changed(_)) => WRONG_USAGE,
            Self::Train(TrainError::Occupied(_) | TrainError::NothingToResume(_)) => WRONG_USAGE,
            Self::Train(TrainError::Device(DeviceError::NotBuiltIn { .. })) => WRONG_USAGE,
            Self::Train(TrainError::Freezing(_) | TrainError::NoTerminal(_)) => WRONG_USAGE,
            Self::Train(TrainError::Loss(error)) if error.is_wrong_usage() => WRONG_USAGE,
            Self::Judge { source, .. } if source.is_wrong_usage() => WRONG_USAGE,
            Self::Train(TrainError::Pretrained(error)) | Self::Checkpoint(error) if error.is_wrong_usage() => {
                WRONG_USAGE
            }
            Self::Sweep(SweepError::Config(_) | SweepError::NoRows | SweepError::Baseline { .. }) => WRONG_USAGE,
            Self::Memory(error) | Self::Sweep(SweepError::Measuring(error)) if error.is_wrong_usage() => WRONG_USAGE,
            Self::Check(CheckError::Config(_)) => WRONG_USAGE,
            Self::Check(CheckError::Random(error)) if error.is_wrong_usage() => WRONG_USAGE,
            _ => 1,
        }
    }
}

/// Runs the command line of this process. Results go to stdout, all else to stderr.
pub fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    panics::record();
    exit_on_abort();
    match panic::catch_unwind(|| dispatch(&command_line)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            note!("error: {error}");
            ExitCode::from(error.exit_code())
        }
        Err(_) => {
            note!("error: this should not happen; RUST_BACKTRACE=1 shows where: {}", panics::last());
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command_line: &CommandLine) -> Result<ExitCode, CommandError> {
    match &command_line.verb {
        None => train::run(&command_line.train),
        Some(Verb::Init(args)) => init::run(args),
        Some(Verb::Reconstruct(args)) => reconstruct::run(args),
        Some(Verb::Export(args)) => export::run(args),
        Some(Verb::Report(args)) => report::run(args),
        Some(Verb::Sweep(args)) => sweep::run(args),
        Some(Verb::Plan(args)) => plan::run(args),
        Some(Verb::Measure(args)) => measure::run(args),
        Some(Verb::Config(args)) => config::run(args),
        Some(Verb::Devices(args)) => devices::run(args),
        Some(Verb::Check(args)) => check::run(args),
        Some(Verb::Ballast(args)) => ballast::run(args),
        Some(Verb::Unknown(words)) => Err(habits::unknown_verb(words)),
    }
}

/// Makes an abort, which is what Rust does if an allocation fails, end the program like any other error: with a line
/// about the size of the allocation, and exit code 1.
#[cfg(unix)]
fn exit_on_abort() {
    use signal_hook::consts::SIGABRT;
    use signal_hook::flag::register_conditional_shutdown;
    // Without this handler the program ends by a signal.
    let _ = register_conditional_shutdown(SIGABRT, 1, Arc::new(AtomicBool::new(true)));
}

#[cfg(not(unix))]
fn exit_on_abort() {}

/// An option that was renamed. The error that refuses it names the new option.
#[derive(Debug, Args)]
struct Renamed {
    #[arg(long = "checkpoint", hide = true, num_args = 0..=1, default_missing_value = "", value_parser = renamed)]
    _checkpoint: Option<Infallible>,
}

fn renamed(_: &str) -> Result<Infallible, &'static str> {
    Err("the name of this option is now --recompute")
}

fn parse_override(text: &str) -> Result<Override, String> {
    text.parse()
}

fn parse_device(text: &str) -> Result<Choice, String> {
    text.parse().map_err(|error: DeviceError| error.to_string())
}

fn print_json(value: &serde_json::Value) -> Result<(), CommandError> {
    print_line(&format!("{value:#}"))
}

/// Writes a line of a result to stdout. A reader that closes the pipe early, such as `head`, and a terminal that is
/// gone are no errors; a full disk is one.
fn print_line(line: &str) -> Result<(), CommandError> {
    write_result(line)
        .map_err(|source| CommandError::Io { path: "cannot write the result to stdout".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
