//! Vector quantization (van den Oord et al. 2017, arXiv 1711.00937): maps each latent vector to its nearest code, or
//! with a [Gumbel quantizer](gumbel) to the code with the largest logit.

pub mod gumbel;

use burn::module::{Module, Param};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};
use checkpoints::{Architecture, QuantizerKind};

use self::gumbel::{GumbelQuantizer, GumbelTerms, Sampling};
use super::blocks::any_trained;
use super::surrogate::surrogate;
use super::weights::{ModelError, WeightReader};

/// At most this many distances to codes exist at once, 16 MiB of f32: one 256-pixel image at f16 against 16,384 codes.
const DISTANCES_AT_ONCE: usize = 1 << 22;

/// Guard of `torch.nn.functional.normalize` against a zero vector; inside the root, whose slope at zero is infinite.
const NORM_EPSILON: f64 = 1e-12;

/// The codebook, and how latents are mapped to its codes.
#[derive(Module, Debug)]
pub enum Quantizer {
    /// The nearest code.
    Nearest(NearestCode),
    /// The code with the largest logit; in training it is drawn at random.
    Gumbel(GumbelQuantizer),
}

/// Finds the nearest code.
#[derive(Module, Debug)]
pub struct NearestCode {
    embedding: Embedding,
    l2_norm: bool,
}

#[derive(Module, Debug)]
struct Embedding {
    /// `[codes, code dim]`.
    weight: Param<Tensor<2>>,
}

/// Latents after quantization, with the terms of the codebook loss.
#[derive(Debug)]
pub struct Quantized {
    /// The input of the decoder, `[N, D, h, w]`.
    pub latent: Tensor<4>,
    /// Index of each position's code, `[N * h * w]`, row by row for each sample.
    pub codes: Tensor<1, Int>,
    /// The terms of the quantizer's own loss.
    pub terms: Terms,
}

/// The terms of a quantizer's loss.
#[derive(Debug)]
pub enum Terms {
    /// For nearest codes.
    Nearest(NearestTerms),
    /// For a Gumbel quantizer.
    Gumbel(GumbelTerms),
}

/// The distances between latents and their nearest codes.
#[derive(Debug)]
pub struct NearestTerms {
    /// `mean |sg(latent) - code|^2` per sample, `[N]`: its gradient moves the codes.
    pub codebook: Tensor<1>,
    /// `mean |latent - sg(code)|^2` per sample, `[N]`: its gradient moves the encoder.
    pub commitment: Tensor<1>,
    /// The latent vectors as they were compared with the codes, `[N * h * w, D]` (of unit length if the codebook is).
    pub vectors: Tensor<2>,
    /// The codes as they were compared, `[codes, D]`.
    pub codebook_vectors: Tensor<2>,
}

impl Quantized {
    /// Returns a scalar whose gradient is the straight-through estimate at the latents and the quantizer's parameters.
    /// `gradient`, `[N, D, h, w]` and without autodiff, is that at [`latent`](Self::latent).
    pub fn surrogate(self, gradient: Tensor<4>) -> Tensor<1> {
        match self.terms {
            Terms::Nearest(_) => surrogate(self.latent, gradient),
            Terms::Gumbel(terms) => terms.straight_through(self.codes, gradient),
        }
    }
}

impl Quantizer {
    pub(super) fn read(from: &WeightReader, architecture: &Architecture) -> Result<Self, ModelError> {
        Ok(match architecture.quantizer.kind {
            QuantizerKind::Nearest => Self::Nearest(NearestCode {
                embedding: Embedding { weight: from.at("embedding").wide().param("weight")? },
                l2_norm: architecture.quantizer.l2_norm,
            }),
            QuantizerKind::Gumbel => Self::Gumbel(GumbelQuantizer::read(from)?),
        })
    }

    /// Number of codes.
    pub fn codes(&self) -> usize {
        match self {
            Self::Nearest(quantizer) => quantizer.embedding.weight.dims()[0],
            Self::Gumbel(quantizer) => quantizer.codes(),
        }
    }

    /// Maps latents `[N, D, h, w]` to their codes. Computes in the codes' type, f32 at least.
    pub fn forward(&self, latent: Tensor<4>) -> Quantized {
        self.forward_in_training(latent, None)
    }

    /// Like [`forward`](Self::forward), but a Gumbel quantizer draws its codes by `sampling`.
    pub fn forward_in_training(&self, latent: Tensor<4>, sampling: Option<Sampling>) -> Quantized {
        match self {
            Self::Nearest(quantizer) => quantizer.forward(latent),
            Self::Gumbel(quantizer) => quantizer.forward(latent, sampling),
        }
    }

    /// Whether a gradient at the quantized latents reaches parameters that are trained.
    pub fn learns_from_decoder(&self) -> bool {
        match self {
            Self::Nearest(_) => false,
            Self::Gumbel(quantizer) => any_trained(|visitor| quantizer.visit(visitor)),
        }
    }

    /// Returns the decoder's input for given codes: `[N * h * w]` indices to `[N, D, h, w]`.
    pub fn lookup(&self, codes: Tensor<1, Int>, [n, h, w]: [usize; 3]) -> Tensor<4> {
        let codebook = match self {
            Self::Nearest(quantizer) => quantizer.codebook(),
            Self::Gumbel(quantizer) => quantizer.codebook(),
        };
        let d = codebook.dims()[1];
        codebook.select(0, codes).reshape([n, h, w, d]).permute([0, 3, 1, 2])
    }
}

