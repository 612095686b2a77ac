//! What other micro-batches would take, from steps at micro-batch 1, 2 and 3: `train plan`.
//!
//! Memory is a fixed part and a part for each sample, in each phase of a step by itself, since the phase that takes most
//! at a small micro-batch need not be the one that does at a large one. The line goes through 2 and 3: kernels that split
//! their work over threads keep scratch memory that a single sample is too small for.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Compute, Loaded, Recompute};
use crate::sweep::measure::{Figures, Gradient};
use crate::sweep::random::Networks;
use crate::sweep::{Children, Cut, Status, SweepError, measure_cut};

/// More are of no use to anyone who asks for a plan.
const MOST: usize = 256;

/// A row of the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// `precision.compute`
    pub precision: Compute,
    /// `memory.checkpoint`
    pub checkpoint: Recompute,
    /// `batch.micro`
    pub micro: usize,
    /// Bytes.
    pub peak_memory: u64,
    /// Whether it was measured and not extrapolated.
    pub measured: bool,
    /// Whether it is within the limit; nothing where there is none.
    pub fits: Option<bool>,
    /// Images per second, that of the plan's first row being 1.
    pub speed: f64,
}

/// A whole plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The device, in words.
    pub device: String,
    /// `data.resolution`, in pixels.
    pub resolution: u32,
    /// Which networks had random weights in place of those on the Hub.
    pub random_weights: Vec<String>,
    /// Bytes.
    pub limit: Option<u64>,
    /// By precision, checkpoint and micro-batch.
    pub rows: Vec<Row>,
    /// The index of the fastest row that fits, and of rows as fast as it the one that takes the least memory.
    pub best: Option<usize>,
    /// What could not be measured.
    pub notes: Vec<String>,
}

/// A straight line through what was seen at two micro-batches.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    fixed: f64,
    each: f64,
}

impl Line {
    /// Through `a` at micro-batch `from` and `b` at the next.
    fn through(from: usize, a: f64, b: f64) -> Self {
        // Less for more samples is noise.
        let each = (b - a).max(0.0);
        Self { fixed: a - each * from as f64, each }
    }

    /// Of the seconds that micro-batches take. Where two samples took no longer than one, which is noise or a device that is
    /// mostly idle, no more is promised than was seen.
    fn of_seconds(one: f64, two: f64) -> Self {
        if two > one { Self::through(1, one, two) } else { Self { fixed: 0.0, each: two / 2.0 } }
    }

    fn at(&self, micro: usize) -> f64 {
        self.fixed + self.each * micro as f64
    }
}

/// The peak of any phase, each extrapolated by itself.
struct Fit {
    memory: Vec<Line>,
    /// Bytes at micro-batch 1.
    one: u64,
    /// Of a micro-batch.
    seconds: Line,
}

impl Fit {
    fn new(one: &Figures, two: &Figures, three: Option<&Figures>) -> Self {
        Self {
            memory: three.map_or_else(|| memory_lines(1, one, two), |three| memory_lines(2, two, three)),
            one: one.peak_memory,
            seconds: Line::of_seconds(1.0 / one.images_per_second, 2.0 / two.images_per_second),
        }
    }

    fn peak(&self, micro: usize) -> u64 {
        if micro == 1 {
            return self.one;
        }
        self.memory.iter().map(|line| line.at(micro)).fold(0.0, f64::max) as u64
    }

    fn images_per_second(&self, micro: usize) -> f64 {
        micro as f64 / self.seconds.at(micro)
    }
}

/// Through the micro-batches `from` and the next.
fn memory_lines(from: usize, one: &Figures, two: &Figures) -> Vec<Line> {
    let most = |memory: &Map<String, Value>| memory.values().filter_map(Value::as_u64).max();
    // On a GPU the phases are samples of what is in use, and the peak is what its pools have reserved.
    if most(&one.memory) != Some(one.peak_memory) || most(&two.memory) != Some(two.peak_memory) {
        return vec![Line::through(from, one.peak_memory as f64, two.peak_memory as f64)];
    }
    let line = |(phase, one): (&String, &Value)| {
        Some(Line::through(from, one.as_u64()? as f64, two.settled.get(phase)?.as_u64()? as f64))
    };
    one.settled.iter().filter_map(line).collect()
}

