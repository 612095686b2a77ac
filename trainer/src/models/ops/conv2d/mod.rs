//! Convolution in two dimensions, dense (one group) and without dilation, as every network here has it.
//!
//! Burn's own copies and transposes its input on the CPU, and its graph keeps the input of a frozen network. Here it is
//! one operation ([`operation`]), with kernels of our own on the CPU ([`flex`]) and Burn's on a GPU ([`cube`]).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use cpu_kernels::conv2d::Geometry;

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
mod flex;
mod operation;
#[cfg(test)]
mod tests;

/// A convolution. Its output has the type of its parameters, which the input has to have too.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[O, C, KH, KW]`.
    pub weight: Param<Tensor<4>>,
    /// `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Steps down and right, in pixels.
    #[module(skip)]
    pub stride: [usize; 2],
    /// Zeros around the input, in pixels: `[[top, bottom], [left, right]]`.
    #[module(skip)]
    pub padding: [[usize; 2]; 2],
}

impl Conv2d {
    /// `[N, C, H, W]` to `[N, O, H', W']`.
    ///
    /// # Panics
    /// If the input has not `C` channels, or is smaller than the kernel with its padding.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let bias = self.bias.as_ref().map(Param::val);
        conv2d(x, self.weight.val(), bias, self.stride, self.padding)
    }

    /// Returns the gradient at the weight, summed over the samples, from the input `[N, C, H, W]` and the gradient at
    /// the output: `[N, O, H', W']` gives `[O, C, KH, KW]`. Several gradients at the output can be side by side, as
    /// channels, so that the input is read once: `[N, k O, H', W']` gives `[k O, C, KH, KW]`.
    pub fn weight_gradient(&self, x: Tensor<4>, at_output: Tensor<4>) -> Tensor<4> {
        let [_, outputs, _, _] = at_output.dims();
        let geometry = geometry(x.dims(), self.weight.dims(), self.stride, self.padding);
        operation::weight_gradient(x, at_output, Geometry { outputs, ..geometry })
    }
}

/// Convolves `x`, `[N, C, H, W]`, with `weight`, `[O, C, KH, KW]`, and adds `bias`, `[O]`: `[N, O, H', W']`. All have
/// one type; `stride` and `padding` are those of a [`Conv2d`].
///
/// # Panics
/// If the channels do not match, or `x` is smaller than the kernel with its padding.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [[usize; 2]; 2],
) -> Tensor<4> {
    let geometry = geometry(x.dims(), weight.dims(), stride, padding);
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [geometry.outputs], "a bias for each output channel");
    }
    operation::convolve(x, weight, bias, geometry)
}

fn geometry(
    [_, channels, height, width]: [usize; 4],
    [outputs, inputs, kernel_height, kernel_width]: [usize; 4],
    stride: [usize; 2],
    padding: [[usize; 2]; 2],
) -> Geometry {
    assert_eq!(channels, inputs, "the input channels of a convolution");
    Geometry { inputs, outputs, image: [height, width], kernel: [kernel_height, kernel_width], stride, padding }
}
