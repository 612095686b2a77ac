//! A sweep for people and for CI: a table, Markdown, JUnit XML.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};
use quick_junit::{NonSuccessKind, Property, Report as JUnit, TestCase, TestCaseStatus, TestSuite};

use super::bars::unmet_lines;
use super::rows::{Bar, Row, Sweep, deviation_text, speed_text};
use crate::memory::Status;
use crate::show::readable;

const HEADER: [&str; 10] = [
    "micro",
    "effective",
    "precision",
    "resolution",
    "recompute",
    "peak memory",
    "images/s",
    "deviation",
    "loss",
    "status",
];

/// A sweep and the bars that it was held to, to be written.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The sweep.
    pub sweep: &'a Sweep,
    /// What the user should know besides.
    pub notes: &'a [String],
}

fn status_text(row: &Row) -> String {
    match row.skipped {
        Some(skipped @ 1..) => format!("{}, {skipped} skipped", row.status.name()),
        _ => row.status.name().to_owned(),
    }
}

fn cells(row: &Row) -> [String; 10] {
    let shown = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    [
        row.variant.micro.to_string(),
        row.variant.effective.to_string(),
        row.variant.precision.to_string(),
        format!("{} px", row.variant.resolution),
        match row.against {
            Some(other) => format!("{} against {other}", row.variant.recompute),
            None => row.variant.recompute.to_string(),
        },
        shown(row.peak_memory.map(readable)),
        shown(row.images_per_second.map(speed_text)),
        shown(row.deviation.map(deviation_text)),
        shown(row.loss.map(|loss| format!("{loss:.4}"))),
        status_text(row),
    ]
}

/// Columns of figures are flush right.
fn is_number(column: usize) -> bool {
    !matches!(column, 2 | 4 | 9)
}

