//! What other micro-batches would take, from steps at micro-batch 1, 2 and 3: `train plan`, and `batch.micro = "auto"`.
//!
//! Memory is a fixed part and a part for each sample, in each phase of a step by itself, since the phase that takes most
//! at a small micro-batch need not be the one that does at a large one. The line goes through 2 and 3: kernels that split
//! their work over threads keep scratch memory that a single sample is too small for. It goes through the most of all steps,
//! since on a busy machine threads do not always have their scratch memory at the same time.
//!
//! A GPU's pools take memory by the page, and how well tensors fill pages is another thing at every size, so that there the line is
//! the nearest to 1, 2 and 3, by least squares, and a page is what it may be off by.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::config::{Compute, Config, Loaded, Recompute};
use crate::memory::readable;
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
    /// Bytes that an extrapolated peak may be off by: a share of it, and a page of a GPU's pools, since whether one more is needed
    /// shows only in a step. 0 where it was measured.
    pub margin: u64,
    /// Whether it is within the limit with its margin; nothing where there is none.
    pub fits: Option<bool>,
    /// Images per second, that of the plan's first row being 1.
    pub speed: f64,
}

impl Row {
    /// Its values as they stand in a configuration.
    pub fn toml(&self) -> String {
        format!(
            "[batch]\nmicro = {}\n[precision]\ncompute = \"{}\"\n[memory]\ncheckpoint = \"{}\"\n",
            self.micro, self.precision, self.checkpoint
        )
    }
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
    /// What is other on a GPU, if it was measured on none.
    pub device_notes: &'static [&'static str],
}

