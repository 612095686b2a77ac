//! `train sweep`: measures memory, speed and the gradient's exactness for other micro-batches, precisions, resolutions.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::overrides::{Overrides, with_notes};
use super::signals::on_stop_signals;
use super::{BAR_NOT_MET, CommandError, Json, Renamed, print_json, print_line};
use crate::config::{self, Override};
use crate::memory::random_networks::Networks;
use crate::memory::{Children, Measurer, MemoryError, Status, Stopped};
use crate::show::readable;
use crate::training::INTERRUPTED;
use crate::verification::sweep::{self, Bars, Report, Row, SweepError};

/// Each list and each bar stands for its key in [sweep] and goes before it
#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Configuration: a TOML file, a name in configs/, or a built-in name such as sweep-ci.toml
    #[arg(long, value_name = "NAME-OR-PATH")]
    config: String,
    #[command(flatten)]
    overrides: Overrides,
    /// Micro-batches, as in 1,2,4
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    micro: Vec<usize>,
    /// Effective batches
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    effective: Vec<usize>,
    /// Precisions, as in fp32,bf16
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    precision: Vec<String>,
    /// Sides of the images, in pixels
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    resolution: Vec<u32>,
    /// Recompute activations in the backward pass: none or blocks
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    recompute: Vec<String>,
    #[command(flatten)]
    _renamed: Renamed,
    /// Optimizer steps of each row, at least 2 [default: 3]
    #[arg(long)]
    steps: Option<u64>,
    /// Seconds after which a row is given up [default: 600]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Bar: the most memory, as in 4GiB
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<String>,
    /// Bar: the largest deviation of the gradient: 1e-5, or by precision fp32=1e-5,bf16=0.1
    #[arg(long, value_name = "NUMBER")]
    max_deviation: Option<String>,
    /// Bar: the fewest images per second
    #[arg(long, value_name = "NUMBER")]
    min_images_per_second: Option<f64>,
    /// Bar: fail if a row is worse than in this earlier sweep.json
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// How much worse than the baseline a row may be: 10%, or memory=2%,speed=30% [default: 10%]
    #[arg(long, value_name = "SHARE")]
    tolerance: Option<String>,
    /// Random weights of the same shapes for all that the configuration has on the Hub, which is the default
    #[arg(long, conflicts_with = "pretrained")]
    random_weights: bool,
    /// Fetch what the configuration has on the Hub, in place of random weights of the same shapes
    #[arg(long)]
    pretrained: bool,
    /// A built-in architecture with random weights in place of model.pretrained
    #[arg(long, value_name = "NAME", conflicts_with = "pretrained")]
    architecture: Option<String>,
    /// Write sweep.json, junit.xml and summary.md into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Have the engine weigh by micro-batch, which is wrong, to see that the sweep finds it
    #[arg(long, hide = true)]
    weigh_by_micro_batch: bool,
    #[command(flatten)]
    json: Json,
}

impl SweepArgs {
    /// Returns all `--set`, and then the options as overrides of `[sweep]`.
    fn overrides(&self) -> Vec<Override> {
        fn list<T: std::fmt::Display>(values: &[T], quote: &str) -> Option<String> {
            let values: Vec<String> = values.iter().map(|value| format!("{quote}{value}{quote}")).collect();
            (!values.is_empty()).then(|| format!("[{}]", values.join(", ")))
        }
        let keys = [
            ("sweep.micro", list(&self.micro, "")),
            ("sweep.effective", list(&self.effective, "")),
            ("sweep.precision", list(&self.precision, "\"")),
            ("sweep.resolution", list(&self.resolution, "")),
            ("sweep.recompute", list(&self.recompute, "\"")),
            ("sweep.steps", self.steps.map(|steps| steps.to_string())),
            ("sweep.timeout", self.timeout.map(|seconds| seconds.to_string())),
            ("sweep.max_memory", self.max_memory.clone()),
            ("sweep.max_deviation", self.max_deviation.clone()),
            ("sweep.min_images_per_second", self.min_images_per_second.map(|speed| speed.to_string())),
            ("sweep.baseline", self.baseline.as_ref().map(|path| path.display().to_string())),
            ("sweep.tolerance", self.tolerance.clone()),
        ];
        let own = keys.into_iter().filter_map(|(key, value)| Some(Override::new(key, &value?)));
        self.overrides.all().into_iter().chain(own).collect()
    }
}

