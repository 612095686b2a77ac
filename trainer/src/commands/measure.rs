//! `train measure`: measures a few steps, as a child process of `train sweep` or `train plan`. Not shown in the help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{CommandError, print_line};
use crate::config;
use crate::memory::{Gradient, limit_address_space};
use crate::verification::sweep::measure::measure;

#[derive(Debug, Args)]
pub(super) struct MeasureArgs {
    #[arg(long)]
    config: String,
    /// An empty folder, or none yet
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    steps: u64,
    /// Write the first step's gradient
    #[arg(long)]
    write_gradient: Option<PathBuf>,
    /// Compare the first step's gradient
    #[arg(long, conflicts_with = "write_gradient")]
    compare_gradient: Option<PathBuf>,
    /// Weigh by micro-batch, which is wrong
    #[arg(long)]
    weigh_by_micro_batch: bool,
    /// Allocate no more bytes of addresses
    #[arg(long)]
    address_space: Option<u64>,
}

pub(super) fn run(args: &MeasureArgs) -> Result<ExitCode, CommandError> {
    args.address_space.into_iter().for_each(limit_address_space);
    let loaded = config::load(&args.config, &[])?;
    let gradient = match (&args.write_gradient, &args.compare_gradient) {
        (Some(path), _) => Gradient::Write(path.clone()),
        (None, Some(path)) => Gradient::Compare(path.clone()),
        (None, None) => Gradient::Ignore,
    };
    let measured = measure(&loaded, &args.run_dir, args.steps, gradient, args.weigh_by_micro_batch)?;
    print_line(&serde_json::json!(measured).to_string())?;
    Ok(ExitCode::SUCCESS)
}