/// What figures of `device`, in its description's words, do not say of a GPU.
fn device_notes(device: &str) -> &'static [&'static str] {
    const CPU: [&str; 2] = [
        "Measured on the CPU, where the program itself and its pictures are in the figure.",
        "On a GPU they are not, but its allocator reserves more than is in use, and the driver and its libraries take their \
         own: plan there, with --device.",
    ];
    const SOFTWARE: [&str; 2] = [
        "Measured on a GPU that the CPU plays: memory is counted as on a GPU.",
        "But a GPU has other kernels, its driver and libraries take their own, and its speed is another: plan there, with \
         --device.",
    ];
    match device.split(',').next() {
        Some("cpu") => &CPU,
        Some("wgpu:cpu") => &SOFTWARE,
        _ => &[],
    }
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

    /// The nearest, by least squares, to what was seen at micro-batch 1, 2 and so on, two of them at the least.
    fn nearest(seen: &[f64]) -> Self {
        let count = seen.len() as f64;
        let micros = || (1..=seen.len()).map(|micro| micro as f64);
        let [micro, mean] = [micros().sum::<f64>() / count, seen.iter().sum::<f64>() / count];
        let together: f64 = micros().zip(seen).map(|(at, seen)| (at - micro) * (seen - mean)).sum();
        let alone: f64 = micros().map(|at| (at - micro).powi(2)).sum();
        let each = (together / alone).max(0.0);
        Self { fixed: mean - each * micro, each }
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
    /// No micro-batch above it works.
    most: usize,
    /// Bytes at micro-batch 1, 2 and so on, as measured.
    measured: Vec<u64>,
    /// Of a GPU's pools, in bytes.
    page: Line,
    /// Of a micro-batch.
    seconds: Line,
}

impl Fit {
    fn new(most: usize, one: &Figures, two: &Figures, three: Option<&Figures>) -> Self {
        let all: Vec<&Figures> = [one, two].into_iter().chain(three).collect();
        let nearest = |bytes: fn(&Figures) -> u64| {
            Line::nearest(&all.iter().map(|figures| bytes(figures) as f64).collect::<Vec<_>>())
        };
        Self {
            memory: match (one.page, three) {
                (1.., _) => vec![nearest(|figures| figures.peak_memory)],
                (0, Some(three)) => phase_lines(2, two, three),
                (0, None) => phase_lines(1, one, two),
            },
            page: nearest(|figures| figures.page),
            most: most.min(MOST),
            measured: all.iter().map(|figures| figures.peak_memory).collect(),
            seconds: Line::of_seconds(1.0 / one.images_per_second, 2.0 / two.images_per_second),
        }
    }

    fn peak(&self, micro: usize) -> u64 {
        let expected = || self.memory.iter().map(|line| line.at(micro)).fold(0.0, f64::max) as u64;
        let least = self.measured.last().copied().unwrap_or(0);
        self.measured.get(micro - 1).copied().unwrap_or_else(|| expected().max(least))
    }

    fn was_measured(&self, micro: usize) -> bool {
        micro <= self.measured.len()
    }

    fn margin(&self, micro: usize) -> u64 {
        let page = if self.was_measured(micro) { 0.0 } else { self.page.at(micro) };
        (MARGIN * self.peak(micro) as f64 + page) as u64
    }

    fn images_per_second(&self, micro: usize) -> f64 {
        micro as f64 / self.seconds.at(micro)
    }

    /// The largest micro-batch whose peak with the margin is within `limit`, made smaller where that takes no more
    /// micro-batches for `effective` samples.
    fn largest(&self, effective: usize, limit: u64) -> Option<usize> {
        let fits = |micro: &usize| self.peak(*micro) + self.margin(*micro) <= limit;
        let most = (1..=self.most.min(effective)).take_while(fits).last()?;
        Some(effective.div_ceil(effective.div_ceil(most)))
    }
}

/// Of each phase, through the micro-batches `from` and the next.
fn phase_lines(from: usize, one: &Figures, two: &Figures) -> Vec<Line> {
    let line = |(phase, one): (&String, &Value)| {
        Some(Line::through(from, one.as_u64()? as f64, two.memory.get(phase)?.as_u64()? as f64))
    };
    one.memory.iter().filter_map(line).collect()
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
    show: impl Fn(&Cut),
) -> Result<Plan, SweepError> {
    let mut plan = Plan {
        device: String::new(),
        resolution: loaded.config.data.resolution,
        random_weights: networks.random(),
        limit,
        rows: Vec::new(),
        best: None,
        notes: Vec::new(),
        device_notes: &[],
    };
    for &precision in precisions {
        for &checkpoint in checkpoints {
            let cut = Cut { precision, checkpoint, ..Cut::of(&loaded.config) };
            let measure = |cut: Cut| {
                show(&cut);
                measure(loaded, cut, networks, children)
            };
            match measure(Cut { micro: 1, ..cut })? {
                Ok(one) => {
                    plan.device.clone_from(&one.device);
                    let fit = fit(&one, cut, measure, &mut plan.notes)?;
                    plan.rows.extend(rows(&fit, precision, checkpoint));
                }
                Err((cut, status)) => plan.notes.push(note(cut, &status)),
            }
        }
    }
    let base = plan.rows.first().map(|row| row.speed).ok_or_else(|| SweepError::Nothing(plan.notes.join("; ")))?;
    for row in &mut plan.rows {
        row.speed /= base;
        row.fits = limit.map(|limit| row.peak_memory + row.margin <= limit);
    }
    plan.best = best(&plan.rows);
    plan.device_notes = device_notes(&plan.device);
    Ok(plan)
}

/// One measurement: the figures, or what became of which cut.
type Measured = Result<Figures, (Cut, Status)>;

fn measure(loaded: &Loaded, cut: Cut, networks: &Networks, children: &Children) -> Result<Measured, SweepError> {
    // Two micro-batches, since the second one meets the gradient of the first.
    let cut = Cut { effective: 2 * cut.micro, ..cut };
    let mut loaded = loaded.clone();
    // A worker that reads a picture at the moment of the peak would be in it, and it is once in a while.
    loaded.config.data.workers = 0;
    let (figures, _) = measure_cut(&loaded, &cut, networks, children, &Gradient::Ignore)?;
    Ok(figures.map_err(|status| (cut, status)))
}

/// Measures micro-batch 2 and 3 of `cut`, of which `one` is what 1 took.
fn fit(
    one: &Figures,
    cut: Cut,
    measure: impl Fn(Cut) -> Result<Measured, SweepError>,
    notes: &mut Vec<String>,
) -> Result<Fit, SweepError> {
    let at = |micro: usize| measure(Cut { micro, ..cut });
    let two = match at(2)? {
        Ok(two) => two,
        Err((cut, status)) => {
            notes.push(note(cut, &status));
            return Ok(Fit::new(1, one, one, None));
        }
    };
    let three = match (cut.effective > 2).then(|| at(3)).transpose()? {
        Some(Err((cut, status))) => {
            notes.push(note(cut, &status));
            None
        }
        measured => measured.and_then(Result::ok),
    };
    Ok(Fit::new(cut.effective, one, &two, three.as_ref()))
}

fn note(cut: Cut, status: &Status) -> String {
    format!("{cut}: {}: {}", status.name(), status.message().unwrap_or_default())
}

/// With the speed in images per second.
fn rows(fit: &Fit, precision: Compute, checkpoint: Recompute) -> Vec<Row> {
    let row = |micro: usize| Row {
        precision,
        checkpoint,
        micro,
        peak_memory: fit.peak(micro),
        measured: fit.was_measured(micro),
        margin: if fit.was_measured(micro) { 0 } else { fit.margin(micro) },
        fits: None,
        speed: fit.images_per_second(micro),
    };
    micros(fit.most).into_iter().map(row).collect()
}

/// The share of a peak that a prediction may be off by.
const MARGIN: f64 = 0.05;

fn with_margin(peak: u64) -> u64 {
    (peak as f64 * (1.0 + MARGIN)) as u64
}

/// What `batch.micro = "auto"` comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Choices {
    /// A micro-batch that fits.
    Micro {
        /// Samples.
        micro: usize,
        /// The bytes that it is expected to take.
        peak: u64,
        /// What larger micro-batches could not be measured for.
        note: Vec<String>,
    },
    /// None fits: what is wrong with the limit, and what would have to change.
    Nothing(String),
}

