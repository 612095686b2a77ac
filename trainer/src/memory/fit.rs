//! What a step needs at other micro-batches, extrapolated from micro-batch 1, 2 and 3.
//!
//! Memory has a fixed part and a part for each sample. It is extrapolated in each phase of a step by itself: the phase that
//! needs the most at a small micro-batch may be another one than at a large micro-batch. The line goes through 2 and 3, since
//! kernels that split their work over threads keep scratch memory for which a single sample is too small. It goes through the
//! largest peak of all steps, since on a busy machine not all threads have their scratch memory at the same time.
//!
//! A GPU's pools grow by pages, and how well tensors fill pages differs at every size. So there the line is the nearest to 1, 2
//! and 3, by least squares, and it may be off by a page.

use serde_json::Value;

use super::measurer::Failure;
use super::{Measurement, Measurer, MemoryError, Variant};

/// The largest micro-batch that a plan or a choice considers.
pub(super) const MOST: usize = 256;

/// The share of a peak that a prediction may be off by.
pub(super) const MARGIN: f64 = 0.05;

pub(super) fn with_margin(peak: u64) -> u64 {
    (peak as f64 * (1.0 + MARGIN)) as u64
}

/// A straight line over the micro-batch, through what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    fixed: f64,
    each: f64,
}

impl Line {
    /// Through `a` at micro-batch `from` and `b` at the next.
    pub(super) fn through(from: usize, a: f64, b: f64) -> Self {
        // Less for more samples is noise.
        let each = (b - a).max(0.0);
        Self { fixed: a - each * from as f64, each }
    }

    /// The nearest line, by least squares, to what was measured at micro-batch 1, 2 and so on; at least two of them.
    fn nearest(seen: &[f64]) -> Self {
        let count = seen.len() as f64;
        let micros = || (1..=seen.len()).map(|micro| micro as f64);
        let [micro, mean] = [micros().sum::<f64>() / count, seen.iter().sum::<f64>() / count];
        let together: f64 = micros().zip(seen).map(|(at, seen)| (at - micro) * (seen - mean)).sum();
        let alone: f64 = micros().map(|at| (at - micro).powi(2)).sum();
        let each = (together / alone).max(0.0);
        Self { fixed: mean - each * micro, each }
    }

    /// The seconds that a micro-batch takes. Where two samples took no longer than one, because of noise or an idle device, no
    /// more speed is promised than was measured.
    fn of_seconds(one: f64, two: f64) -> Self {
        if two > one { Self::through(1, one, two) } else { Self { fixed: 0.0, each: two / 2.0 } }
    }

    pub(super) fn at(&self, micro: usize) -> f64 {
        self.fixed + self.each * micro as f64
    }
}

/// Memory and speed by micro-batch, each phase extrapolated by itself.
pub(super) struct Fit {
    memory: Vec<Line>,
    /// The largest micro-batch that makes sense.
    pub(super) most: usize,
    /// Bytes measured at micro-batch 1, 2 and so on.
    measured: Vec<u64>,
    /// Bytes of a page of a GPU's pools.
    page: Line,
    /// The seconds of a micro-batch.
    seconds: Line,
}

impl Fit {
    /// Measures micro-batch 2 and 3 of `variant`, of which `one` is the measurement of 1. What fails is put into `notes`.
    pub(super) fn measure(
        one: &Measurement,
        variant: Variant,
        measurer: &Measurer,
        notes: &mut Vec<String>,
    ) -> Result<Self, MemoryError> {
        let mut note = |failure: Failure| notes.push(failure.to_string());
        let at = |micro: usize| measurer.peak(Variant { micro, ..variant });
        let two = match at(2)? {
            Ok(two) => two,
            Err(failure) => {
                note(failure);
                return Ok(Self::new(1, one, one, None));
            }
        };
        let three = match variant.effective > 2 {
            true => at(3)?.map_err(note).ok(),
            false => None,
        };
        Ok(Self::new(variant.effective, one, &two, three.as_ref()))
    }

    pub(super) fn new(most: usize, one: &Measurement, two: &Measurement, three: Option<&Measurement>) -> Self {
        let all: Vec<&Measurement> = [one, two].into_iter().chain(three).collect();
        let nearest = |bytes: fn(&Measurement) -> u64| {
            Line::nearest(&all.iter().map(|measured| bytes(measured) as f64).collect::<Vec<_>>())
        };
        Self {
            memory: match (one.page, three) {
                (1.., _) => vec![nearest(|measured| measured.peak_memory)],
                (0, Some(three)) => phase_lines(2, two, three),
                (0, None) => phase_lines(1, one, two),
            },
            page: nearest(|measured| measured.page),
            most: most.min(MOST),
            measured: all.iter().map(|measured| measured.peak_memory).collect(),
            seconds: Line::of_seconds(1.0 / one.images_per_second, 2.0 / two.images_per_second),
        }
    }

    /// The peak in bytes, measured or expected.
    pub(super) fn peak(&self, micro: usize) -> u64 {
        let expected = || self.memory.iter().map(|line| line.at(micro)).fold(0.0, f64::max) as u64;
        let least = self.measured.last().copied().unwrap_or(0);
        self.measured.get(micro - 1).copied().unwrap_or_else(|| expected().max(least))
    }

    pub(super) fn was_measured(&self, micro: usize) -> bool {
        micro <= self.measured.len()
    }

    /// Bytes that the peak may be off by.
    pub(super) fn margin(&self, micro: usize) -> u64 {
        let page = if self.was_measured(micro) { 0.0 } else { self.page.at(micro) };
        (MARGIN * self.peak(micro) as f64 + page) as u64
    }

    pub(super) fn images_per_second(&self, micro: usize) -> f64 {
        micro as f64 / self.seconds.at(micro)
    }

    /// The largest micro-batch whose peak with the margin is at most `limit`. It is made smaller where `effective` samples need
    /// no more micro-batches for that.
    pub(super) fn largest(&self, effective: usize, limit: u64) -> Option<usize> {
        let fits = |micro: &usize| self.peak(*micro) + self.margin(*micro) <= limit;
        let most = (1..=self.most.min(effective)).take_while(fits).last()?;
        Some(effective.div_ceil(effective.div_ceil(most)))
    }
}

/// A line for each phase, through the micro-batches `from` and the next.
fn phase_lines(from: usize, one: &Measurement, two: &Measurement) -> Vec<Line> {
    let line = |(phase, one): (&String, &Value)| {
        Some(Line::through(from, one.as_u64()? as f64, two.memory.get(phase)?.as_u64()? as f64))
    };
    one.memory.iter().filter_map(line).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::memory) fn measured(memory: Value, images_per_second: f64) -> Measurement {
        let memory = memory.as_object().unwrap().clone();
        Measurement {
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
    fn the_largest_that_fits_is_evened_out() {
        let [one, two] = [110, 120].map(|peak| measured(json!({ "backward": peak }), 1.0));
        let fit = Fit::new(32, &one, &two, None);
        // 100 and 10 for each sample, with 5 % on top.
        assert_eq!(fit.largest(32, 114), None);
        assert_eq!(fit.largest(32, 115), Some(1));
        assert_eq!(fit.largest(32, 273), Some(16));
        assert_eq!(fit.largest(32, 294), Some(16), "18 would need a second micro-batch as well");
        assert_eq!(fit.largest(32, 1_000_000), Some(32));
        assert_eq!(Fit::new(1, &one, &one, None).largest(32, 1_000_000), Some(1));
    }
}
