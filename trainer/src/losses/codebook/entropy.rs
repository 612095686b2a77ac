//! An entropy term that makes codes evenly used and each choice certain (LlamaGen, arXiv 2406.06525, after Yu et al.
//! 2023, arXiv 2310.05737).
//!
//! It is `mean over tokens of H(p_token) - H(mean over tokens of p_token)`, with `p` the softmax of the negative
//! squared distances over a temperature. The second part couples all samples, because its mean is over the whole
//! effective batch. The first pass sums the probabilities, [`EntropyCoupling::new`] computes the derivative with
//! respect to their mean, and the second pass needs only that vector.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};

use crate::models::quantizer::tiles;

/// Softmax temperature of the entropy term in LlamaGen.
const TEMPERATURE: f64 = 0.01;

/// Guard inside the logarithm of the mean probability, as in LlamaGen.
const LOG_EPSILON: f64 = 1e-5;

/// Returns scaled log-probabilities of the codes for each row: `[M, D]` and `[K, D]` to `[M, K]`.
fn affinity(vectors: Tensor<2>, codebook: Tensor<2>) -> Tensor<2> {
    let squares = codebook.clone().square().sum_dim(1).swap_dims(0, 1);
    (vectors.matmul(codebook.swap_dims(0, 1)) * 2.0 - squares) / TEMPERATURE
}

/// Sums the codes' probabilities over the rows of `vectors` `[M, D]`, to `[K]`, without a graph.
pub fn sum_probabilities(vectors: Tensor<2>, codebook: Tensor<2>) -> Tensor<1> {
    let [k, _] = codebook.dims();
    let of_tile = |tile| softmax(affinity(tile, codebook.clone()), 1).sum_dim(0).reshape([k]);
    let zero = Tensor::<1>::zeros([k], (&vectors.device(), vectors.dtype()));
    tiles(vectors, k).into_iter().map(of_tile).fold(zero, Tensor::add)
}

/// The part of the entropy term that the effective batch shares.
#[derive(Debug, Clone)]
pub struct EntropyCoupling {
    /// `d (-H(mean p)) / d (mean p)`, `[K]`.
    coefficient: Tensor<1>,
    /// `H(mean p)`, `[1]`.
    entropy: Tensor<1>,
    /// Number of tokens in the effective batch.
    tokens: f64,
}

/// The entropy term's value and its gradient for one micro-batch.
#[derive(Debug)]
pub struct EntropyGradient {
    /// The micro-batch's part of the mean over tokens of `H(p_token)`, `[1]`.
    pub sample_entropy: Tensor<1>,
    /// Gradient at the latent vectors, `[M, D]`.
    pub vectors: Tensor<2>,
    /// Gradient at the codes, `[K, D]`.
    pub codebook: Tensor<2>,
}

impl EntropyCoupling {
    /// Computes it from the sum of probabilities over all `tokens` of the effective batch.
    pub fn new(sum: Tensor<1>, tokens: usize) -> Self {
        let mean = sum / tokens as f64;
        let guarded = mean.clone() + LOG_EPSILON;
        let log = guarded.clone().log();
        Self { entropy: -(mean.clone() * log.clone()).sum(), coefficient: log + mean / guarded, tokens: tokens as f64 }
    }

    /// Returns `-H(mean p)`, `[1]`: the part of the value that does not belong to a single micro-batch.
    pub fn shared_value(&self) -> Tensor<1> {
        -self.entropy.clone()
    }

    /// Returns the gradient for one micro-batch's `vectors` `[M, D]` and `codebook` `[K, D]`, both without autodiff.
    /// Works in tiles, so that the probabilities of all codes exist for few tokens at a time.
    pub fn gradient(&self, vectors: Tensor<2>, codebook: Tensor<2>) -> EntropyGradient {
        let [k, _] = codebook.dims();
        self.gradient_of_tiles(tiles(vectors, k), codebook)
    }

