//! Holds rows to the bars that the user has set.

use std::path::Path;

use super::rows::{Bar, Row, Sweep, SweepError, deviation_text, speed_text};
use crate::config::{MaxDeviation, SweepConfig, Tolerance};
use crate::memory::Status;
use crate::show::readable;

/// The bars for every row.
#[derive(Debug, Default)]
pub struct Bars {
    max_memory: Option<u64>,
    max_deviation: Option<MaxDeviation>,
    min_images_per_second: Option<f64>,
    baseline: Option<(Sweep, Tolerance)>,
}

impl Bars {
    /// The bars of `[sweep]`. Reads the baseline.
    ///
    /// # Errors
    /// If the baseline cannot be read.
    pub fn of(sweep: &SweepConfig) -> Result<Self, SweepError> {
        Ok(Self {
            max_memory: sweep.max_memory.map(|bytes| bytes.0),
            max_deviation: sweep.max_deviation.clone(),
            min_images_per_second: sweep.min_images_per_second,
            baseline: match &sweep.baseline {
                Some(path) => Some((read(path)?, sweep.tolerance)),
                None => None,
            },
        })
    }

    /// What the user should know about the baseline: rows on one side only, and another device.
    pub fn notes(&self, sweep: &Sweep) -> Vec<String> {
        let Some((baseline, _)) = &self.baseline else { return Vec::new() };
        let has = |sweep: &Sweep, row: &Row| sweep.rows.iter().any(|other| other.is_as(row));
        let new = sweep.rows.iter().filter(|row| !has(baseline, row));
        let gone = baseline.rows.iter().filter(|row| !has(sweep, row));
        let mut notes: Vec<String> = new.map(|row| format!("not in the baseline: {}", row.name())).collect();
        notes.extend(gone.map(|row| format!("only in the baseline: {}", row.name())));
        if let (Some(now), Some(then)) = (&sweep.device, &baseline.device)
            && now != then
        {
            notes.push(format!("the baseline was measured on another device, {then}; this is {now}"));
        }
        notes
    }

    fn of_row(&self, index: usize, row: &Row) -> Vec<Bar> {
        let mut bars = Vec::new();
        let mut hold = |bar: &str, limit: f64, value: Option<f64>, most: bool, words: [String; 2]| {
            let met = value.is_some_and(|value| if most { value <= limit } else { value >= limit });
            let [what, than] = words;
            let text = match (value, row.status.message()) {
                (None, Some(message)) => format!("{}: {}: {message}", row.name(), row.status.name()),
                (None, None) => format!("{}: there is no {what} to compare with {than}", row.name()),
                (Some(_), _) => {
                    let side = if met == most { "at most" } else { "at least" };
                    let relation = match (met, most) {
                        (true, _) => side,
                        (false, true) => "above",
                        (false, false) => "below",
                    };
                    format!("{}: {what}, {relation} {than}", row.name())
                }
            };
            bars.push(Bar { bar: bar.to_owned(), row: index, limit, value, met, text });
        };
        let memory = row.peak_memory.map(|bytes| bytes as f64);
        let memory_text =
            row.peak_memory.map_or("peak memory".into(), |peak| format!("peak memory {}", readable(peak)));
        let speed_words =
            row.images_per_second.map_or("speed".into(), |speed| format!("{} images/s", speed_text(speed)));
        if let Some(limit) = self.max_memory.filter(|_| row.against.is_none()) {
            hold("max_memory", limit as f64, memory, true, [memory_text.clone(), readable(limit)]);
        }
        if let Some(limit) = self.max_deviation.as_ref().and_then(|limits| limits.of(row.variant.precision)) {
            let words =
                row.deviation.map_or("deviation".into(), |value| format!("deviation {}", deviation_text(value)));
            hold("max_deviation", limit, row.deviation, true, [words, deviation_text(limit)]);
        }
        if let Some(limit) = self.min_images_per_second.filter(|_| row.against.is_none()) {
            hold(
                "min_images_per_second",
                limit,
                row.images_per_second,
                false,
                [speed_words.clone(), speed_text(limit)],
            );
        }
        let before = self.baseline.iter().flat_map(|(baseline, tolerance)| {
            baseline.rows.iter().filter(|before| before.is_as(row)).map(move |before| (before, tolerance))
        });
        for (before, tolerance) in before {
            if let Some(peak) = before.peak_memory {
                let limit = peak as f64 * (1.0 + tolerance.memory);
                let than = format!("{} + {} %", readable(peak), percent(tolerance.memory));
                hold("baseline_memory", limit, memory, true, [memory_text.clone(), format!("the baseline's {than}")]);
            }
            if let Some(speed) = before.images_per_second {
                let limit = speed * (1.0 - tolerance.speed);
                let than = format!("{} - {} %", speed_text(speed), percent(tolerance.speed));
                let than = format!("the baseline's {than}");
                hold("baseline_speed", limit, row.images_per_second, false, [speed_words.clone(), than]);
            }
        }
        bars
    }
}

fn percent(share: f64) -> f64 {
    (share * 1e4).round() / 100.0
}

