//! `train --config NAME`: trains a model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use checkpoints::run::MANIFEST;
use clap::Args;
use serde_json::json;

use super::habits::Habits;
use super::overrides::{Overrides, with_notes};
use super::signals::on_stop_signals;
use super::{CommandError, Json, dry_run, print_json, print_line};
use crate::config::{self, Loaded};
use crate::evaluation::Scores;
use crate::memory::MemoryError;
use crate::memory::random_networks::{Networks, RandomError};
use crate::models::architectures::NAMES;
use crate::training::run_state;
use crate::training::{Deadline, Fault, INTERRUPTED, Options, Outcome, Resume, Stop, train};

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Configuration: a TOML file, a name in configs/, or a built-in name such as tiny-cpu.toml; with --resume it is
    /// the run's own unless another one is named
    #[arg(long, required_unless_present = "resume", value_name = "NAME-OR-PATH")]
    config: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Look for values that are not finite after every block and loss, and name the first; slow
    #[arg(long)]
    debug_numerics: bool,
    /// Resume the newest whole checkpoint of the run's folder or of the run in PATH, or the checkpoint in PATH
    #[arg(long, value_name = "PATH", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
    /// Resume although this key or table of the configuration has changed
    #[arg(long, value_name = "KEY", requires = "resume")]
    allow: Vec<String>,
    /// Save and stop in time for a limit like 5h50m or 90s, counted from the start of the program
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_time: Option<Duration>,
    /// The run's folder [default: runs/<name>, or that of what is resumed]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Random weights of the same shapes for all that the configuration has on the Hub, of which nothing is fetched: to
    /// try its memory and speed; such a run cannot be resumed
    #[arg(long, conflicts_with = "resume")]
    random_weights: bool,
    /// Read and check all that the run needs, say what it has to download, and stop before the first step
    #[arg(long, conflicts_with_all = ["resume", "tui"])]
    dry_run: bool,
    /// Show the run on a dashboard that takes the terminal; q stops it
    #[arg(long, conflicts_with = "json")]
    tui: bool,
    /// Have a device fail in a phase of a step, or the process end in its save, to see what becomes of the run:
    /// STEP:PHASE[:KIND] or STEP:save-COUNT:KIND
    #[arg(long, value_name = "FAULT", hide = true)]
    inject_fault: Vec<Fault>,
    #[command(flatten)]
    _habits: Habits,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &TrainArgs) -> Result<ExitCode, CommandError> {
    let started = Instant::now();
    let stop = Stop::new(std::process::exit);
    let asked = stop.clone();
    on_stop_signals(move |reason| asked.ask(reason))?;
    let deadline = args.max_time.map(|limit| Deadline::new(started, limit, &stop));
    let source = args.resume.as_ref().and_then(Option::as_deref).map(Source::at).transpose()?;
    let run_dir = args.run_dir.clone().or_else(|| source.as_ref()?.run.clone());
    let overrides = args.overrides.all();
    let mut loaded = match (&args.config, own_config(args, source.as_ref())) {
        (Some(name), _) => with_notes(config::load(name, &overrides))?,
        (None, Some(path)) => with_notes(config::load_saved(&path, &overrides))?,
        (None, None) => {
            let message = "--resume needs the run's folder, as in --resume runs/NAME, or --config";
            return Err(CommandError::Usage(message.to_owned()));
        }
    };
    // Dropping it removes the networks' files, so it lives until the run is over.
    let _networks = match args.random_weights {
        true => Some(random_networks(&mut loaded)?),
        false => None,
    };
    let folder = run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&loaded.config.run.name));
    if args.dry_run {
        return dry_run::run(&loaded, &folder, args.json.json);
    }
    let newest = args.resume.is_some().then_some(Resume::Newest);
    let resume = source.map(|source| source.resume).or(newest);
    let resumed_by = format!("train --resume {}", quoted(&folder));
    let options = Options {
        resume,
        allow: args.allow.clone(),
        folder,
        debug_numerics: args.debug_numerics,
        deadline,
        dashboard: args.tui,
        faults: args.inject_fault.clone(),
        weigh_by_micro_batch: false,
    };
    let outcome = train(&loaded, options, &stop)?;
    if args.json.json {
        print_json(&json!({
            "step": outcome.step,
            "interrupted": outcome.interrupted,
            "stopped_early": outcome.stopped_early,
            "before": outcome.before,
            "after": outcome.after,
            "best": outcome.best,
            "grid": outcome.grid,
            "checkpoint": outcome.checkpoint,
        }))?;
    } else {
        print_line(&text(&outcome))?;
    }
    if outcome.interrupted {
        note!("stopped at step {}; resume it by: {resumed_by}", outcome.step);
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The run or checkpoint of `--resume PATH`.
struct Source {
    /// The folder of the run; `None` for a checkpoint that was moved away from its run.
    run: Option<PathBuf>,
    resume: Resume,
}

impl Source {
    /// Finds out whether `path` is a run's folder or a checkpoint.
    fn at(path: &Path) -> Result<Self, CommandError> {
        if path.join("checkpoints").is_dir() {
            return Ok(Self { run: Some(path.to_owned()), resume: Resume::NewestOf(path.to_owned()) });
        }
        if !run_state::is_checkpoint(path) && !path.join(MANIFEST).is_file() {
            let message = format!("--resume: {} is neither a run's folder nor a checkpoint", path.display());
            return Err(CommandError::Usage(message));
        }
        // Keeps the path as short as the user wrote it, if possible.
        let given = path.ancestors().nth(2).filter(|run| !run.as_os_str().is_empty()).map(Path::to_owned);
        let run = given.or_else(|| path.canonicalize().ok()?.ancestors().nth(2).map(Path::to_owned));
        Ok(Self {
            run: run.filter(|run| run.join("checkpoints").is_dir()),
            resume: Resume::Checkpoint(path.to_owned()),
        })
    }
}

/// Returns the path of the resumed run's own configuration.
fn own_config(args: &TrainArgs, source: Option<&Source>) -> Option<PathBuf> {
    let own = |run: &PathBuf| run.join("config.toml");
    let of_folder = args.run_dir.as_ref().map(own);
    let of_source = source.and_then(|source| source.run.as_ref()).map(own);
    of_folder.clone().filter(|path| path.is_file()).or(of_source).or(of_folder)
}

/// Replaces all that `loaded` has on the Hub by random weights.
fn random_networks(loaded: &mut Loaded) -> Result<Networks, CommandError> {
    let networks = Networks::random_for(&loaded.config, None).map_err(|error| match error {
        RandomError::UnknownModel { spec } => CommandError::Usage(format!(
            "--random-weights: what {spec} is built like is known only once it is fetched: put model.architecture in the \
             place of model.pretrained ({})",
            NAMES.join(", ")
        )),
        RandomError::UnknownClip { spec, known } => CommandError::Usage(format!(
            "--random-weights: what {spec} is built like is known only once it is fetched: set clip.pretrained to one of \
             {known}"
        )),
        error => MemoryError::from(error).into(),
    })?;
    loaded.config = networks.config(loaded.config.clone());
    match networks.random() {
        random if random.is_empty() => note!("random weights: the configuration has nothing on the Hub"),
        random => note!("random weights, of the same shapes, for {}", random.join(", ")),
    }
    Ok(networks)
}

/// A path as it is typed in a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "-_./~".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Formats the result of a run for the user.
fn text(outcome: &Outcome) -> String {
    let mut lines = Vec::new();
    if let (Some(before), Some(after)) = (&outcome.before, &outcome.after) {
        lines.push(before_and_after(before, after).trim_end().to_owned());
    }
    if outcome.stopped_early {
        lines.push(format!("ended at step {}, as it got no better", outcome.step));
    }
    if let Some(best) = outcome.best {
        lines.push(format!("best: step {}, {} {:.4}", best.step, best.metric.name(), best.value));
    }
    if let Some(grid) = &outcome.grid {
        lines.push(format!("originals, before, after: {}", grid.display()));
    }
    lines.push(format!("checkpoint: {}", outcome.checkpoint.display()));
    lines.join("\n")
}

/// Formats a table of the scores before and after training.
fn before_and_after(before: &Scores, after: &Scores) -> String {
    let title = format!("validation, {} images", after.images);
    let mut table = format!("{title:<28}{:>10}{:>10}\n", "before", "after");
    let mut row = |name: &str, a: f64, b: f64, digits: usize, change: String| {
        table += &format!("{name:<28}{a:>10.digits$}{b:>10.digits$}  {change}");
        table.truncate(table.trim_end().len());
        table.push('\n');
    };
    let percent = format!("{:+.0} %", 100.0 * (after.l1 - before.l1) / before.l1);
    row("mean absolute error", before.l1, after.l1, 4, percent);
    row("PSNR (dB)", before.psnr, after.psnr, 2, format!("{:+.2}", after.psnr - before.psnr));
    for (name, a, b) in [
        ("SSIM", before.ssim, after.ssim),
        ("LPIPS", before.lpips, after.lpips),
        ("CLIP similarity to original", before.clip, after.clip),
        ("CLIP similarity to caption", before.caption, after.caption),
    ] {
        if let Some((a, b)) = a.zip(b) {
            row(name, a, b, 4, format!("{:+.4}", b - a));
        }
    }
    if let Some((a, b)) = before.right_caption.zip(after.right_caption) {
        let name = format!("right caption of {} (%)", after.images.min(64));
        row(&name, 100.0 * a, 100.0 * b, 1, format!("{:+.1}", 100.0 * (b - a)));
    }
    row("codes used (%)", 100.0 * before.codes_used, 100.0 * after.codes_used, 1, String::new());
    row("perplexity of the codes", before.perplexity, after.perplexity, 1, String::new());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_a_shell_needs_it() {
        for (path, typed) in [("runs/a-1.b", "runs/a-1.b"), ("my runs/a", "'my runs/a'"), ("it's", "'it'\\''s'")] {
            assert_eq!(quoted(Path::new(path)), typed);
        }
    }

    #[test]
    fn the_table_says_how_much_better_it_got() {
        let scores = |l1, psnr, lpips, codes_used, perplexity| Scores {
            images: 4,
            l1,
            psnr,
            ssim: None,
            lpips: Some(lpips),
            clip: None,
            caption: None,
            right_caption: Some(codes_used / 2.0),
            codes_used,
            perplexity,
        };
        let before = scores(0.5, 10.0, 0.75, 0.01, 1.5);
        let after = scores(0.125, 22.5, 0.25, 0.5, 30.0);
        let table = before_and_after(&before, &after);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "mean absolute error             0.5000    0.1250  -75 %");
        assert_eq!(lines[3], "LPIPS                           0.7500    0.2500  -0.5000");
        assert_eq!(lines[4], "right caption of 4 (%)             0.5      25.0  +24.5");
        assert_eq!(lines[6], "perplexity of the codes            1.5      30.0");
    }
}
