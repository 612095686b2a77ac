//! Backward passes that start in the middle of a graph.

use burn::tensor::Tensor;

/// Returns a scalar whose gradient at `output` is `gradient`, which is without autodiff.
pub(crate) fn surrogate<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    (output * gradient.autodiff()).sum()
}
