//! What the CLIP losses share: rows of embeddings at unit length, and their products.

use burn::tensor::Tensor;

use crate::models::statistics_dtype;

/// Embeddings shorter than this count as this long, so that their gradient is finite, in half precision too. CLIP's own are of
/// length 1 to 20.
const SHORTEST: f64 = 1e-3;

/// In f32 at least.
pub(super) fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = statistics_dtype(x.dtype());
    x.cast(dtype)
}

/// Rows of `x`, `[V, E]`, at unit length, in f32 at least.
pub(super) fn unit(x: Tensor<2>) -> Tensor<2> {
    let x = wide(x);
    let length = length(x.clone(), SHORTEST);
    x / length
}

/// Length of each row, `[V, E]` to `[V, 1]`, at least `least`. The bound is inside the root, whose slope is infinite at zero: at
/// and below it the gradient is zero.
pub(super) fn length(x: Tensor<2>, least: f64) -> Tensor<2> {
    x.square().sum_dim(1).clamp_min(least * least).sqrt()
}

/// Product of each row of `a` with that of `b`, both `[V, E]`, to `[V]`; either may have a single row for all.
pub(super) fn dot(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    (a * b).sum_dim(1).flatten(0, 1)
}
