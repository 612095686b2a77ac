//! The command line: a file for each verb, with its arguments, what it prints and its exit code. It may use all other
//! modules, and none uses it.

mod ballast;
mod check;
mod completions;
mod config;
mod devices;
mod dry_run;
mod evaluate;
mod export;
mod finished_run;
mod habits;
mod images;
mod init;
mod man;
mod measure;
mod overrides;
mod plan;
mod reconstruct;
mod report;
mod signals;
mod sweep;
mod train;

use std::convert::Infallible;
use std::ffi::OsString;
use std::panic;
use std::process::ExitCode;
#[cfg(unix)]
use std::sync::{Arc, atomic::AtomicBool};

use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::json;

use crate::config::{ConfigError, Origin, Override};
use crate::device::panics;
use crate::device::{Choice, DeviceError};
use crate::evaluation::evaluate::EvaluationError;
use crate::losses::load::LossError;
use crate::memory::MemoryError;
use crate::show::terminal::{self, Color, Verbosity, write_error, write_result};
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
    #[command(flatten)]
    said: Said,
}

/// What is said on stderr.
#[derive(Debug, Args)]
struct Said {
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 1000)]
    quiet: bool,
    /// Say more on stderr: a line for every step
    #[arg(short, long, global = true, display_order = 1000)]
    verbose: bool,
    /// When to use colours: auto, always or never; auto is on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        display_order = 1000
    )]
    color: Color,
}

impl Said {
    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a configuration for this machine, to start from
    Init(init::InitArgs),
    /// Encode and decode images with a trained model
    Reconstruct(reconstruct::ReconstructArgs),
    /// Measure how well models reconstruct images: PSNR, SSIM, LPIPS, CLIP, captions, CMMD, use of the codes
    Evaluate(Box<evaluate::EvaluateArgs>),
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
    /// Print what a shell reads to complete verbs and options
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write those of all verbs
    Man(man::ManArgs),
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
    Evaluation(#[from] EvaluationError),
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
    /// The file and the line of a configuration that are wrong.
    fn place(&self) -> Option<(&str, usize)> {
        let error = match self {
            Self::Config(error) | Self::Train(TrainError::Config(error)) => error,
            Self::Sweep(SweepError::Config(error)) | Self::Check(CheckError::Config(error)) => error,
            Self::Memory(MemoryError::Config(error))
            | Self::Sweep(SweepError::Measuring(MemoryError::Config(error))) => error,
            _ => return None,
        };
        match error {
            ConfigError::Wrong { place: Origin::Line { file, line }, .. } => Some((file, *line)),
            _ => None,
        }
    }

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

/// Runs the command line of this process. Results go to stdout, all else to stderr. With `--json` an error is an object on
/// stdout too: `error`, `exit_code`, and `file` and `line` where they are known.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    let command_line = match parse(&arguments) {
        Ok(command_line) => command_line,
        Err(error) => {
            if wants_json && error.use_stderr() {
                print_error(&first_paragraph(&error.to_string()), WRONG_USAGE, None);
            }
            error.exit()
        }
    };
    terminal::set_up(command_line.said.verbosity(), command_line.said.color);
    panics::record();
    exit_on_abort();
    match panic::catch_unwind(|| dispatch(&command_line)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            if wants_json {
                print_error(&error.to_string(), error.exit_code(), error.place());
            }
            write_error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
        Err(_) => {
            let message = format!("this should not happen; RUST_BACKTRACE=1 shows where: {}", panics::last());
            if wants_json {
                print_error(&message, 1, None);
            }
            write_error(&message);
            ExitCode::FAILURE
        }
    }
}

/// Parses a command line; what it says of an error has colours as `--color` asks.
fn parse(arguments: &[OsString]) -> Result<CommandLine, clap::Error> {
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    let color = arguments.iter().map(text).zip(arguments.iter().skip(1).map(text).chain([String::new()]));
    let color = color.into_iter().find_map(|(argument, next)| match argument.strip_prefix("--color") {
        Some("") => Some(next),
        Some(value) => value.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    let color = match color.as_deref() {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    };
    let matches = CommandLine::command().color(color).try_get_matches_from(arguments)?;
    CommandLine::from_arg_matches(&matches)
}

/// What clap says of an error, without the usage that follows.
fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

fn print_error(message: &str, exit_code: u8, place: Option<(&str, usize)>) {
    let mut error = json!({ "error": message, "exit_code": exit_code });
    if let Some((file, line)) = place {
        error["file"] = json!(file);
        error["line"] = json!(line);
    }
    // The error is on stderr as well.
    let _ = print_json(&error);
}

fn dispatch(command_line: &CommandLine) -> Result<ExitCode, CommandError> {
    match &command_line.verb {
        None => train::run(&command_line.train),
        Some(Verb::Init(args)) => init::run(args),
        Some(Verb::Reconstruct(args)) => reconstruct::run(args),
        Some(Verb::Evaluate(args)) => evaluate::run(args),
        Some(Verb::Export(args)) => export::run(args),
        Some(Verb::Report(args)) => report::run(args),
        Some(Verb::Sweep(args)) => sweep::run(args),
        Some(Verb::Plan(args)) => plan::run(args),
        Some(Verb::Measure(args)) => measure::run(args),
        Some(Verb::Config(args)) => config::run(args),
        Some(Verb::Devices(args)) => devices::run(args),
        Some(Verb::Check(args)) => check::run(args),
        Some(Verb::Completions(args)) => completions::run(args),
        Some(Verb::Man(args)) => man::run(args),
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

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
