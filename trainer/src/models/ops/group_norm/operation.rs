//! Group normalisation as one operation of Burn's, with its derivative in closed form.
//!
//! With m and d the mean and the deviation of a group of M values, v = (x - m) / d, z = w v + b and y = z or SiLU(z):
//! `dz = dy y'(z)`, `db = sum dz`, `dw = sum dz v`, and `dx = (w dz - (sum w dz + v sum w dz v) / M) / d`. Sums run
//! over a channel's pixels for w and b and over a group for x (Wu and He 2018, arXiv 1803.08494, by the chain rule).

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

/// The options of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Number of groups; a divisor of the number of channels.
    pub groups: usize,
    /// Whether SiLU (Hendrycks and Gimpel 2016, arXiv 1606.08415) follows.
    pub silu: bool,
}

/// The operation, with and without a graph.
#[backend_extension(Autodiff, Flex, Cube: cfg(any(feature = "cuda", feature = "wgpu")))]
pub trait GroupNormBackend: Backend {
    /// See [`group_norm`].
    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self>;
}

/// Output, mean and 1 / deviation: `[N, C, H, W]`, `[N, G]`, `[N, G]`.
pub type Forward<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

/// What a backend has to compute itself. `x`, its gradient and the output have the same type; everything else,
/// including the sums, has the type of `weight` and `bias`.
pub trait GroupNormKernels: Backend {
    /// Normalises each group of `x`, `[N, C, H, W]`.
    fn forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, kind: Kind) -> Forward<Self>;

    /// Computes the gradients at x, weight and bias from that at the output; `saved` is x and the two statistics.
    fn backward(
        saved: Forward<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        kind: Kind,
    ) -> [FloatTensor<Self>; 3];
}

impl GroupNormBackend for Flex {
    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self> {
        Self::forward(x, weight, bias, kind).0
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl GroupNormBackend for burn::backend::Cube {
    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self> {
        Self::forward(x, weight, bias, kind).0
    }
}

impl<B: GroupNormBackend + GroupNormKernels, C: CheckpointStrategy> GroupNormBackend for Autodiff<B, C> {
    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GroupNormBackward;

        impl<B: GroupNormKernels> Backward<B, 3> for GroupNormBackward {
            type State = (Forward<B>, FloatTensor<B>, FloatTensor<B>, Kind);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (saved, weight, bias, kind) = ops.state;
                let gradients = B::backward(saved, weight, bias, gradient, kind);
                for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
                    if let Some(node) = parent {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }

        let (x, node_x) = x.into_parts();
        let (weight, node_weight) = weight.into_parts();
        let (bias, node_bias) = bias.into_parts();
        let operation = GroupNormBackward.prepare::<C>([node_x, node_weight, node_bias]).compute_bound().stateful();
        match operation {
            OpsKind::Tracked(operation) => {
                let (output, mean, inverse) = B::forward(x.clone(), weight.clone(), bias.clone(), kind);
                operation.finish(((x, mean, inverse), weight, bias, kind), output)
            }
            OpsKind::UnTracked(operation) => operation.finish(B::forward(x, weight, bias, kind).0),
        }
    }
}

/// Normalises `x`, `[N, C, H, W]`, over each of its groups, then scales and shifts it by `weight` and `bias`, `[C]`.
/// These are in f32 or wider, and the statistics have their type. A graph keeps `x` and two numbers per group.
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, kind: Kind) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::group_norm(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), kind))
}
