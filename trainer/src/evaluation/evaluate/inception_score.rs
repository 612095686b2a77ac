//! The Inception Score (Salimans et al. 2016, arXiv 1606.03498): how sure a classifier is of each image, and how many classes
//! it sees.

use serde::{Deserialize, Serialize};

/// Parts of the images, each with a score of its own.
pub const SPLITS: usize = 10;

/// Sums over the class probabilities of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassSums {
    splits: Vec<Split>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Split {
    images: usize,
    /// The sum of each class's probability.
    probabilities: Vec<f64>,
    /// The sum of each image's `p ln p`.
    certainty: f64,
}

/// Mean and standard deviation of the splits' scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InceptionScore {
    /// At least 1; higher is better.
    pub mean: f64,
    /// Over the splits.
    pub deviation: f64,
}

impl ClassSums {
    /// Sums of no images, in `splits` parts.
    pub fn new(splits: usize) -> Self {
        Self { splits: vec![Split::default(); splits] }
    }

    /// Adds the image at `position` by its logits. Images that follow each other are in different splits, so that a folder
    /// that is sorted by class does not have a class in each.
    pub fn add(&mut self, position: u64, logits: &[f32]) {
        let split = (position % self.splits.len() as u64) as usize;
        let split = &mut self.splits[split];
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = logits.iter().map(|logit| f64::from(logit - largest));
        let log_sum = shifted.clone().map(f64::exp).sum::<f64>().ln();
        split.probabilities.resize(logits.len(), 0.0);
        for (sum, log) in split.probabilities.iter_mut().zip(shifted.map(|logit| logit - log_sum)) {
            *sum += log.exp();
            split.certainty += log.exp() * log;
        }
        split.images += 1;
    }

    /// Returns the score, over the splits that have images; `None` if none has.
    pub fn score(&self) -> Option<InceptionScore> {
        let scores: Vec<f64> = self.splits.iter().filter(|split| split.images > 0).map(Split::score).collect();
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / count;
        (!scores.is_empty()).then(|| InceptionScore { mean, deviation: variance.sqrt() })
    }
}

impl Split {
    /// `exp` of the mean divergence of an image's classes from those of all.
    fn score(&self) -> f64 {
        let n = self.images as f64;
        let all: f64 = self.probabilities.iter().map(|sum| sum / n).filter(|p| *p > 0.0).map(|p| p * p.ln()).sum();
        (self.certainty / n - all).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_counts_the_classes_of_which_the_network_is_sure() {
        let sure = |class: usize| (0..4).map(|at| if at == class { 60.0 } else { 0.0 }).collect::<Vec<f32>>();
        let score = |images: &[Vec<f32>], splits| {
            let mut sums = ClassSums::new(splits);
            (0..).zip(images).for_each(|(position, logits)| sums.add(position, logits));
            sums.score()
        };
        let near = |found: Option<InceptionScore>, mean: f64, deviation: f64| {
            let found = found.unwrap();
            assert!((found.mean - mean).abs() < 1e-9 && (found.deviation - deviation).abs() < 1e-9, "{found:?}");
        };
        near(score(&[sure(0), sure(1), sure(2), sure(3)], 1), 4.0, 0.0);
        near(score(&[vec![0.5; 4], vec![0.5; 4]], 1), 1.0, 0.0);
        // Two classes in the first split, one in the second.
        near(score(&[sure(0), sure(2), sure(1), sure(2)], 2), 1.5, 0.5);
        // A split without images counts for nothing.
        near(score(&[sure(0), sure(2)], 10), 1.0, 0.0);
        assert_eq!(score(&[], 10), None);
    }

    #[test]
    fn sums_go_on_from_their_json() {
        let mut sums = ClassSums::new(2);
        let logits = |seed: f32| (0..8).map(|at| (seed * at as f32).sin()).collect::<Vec<f32>>();
        (0..5).for_each(|at| sums.add(at, &logits(at as f32)));
        let mut resumed: ClassSums = serde_json::from_str(&serde_json::to_string(&sums).unwrap()).unwrap();
        (5..9).for_each(|at| {
            sums.add(at, &logits(at as f32));
            resumed.add(at, &logits(at as f32));
        });
        assert_eq!(sums, resumed);
    }
}
