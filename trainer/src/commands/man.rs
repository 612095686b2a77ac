//! `train man`: manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_mangen::{Man, generate_to};

use super::{CommandError, CommandLine, print_line};

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write a page for each verb into this folder: train.1, train-sweep.1 and so on
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs) -> Result<ExitCode, CommandError> {
    let command = CommandLine::command();
    let Some(folder) = &args.output else {
        let mut page = Vec::new();
        let written = Man::new(command).render(&mut page);
        written.map_err(|source| CommandError::Io { path: "train.1".to_owned(), source })?;
        print_line(String::from_utf8_lossy(&page).trim_end())?;
        return Ok(ExitCode::SUCCESS);
    };
    let written = std::fs::create_dir_all(folder).and_then(|()| generate_to(command, folder));
    written.map_err(|source| CommandError::Io { path: folder.display().to_string(), source })?;
    print_line(&folder.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}