/// Another way to compute a step, which takes less memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// Keys and values, as `--set` has them.
    pub changes: Vec<String>,
    checkpoint: Recompute,
    precision: Compute,
    resolution: u32,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.changes.join(" with "))
    }
}

/// Half the resolution, where the model can do with that.
pub fn half_resolution(config: &Config) -> Option<u32> {
    let mut smaller = config.clone();
    smaller.data.resolution /= 2;
    (config.data.resolution.is_multiple_of(2) && smaller.check().is_ok()).then_some(smaller.data.resolution)
}

/// What `config` could save memory by: single changes first, then all of them together.
pub fn ways_to_save(config: &Config) -> Vec<Way> {
    let now = Way {
        changes: Vec::new(),
        checkpoint: config.memory.checkpoint,
        precision: config.precision.compute,
        resolution: config.data.resolution,
    };
    let mut ways = Vec::new();
    let mut all = now.clone();
    let mut add = |way: Way| {
        all.changes.extend(way.changes.clone());
        ways.push(way);
    };
    if now.checkpoint == Recompute::None {
        let changes = vec!["memory.checkpoint = \"blocks\"".to_owned()];
        add(Way { changes, checkpoint: Recompute::Blocks, ..now.clone() });
    }
    if now.precision == Compute::Fp32 {
        let changes = vec!["precision.compute = \"bf16\"".to_owned()];
        add(Way { changes, precision: Compute::Bf16, ..now.clone() });
    }
    if let Some(half) = half_resolution(config) {
        add(Way { changes: vec![format!("data.resolution = {half}")], resolution: half, ..now.clone() });
        all.resolution = half;
    }
    if all.changes.len() > 1 {
        if now.precision == Compute::Fp32 {
            all.precision = Compute::Bf16;
        }
        ways.push(Way { checkpoint: Recompute::Blocks, ..all });
    }
    ways
}

/// Whether a process of its own gets through a few steps of `cut`, with no more samples than show what a micro-batch takes.
///
/// # Errors
/// As for [`plan`]. What becomes of the process is no error.
pub fn fits(
    loaded: &Loaded,
    cut: Cut,
    networks: &Networks,
    children: &Children,
) -> Result<Result<(), Status>, SweepError> {
    let cut = Cut { effective: cut.effective.min(2 * cut.micro), ..cut };
    let (figures, _) = measure_cut(loaded, &cut, networks, children, &Gradient::Ignore)?;
    Ok(figures.map(drop))
}

