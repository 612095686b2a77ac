//! `train plan`: finds the micro-batches that fit.

use std::process::ExitCode;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::json;

use super::overrides::{Overrides, with_notes};
use super::sweep::stopped_by_signals;
use super::{BAR_NOT_MET, CommandError, Json, Renamed, print_json, print_line};
use crate::config::{self, Bytes, Compute, Recompute};
use crate::memory::random_networks::Networks;
use crate::memory::{Children, Measurer, MemoryError, Plan, PlanRow, plan};
use crate::show::readable;
use crate::training::INTERRUPTED;

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Configuration: a TOML file, a name in configs/, or a built-in name such as small-gpu.toml
    #[arg(long, value_name = "NAME-OR-PATH")]
    config: String,
    #[command(flatten)]
    overrides: Overrides,
    /// The memory that there is, as in 4GiB [default: memory.limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    limit: Option<Bytes>,
    /// Precisions to plan for, as in fp32,bf16 [default: all that there are]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    precision: Vec<Compute>,
    /// Values of memory.recompute to plan for: none, blocks [default: both]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    recompute: Vec<Recompute>,
    #[command(flatten)]
    _renamed: Renamed,
    /// Optimizer steps of each measurement, at least 2: the first one warms up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..))]
    steps: u64,
    /// Train on the configuration's images, in place of drawn ones of the same size
    #[arg(long)]
    data: bool,
    /// Random weights of the same shapes for all that the configuration has on the Hub, which is the default
    #[arg(long, conflicts_with = "pretrained")]
    random_weights: bool,
    /// Fetch what the configuration has on the Hub, in place of random weights of the same shapes
    #[arg(long)]
    pretrained: bool,
    /// A built-in architecture with random weights in place of model.pretrained
    #[arg(long, value_name = "NAME", conflicts_with = "pretrained")]
    architecture: Option<String>,
    #[command(flatten)]
    json: Json,
}

fn parse_size(text: &str) -> Result<Bytes, String> {
    text.parse()
}

pub(super) fn run(args: &PlanArgs) -> Result<ExitCode, CommandError> {
    let mut loaded = with_notes(config::load(&args.config, &args.overrides.all()))?;
    if !args.data {
        loaded.config.data.draw_shapes();
    }
    let networks = match args.random_weights || !args.pretrained {
        true => Networks::random_for(&loaded.config, args.architecture.as_deref()),
        false => Networks::as_configured(),
    };
    let networks = networks.map_err(MemoryError::from)?;
    let children = Children { steps: args.steps, stopped: stopped_by_signals()?, ..Children::default() };
    let precisions = if args.precision.is_empty() { &Compute::ALL[..] } else { &args.precision };
    let recomputes = if args.recompute.is_empty() { &Recompute::ALL[..] } else { &args.recompute };
    let limit = args.limit.or(loaded.config.memory.limit);
    let measurer = Measurer { loaded: &loaded, networks: &networks, children: &children };
    let plan = match plan(measurer, precisions, recomputes, limit.map(|limit| limit.0)) {
        Err(MemoryError::Interrupted) => {
            note!("interrupted");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        plan => plan?,
    };
    plan.notes.iter().for_each(|note| note!("{note}"));
    if args.json.json {
        let mut printed = json!(plan);
        for (index, row) in plan.rows.iter().enumerate() {
            printed["rows"][index]["toml"] = row.toml().into();
        }
        print_json(&printed)?;
    } else {
        print_line(&text(&plan))?;
    }
    Ok(if plan.best.is_some() { ExitCode::SUCCESS } else { ExitCode::from(BAR_NOT_MET) })
}

/// Formats a plan for the user.
fn text(plan: &Plan) -> String {
    let mut lines = vec![format!("{}, {} px", plan.device, plan.resolution)];
    if !plan.random_weights.is_empty() {
        lines.push(format!("random weights, of the same shapes, for {}", plan.random_weights.join(", ")));
    }
    lines.extend([String::new(), table(plan), String::new()]);
    lines.extend(plan.device_notes.iter().map(|note| (*note).to_owned()));
    match (plan.best.map(|index| &plan.rows[index]), plan.limit, plan.rows.iter().min_by_key(|row| row.peak_memory)) {
        (Some(row), ..) => {
            let which = if plan.limit.is_some() { "fastest that fits" } else { "fastest" };
            lines.push(format!("{which}:\n{}", toml_lines(row)));
        }
        (None, Some(limit), Some(least)) => {
            let (limit, peak) = (readable(limit), readable(least.peak_memory));
            lines.push(format!("nothing fits {limit}; the least is {peak}, with\n{}", toml_lines(least)));
        }
        _ => {}
    }
    lines.join("\n")
}

fn toml_lines(row: &PlanRow) -> String {
    row.toml().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn table(plan: &Plan) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["precision", "recompute", "micro", "peak memory", "", "fits", "speed"]);
    for row in &plan.rows {
        let fits = row.fits.map_or("-", |fits| if fits { "yes" } else { "no" });
        table.add_row([
            row.precision.to_string(),
            row.recompute.to_string(),
            row.micro.to_string(),
            readable(row.peak_memory),
            match row.measured {
                true => "measured".to_owned(),
                false => format!("expected, +/- {}", readable(row.margin)),
            },
            fits.to_owned(),
            format!("{:.2} x", row.speed),
        ]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if matches!(index, 2 | 3 | 6) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
