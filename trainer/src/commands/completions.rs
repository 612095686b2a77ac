//! `train completions SHELL`: completes verbs and options on the tab key.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{CommandError, CommandLine, print_line};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell that is to read the result
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<ExitCode, CommandError> {
    let mut script = Vec::new();
    generate(args.shell, &mut CommandLine::command(), "train", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
