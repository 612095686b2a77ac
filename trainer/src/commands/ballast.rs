//! `train ballast`: occupies a device's memory, to test a run that has less of it. The help does not show it.

use std::io;
use std::process::ExitCode;

use clap::Args;

use super::{CommandError, parse_device, print_line};
use crate::config::Bytes;
use crate::device::Choice;
use crate::show::readable;

#[derive(Debug, Args)]
pub(super) struct BallastArgs {
    /// cuda:N
    #[arg(long, value_parser = parse_device)]
    device: Choice,
    /// What stays free, as in 4GiB
    #[arg(long, value_name = "SIZE")]
    leave: Bytes,
}

pub(super) fn run(args: &BallastArgs) -> Result<ExitCode, CommandError> {
    let selected = args.device.open()?;
    let ballast = selected.ballast(args.leave.0);
    let ballast = ballast.ok_or_else(|| CommandError::Usage(format!("{} has no ballast", args.device)))?;
    let _held = ballast.map_err(CommandError::Compute)?;
    let free = selected.memory().map_or("?".to_owned(), |memory| readable(memory.free));
    print_line(&format!("{free} are free until standard input ends"))?;
    let read = io::copy(&mut io::stdin(), &mut io::sink());
    read.map_err(|source| CommandError::Io { path: "standard input".to_owned(), source })?;
    Ok(ExitCode::SUCCESS)
}
