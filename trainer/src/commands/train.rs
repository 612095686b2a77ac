//! `train --config NAME`: the main job.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use burn_train::Interrupter;
use clap::Args;
use serde_json::json;

use super::{CommandError, INTERRUPTED, Json, parse_device, parse_override, print_json, print_line};
use crate::config::{self, Override};
use crate::device::Choice;
use crate::training::{Options, Outcome, train};
use crate::validation::Scores;

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Configuration: a TOML file, a name in configs/, or a built-in name such as tiny-cpu.toml; with --resume and
    /// --run-dir it is the run's own unless another one is named
    #[arg(long, required_unless_present_all = ["resume", "run_dir"], value_name = "NAME-OR-PATH")]
    config: Option<String>,
    /// Override a key of the configuration, as in batch.micro=2
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<Override>,
    /// auto, cpu, cuda:N, wgpu:N or wgpu:cpu; the same as --set run.device=...
    #[arg(long, value_parser = parse_device)]
    device: Option<Choice>,
    /// Go on with the newest checkpoint of the run's folder
    #[arg(long)]
    resume: bool,
    /// Look for values that are not finite after every block and loss, and name the first; slow
    #[arg(long)]
    debug_numerics: bool,
    /// The run's folder [default: runs/<name>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &TrainArgs) -> Result<ExitCode, CommandError> {
    let own = || args.run_dir.clone().unwrap_or_default().join("config.toml").display().to_string();
    let name = args.config.clone().unwrap_or_else(own);
    let mut overrides = args.set.clone();
    if let Some(device) = args.device {
        overrides.push(Override::new("run.device", &device.to_string()));
    }
    let loaded = config::load(&name, &overrides)?;
    let folder = args.run_dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(&loaded.config.run.name));
    let interrupter = stop_on_signals()?;
    let options = Options { resume: args.resume, folder: folder.clone(), debug_numerics: args.debug_numerics };
    let outcome = train(&loaded, &options, &interrupter)?;
    if args.json.json {
        print_json(&json!({
            "step": outcome.step,
            "interrupted": outcome.interrupted,
            "before": outcome.before,
            "after": outcome.after,
            "checkpoint": outcome.checkpoint,
        }));
    } else {
        print_outcome(&outcome);
    }
    if outcome.interrupted {
        eprintln!("stopped at step {}; go on with --resume", outcome.step);
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The first SIGINT or SIGTERM asks the run to save and stop; a second one ends the process at once.
fn stop_on_signals() -> Result<Interrupter, CommandError> {
    let interrupter = Interrupter::new();
    let (handle, asked) = (interrupter.clone(), AtomicBool::new(false));
    let stop = move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(1);
        }
        eprintln!("stopping: the run is saved first, once more stops at once");
        handle.stop(Some("interrupted"));
    };
    ctrlc::set_handler(stop).map_err(|error| CommandError::Usage(format!("cannot listen to signals: {error}")))?;
    Ok(interrupter)
}

fn print_outcome(outcome: &Outcome) {
    if let (Some(before), Some(after)) = (&outcome.before, &outcome.after) {
        print_line(before_and_after(before, after).trim_end());
    }
    print_line(&format!("checkpoint: {}", outcome.checkpoint.display()));
}

/// What training did, as a table.
fn before_and_after(before: &Scores, after: &Scores) -> String {
    let pictures = format!("validation, {} pictures", after.images);
    let mut table = format!("{pictures:<28}{:>10}{:>10}\n", "before", "after");
    let mut row = |name: &str, a: f64, b: f64, digits: usize, change: String| {
        table += &format!("{name:<28}{a:>10.digits$}{b:>10.digits$}  {change}");
        table.truncate(table.trim_end().len());
        table.push('\n');
    };
    let percent = format!("{:+.0} %", 100.0 * (after.l1 - before.l1) / before.l1);
    row("mean absolute error", before.l1, after.l1, 4, percent);
    row("PSNR (dB)", before.psnr, after.psnr, 2, format!("{:+.2}", after.psnr - before.psnr));
    row("codes used (%)", 100.0 * before.codes_used, 100.0 * after.codes_used, 1, String::new());
    row("perplexity of the codes", before.perplexity, after.perplexity, 1, String::new());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_how_much_better_it_got() {
        let before = Scores { images: 4, l1: 0.5, psnr: 10.0, codes_used: 0.01, perplexity: 1.5 };
        let after = Scores { images: 4, l1: 0.125, psnr: 22.5, codes_used: 0.5, perplexity: 30.0 };
        let table = before_and_after(&before, &after);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "mean absolute error             0.5000    0.1250  -75 %");
        assert_eq!(lines[4], "perplexity of the codes            1.5      30.0");
    }
}
