//! `train report`: writes one page that shows one or several runs.

use std::path::PathBuf;
use std::process::ExitCode;

use checkpoints::run::atomic_write;
use clap::Args;
use report::{MOST_RUNS, Run, page};
use serde_json::{Value, json};

use super::{CommandError, Json, print_json, print_line};
use crate::losses::METRICS;

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Folders of runs; several are shown side by side
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File to write [default: report.html, in the run's folder or for several runs in the current one]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &ReportArgs) -> Result<ExitCode, CommandError> {
    if args.runs.len() > MOST_RUNS {
        let asked = args.runs.len();
        return Err(CommandError::Usage(format!(
            "{asked} runs: a page shows {MOST_RUNS} at most, as more colours cannot be told apart"
        )));
    }
    let read = |folder: &PathBuf| Run::read(folder, &METRICS).map_err(|error| CommandError::Usage(error.to_string()));
    let runs = args.runs.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let output = match (&args.output, &args.runs[..]) {
        (Some(output), _) => output.clone(),
        (None, [only]) => only.join("report.html"),
        (None, _) => PathBuf::from("report.html"),
    };
    for run in &runs {
        run.notes.iter().for_each(|note| note!("{}: {note}", run.name));
    }
    atomic_write(&output, page(&runs).as_bytes())?;
    match args.json.json {
        true => print_json(&json!({ "output": output, "runs": runs.iter().map(as_json).collect::<Vec<_>>() })),
        false => print_line(&output.display().to_string()),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(run: &Run) -> Value {
    let last = |name: &str| run.curves.get(name).and_then(|curve| curve.last());
    let metrics: serde_json::Map<String, Value> =
        run.curves.keys().map(|name| (name.clone(), json!(last(name)))).collect();
    json!({
        "name": run.name,
        "step": run.step,
        "steps": run.steps,
        "finished": run.is_finished(),
        "last": metrics,
        "samples": run.samples.len(),
        "notes": run.notes,
    })
}
