//! Formats the results of `train evaluate` as a table.

use std::ops::Range;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};

use super::Column;
use crate::evaluation::evaluate::{Evaluated, PUBLISHED, Protocol, Published};

/// A row: its name, its digits after the point, a factor, and its value for a checkpoint.
type Row = (&'static str, usize, f64, fn(&Evaluated) -> Option<f64>);

const ROWS: [Row; 13] = [
    ("mean absolute error", 4, 1.0, |of| Some(of.scores.l1)),
    ("PSNR (dB)", 2, 1.0, |of| Some(of.scores.psnr)),
    ("SSIM", 4, 1.0, |of| of.scores.ssim),
    ("LPIPS", 4, 1.0, |of| of.scores.lpips),
    ("CLIP similarity to original", 4, 1.0, |of| of.scores.clip),
    ("CLIP similarity to caption", 4, 1.0, |of| of.scores.caption),
    ("right caption of 64 (%)", 1, 100.0, |of| of.scores.right_caption),
    ("CMMD", 4, 1.0, |of| of.cmmd),
    ("rFID", 3, 1.0, |of| of.rfid),
    ("Inception Score", 3, 1.0, |of| Some(of.inception_score?.mean)),
    ("  its standard deviation", 3, 1.0, |of| Some(of.inception_score?.deviation)),
    ("codes used (%)", 1, 100.0, |of| Some(of.scores.codes_used)),
    ("perplexity of the codes", 1, 1.0, |of| Some(of.scores.perplexity)),
];

/// Formats the results, the protocol and the grids for the user.
pub(super) fn text(protocol: &Protocol, columns: &[Column], with_published: bool) -> String {
    let mut lines = vec![metrics(columns), String::new()];
    if with_published {
        lines.extend([published(), String::new()]);
    }
    lines.extend(protocol_lines(&json!(protocol)));
    for column in columns {
        lines.push(String::new());
        lines.push(format!("{}: {}, SHA-256 {}", column.checkpoint, column.model, &column.weights[..16]));
        lines.extend(column.grids.iter().map(|(kind, path)| format!("  {kind}: {}", path.display())));
    }
    lines.join("\n")
}

fn metrics(columns: &[Column]) -> String {
    let images = columns.iter().map(|column| column.evaluated.scores.images).max().unwrap_or(0);
    let names = columns.iter().map(|column| column.checkpoint.clone());
    let mut table = plain(std::iter::once(format!("{images} images")).chain(names));
    for (name, digits, factor, value) in ROWS {
        let values: Vec<Option<f64>> = columns.iter().map(|column| value(&column.evaluated)).collect();
        if values.iter().any(Option::is_some) {
            let cell =
                |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{:.digits$}", factor * value));
            table.add_row(std::iter::once(name.to_owned()).chain(values.into_iter().map(cell)));
        }
    }
    lines(table, 1..usize::MAX)
}

fn plain<T: Into<Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<Cell>>());
    table
}

/// The lines of a table, with numbers in the columns `right`.
fn lines(mut table: Table, right: Range<usize>) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// What others report, with the sources.
fn published() -> String {
    let mut table = plain(["published, ImageNet validation, 256 px", "rFID", "PSNR (dB)", "source"]);
    for Published { model, rfid, psnr, source, .. } in PUBLISHED {
        let psnr = psnr.map_or("-".to_owned(), |psnr| format!("{psnr:.2}"));
        table.add_row([model.to_owned(), format!("{rfid:.2}"), psnr, source.to_owned()]);
    }
    lines(table, 1..3)
}

/// The protocol as it is in the JSON, a line for each key.
fn protocol_lines(protocol: &Value) -> Vec<String> {
    let keys = protocol.as_object().into_iter().flatten();
    let line = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Object(set) => {
                format!("{} images, names {}", set["count"], set["names"].as_str().unwrap_or_default())
            }
            other => other.to_string(),
        };
        format!("{key}: {value}")
    };
    keys.map(line).collect()
}
