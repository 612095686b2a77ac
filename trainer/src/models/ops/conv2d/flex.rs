//! Convolution on the CPU, by the crate `cpu-kernels`.

use burn::backend::{Flex, TensorMetadata};
use burn_flex::FlexTensor;
use cpu_kernels::conv2d::{self, Geometry};

use super::operation::Conv2dKernels;
use crate::models::ops::flex::{Number, elements, tensor, with_number};

impl Conv2dKernels for Flex {
    fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, geometry: Geometry) -> FlexTensor {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let bias = bias.map(|bias| bias.to_contiguous());
        with_number!(x.dtype(), forward(&x, &weight, bias.as_ref(), &geometry))
    }

    fn input_gradient(weight: FlexTensor, gradient: FlexTensor, geometry: Geometry) -> FlexTensor {
        let (weight, gradient) = (weight.to_contiguous(), gradient.to_contiguous());
        with_number!(weight.dtype(), input_gradient(&weight, &gradient, &geometry))
    }

    fn weight_gradient(x: FlexTensor, gradient: FlexTensor, geometry: Geometry) -> FlexTensor {
        let (x, gradient) = (x.to_contiguous(), gradient.to_contiguous());
        with_number!(x.dtype(), weight_gradient(&x, &gradient, &geometry))
    }

    fn bias_gradient(gradient: FlexTensor, geometry: Geometry) -> FlexTensor {
        let gradient = gradient.to_contiguous();
        with_number!(gradient.dtype(), bias_gradient(&gradient, &geometry))
    }

    fn in_order(gradient: FlexTensor) -> FlexTensor {
        gradient.to_contiguous()
    }
}

fn forward<E: Number>(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>, g: &Geometry) -> FlexTensor {
    let [samples, ..] = x.shape().dims::<4>();
    let [height, width] = g.output().expect("an image that is not smaller than the kernel");
    let output = conv2d::forward::<E>(g, elements(x), elements(weight), bias.map(elements));
    tensor(output, [samples, g.outputs, height, width])
}

fn input_gradient<E: Number>(weight: &FlexTensor, gradient: &FlexTensor, g: &Geometry) -> FlexTensor {
    let ([samples, ..], [height, width]) = (gradient.shape().dims::<4>(), g.image);
    let at_input = conv2d::input_gradient::<E>(g, elements(weight), elements(gradient));
    tensor(at_input, [samples, g.inputs, height, width])
}

fn weight_gradient<E: Number>(x: &FlexTensor, gradient: &FlexTensor, g: &Geometry) -> FlexTensor {
    let at_weight = conv2d::weight_gradient::<E>(g, elements(x), elements(gradient));
    tensor(at_weight, [g.outputs, g.inputs, g.kernel[0], g.kernel[1]])
}

fn bias_gradient<E: Number>(gradient: &FlexTensor, g: &Geometry) -> FlexTensor {
    tensor(conv2d::bias_gradient::<E>(g, elements(gradient)), [g.outputs])
}
