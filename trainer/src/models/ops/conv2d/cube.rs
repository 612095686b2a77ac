//! Convolution on a GPU: the kernels of Burn's own operation.
//!
//! The gradients are called below Burn's operations, because those take a tensor where they need its shape alone.

use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::Shape;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::kernel::conv::{conv_data_backward, conv_weight_backward};
use burn_cubecl::tensor::CubeTensor;
use cpu_kernels::conv2d::Geometry;

use super::operation::Conv2dKernels;

/// Why Burn's own operations unwrap as well.
const TUNED: &str = "autotune always finds a kernel";

fn options(geometry: &Geometry) -> ConvOptions<2> {
    let padding = geometry.padding.map(|[before, after]| (before, after));
    ConvOptions::new_with_padding(geometry.stride, padding, [1, 1], 1)
}

impl Conv2dKernels for Cube {
    fn forward(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, geometry: Geometry) -> CubeTensor {
        Self::conv2d(x, weight, bias, options(&geometry))
    }

    fn input_gradient(weight: CubeTensor, gradient: CubeTensor, geometry: Geometry) -> CubeTensor {
        let ([samples, ..], [height, width]) = (gradient.shape().dims::<4>(), geometry.image);
        let shape = Shape::new([samples, geometry.inputs, height, width]);
        conv_data_backward(gradient, weight, shape, options(&geometry), Default::default()).expect(TUNED)
    }

    fn weight_gradient(x: CubeTensor, gradient: CubeTensor, geometry: Geometry) -> CubeTensor {
        let [height, width] = geometry.kernel;
        let shape = Shape::new([geometry.outputs, geometry.inputs, height, width]);
        conv_weight_backward(x, gradient, shape, options(&geometry), Default::default()).expect(TUNED)
    }

    fn bias_gradient(gradient: CubeTensor, geometry: Geometry) -> CubeTensor {
        let count = gradient.shape().num_elements() / geometry.outputs;
        let by_channel = Self::float_swap_dims(gradient, 0, 1);
        let rows = Self::float_reshape(by_channel, Shape::new([geometry.outputs, count]));
        Self::float_reshape(Self::float_sum_dim(rows, 1), Shape::new([geometry.outputs]))
    }
}