/// 1, 2, 4 and so on up to the effective batch, which is the last.
fn micros(effective: usize) -> Vec<usize> {
    let most = effective.min(MOST);
    let powers = std::iter::successors(Some(1), |micro| Some(micro * 2)).take_while(|micro| *micro < most);
    powers.chain([most]).collect()
}

/// Measures steps at micro-batch 1, 2 and 3 for each of `precisions` with each of `checkpoints`, each in a process of its own,
/// and extrapolates to larger ones.
///
/// # Errors
/// If processes or files cannot be had, if a signal came, or if nothing could be measured, with what it said.
pub fn plan(
    loaded: &Loaded,
    networks: &Networks,
    children: &Children,
    (precisions, checkpoints): (&[Compute], &[Recompute]),
    limit: Option<u64>,
    mut show: impl FnMut(&Cut),
) -> Result<Plan, SweepError> {
    let mut plan = Plan {
        device: String::new(),
        resolution: loaded.config.data.resolution,
        random_weights: networks.random(),
        limit,
        rows: Vec::new(),
        best: None,
        notes: Vec::new(),
    };
    let mut loaded = loaded.clone();
    // A worker that reads a picture at the moment of the peak would be in it, and it is once in a while.
    loaded.config.data.workers = 0;
    for &precision in precisions {
        for &checkpoint in checkpoints {
            let mut measure = |micro: usize| {
                // Two micro-batches, since the second one meets the gradient of the first.
                let cut = Cut { micro, effective: 2 * micro, precision, checkpoint, ..Cut::of(&loaded.config) };
                show(&cut);
                let (figures, _) = measure_cut(&loaded, &cut, networks, children, &Gradient::Ignore)?;
                Ok::<_, SweepError>(figures.map_err(|status| (cut, status)))
            };
            match (measure(1)?, measure(2)?) {
                (Ok(one), Ok(two)) => {
                    plan.device.clone_from(&one.device);
                    let effective = loaded.config.batch.effective;
                    let three = match (effective > 2).then(|| measure(3)).transpose()? {
                        Some(Err((cut, status))) => {
                            plan.notes.push(note(cut, &status));
                            None
                        }
                        measured => measured.and_then(Result::ok),
                    };
                    plan.rows.extend(rows(effective, precision, checkpoint, [&one, &two], three.as_ref()));
                }
                (Ok(one), Err((cut, status))) => {
                    plan.device.clone_from(&one.device);
                    plan.rows.extend(rows(1, precision, checkpoint, [&one; 2], None));
                    plan.notes.push(note(cut, &status));
                }
                (Err((cut, status)), _) => plan.notes.push(note(cut, &status)),
            }
        }
    }
    let base = plan.rows.first().map(|row| row.speed).ok_or_else(|| SweepError::Nothing(plan.notes.join("; ")))?;
    for row in &mut plan.rows {
        row.speed /= base;
        row.fits = limit.map(|limit| row.peak_memory <= limit);
    }
    plan.best = best(&plan.rows);
    Ok(plan)
}

fn note(cut: Cut, status: &Status) -> String {
    format!("{cut}: {}: {}", status.name(), status.message().unwrap_or_default())
}

/// With the speed in images per second.
fn rows(
    effective: usize,
    precision: Compute,
    checkpoint: Recompute,
    [one, two]: [&Figures; 2],
    three: Option<&Figures>,
) -> Vec<Row> {
    let fit = Fit::new(one, two, three);
    let row = |micro: usize| Row {
        precision,
        checkpoint,
        micro,
        peak_memory: fit.peak(micro),
        measured: micro <= if three.is_some() { 3 } else { 2 },
        fits: None,
        speed: fit.images_per_second(micro),
    };
    micros(effective).into_iter().map(row).collect()
}