/// A line for each bar that is not met. A row without figures meets none, for one reason, and has one line.
pub fn unmet_lines(bars: &[Bar]) -> Vec<&str> {
    let mut lines: Vec<&str> = bars.iter().filter(|bar| !bar.met).map(|bar| bar.text.as_str()).collect();
    lines.dedup();
    lines
}

/// Holds every row to every bar.
pub fn judge(rows: &[Row], bars: &Bars) -> Vec<Bar> {
    rows.iter().enumerate().flat_map(|(index, row)| bars.of_row(index, row)).collect()
}

fn read(path: &Path) -> Result<Sweep, SweepError> {
    let wrong = |message: String| SweepError::Baseline { path: path.to_owned(), message };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let sweep: Sweep = serde_json::from_str(&text).map_err(|error| wrong(format!("is no sweep.json: {error}")))?;
    match sweep.rows.iter().any(|row| row.status == Status::Ok) {
        true => Ok(sweep),
        false => Err(wrong("no row of it has figures".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{row, sweep};
    use super::*;
    use crate::config::Recompute;

    fn unmet(rows: &[Row], bars: &Bars) -> Vec<String> {
        unmet_lines(&judge(rows, bars)).into_iter().map(str::to_owned).collect()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_bar_not_met_is_one_line() {
        let bars = Bars {
            max_memory: Some(100 * MIB),
            max_deviation: Some(MaxDeviation::All(1e-5)),
            min_images_per_second: Some(2.0),
            baseline: None,
        };
        let good = row(1, Status::Ok, Some((100 * MIB, 2.0, 1e-5)));
        assert_eq!(unmet(&[good], &bars), Vec::<String>::new());
        let bad = row(2, Status::Ok, Some((101 * MIB, 1.5, 2e-5)));
        assert_eq!(
            unmet(&[bad], &bars),
            [
                "micro 2 of 8, fp32, 32 px, recompute none: peak memory 101.00 MiB, above 100.00 MiB",
                "micro 2 of 8, fp32, 32 px, recompute none: deviation 2.0e-5, above 1.0e-5",
                "micro 2 of 8, fp32, 32 px, recompute none: 1.50 images/s, below 2.00",
            ]
        );
        let crashed = row(4, Status::OutOfMemory("much".into()), None);
        assert_eq!(judge(std::slice::from_ref(&crashed), &bars).iter().filter(|bar| !bar.met).count(), 3);
        assert_eq!(unmet(&[crashed], &bars), ["micro 4 of 8, fp32, 32 px, recompute none: out of memory: much"]);
        let between = Row {
            against: Some(Recompute::Blocks),
            peak_memory: None,
            images_per_second: None,
            ..row(1, Status::Ok, None)
        };
        let near = Row { deviation: Some(1e-6), ..between.clone() };
        assert_eq!(unmet(&[near], &bars), Vec::<String>::new());
        let far = Row { deviation: Some(2e-5), ..between };
        assert_eq!(
            unmet(&[far], &bars),
            ["micro 1 of 8, fp32, 32 px, recompute none against blocks: deviation 2.0e-5, above 1.0e-5"]
        );
        let mut without = row(4, Status::Ok, Some((1, 9.0, 0.0)));
        without.deviation = None;
        assert_eq!(
            unmet(&[without], &bars),
            ["micro 4 of 8, fp32, 32 px, recompute none: there is no deviation to compare with 1.0e-5"]
        );
    }

    #[test]
    fn a_baseline_lets_pass_what_its_tolerance_says() {
        let baseline = sweep(vec![row(1, Status::Ok, Some((100 * MIB, 10.0, 0.0))), row(2, Status::Ok, None)]);
        let bars = Bars { baseline: Some((baseline, Tolerance { memory: 0.02, speed: 0.3 })), ..Bars::default() };
        let within = row(1, Status::Ok, Some((102 * MIB, 7.0, 1.0)));
        assert_eq!(unmet(&[within], &bars), Vec::<String>::new());
        let worse = row(1, Status::Ok, Some((103 * MIB, 6.9, 1.0)));
        assert_eq!(
            unmet(std::slice::from_ref(&worse), &bars),
            [
                "micro 1 of 8, fp32, 32 px, recompute none: peak memory 103.00 MiB, above the baseline's 100.00 MiB + 2 %",
                "micro 1 of 8, fp32, 32 px, recompute none: 6.90 images/s, below the baseline's 10.0 - 30 %",
            ]
        );
        let failed = row(1, Status::Failed("no".into()), None);
        assert_eq!(unmet(&[failed], &bars), ["micro 1 of 8, fp32, 32 px, recompute none: failed: no"]);
        let mut now = sweep(vec![worse, row(4, Status::Ok, None)]);
        now.device = Some("cuda:0".into());
        assert_eq!(
            bars.notes(&now),
            [
                "not in the baseline: micro 4 of 8, fp32, 32 px, recompute none",
                "only in the baseline: micro 2 of 8, fp32, 32 px, recompute none",
                "the baseline was measured on another device, cpu, 2 threads; this is cuda:0",
            ]
        );
    }
}
