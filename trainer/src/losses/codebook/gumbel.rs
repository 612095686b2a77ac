//! Keeps the codes of a Gumbel quantizer in use: the divergence of each position's probabilities from uniform ones, as
//! in `GumbelQuantize` of taming-transformers (after Jang et al. 2016, arXiv 1611.01144). It couples no samples.

use std::f64::consts::PI;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use checkpoints::GumbelTraining;

use crate::models::quantizer::gumbel::{GumbelNoise, GumbelTerms, Sampling, softmax_gradient};

/// Guard inside the logarithm, as in taming-transformers.
const LOG_EPSILON: f64 = 1e-10;

/// The loss `codebook` of a Gumbel quantizer, and how its codes are drawn in training.
#[derive(Debug, Clone)]
pub struct GumbelLoss {
    /// The divergence's weight and the temperature's schedule.
    pub training: GumbelTraining,
    /// The noise that is added to the logits.
    pub noise: Arc<dyn GumbelNoise>,
}

impl GumbelLoss {
    /// Returns the temperature of the softmax that gradients use, in a step counted from 0: from start to end along
    /// half a cosine, then constant (taming-transformers' `LambdaWarmUpCosineScheduler` without its warm-up).
    pub fn temperature(&self, step: u64) -> f64 {
        let GumbelTraining { temperature_start: start, temperature_end: end, temperature_steps, .. } = self.training;
        let done = (step as f64 / temperature_steps as f64).min(1.0);
        end + 0.5 * (start - end) * (1.0 + (PI * done).cos())
    }

    /// Returns how to draw the codes of the samples at `draws` of the training stream in an optimizer step, from 0.
    pub fn sampling(&self, step: u64, draws: &[u64]) -> Sampling {
        Sampling { noise: self.noise.clone(), draws: draws.to_vec(), temperature: self.temperature(step) }
    }
}

/// Computes the divergence `sum_k p_k ln(p_k K)` of the codes' probabilities, without noise, from uniform ones: its
/// mean over each sample's positions, summed over the samples, `[1]`, and a scalar with the gradient of that sum.
pub fn divergence(terms: &GumbelTerms) -> (Tensor<1>, Tensor<1>) {
    let mut sum: Option<Tensor<1>> = None;
    let gradient = terms.through_logits(|logits, _| {
        let codes = logits.dims()[1] as f64;
        let probabilities = softmax(logits, 1);
        let guarded = probabilities.clone() * codes + LOG_EPSILON;
        let log = guarded.clone().log();
        let of_tile = (probabilities.clone() * log.clone()).sum();
        sum = Some(match sum.take() {
            Some(sum) => sum + of_tile,
            None => of_tile,
        });
        let slope = log + probabilities.clone() * codes / guarded;
        softmax_gradient(probabilities, slope)
    });
    let positions = terms.per_sample() as f64;
    let sum = sum.unwrap_or_else(|| gradient.clone().without_autodiff());
    (sum / positions, gradient / positions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::quantizer::gumbel::SeededNoise;

    #[test]
    fn the_temperature_falls_along_half_a_cosine_and_stays() {
        let training =
            GumbelTraining { kl_weight: 1.0, temperature_start: 0.9, temperature_end: 0.1, temperature_steps: 4 };
        let loss = GumbelLoss { training, noise: Arc::new(SeededNoise { seed: 0 }) };
        let half = 0.4 * 0.5f64.sqrt();
        for (step, expected) in [0.9, 0.5 + half, 0.5, 0.5 - half, 0.1, 0.1].into_iter().enumerate() {
            let found = loss.temperature(step as u64);
            assert!((found - expected).abs() < 1e-12, "{step}: {found}");
        }
        assert_eq!(loss.sampling(2, &[7, 9]).draws, [7, 9]);
    }
}
