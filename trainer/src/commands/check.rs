//! `train check`: checks that a device computes the same results as the CPU.

use std::process::ExitCode;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::json;

use super::sweep::stopped_by_signals;
use super::{BAR_NOT_MET, CommandError, Json, parse_device, parse_override, print_json, print_line};
use crate::config::{Bytes, Compute, Override};
use crate::device::{Choice, Selected};
use crate::verification::check::step::Setting;
use crate::verification::check::{Part, Row, Scale, layers, memory, resume, step};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// auto, cpu, cuda:N, wgpu:N or wgpu:cpu
    #[arg(long, value_parser = parse_device, default_value = "auto")]
    device: Choice,
    /// Parts of the check [default: all; `memory` on CUDA alone]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    only: Vec<Part>,
    /// Precisions, as in fp32,bf16 [default: all that the device computes in]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    precision: Vec<Compute>,
    /// Sizes of the layers
    #[arg(long, value_enum, default_value = "small")]
    scale: Scale,
    /// Only those rows of the part `layers` whose name contains one of these, as in convolution,LPIPS
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    layers: Vec<String>,
    /// Configuration of the steps and runs; what is on the Hub gets random weights [default: a small one]
    #[arg(long, value_name = "NAME-OR-PATH")]
    config: Option<String>,
    /// Override a key of the configuration, as in data.resolution=128
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<Override>,
    /// How much of the device's memory the part `memory` leaves free
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    leave: Bytes,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, CommandError> {
    let device = args.device.open()?;
    note!("device: {}", device.description);
    let precisions = precisions(args, &device);
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let stopped = stopped_by_signals()?;
    let show = |row: &Row| note!("{}", line(row));
    let setting = || Setting::new(args.config.as_deref(), &args.set);

    let mut rows = Vec::new();
    if wants(Part::Layers) {
        rows.extend(layers::check(&device, &precisions, args.scale, &args.layers, show)?);
    }
    // Frees the memory of the layer checks, which later checks may need.
    device.device.memory_cleanup();
    if wants(Part::Step) {
        rows.extend(step::check(&device, &precisions, &setting()?, &stopped, show)?);
    }
    if wants(Part::Resume) {
        let setting = setting()?;
        for &precision in &precisions {
            let row = resume::check(&device, precision, &setting)?;
            show(&row);
            rows.push(row);
        }
    }
    if wants(Part::Memory)
        && let Some(row) = memory::check(&device, args.leave.0, &setting()?)?
    {
        show(&row);
        rows.push(row);
    }
    match args.json.json {
        true => print_json(&json!({ "device": device.description, "rows": rows })),
        false => print_line(&table(&rows)),
    }?;
    Ok(if rows.iter().all(|row| row.met) { ExitCode::SUCCESS } else { ExitCode::from(BAR_NOT_MET) })
}

fn precisions(args: &CheckArgs, device: &Selected) -> Vec<Compute> {
    let asked = if args.precision.is_empty() { &Compute::ALL[..] } else { &args.precision };
    let (able, unable): (Vec<_>, Vec<_>) = asked.iter().copied().partition(|precision| device.supports(*precision));
    for precision in unable.into_iter().filter(|_| !args.precision.is_empty()) {
        note!("{} cannot compute in {precision}", device.description);
    }
    able
}

fn line(row: &Row) -> String {
    let cells = cells(row);
    format!("{} {}, {}: {}", cells[0], cells[1], cells[2], cells[3..].join("  ").trim_end())
}

fn cells(row: &Row) -> [String; 8] {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1e}"));
    [
        row.part.to_string(),
        row.name.clone(),
        row.precision.to_string(),
        number(row.output),
        number(row.gradient),
        if row.met { "ok" } else { "NOT MET" }.to_owned(),
        format!("{:.1} s", row.seconds),
        row.message.clone().unwrap_or_default(),
    ]
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["part", "what", "precision", "values", "gradients", "", "time", ""]);
    for row in rows {
        table.add_row(cells(row));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if matches!(index, 3 | 4 | 6) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