impl NearestCode {
    /// Like [`Quantizer::forward`]. The new latent has the codes' value and the latents' gradient (straight-through).
    fn forward(&self, latent: Tensor<4>) -> Quantized {
        let [n, d, h, w] = latent.dims();
        let (vectors, codebook) = self.compared(latent);
        let codes = nearest(vectors.clone().without_autodiff(), codebook.clone().without_autodiff());
        let indices = if codebook.is_autodiff() { codes.clone().autodiff() } else { codes.clone() };
        let chosen = codebook.clone().select(0, indices);
        let per_sample = |difference: Tensor<2>| difference.square().reshape([n, h * w * d]).mean_dim(1).reshape([n]);
        let straight_through = vectors.clone() + (chosen.clone() - vectors.clone()).detach();
        Quantized {
            latent: straight_through.reshape([n, h, w, d]).permute([0, 3, 1, 2]),
            codes,
            terms: Terms::Nearest(NearestTerms {
                codebook: per_sample(chosen.clone() - vectors.clone().detach()),
                commitment: per_sample(vectors.clone() - chosen.detach()),
                vectors,
                codebook_vectors: codebook,
            }),
        }
    }

    /// Returns latents `[N, D, h, w]` as vectors `[N * h * w, D]` and the codes `[codes, D]`, in the codes' type; both
    /// normalised if the codebook is.
    pub fn compared(&self, latent: Tensor<4>) -> (Tensor<2>, Tensor<2>) {
        let codebook = self.codebook();
        let vectors = as_vectors(latent, codebook.dtype());
        (if self.l2_norm { normalize(vectors) } else { vectors }, codebook)
    }

    fn codebook(&self) -> Tensor<2> {
        let codebook = self.embedding.weight.val();
        if self.l2_norm { normalize(codebook) } else { codebook }
    }
}

/// `[N, D, h, w]` to `[N * h * w, D]` of `dtype`.
fn as_vectors(latent: Tensor<4>, dtype: DType) -> Tensor<2> {
    let [n, d, h, w] = latent.dims();
    latent.cast(dtype).permute([0, 2, 3, 1]).reshape([n * h * w, d])
}

/// Scales the rows of `x`, `[M, D]`, to unit length.
fn normalize(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().square().sum_dim(1).clamp_min(NORM_EPSILON * NORM_EPSILON).sqrt();
    x / length
}

/// Number of rows whose distances to `codes` codes are computed at once.
pub(crate) fn rows_at_once(codes: usize) -> usize {
    (DISTANCES_AT_ONCE / codes).max(1)
}

/// Splits `[M, D]` into pieces of [`rows_at_once`] rows.
pub(crate) fn tiles(vectors: Tensor<2>, codes: usize) -> Vec<Tensor<2>> {
    vectors.split(rows_at_once(codes), 0)
}

/// Returns the index of the nearest code for each row: `[M, D]` and `[K, D]` to `[M]`.
///
/// `argmin_k |e_k|^2 - 2 z.e_k`: the term `|z|^2` is the same for all codes.
fn nearest(vectors: Tensor<2>, codebook: Tensor<2>) -> Tensor<1, Int> {
    let [k, _] = codebook.dims();
    let squares = codebook.clone().square().sum_dim(1).swap_dims(0, 1);
    let columns = codebook.swap_dims(0, 1) * -2.0;
    let of_tile = |tile: Tensor<2>| {
        let rows = tile.dims()[0];
        (tile.matmul(columns.clone()) + squares.clone()).argmin(1).reshape([rows])
    };
    Tensor::cat(tiles(vectors, k).into_iter().map(of_tile).collect(), 0)
}

/// Counts how often each of `codes` codes occurs in `indices`: `[M]` to counts `[codes]`, exact up to 2^24 each.
pub fn count_codes(indices: Tensor<1, Int>, codes: usize) -> Tensor<1> {
    let device = indices.device();
    let ones = Tensor::<1>::ones([indices.dims()[0]], (&device, DType::F32));
    Tensor::<1>::zeros([codes], (&device, DType::F32)).select_assign(0, indices, ones, IndexingUpdateOp::Add)
}

/// How evenly a codebook is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodebookUse {
    /// Share of the codes that occurred, 0..1.
    pub used: f64,
    /// `exp` of the entropy of the codes' frequencies: 1 if all positions have the same code, the number of codes if
    /// all are equally frequent.
    pub perplexity: f64,
}

impl CodebookUse {
    /// Computes it from one count per code.
    pub fn from_counts<T: Copy + Into<f64>>(counts: &[T]) -> Self {
        let counts = || counts.iter().map(|&count| count.into());
        let total: f64 = counts().sum();
        let entropy: f64 = counts().filter(|&c| c > 0.0).map(|c| c / total).map(|p| -p * p.ln()).sum();
        let used = counts().filter(|&c| c > 0.0).count();
        Self { used: used as f64 / counts().count().max(1) as f64, perplexity: entropy.exp() }
    }
}
