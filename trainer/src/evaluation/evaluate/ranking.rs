//! The images of a pass that are reconstructed worst and best.

use serde::{Deserialize, Serialize};

use crate::evaluation::metrics::{ImageMetrics, null_is_nan};

/// The metric by which images are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RankedBy {
    /// LPIPS: the higher, the worse.
    Lpips,
    /// PSNR in dB: the lower, the worse.
    Psnr,
}

impl RankedBy {
    fn value(self, image: &ImageMetrics) -> f64 {
        match self {
            Self::Lpips => image.lpips.unwrap_or(f64::NAN),
            Self::Psnr => image.psnr,
        }
    }

    /// The higher, the worse. What is no number is the worst.
    fn badness(self, value: f64) -> f64 {
        match self {
            _ if value.is_nan() => f64::INFINITY,
            Self::Lpips => value,
            Self::Psnr => -value,
        }
    }
}

/// An image of a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Position among the images of the evaluation.
    pub position: u64,
    /// The metric's value.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
}

/// The worst and the best images so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// The metric.
    pub by: RankedBy,
    /// Images in each list, at most.
    keep: usize,
    /// The worst first.
    pub worst: Vec<Ranked>,
    /// The best first.
    pub best: Vec<Ranked>,
}

impl Ranking {
    /// Keeps this many images of each kind.
    pub fn new(by: RankedBy, keep: usize) -> Self {
        Self { by, keep, worst: Vec::new(), best: Vec::new() }
    }

    /// Adds the image at `position`.
    pub fn add(&mut self, position: u64, image: &ImageMetrics) {
        let (by, value) = (self.by, self.by.value(image));
        for (list, sign) in [(&mut self.worst, -1.0), (&mut self.best, 1.0)] {
            let key = |value: f64| sign * by.badness(value);
            let place = list.partition_point(|other| key(other.value) <= key(value));
            list.insert(place, Ranked { position, value });
            list.truncate(self.keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(by: RankedBy, values: &[f64]) -> [Vec<u64>; 2] {
        let mut ranking = Ranking::new(by, 2);
        for (position, &value) in (0..).zip(values) {
            let image = ImageMetrics { l1: 0.0, psnr: value, ssim: None, lpips: Some(value), clip: None };
            ranking.add(position, &image);
        }
        [ranking.worst, ranking.best].map(|list| list.into_iter().map(|ranked| ranked.position).collect())
    }

    #[test]
    fn images_are_ranked_and_what_is_no_number_is_the_worst() {
        let values = [3.0, 1.0, f64::NAN, 2.0, 1.0];
        assert_eq!(ranked(RankedBy::Lpips, &values), [vec![2, 0], vec![1, 4]]);
        assert_eq!(ranked(RankedBy::Psnr, &values), [vec![2, 1], vec![0, 3]]);
    }
}