    fn gradient_of_tiles(&self, vectors: Vec<Tensor<2>>, codebook: Tensor<2>) -> EntropyGradient {
        let [k, _] = codebook.dims();
        let (device, dtype) = (codebook.device(), codebook.dtype());
        let coefficient = self.coefficient.clone().reshape([1, k]).autodiff();
        let mut sample_entropy = Tensor::<1>::zeros([1], (&device, dtype));
        let mut at_codebook = codebook.zeros_like();
        let mut at_vectors = Vec::new();
        for tile in vectors {
            let tile = tile.autodiff().require_grad();
            let codes = codebook.clone().autodiff().require_grad();
            let affinity = affinity(tile.clone(), codes.clone());
            let probabilities = softmax(affinity.clone(), 1);
            let entropy = -(probabilities.clone() * log_softmax(affinity, 1)).sum() / self.tokens;
            let linear = (probabilities * coefficient.clone()).sum() / self.tokens;
            sample_entropy = sample_entropy + entropy.clone().without_autodiff();
            let mut gradients = (entropy + linear).backward();
            at_vectors.extend(tile.grad_remove(&mut gradients));
            if let Some(gradient) = codes.grad_remove(&mut gradients) {
                at_codebook = at_codebook + gradient;
            }
        }
        EntropyGradient { sample_entropy, vectors: Tensor::cat(at_vectors, 0), codebook: at_codebook }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;

    const TOKENS: usize = 5;
    const CODES: usize = 4;
    const DIM: usize = 3;

    /// So close together that several codes are probable for a token at the temperature of the loss.
    fn wave(rows: usize, phase: f64) -> Vec<f64> {
        (0..rows * DIM).map(|i| 0.08 * (i as f64 * 1.7 + phase).sin()).collect()
    }

    fn tensor(values: &[f64]) -> Tensor<2> {
        let data = TensorData::new(values.to_vec(), [values.len() / DIM, DIM]);
        Tensor::from_data(data, (&Device::flex(), DType::F64))
    }

    fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().try_into_vec().unwrap()
    }

    fn coupling(vectors: &[f64], codebook: &[f64]) -> EntropyCoupling {
        EntropyCoupling::new(sum_probabilities(tensor(vectors), tensor(codebook)), TOKENS)
    }

    fn value(vectors: &[f64], codebook: &[f64]) -> f64 {
        let coupling = coupling(vectors, codebook);
        let samples = coupling.gradient(tensor(vectors), tensor(codebook)).sample_entropy;
        read(samples + coupling.shared_value())[0]
    }

    #[test]
    fn the_entropy_terms_gradient_is_that_of_finite_differences() {
        let (vectors, codebook) = (wave(TOKENS, 0.3), wave(CODES, 1.1));
        let gradient = coupling(&vectors, &codebook).gradient(tensor(&vectors), tensor(&codebook));
        let step = 1e-6;
        for (at, gradient) in [(0, read(gradient.vectors)), (1, read(gradient.codebook))] {
            assert!(gradient.iter().any(|g| g.abs() > 0.1), "{gradient:?}");
            for (index, expected) in gradient.iter().enumerate() {
                let nudged = |amount: f64| {
                    let mut inputs = [vectors.clone(), codebook.clone()];
                    inputs[at][index] += amount;
                    value(&inputs[0], &inputs[1])
                };
                let difference = (nudged(step) - nudged(-step)) / (2.0 * step);
                assert!((difference - expected).abs() < 1e-5, "{at} {index}: {expected} against {difference}");
            }
        }
    }

    #[test]
    fn tiles_do_not_change_the_entropy_terms_gradient() {
        let (vectors, codebook) = (wave(TOKENS, 0.3), wave(CODES, 1.1));
        let coupling = coupling(&vectors, &codebook);
        let whole = coupling.gradient_of_tiles(vec![tensor(&vectors)], tensor(&codebook));
        let tiled = coupling.gradient_of_tiles(tensor(&vectors).split(2, 0), tensor(&codebook));
        let near = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(read(whole.vectors), read(tiled.vectors)));
        assert!(near(read(whole.codebook), read(tiled.codebook)));
        assert!(near(read(whole.sample_entropy), read(tiled.sample_entropy)));
    }
}