fn best(rows: &[Row]) -> Option<usize> {
    // What differs by less is noise.
    const AS_FAST: f64 = 0.97;
    let fitting = || rows.iter().enumerate().filter(|(_, row)| row.fits != Some(false));
    let fastest = fitting().map(|(_, row)| row.speed).fold(0.0, f64::max);
    let as_fast = fitting().filter(|(_, row)| row.speed >= AS_FAST * fastest);
    as_fast.min_by_key(|(_, row)| row.peak_memory).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures(memory: Value, images_per_second: f64) -> Figures {
        let memory = memory.as_object().unwrap().clone();
        Figures {
            device: "cpu".into(),
            peak_memory: memory.values().filter_map(Value::as_u64).max().unwrap(),
            settled: memory.clone(),
            memory,
            images_per_second,
            loss: None,
            skipped: 0,
            deviation: None,
        }
    }

    #[test]
    fn the_phase_that_grows_becomes_the_peak() {
        // A micro-batch of one takes 1 s, of two 1.5 s.
        let one = figures(json!({ "optimizer": 100, "backward": 70 }), 1.0);
        let two = figures(json!({ "optimizer": 100, "backward": 90 }), 2.0 / 1.5);
        let rows = rows(8, Compute::Fp32, Recompute::None, [&one, &two], None);
        let peaks: Vec<_> = rows.iter().map(|row| (row.micro, row.peak_memory, row.measured)).collect();
        assert_eq!(peaks, [(1, 100, true), (2, 100, true), (4, 130, false), (8, 210, false)]);
        let speeds: Vec<f64> = rows.iter().map(|row| row.speed).collect();
        assert!((speeds[3] - 8.0 / 4.5).abs() < 1e-12, "{speeds:?}");
    }

    #[test]
    fn what_comes_with_the_second_sample_once_and_for_all_does_not_grow() {
        let [one, two, three] = [10, 35, 45].map(|peak| figures(json!({ "backward": peak }), 1.0));
        let rows = rows(8, Compute::Fp32, Recompute::None, [&one, &two], Some(&three));
        assert_eq!(rows.iter().map(|row| row.peak_memory).collect::<Vec<_>>(), [10, 35, 55, 95]);
    }

    #[test]
    fn no_more_speed_is_promised_than_was_seen() {
        let figures = |speed: f64| figures(json!({ "backward": 100 }), speed);
        let rows = rows(8, Compute::Fp32, Recompute::None, [&figures(1.0), &figures(2.5)], None);
        assert_eq!(rows.iter().map(|row| row.speed).collect::<Vec<_>>()[1..], [2.5, 2.5, 2.5]);
    }

    #[test]
    fn pools_that_reserve_more_than_is_in_use_are_the_peak() {
        let reserved = |peak: u64| Figures { peak_memory: peak, ..figures(json!({ "backward": 10 }), 1.0) };
        let rows = rows(4, Compute::Fp32, Recompute::None, [&reserved(100), &reserved(140)], None);
        assert_eq!(rows.iter().map(|row| row.peak_memory).collect::<Vec<_>>(), [100, 140, 220]);
    }

    #[test]
    fn the_best_is_the_fastest_that_fits_and_of_those_the_smallest() {
        let row = |micro: usize, peak_memory: u64, speed: f64| Row {
            precision: Compute::Fp32,
            checkpoint: Recompute::None,
            micro,
            peak_memory,
            measured: false,
            fits: Some(peak_memory <= 100),
            speed,
        };
        assert_eq!(best(&[row(1, 50, 1.0), row(2, 70, 1.5), row(4, 90, 1.52), row(8, 200, 3.0)]), Some(1));
        assert_eq!(best(&[row(1, 101, 1.0)]), None);
    }

    #[test]
    fn the_micro_batches_end_with_the_effective_batch() {
        assert_eq!(micros(1), [1]);
        assert_eq!(micros(8), [1, 2, 4, 8]);
        assert_eq!(micros(10), [1, 2, 4, 8, 10]);
    }
}
