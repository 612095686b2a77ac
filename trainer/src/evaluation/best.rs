//! Finds the best validation of a run, by one metric of its scores.

use serde::{Deserialize, Serialize};

use crate::config::Metric;
use crate::evaluation::Scores;

impl Metric {
    /// Whether `a` is better than `b`. NaN is never better.
    pub fn is_better(self, a: f64, b: f64) -> bool {
        match self {
            Self::None => false,
            Self::L1 | Self::Lpips => a < b,
            Self::Psnr | Self::Ssim | Self::Clip => a > b,
        }
    }

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The best validation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The metric that decides.
    pub metric: Metric,
    /// Optimizer steps done at the best validation.
    pub step: u64,
    /// The metric's value there.
    pub value: f64,
    /// Validations since then.
    pub worse: u64,
}

impl Best {
    /// Returns the best validation after one more, at `step`. Starts again if the metric has changed.
    pub fn after(before: Option<Self>, metric: Metric, step: u64, scores: &Scores) -> Option<Self> {
        let before = before.filter(|best| best.metric == metric);
        let new = scores.get(metric).filter(|value| value.is_finite());
        let new = new.map(|value| Self { metric, step, value, worse: 0 });
        match (before, new) {
            (Some(best), Some(new)) if metric.is_better(new.value, best.value) => Some(new),
            (Some(best), _) => Some(Self { worse: best.worse + 1, ..best }),
            (None, new) => new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(l1: f64, psnr: f64) -> Scores {
        Scores {
            images: 1,
            l1,
            psnr,
            ssim: None,
            lpips: None,
            clip: None,
            caption: None,
            right_caption: None,
            codes_used: 1.0,
            perplexity: 1.0,
        }
    }

    #[test]
    fn the_best_is_the_lowest_error_or_the_highest_similarity() {
        let validations = [scores(0.5, 10.0), scores(0.4, 9.0), scores(f64::NAN, 12.0), scores(0.4, 11.0)];
        let best = |metric| {
            let after = |best, (step, scores): (u64, &Scores)| Best::after(best, metric, step, scores);
            (0..).zip(&validations).fold(None, after)
        };
        assert_eq!(best(Metric::L1), Some(Best { metric: Metric::L1, step: 1, value: 0.4, worse: 2 }));
        assert_eq!(best(Metric::Psnr), Some(Best { metric: Metric::Psnr, step: 2, value: 12.0, worse: 1 }));
        assert_eq!(best(Metric::Clip), None);
        assert_eq!(best(Metric::None), None);
    }

    #[test]
    fn another_metric_starts_again() {
        let best = Best::after(None, Metric::L1, 3, &scores(0.1, 5.0));
        let best = Best::after(best, Metric::Psnr, 4, &scores(0.2, 4.0));
        assert_eq!(best, Some(Best { metric: Metric::Psnr, step: 4, value: 4.0, worse: 0 }));
    }

    #[test]
    fn every_metric_has_the_name_of_the_configuration() {
        for metric in [Metric::None, Metric::L1, Metric::Psnr, Metric::Ssim, Metric::Lpips, Metric::Clip] {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }
}