/// The micro-batch for `loaded` that keeps within `limit` bytes.
///
/// # Errors
/// As for [`plan`].
pub fn choose(
    loaded: &Loaded,
    networks: &Networks,
    children: &Children,
    limit: u64,
    show: impl Fn(&Cut),
) -> Result<Choices, SweepError> {
    let config = &loaded.config;
    let cut = Cut::of(config);
    let measure = |cut: Cut| {
        show(&cut);
        measure(loaded, cut, networks, children)
    };
    let one = match measure(Cut { micro: 1, ..cut })? {
        Ok(one) if with_margin(one.peak_memory) <= limit => {
            let mut note = Vec::new();
            let fit = fit(&one, cut, measure, &mut note)?;
            let micro = fit.largest(config.batch.effective, limit).unwrap_or(1);
            return Ok(Choices::Micro { micro, peak: fit.peak(micro), note });
        }
        Ok(one) => format!("{} and a margin of {:.0} %", readable(one.peak_memory), 100.0 * MARGIN),
        Err((_, Status::OutOfMemory(_))) => "more than there is".to_owned(),
        Err((cut, status)) => return Err(SweepError::Nothing(note(cut, &status))),
    };
    let mut fitting: Vec<String> = Vec::new();
    for way in ways_to_save(config) {
        // All together is for where none of them is enough.
        if way.changes.len() > 1 && !fitting.is_empty() {
            break;
        }
        let Way { checkpoint, precision, resolution, .. } = way;
        let measured = measure(Cut { micro: 1, checkpoint, precision, resolution, ..cut })?;
        if let Some(figures) = measured.ok().filter(|figures| with_margin(figures.peak_memory) <= limit) {
            fitting.push(format!("{way} ({})", readable(figures.peak_memory)));
        }
    }
    let ways = match fitting.is_empty() {
        true => "it would not fit with recomputation, bf16 and half the resolution either".to_owned(),
        false => format!("what would fit: {}", fitting.join(", or ")),
    };
    Ok(Choices::Nothing(format!("is {}, and a single sample at a time takes {one}; {ways}", readable(limit))))
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
            page: 0,
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
        let rows = rows(&Fit::new(8, &one, &two, None), Compute::Fp32, Recompute::None);
        let peaks: Vec<_> = rows.iter().map(|row| (row.micro, row.peak_memory, row.measured)).collect();
        assert_eq!(peaks, [(1, 100, true), (2, 100, true), (4, 130, false), (8, 210, false)]);
        let speeds: Vec<f64> = rows.iter().map(|row| row.speed).collect();
        assert!((speeds[3] - 8.0 / 4.5).abs() < 1e-12, "{speeds:?}");
    }

    #[test]
    fn what_comes_with_the_second_sample_once_and_for_all_does_not_grow() {
        let [one, two, three] = [10, 35, 45].map(|peak| figures(json!({ "backward": peak }), 1.0));
        let rows = rows(&Fit::new(8, &one, &two, Some(&three)), Compute::Fp32, Recompute::None);
        assert_eq!(rows.iter().map(|row| row.peak_memory).collect::<Vec<_>>(), [10, 35, 55, 95]);
    }

    #[test]
    fn no_more_speed_is_promised_than_was_seen() {
        let figures = |speed: f64| figures(json!({ "backward": 100 }), speed);
        let fit = Fit::new(8, &figures(1.0), &figures(2.5), None);
        let rows = rows(&fit, Compute::Fp32, Recompute::None);
        assert_eq!(rows.iter().map(|row| row.speed).collect::<Vec<_>>()[1..], [2.5, 2.5, 2.5]);
    }

    #[test]
    fn pools_that_reserve_more_than_is_in_use_are_the_peak() {
        let reserved =
            |peak: u64, page: u64| Figures { peak_memory: peak, page, ..figures(json!({ "backward": 10 }), 1.0) };
        let three = Fit::new(8, &reserved(100, 20), &reserved(160, 30), Some(&reserved(190, 40)));
        assert_eq!([1, 2, 3, 4, 8].map(|micro| three.peak(micro)), [100, 160, 190, 240, 420]);
        assert_eq!([3, 4, 8].map(|micro| three.margin(micro)), [9, 12 + 50, 21 + 90]);
        let no_more = Fit::new(8, &reserved(100, 20), &reserved(160, 20), Some(&reserved(100, 20)));
        assert_eq!([3, 4].map(|micro| no_more.peak(micro)), [100, 120]);

        let fit = Fit::new(4, &reserved(100, 20), &reserved(140, 30), None);
        let rows = rows(&fit, Compute::Fp32, Recompute::None);
        let peaks: Vec<_> = rows.iter().map(|row| (row.peak_memory, row.margin)).collect();
        // Of what was not measured, 5 % and one page of the size that it takes there.
        assert_eq!(peaks, [(100, 0), (140, 0), (220, 11 + 50)]);
        assert_eq!([146, 147, 239, 240, 280].map(|limit| fit.largest(4, limit).unwrap()), [1, 2, 2, 2, 2]);
        assert_eq!(fit.largest(4, 281), Some(4));
    }

    #[test]
    fn the_best_is_the_fastest_that_fits_and_of_those_the_smallest() {
        let row = |micro: usize, peak_memory: u64, speed: f64| Row {
            precision: Compute::Fp32,
            checkpoint: Recompute::None,
            micro,
            peak_memory,
            measured: false,
            margin: 0,
            fits: Some(peak_memory <= 100),
            speed,
        };
        assert_eq!(best(&[row(1, 50, 1.0), row(2, 70, 1.5), row(4, 90, 1.52), row(8, 200, 3.0)]), Some(1));
        assert_eq!(best(&[row(1, 101, 1.0)]), None);
    }

    #[test]
    fn the_largest_that_fits_is_evened_out() {
        let [one, two] = [110, 120].map(|peak| figures(json!({ "backward": peak }), 1.0));
        let fit = Fit::new(32, &one, &two, None);
        // 100 and 10 for each sample, with 5 % on top.
        assert_eq!(fit.largest(32, 114), None);
        assert_eq!(fit.largest(32, 115), Some(1));
        assert_eq!(fit.largest(32, 273), Some(16));
        assert_eq!(fit.largest(32, 294), Some(16), "18 would need a second micro-batch as well");
        assert_eq!(fit.largest(32, 1_000_000), Some(32));
        assert_eq!(Fit::new(1, &one, &one, None).largest(32, 1_000_000), Some(1));
    }

    #[test]
    fn what_saves_memory_is_what_is_not_on_yet() {
        let mut config = Config::default();
        let words = |config: &Config| ways_to_save(config).iter().map(Way::to_string).collect::<Vec<_>>();
        let [blocks, bf16, half] =
            ["memory.checkpoint = \"blocks\"", "precision.compute = \"bf16\"", "data.resolution = 128"];
        assert_eq!(words(&config), [blocks, bf16, half, &[blocks, bf16, half].join(" with ")]);
        config.memory.checkpoint = Recompute::Blocks;
        config.precision.compute = Compute::Fp16;
        assert_eq!(words(&config), [half]);
    }

    #[test]
    fn figures_of_no_gpu_say_so() {
        assert!(device_notes("cpu, 2 threads (wgpu found 0 GPUs)")[0].starts_with("Measured on the CPU, "));
        assert!(device_notes("wgpu:cpu, llvmpipe")[0].starts_with("Measured on a GPU that the CPU plays"));
        assert!(device_notes("wgpu:0, Radeon").is_empty() && device_notes("cuda:0, H100").is_empty());
    }

    #[test]
    fn the_micro_batches_end_with_the_effective_batch() {
        assert_eq!(micros(1), [1]);
        assert_eq!(micros(8), [1, 2, 4, 8]);
        assert_eq!(micros(10), [1, 2, 4, 8, 10]);
    }
}