fn build(style: TableStyle, rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled).set_header(HEADER);
    for row in rows {
        table.add_row(cells(row));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if is_number(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The rows in aligned columns.
pub fn table(rows: &[Row]) -> String {
    let mut table = build(NOTHING, rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

impl Report<'_> {
    /// A line on how the bars were met.
    fn verdict(&self) -> String {
        let Sweep { bars, .. } = self.sweep;
        let (bars, unmet) = (bars.len(), bars.iter().filter(|bar| !bar.met).count());
        match (bars, unmet) {
            (0, _) => "No bars were set.".into(),
            (_, 0) => format!("All {bars} bars are met."),
            _ => format!("**{unmet} of {bars} bars are not met.**"),
        }
    }

    fn conditions(&self) -> String {
        let Sweep { config, device, random_weights, steps, .. } = self.sweep;
        let device = device.as_deref().unwrap_or("no device");
        let weights = match random_weights.is_empty() {
            true => "the configuration's weights".to_owned(),
            false => format!("random weights for {}", random_weights.join(", ")),
        };
        format!("{config}, {steps} steps a row, {weights}; {device}")
    }

    /// JUnit XML: a row is a test case, which fails for a bar that it does not meet. A row without figures that no bar asks
    /// for is skipped.
    ///
    /// # Errors
    /// If it cannot be serialised.
    pub fn junit(&self) -> Result<String, quick_junit::SerializeError> {
        let mut suite = TestSuite::new(format!("sweep of {}", self.sweep.config));
        for (index, row) in self.sweep.rows.iter().enumerate() {
            let bars: Vec<Bar> = self.sweep.bars.iter().filter(|bar| bar.row == index).cloned().collect();
            let unmet = unmet_lines(&bars);
            let mut status = match (&row.status, unmet.is_empty()) {
                (_, false) => TestCaseStatus::non_success(NonSuccessKind::Failure),
                (Status::Ok, true) => TestCaseStatus::success(),
                (_, true) => TestCaseStatus::skipped(),
            };
            match (unmet.first(), row.status.message()) {
                (Some(first), _) => drop(status.set_message(*first).set_description(unmet.join("\n"))),
                (None, Some(message)) => drop(status.set_message(format!("{}: {message}", row.status.name()))),
                (None, None) => {}
            }
            let mut case = TestCase::new(row.name(), status);
            case.set_classname("train sweep").set_time(Duration::from_secs_f64(row.seconds.max(0.0)));
            let figures = [
                ("peak_memory", row.peak_memory.map(|bytes| bytes.to_string())),
                ("images_per_second", row.images_per_second.map(|speed| speed.to_string())),
                ("deviation", row.deviation.map(|deviation| deviation.to_string())),
                ("loss", row.loss.map(|loss| loss.to_string())),
            ];
            for (name, value) in figures.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                case.add_property(Property::new(name, value));
            }
            suite.add_test_case(case);
        }
        let mut report = JUnit::new("train sweep");
        report.add_test_suite(suite);
        report.to_string()
    }
}

/// Markdown for a CI job's summary.
pub fn markdown(report: Report) -> String {
    let mut text = format!("### train sweep\n\n{}\n\n", report.verdict());
    let unmet = unmet_lines(&report.sweep.bars);
    unmet.iter().for_each(|line| text += &format!("- {line}\n"));
    if !unmet.is_empty() {
        text.push('\n');
    }
    let mut table: Vec<String> = build(ASCII_MARKDOWN, &report.sweep.rows).lines().collect();
    // The preset knows no alignment.
    if let Some(rule) = table.get_mut(1) {
        let columns: Vec<&str> = rule.trim_matches('|').split('|').collect();
        let aligned = columns.iter().enumerate().map(|(index, dashes)| match is_number(index) {
            true => format!("{}:", &dashes[1..]),
            false => (*dashes).to_owned(),
        });
        *rule = format!("|{}|", aligned.collect::<Vec<_>>().join("|"));
    }
    text += &table.join("\n");
    text += &format!("\n\n{}\n", report.conditions());
    for row in report.sweep.rows.iter().filter(|row| row.status != Status::Ok) {
        text += &format!("\n{}: {}: {}\n", row.name(), row.status.name(), row.status.message().unwrap_or_default());
    }
    for note in report.notes {
        text += &format!("\n{note}\n");
    }
    text
}

impl Report<'_> {
    /// Writes `sweep.json`, `junit.xml` and `summary.md` into `folder`, and makes it.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(self.sweep)?;
        fs::write(folder.join("sweep.json"), json + "\n")?;
        fs::write(folder.join("junit.xml"), self.junit().map_err(io::Error::other)?)?;
        fs::write(folder.join("summary.md"), markdown(*self))
    }

    /// Adds the Markdown to the file of a GitHub job's summary.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append_to(&self, summary: &Path) -> io::Result<()> {
        fs::OpenOptions::new().create(true).append(true).open(summary)?.write_all(markdown(*self).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verification::sweep::rows::tests::{row, sweep};

    fn rows() -> Vec<Row> {
        vec![
            row(1, Status::Ok, Some((3 << 29, 2.345, 0.0))),
            row(16, Status::OutOfMemory("memory <allocation> of 9 & more bytes failed".into()), None),
        ]
    }

    #[test]
    fn columns_are_aligned() {
        let expected = "\
micro  effective  precision  resolution  recompute  peak memory  images/s  deviation    loss  status
    1          8  fp32            32 px  none          1.50 GiB      2.35          0  0.2500  ok
   16          8  fp32            32 px  none                 -         -          -       -  out of memory";
        assert_eq!(table(&rows()), expected);
    }

    #[test]
    fn a_failed_bar_is_a_failure_and_a_row_without_figures_is_skipped() {
        let mut sweep = sweep(rows());
        let notes = ["not in the baseline: something".to_owned()];
        let report = Report { sweep: &sweep, notes: &notes };
        let junit = report.junit().unwrap();
        assert!(junit.contains("tests=\"2\" skipped=\"1\" errors=\"0\" failures=\"0\""), "{junit}");
        assert!(junit.contains("memory &lt;allocation&gt; of 9 &amp; more bytes failed"), "{junit}");
        assert!(markdown(report).contains("No bars were set."), "{}", markdown(report));

        sweep.bars = vec![
            Bar { bar: "max_memory".into(), row: 0, limit: 1.0, value: Some(2.0), met: false, text: "too much".into() },
            Bar { bar: "max_memory".into(), row: 1, limit: 1.0, value: None, met: false, text: "no figure".into() },
        ];
        let report = Report { sweep: &sweep, notes: &notes };
        let junit = report.junit().unwrap();
        assert!(junit.contains("skipped=\"0\" errors=\"0\" failures=\"2\""), "{junit}");
        assert!(junit.contains("<failure message=\"too much\""), "{junit}");
        let markdown = markdown(report);
        for part in ["**2 of 2 bars are not met.**", "- too much\n- no figure\n", "|------:|", "not in the baseline: s"]
        {
            assert!(markdown.contains(part), "{part}\n{markdown}");
        }
    }
}