pub(super) fn run(args: &SweepArgs) -> Result<ExitCode, CommandError> {
    let loaded = with_notes(config::load(&args.config, &args.overrides()))?;
    let (variants, left_out) = sweep::variants(&loaded)?;
    for variant in &left_out {
        note!("skipped, since its micro-batch exceeds its effective batch: {variant}");
    }
    let bars = Bars::of(&loaded.config.sweep)?;
    let networks = match args.random_weights || !args.pretrained {
        true => Networks::random_for(&loaded.config, args.architecture.as_deref()),
        false => Networks::as_configured(),
    };
    let networks = networks.map_err(MemoryError::from)?;
    if !networks.random().is_empty() {
        note!("random weights, of the same shapes, for {}", networks.random().join(", "));
    }
    let children = Children {
        steps: loaded.config.sweep.steps,
        timeout: Some(Duration::from_secs(loaded.config.sweep.timeout)),
        weigh_by_micro_batch: args.weigh_by_micro_batch,
        stopped: stopped_by_signals()?,
        ..Children::default()
    };
    let mut number = 0;
    let show = |row: &Row| {
        number += 1;
        match row.against {
            None => note!("row {number}/{}  {}", variants.len(), outcome(row)),
            Some(_) => note!("{}", outcome(row)),
        }
    };
    let measurer = Measurer { loaded: &loaded, networks: &networks, children: &children };
    let mut sweep = match sweep::run(measurer, &variants, show) {
        Err(SweepError::Measuring(MemoryError::Interrupted)) => {
            note!("interrupted");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        sweep => sweep?,
    };
    for reference in &sweep.references {
        if let Some(message) = reference.status.message() {
            note!("no reference gradient: {}: {}: {message}", reference.variant, reference.status.name());
        }
    }
    sweep.bars = sweep::judge(&sweep.rows, &bars);
    let notes = bars.notes(&sweep);
    notes.iter().for_each(|note| note!("{note}"));
    let report = Report { sweep: &sweep, notes: &notes };
    if let Some(folder) = &args.output {
        report.write(folder).map_err(|source| CommandError::Io { path: folder.display().to_string(), source })?;
    }
    if let Some(summary) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()).map(PathBuf::from) {
        report
            .append_to(&summary)
            .map_err(|source| CommandError::Io { path: summary.display().to_string(), source })?;
    }
    match args.json.json {
        true => print_json(&json!(sweep)),
        false => print_line(&sweep::table(&sweep.rows)),
    }?;
    let unmet = sweep::unmet_lines(&sweep.bars);
    unmet.iter().for_each(|line| note!("bar not met: {line}"));
    Ok(match (unmet.len(), sweep.rows.iter().any(|row| row.status == Status::Ok)) {
        (1.., _) => ExitCode::from(BAR_NOT_MET),
        (0, false) => ExitCode::FAILURE,
        (0, true) => ExitCode::SUCCESS,
    })
}

/// Formats the result of a row, to show while other rows still run.
fn outcome(row: &Row) -> String {
    let name = row.name();
    match (row.status.message(), row.peak_memory.zip(row.images_per_second), row.deviation) {
        (None, Some((peak, speed)), _) => format!("{name}: {}, {speed:.2} images/s", readable(peak)),
        (None, None, Some(deviation)) => format!("{name}: deviation {deviation:.1e}"),
        (message, ..) => format!("{name}: {}: {}", row.status.name(), message.unwrap_or_default()),
    }
}

/// Returns a flag that a signal to stop sets. It ends the current row and the whole sweep.
pub(super) fn stopped_by_signals() -> Result<Stopped, CommandError> {
    let stopped: Stopped = Arc::new(AtomicBool::new(false));
    let handle = stopped.clone();
    on_stop_signals(move |_| handle.store(true, Ordering::SeqCst))?;
    Ok(stopped)
}
