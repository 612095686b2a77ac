//! On a GPU: two kernels forward and three backward, in place of some dozens.

use burn::backend::Cube;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::EPSILON;
use super::operation::{Forward, GroupNormKernels, Kind};

/// Units that add up one group or one channel; a power of two.
const UNITS: usize = 256;

/// Elements that one unit of an element-wise kernel computes, one after the other.
const EACH: usize = 4;

/// The sum of what the units of a cube have, `units` of them.
#[cube]
fn sum_of_cube<W: Float>(own: W, #[comptime] units: usize) -> W {
    let unit = UNIT_POS_X as usize;
    let mut sums = Shared::new_slice(units);
    sums[unit] = own;
    sync_cube();
    let mut width = (units / 2).runtime();
    while width > 0 {
        if unit < width {
            let other = sums[unit + width];
            sums[unit] += other;
        }
        sync_cube();
        width /= 2;
    }
    sums[0]
}

#[cube]
fn sigmoid<W: Float>(z: W) -> W {
    W::new(1.0_f32) / (W::new(1.0_f32) + (-z).exp())
}

/// Mean and 1 / deviation of a group of `size` elements by each cube.
#[cube(launch)]
fn statistics<E: Float, W: Float>(
    x: &Tensor<E>,
    mean: &mut Tensor<W>,
    inverse: &mut Tensor<W>,
    epsilon: f32,
    size: u32,
    #[comptime] units: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let group = CUBE_POS_X as usize;
    let size = size as usize;
    let first = group * size;
    let unit = UNIT_POS_X as usize;

    let mut own = W::new(0.0_f32);
    let mut at = unit;
    while at < size {
        own += W::cast_from(x[first + at]);
        at += units;
    }
    let count = W::cast_from(size as u32);
    let middle = sum_of_cube::<W>(own, units) / count;

    let mut squares = W::new(0.0_f32);
    let mut at = unit;
    while at < size {
        let centred = W::cast_from(x[first + at]) - middle;
        squares += centred * centred;
        at += units;
    }
    let variance = sum_of_cube::<W>(squares, units) / count;
    if unit == 0 {
        mean[group] = middle;
        inverse[group] = W::new(1.0_f32) / (variance + W::cast_from(epsilon)).sqrt();
    }
}

#[cube(launch)]
fn apply<E: Float, W: Float>(
    x: &Tensor<E>,
    mean: &Tensor<W>,
    inverse: &Tensor<W>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    output: &mut Tensor<E>,
    pixels: u32,
    channels: u32,
    of_group: u32,
    #[comptime] silu: bool,
    #[comptime] each: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    for i in 0..each {
        let at = ABSOLUTE_POS * each + i;
        if at < output.len() {
            let row = at / pixels as usize;
            let channel = row % channels as usize;
            let group = row / of_group as usize;
            let centred = W::cast_from(x[at]) - mean[group];
            let z = centred * (weight[channel] * inverse[group]) + bias[channel];
            let mut y = z;
            if silu {
                y = z * sigmoid::<W>(z);
            }
            output[at] = E::cast_from(y);
        }
    }
}

/// The gradient before SiLU.
#[cube]
fn at_z<W: Float>(gradient: W, normalised: W, weight: W, bias: W, #[comptime] silu: bool) -> W {
    let mut result = gradient;
    if silu {
        let z = normalised * weight + bias;
        let s = sigmoid::<W>(z);
        result = gradient * s * (W::new(1.0_f32) + z * (W::new(1.0_f32) - s));
    }
    result
}

