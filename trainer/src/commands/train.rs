//! `train --config NAME`: trains a model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use checkpoints::run::MANIFEST;
use clap::Args;

use super::finished_run::{FinishedRun, quoted};
use super::habits::Habits;
use super::overrides::{Overrides, with_notes};
use super::signals::on_stop_signals;
use super::{CommandError, Json, dry_run, print_json, print_line};
use crate::config::{self, Loaded};
use crate::memory::MemoryError;
use crate::memory::random_networks::{Networks, RandomError};
use crate::models::architectures::NAMES;
use crate::show::log_file;
use crate::training::run_state;
use crate::training::{Deadline, Fault, INTERRUPTED, Options, Resume, Stop, train};

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
    /// try its memory and speed
    #[arg(long)]
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
    log_file::begin();
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
    if args.random_weights {
        use_random_weights(&mut loaded)?;
    }
    let folder = run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&loaded.config.run.name));
    if args.dry_run {
        return dry_run::run(&loaded, &folder, args.json.json);
    }
    let newest = args.resume.is_some().then_some(Resume::Newest);
    let resume = source.map(|source| source.resume).or(newest);
    let options = Options {
        resume,
        allow: args.allow.clone(),
        folder: folder.clone(),
        debug_numerics: args.debug_numerics,
        deadline,
        dashboard: args.tui,
        faults: args.inject_fault.clone(),
        weigh_by_micro_batch: false,
    };
    let outcome = train(&loaded, options, &stop)?;
    let finished = FinishedRun::of(&outcome, &loaded.config, &folder);
    match args.json.json {
        true => print_json(&finished.json())?,
        false => print_line(&finished.text())?,
    }
    if outcome.interrupted {
        note!("stopped at step {}; resume it by: train --resume {}", outcome.step, quoted(&folder));
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
fn use_random_weights(loaded: &mut Loaded) -> Result<(), CommandError> {
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
    Ok(())
}
