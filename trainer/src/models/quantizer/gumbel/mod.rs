//! The Gumbel quantizer (Jang et al. 2016, arXiv 1611.01144), as `GumbelQuantize` of taming-transformers.
//!
//! A 1x1 convolution gives each position a logit per code, and the code with the largest logit is chosen. Training
//! first adds Gumbel noise to the logits, which draws each code with its probability. Gradients pass the choice as if
//! it were the softmax of the same noisy logits over a temperature (straight-through).
//!
//! Logits of thousands of codes are larger than anything else in the model. Positions do not depend on each other, so
//! the logits are computed for few positions at a time, and again in the backward pass. Their gradient through the
//! softmax is known in closed form, so they never have a graph.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use datasets::{Purpose, SampleKey};
use rand::Rng;
use rayon::prelude::*;

use super::{Embedding, Quantized, Terms, as_vectors, tiles};
use crate::models::surrogate::surrogate;
use crate::models::weights::{ModelError, WeightReader};

/// Number of tensors of the logits' size that exist at once.
const TENSORS_AT_ONCE: usize = 4;

/// Gives each position a logit for each code.
#[derive(Module, Debug)]
pub struct GumbelQuantizer {
    proj: Projection,
    embed: Embedding,
}

#[derive(Module, Debug)]
struct Projection {
    /// `[codes, code dim, 1, 1]`.
    weight: Param<Tensor<4>>,
    /// `[codes]`.
    bias: Param<Tensor<1>>,
}

/// Standard Gumbel noise.
pub trait GumbelNoise: Debug + Send + Sync {
    /// Writes the noise of all codes at `position` (row by row) of the sample at `draw` of the training stream.
    fn fill(&self, draw: u64, position: u64, values: &mut [f32]);
}

/// Noise that depends on a run's seed alone.
#[derive(Debug, Clone, Copy)]
pub struct SeededNoise {
    /// The run's seed.
    pub seed: u64,
}

impl GumbelNoise for SeededNoise {
    /// `-ln(-ln u)` of uniform numbers `u` strictly between 0 and 1.
    fn fill(&self, draw: u64, position: u64, values: &mut [f32]) {
        /// 2^32, the number of values of a `u32`.
        const STEPS: f64 = 4_294_967_296.0;
        let mut rng = SampleKey { seed: self.seed, draw }.rng_at(Purpose::Gumbel, position);
        for value in values {
            let uniform = (f64::from(rng.next_u32()) + 0.5) / STEPS;
            *value = -(-uniform.ln()).ln() as f32;
        }
    }
}

/// How the codes of a micro-batch are drawn.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// The noise that is added to the logits.
    pub noise: Arc<dyn GumbelNoise>,
    /// Each sample's position in the training stream.
    pub draws: Vec<u64>,
    /// The noisy logits are divided by it in the softmax that gradients use; above 0.
    pub temperature: f64,
}

/// The inputs of the logits, with a graph where the model has one.
#[derive(Debug)]
pub struct GumbelTerms {
    /// Latent vectors, `[N * h * w, D]`.
    vectors: Tensor<2>,
    /// Of the projection, `[codes, D]`.
    weight: Tensor<2>,
    /// Of the projection, `[codes]`.
    bias: Tensor<1>,
    /// The codes, `[codes, D]`.
    embed: Tensor<2>,
    /// `h * w`.
    per_sample: usize,
    /// `None` means no noise and a temperature of 1.
    sampling: Option<Sampling>,
}

impl GumbelQuantizer {
    pub(super) fn read(from: &WeightReader) -> Result<Self, ModelError> {
        let (proj, embed) = (from.at("proj").wide(), from.at("embed").wide());
        Ok(Self {
            proj: Projection { weight: proj.param("weight")?, bias: proj.param("bias")? },
            embed: Embedding { weight: embed.param("weight")? },
        })
    }

    /// Number of codes.
    pub fn codes(&self) -> usize {
        self.embed.weight.dims()[0]
    }

    pub(super) fn codebook(&self) -> Tensor<2> {
        self.embed.weight.val()
    }

    /// Maps latents `[N, D, h, w]` to the codes with the largest logit, after adding the noise of `sampling`. Gradients
    /// go through [`Quantized::surrogate`] only.
    pub(super) fn forward(&self, latent: Tensor<4>, sampling: Option<Sampling>) -> Quantized {
        let [n, d, h, w] = latent.dims();
        let (weight, embed) = (self.proj.weight.val(), self.codebook());
        let [codes, inputs, ..] = weight.dims();
        let terms = GumbelTerms {
            vectors: as_vectors(latent, embed.dtype()),
            weight: weight.reshape([codes, inputs]),
            bias: self.proj.bias.val(),
            embed: embed.clone(),
            per_sample: h * w,
            sampling,
        };
        let mut codes = Vec::new();
        terms.each_tile(|logits, _, rows| {
            let count = rows.len();
            codes.push(terms.with_noise(logits, rows).argmax(1).reshape([count]));
        });
        let codes = Tensor::cat(codes, 0);
        let latent = embed.clone().without_autodiff().select(0, codes.clone());
        let latent = latent.reshape([n, h, w, d]).permute([0, 3, 1, 2]);
        let latent = if embed.is_autodiff() { latent.autodiff() } else { latent };
        Quantized { latent, codes, terms: Terms::Gumbel(terms) }
    }
}