/// The part of one channel of one sample of the gradients at weight and bias, by each cube.
#[cube(launch)]
fn channel_sums<E: Float, W: Float>(
    x: &Tensor<E>,
    gradient: &Tensor<E>,
    mean: &Tensor<W>,
    inverse: &Tensor<W>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    of_weight: &mut Tensor<W>,
    of_bias: &mut Tensor<W>,
    pixels: u32,
    channels: u32,
    of_group: u32,
    #[comptime] silu: bool,
    #[comptime] units: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let row = CUBE_POS_X as usize;
    let channel = row % channels as usize;
    let group = row / of_group as usize;
    let pixels = pixels as usize;
    let first = row * pixels;
    let unit = UNIT_POS_X as usize;

    let mut sum = W::new(0.0_f32);
    let mut sum_normalised = W::new(0.0_f32);
    let mut at = unit;
    while at < pixels {
        let normalised = (W::cast_from(x[first + at]) - mean[group]) * inverse[group];
        let own = at_z::<W>(W::cast_from(gradient[first + at]), normalised, weight[channel], bias[channel], silu);
        sum += own;
        sum_normalised += own * normalised;
        at += units;
    }
    let sum = sum_of_cube::<W>(sum, units);
    let sum_normalised = sum_of_cube::<W>(sum_normalised, units);
    if unit == 0 {
        of_bias[row] = sum;
        of_weight[row] = sum_normalised;
    }
}

/// The sums over the samples by channel, and the means over the channels of a group that the gradient at x needs.
#[cube(launch)]
fn combine<W: Float>(
    of_weight: &Tensor<W>,
    of_bias: &Tensor<W>,
    weight: &Tensor<W>,
    at_weight: &mut Tensor<W>,
    at_bias: &mut Tensor<W>,
    weighted: &mut Tensor<W>,
    weighted_normalised: &mut Tensor<W>,
    pixels: u32,
    channels: u32,
    of_group: u32,
    #[define(W)] _type: ElemType,
) {
    let own = ABSOLUTE_POS;
    let channels = channels as usize;
    let of_group = of_group as usize;
    if own < channels {
        let samples = of_weight.len() / channels;
        let mut by_weight = W::new(0.0_f32);
        let mut by_bias = W::new(0.0_f32);
        for sample in 0..samples {
            by_weight += of_weight[sample * channels + own];
            by_bias += of_bias[sample * channels + own];
        }
        at_weight[own] = by_weight;
        at_bias[own] = by_bias;
    }
    if own < weighted.len() {
        let mut plain = W::new(0.0_f32);
        let mut normalised = W::new(0.0_f32);
        for i in 0..of_group {
            let row = own * of_group + i;
            plain += of_bias[row] * weight[row % channels];
            normalised += of_weight[row] * weight[row % channels];
        }
        let count = W::cast_from(of_group as u32) * W::cast_from(pixels);
        weighted[own] = plain / count;
        weighted_normalised[own] = normalised / count;
    }
}

#[cube(launch)]
fn at_input<E: Float, W: Float>(
    x: &Tensor<E>,
    gradient: &Tensor<E>,
    mean: &Tensor<W>,
    inverse: &Tensor<W>,
    weight: &Tensor<W>,
    bias: &Tensor<W>,
    weighted: &Tensor<W>,
    weighted_normalised: &Tensor<W>,
    output: &mut Tensor<E>,
    pixels: u32,
    channels: u32,
    of_group: u32,
    #[comptime] silu: bool,
    #[comptime] each: usize,
    #[define(E, W)] _types: [ElemType; 2],
) {
    for i in 0..each {
        let at = ABSOLUTE_POS * each + i;
        if at < output.len() {
            let row = at / pixels as usize;
            let channel = row % channels as usize;
            let group = row / of_group as usize;
            let normalised = (W::cast_from(x[at]) - mean[group]) * inverse[group];
            let own = at_z::<W>(W::cast_from(gradient[at]), normalised, weight[channel], bias[channel], silu);
            let of_x = own * weight[channel] - weighted[group] - normalised * weighted_normalised[group];
            output[at] = E::cast_from(of_x * inverse[group]);
        }
    }
}

/// A tensor beside `like`, with nothing in it yet.
fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), dtype)
}

fn storage(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_elem_type(dtype)
}

/// Cubes of an element-wise kernel over `elements`, a unit for each.
fn cubes(like: &CubeTensor, elements: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS as u32);
    (cubecl::calculate_cube_count_elemwise(&like.client, elements, dim), dim)
}

