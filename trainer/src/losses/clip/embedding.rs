//! What the CLIP losses share: embeddings of unit length, and their products.

use burn::tensor::Tensor;

use crate::models::statistics_dtype;

/// Embeddings shorter than this count as this long, so that their gradient is finite, also in half precision. CLIP's
/// own have lengths from 1 to 20.
const SHORTEST: f64 = 1e-3;

/// Converts half precision to f32 and keeps wider types.
pub(super) fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = statistics_dtype(x.dtype());
    x.cast(dtype)
}

/// Scales the rows of `x`, `[V, E]`, to unit length, in f32 at least.
pub(super) fn unit(x: Tensor<2>) -> Tensor<2> {
    let x = wide(x);
    let length = length(x.clone(), SHORTEST);
    x / length
}

/// Returns the length of each row, `[V, E]` to `[V, 1]`, at least `least`. The bound is inside the root, whose slope at
/// zero is infinite. At and below the bound the gradient is zero.
pub(super) fn length(x: Tensor<2>, least: f64) -> Tensor<2> {
    x.square().sum_dim(1).clamp_min(least * least).sqrt()
}

/// Returns the dot product of each row of `a` and `b`, both `[V, E]`, as `[V]`; a single row of either serves for all.
pub(super) fn dot(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    (a * b).sum_dim(1).flatten(0, 1)
}