impl GumbelTerms {
    /// Latent vectors, `[N * h * w, D]`.
    pub fn vectors(&self) -> &Tensor<2> {
        &self.vectors
    }

    /// Positions of a sample.
    pub fn per_sample(&self) -> usize {
        self.per_sample
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.vectors.dims()[0] / self.per_sample
    }

    /// Calls `visit` with a few positions at a time: their logits `[m, codes]`, latent vectors `[m, D]` and indices.
    fn each_tile(&self, mut visit: impl FnMut(Tensor<2>, Tensor<2>, Range<usize>)) {
        let columns = self.weight.clone().without_autodiff().swap_dims(0, 1);
        let bias = self.bias.clone().without_autodiff().unsqueeze::<2>();
        let [_, codes] = columns.dims();
        let mut first = 0;
        for tile in tiles(self.vectors.clone().without_autodiff(), TENSORS_AT_ONCE * codes) {
            let rows = first..first + tile.dims()[0];
            first = rows.end;
            visit(tile.clone().matmul(columns.clone()) + bias.clone(), tile, rows);
        }
    }

    /// Adds their noise to the `logits` of the positions `rows`.
    fn with_noise(&self, logits: Tensor<2>, rows: Range<usize>) -> Tensor<2> {
        let Some(Sampling { noise, draws, .. }) = &self.sampling else { return logits };
        let shape = logits.dims();
        let mut values = vec![0.0; shape[0] * shape[1]];
        // Each position has its own noise, so it does not matter which thread draws it.
        values.par_chunks_mut(shape[1]).zip(rows).for_each(|(values, row)| {
            noise.fill(draws[row / self.per_sample], (row % self.per_sample) as u64, values);
        });
        let noise = Tensor::<2>::from_data(TensorData::new(values, shape), (&logits.device(), logits.dtype()));
        logits + noise
    }

    /// Returns a scalar whose gradient at latents and projection follows from `at_logits`. That gives the gradient at
    /// the logits `[m, codes]` for a range of positions.
    pub(crate) fn through_logits(&self, mut at_logits: impl FnMut(Tensor<2>, Range<usize>) -> Tensor<2>) -> Tensor<1> {
        let weight = self.weight.clone().without_autodiff();
        let (mut at_weight, mut at_bias) = (weight.zeros_like(), self.bias.clone().without_autodiff().zeros_like());
        let (mut at_vectors, [codes, _]) = (Vec::new(), weight.dims());
        self.each_tile(|logits, vectors, rows| {
            let gradient = at_logits(logits, rows);
            at_vectors.push(gradient.clone().matmul(weight.clone()));
            at_bias = at_bias.clone() + gradient.clone().sum_dim(0).reshape([codes]);
            at_weight = at_weight.clone() + gradient.swap_dims(0, 1).matmul(vectors);
        });
        surrogate(self.vectors.clone(), Tensor::cat(at_vectors, 0))
            + surrogate(self.weight.clone(), at_weight)
            + surrogate(self.bias.clone(), at_bias)
    }

    /// See [`Quantized::surrogate`]. With `y` the softmax and `v` the gradient at `y`, the gradient at the logits is
    /// `y (v - y.v) / temperature`.
    pub(super) fn straight_through(&self, codes: Tensor<1, Int>, gradient: Tensor<4>) -> Tensor<1> {
        let embed = self.embed.clone().without_autodiff();
        let gradient = as_vectors(gradient, embed.dtype());
        let at_embed = embed.zeros_like().select_assign(0, codes, gradient.clone(), IndexingUpdateOp::Add);
        let columns = embed.swap_dims(0, 1);
        let temperature = self.sampling.as_ref().map_or(1.0, |sampling| sampling.temperature);
        let through_softmax = self.through_logits(|logits, rows| {
            let shares = gradient.clone().narrow(0, rows.start, rows.len()).matmul(columns.clone());
            softmax_gradient(softmax(self.with_noise(logits, rows) / temperature, 1), shares) / temperature
        });
        through_softmax + surrogate(self.embed.clone(), at_embed)
    }
}

/// Returns the gradient before a softmax over `[M, K]`, given its output and the gradient there.
pub(crate) fn softmax_gradient(output: Tensor<2>, gradient: Tensor<2>) -> Tensor<2> {
    let mean = (output.clone() * gradient.clone()).sum_dim(1);
    output * (gradient - mean)
}

#[cfg(test)]
mod tests;