/// A cube for each of `count` rows.
fn rows(count: usize) -> (CubeCount, CubeDim) {
    (CubeCount::Static(count as u32, 1, 1), CubeDim::new_1d(UNITS as u32))
}

impl GroupNormKernels for Cube {
    fn forward(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, kind: Kind) -> Forward<Self> {
        let [n, c, h, w] = x.shape().dims();
        let (x, weight, bias) = (into_contiguous(x), into_contiguous(weight), into_contiguous(bias));
        let (dtype, wide) = (x.dtype, weight.dtype);
        let types = [storage(dtype), storage(wide)];
        let of_group = c / kind.groups;
        let [mean, inverse] = [(); 2].map(|()| empty(&x, [n, kind.groups], wide));
        let output = empty(&x, [n, c, h, w], dtype);

        let (count, dim) = rows(n * kind.groups);
        statistics::launch(
            &x.client,
            count,
            dim,
            x.clone().into_tensor_arg(),
            mean.clone().into_tensor_arg(),
            inverse.clone().into_tensor_arg(),
            EPSILON as f32,
            (of_group * h * w) as u32,
            UNITS,
            types,
        );
        let (count, dim) = cubes(&x, (n * c * h * w).div_ceil(EACH));
        apply::launch(
            &x.client,
            count,
            dim,
            x.clone().into_tensor_arg(),
            mean.clone().into_tensor_arg(),
            inverse.clone().into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            (h * w) as u32,
            c as u32,
            of_group as u32,
            kind.silu,
            EACH,
            types,
        );
        (output, mean, inverse)
    }

    fn backward(
        (x, mean, inverse): Forward<Self>,
        weight: CubeTensor,
        bias: CubeTensor,
        gradient: CubeTensor,
        kind: Kind,
    ) -> [CubeTensor; 3] {
        let [n, c, h, w] = x.shape().dims();
        let [x, gradient, weight, bias] = [x, gradient, weight, bias].map(into_contiguous);
        let (dtype, wide) = (x.dtype, weight.dtype);
        let types = [storage(dtype), storage(wide)];
        let of_group = c / kind.groups;
        let sizes = ((h * w) as u32, c as u32, of_group as u32);
        let [of_weight, of_bias] = [(); 2].map(|()| empty(&x, [n, c], wide));
        let [at_weight, at_bias] = [(); 2].map(|()| empty(&x, [c], wide));
        let [weighted, weighted_normalised] = [(); 2].map(|()| empty(&x, [n, kind.groups], wide));
        let output = empty(&x, [n, c, h, w], dtype);

        let (count, dim) = rows(n * c);
        channel_sums::launch(
            &x.client,
            count,
            dim,
            x.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            mean.clone().into_tensor_arg(),
            inverse.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.clone().into_tensor_arg(),
            of_weight.clone().into_tensor_arg(),
            of_bias.clone().into_tensor_arg(),
            sizes.0,
            sizes.1,
            sizes.2,
            kind.silu,
            UNITS,
            types,
        );
        let (count, dim) = cubes(&x, c.max(n * kind.groups));
        combine::launch(
            &x.client,
            count,
            dim,
            of_weight.into_tensor_arg(),
            of_bias.into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            at_weight.clone().into_tensor_arg(),
            at_bias.clone().into_tensor_arg(),
            weighted.clone().into_tensor_arg(),
            weighted_normalised.clone().into_tensor_arg(),
            sizes.0,
            sizes.1,
            sizes.2,
            storage(wide),
        );
        let (count, dim) = cubes(&x, (n * c * h * w).div_ceil(EACH));
        at_input::launch(
            &x.client,
            count,
            dim,
            x.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            mean.into_tensor_arg(),
            inverse.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            weighted.into_tensor_arg(),
            weighted_normalised.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            sizes.0,
            sizes.1,
            sizes.2,
            kind.silu,
            EACH,
            types,
        );
        [output, at_weight, at_bias]
    }
}
