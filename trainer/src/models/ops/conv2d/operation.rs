//! Convolution as one operation of Burn's, with its derivatives.
//!
//! With y = w * x + b, the gradient at x is the transposed convolution of that at y with w, the gradient at w correlates
//! x with that at y, and the gradient at b sums that at y. So the one at x needs w but not x, and the one at w needs x
//! but not w: a graph keeps an input only if the other one is tracked.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use cpu_kernels::conv2d::Geometry;

/// The operation, with and without a graph.
#[backend_extension(Autodiff, Flex, Cube: cfg(any(feature = "cuda", feature = "wgpu")))]
pub trait Conv2dBackend: Backend {
    /// See [`convolve`].
    fn convolution(x: FloatTensor<Self>, weight: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;

    /// See [`convolve`]. (The macro knows no optional tensors.)
    fn convolution_with_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;

    /// See [`weight_gradient`].
    fn convolution_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;
}

/// What a backend has to compute itself. All tensors have one type. `gradient` is that at the output, `[N, O, H', W']`.
pub trait Conv2dKernels: Backend {
    /// Computes the output, `[N, O, H', W']`.
    fn forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;

    /// Computes the gradient at the input, `[N, C, H, W]`.
    fn input_gradient(weight: FloatTensor<Self>, gradient: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;

    /// Computes the gradient at the weight, `[O, C, KH, KW]`, summed over the samples.
    fn weight_gradient(x: FloatTensor<Self>, gradient: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;

    /// Computes the gradient at the bias, `[O]`, summed over the samples.
    fn bias_gradient(gradient: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self>;

    /// Brings `gradient` into the order in memory in which all three gradients read it, so that it is copied once.
    fn in_order(gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        gradient
    }
}

macro_rules! without_a_graph {
    ($backend:ty) => {
        impl Conv2dBackend for $backend {
            fn convolution(x: FloatTensor<Self>, weight: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self> {
                Self::forward(x, weight, None, geometry)
            }

            fn convolution_with_bias(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                geometry: Geometry,
            ) -> FloatTensor<Self> {
                Self::forward(x, weight, Some(bias), geometry)
            }

            fn convolution_weight_gradient(
                x: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                geometry: Geometry,
            ) -> FloatTensor<Self> {
                Self::weight_gradient(x, gradient, geometry)
            }
        }
    };
}

without_a_graph!(Flex);
#[cfg(any(feature = "cuda", feature = "wgpu"))]
without_a_graph!(burn::backend::Cube);

/// The input, if the weight is tracked, and the weight, if the input is.
type Saved<B> = (Option<FloatTensor<B>>, Option<FloatTensor<B>>, Geometry);

#[derive(Debug)]
struct Conv2dBackward;

/// The parents are the input, the weight and, with three of them, the bias.
impl<B: Conv2dKernels, const N: usize> Backward<B, N> for Conv2dBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = B::in_order(grads.consume::<B>(&ops.node));
        let (x, weight, geometry) = ops.state;
        let mut parents = ops.parents.into_iter();
        let [at_x, at_weight, at_bias] = [(); 3].map(|()| parents.next().flatten());
        if let (Some(node), Some(weight)) = (at_x, weight) {
            grads.register::<B>(node.id, B::input_gradient(weight, gradient.clone(), geometry));
        }
        if let (Some(node), Some(x)) = (at_weight, x) {
            grads.register::<B>(node.id, B::weight_gradient(x, gradient.clone(), geometry));
        }
        if let Some(node) = at_bias {
            grads.register::<B>(node.id, B::bias_gradient(gradient, geometry));
        }
    }
}

type Float<B, C> = FloatTensor<Autodiff<B, C>>;

/// Returns what a graph has to keep of both inputs.
fn saved<B: Backend, C: CheckpointStrategy>(x: &Float<B, C>, weight: &Float<B, C>, geometry: Geometry) -> Saved<B> {
    let saved_x = weight.is_tracked().then(|| x.primitive().clone());
    let saved_weight = x.is_tracked().then(|| weight.primitive().clone());
    (saved_x, saved_weight, geometry)
}

fn record<B: Conv2dKernels, C: CheckpointStrategy, const N: usize>(
    parents: [NodeGuard; N],
    saved: Saved<B>,
    output: FloatTensor<B>,
) -> Float<B, C> {
    match Conv2dBackward.prepare::<C>(parents).compute_bound().stateful() {
        OpsKind::Tracked(operation) => operation.finish(saved, output),
        OpsKind::UnTracked(operation) => operation.finish(output),
    }
}

impl<B: Conv2dBackend + Conv2dKernels, C: CheckpointStrategy> Conv2dBackend for Autodiff<B, C> {
    fn convolution(x: FloatTensor<Self>, weight: FloatTensor<Self>, geometry: Geometry) -> FloatTensor<Self> {
        let saved = saved::<B, C>(&x, &weight, geometry);
        let (x, of_x) = x.into_parts();
        let (weight, of_weight) = weight.into_parts();
        record::<B, C, 2>([of_x, of_weight], saved, B::forward(x, weight, None, geometry))
    }

    fn convolution_with_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        let saved = saved::<B, C>(&x, &weight, geometry);
        let (x, of_x) = x.into_parts();
        let (weight, of_weight) = weight.into_parts();
        let (bias, of_bias) = bias.into_parts();
        let output = B::forward(x, weight, Some(bias), geometry);
        record::<B, C, 3>([of_x, of_weight, of_bias], saved, output)
    }

    fn convolution_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::weight_gradient(Self::inner(x), Self::inner(gradient), geometry))
    }
}

/// Convolves `x`, `[N, C, H, W]`, with `weight`, `[O, C, KH, KW]`, and adds `bias`, `[O]`: `[N, O, H', W']`. All have one
/// type. A graph keeps `x` only if `weight` is tracked.
pub fn convolve(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, geometry: Geometry) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::convolution_with_bias(x, weight, bias.into_dispatch(), geometry),
        None => Dispatch::convolution(x, weight, geometry),
    })
}

/// Returns the gradient at a convolution's weight, `[O, C, KH, KW]`, summed over the samples, given its input `x`,
/// `[N, C, H, W]`, and the `gradient` at its output, `[N, O, H', W']`. It is not part of a graph.
pub fn weight_gradient(x: Tensor<4>, gradient: Tensor<4>, geometry: Geometry) -> Tensor<4> {
    let (x, gradient) = (x.into_dispatch(), gradient.into_dispatch());
    Tensor::from_dispatch(Dispatch::convolution_weight_gradient(x, gradient, geometry))
}
