//! Kernels for GPUs: three for the forward pass and four for the backward pass, instead of several dozen.
//!
//! In memory a pixel's channels are adjacent (NHWC), as in convolutions, so nothing is copied between a norm and a
//! convolution. Sums over the pixels of a channel or a group take two kernels: one sums each of `parts`, among which a
//! channel's pixels are interleaved; the next adds these up. A unit computes a few adjacent channels at a time.

use burn::backend::Cube;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::EPSILON;
use super::operation::{Forward, GroupNormKernels, Kind};

/// Units that sum one group or one channel; a power of two.
const UNITS: usize = 256;

/// Units that compute the parts of one sample, if it has enough pixels: a few for each lane of a large GPU. The number
/// is per sample, because the result for a sample must not depend on the batch size.
const PART_UNITS: usize = 1 << 15;

/// Minimum number of pixels in a part.
const MIN_PART_PIXELS: usize = 8;

/// Maximum number of adjacent channels per unit.
const MAX_WIDTH: usize = 4;

/// Sums the values `own` of the `units` units of a cube.
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
fn sigmoid<W: Float, N: Size>(z: Vector<W, N>) -> Vector<W, N> {
    let one = Vector::<W, N>::new(W::new(1.0_f32));
    one / (one + (-z).exp())
}

/// Computes the mean of each part and the sum of squared deviations from it: `[N, parts, C]`. Lengths count vectors:
/// `of_parts` is all parts of a sample, `of_sample` a whole sample.
#[cube(launch)]
fn part_statistics<E: Float, W: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    means: &mut Tensor<Vector<W, N>>,
    squares: &mut Tensor<Vector<W, N>>,
    all: u32,
    of_parts: u32,
    of_sample: u32,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let own = ABSOLUTE_POS;
    let (of_parts, of_sample) = (of_parts as usize, of_sample as usize);
    if own < all as usize {
        let sample = own / of_parts;
        let end = (sample + 1) * of_sample;
        let mut at = sample * of_sample + own % of_parts;
        // Subtracting a value of the part, which is near its mean, keeps the squares small.
        let near = Vector::<W, N>::cast_from(x[at]);
        let mut sum = Vector::<W, N>::zeroed();
        let mut square = Vector::<W, N>::zeroed();
        let mut count = W::new(0.0_f32);
        while at < end {
            let value = Vector::<W, N>::cast_from(x[at]) - near;
            sum += value;
            square += value * value;
            count += W::new(1.0_f32);
            at += of_parts;
        }
        let mean = sum / Vector::<W, N>::new(count);
        means[own] = near + mean;
        squares[own] = square - sum * mean;
    }
}

/// Computes mean and 1 / deviation of a group from those of its parts, with one cube per group.
#[cube(launch)]
fn group_statistics<W: Float>(
    means: &Tensor<W>,
    squares: &Tensor<W>,
    mean: &mut Tensor<W>,
    inverse: &mut Tensor<W>,
    epsilon: f32,
    parts: u32,
    pixels: u32,
    channels: u32,
    groups: u32,
    #[comptime] units: usize,
    #[define(W)] _type: ElemType,
) {
    let (parts, pixels, channels, groups) = (parts as usize, pixels as usize, channels as usize, groups as usize);
    let of_group = channels / groups;
    let first = CUBE_POS_Y as usize * parts * channels + CUBE_POS_X as usize * of_group;
    let group = CUBE_POS_Y as usize * groups + CUBE_POS_X as usize;
    let entries = parts * of_group;
    let unit = UNIT_POS_X as usize;
    let size = W::cast_from((pixels * of_group) as u32);

    let mut own = W::new(0.0_f32);
    let mut entry = unit;
    while entry < entries {
        let part = entry / of_group;
        let count = W::cast_from((pixels - part).div_ceil(parts) as u32);
        own += count * means[first + part * channels + entry % of_group];
        entry += units;
    }
    let middle = sum_of_cube::<W>(own, units) / size;

    let mut own = W::new(0.0_f32);
    let mut entry = unit;
    while entry < entries {
        let part = entry / of_group;
        let count = W::cast_from((pixels - part).div_ceil(parts) as u32);
        let at = first + part * channels + entry % of_group;
        let apart = means[at] - middle;
        own += squares[at] + count * apart * apart;
        entry += units;
    }
    let variance = sum_of_cube::<W>(own, units) / size;
    if unit == 0 {
        mean[group] = middle;
        inverse[group] = W::new(1.0_f32) / (variance + W::cast_from(epsilon)).sqrt();
    }
}

/// Normalises each element. `channels` and `of_group` count vectors.
#[cube(launch)]
fn apply<E: Float, W: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    mean: &Tensor<W>,
    inverse: &Tensor<W>,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<Vector<W, N>>,
    output: &mut Tensor<Vector<E, N>>,
    all: u32,
    of_sample: u32,
    channels: u32,
    of_group: u32,
    #[comptime] silu: bool,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < all as usize {
        let (channels, of_group) = (channels as usize, of_group as usize);
        let channel = at % channels;
        let group = at / of_sample as usize * (channels / of_group) + channel / of_group;
        let centred = Vector::<W, N>::cast_from(x[at]) - Vector::<W, N>::new(mean[group]);
        let z = centred * (weight[channel] * Vector::<W, N>::new(inverse[group])) + bias[channel];
        let mut y = z;
        if silu {
            y = z * sigmoid::<W, N>(z);
        }
        output[at] = Vector::<E, N>::cast_from(y);
    }
}

/// Returns the gradient before SiLU.
#[cube]
fn at_z<W: Float, N: Size>(
    gradient: Vector<W, N>,
    normalised: Vector<W, N>,
    weight: Vector<W, N>,
    bias: Vector<W, N>,
    #[comptime] silu: bool,
) -> Vector<W, N> {
    let mut result = gradient;
    if silu {
        let one = Vector::<W, N>::new(W::new(1.0_f32));
        let z = normalised * weight + bias;
        let s = sigmoid::<W, N>(z);
        result = gradient * s * (one + z * (one - s));
    }
    result
}

/// Computes each part's share of the gradients at weight and bias: `[N, parts, C]`. Lengths count vectors, as above.
#[cube(launch)]
fn part_sums<E: Float, W: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    gradient: &Tensor<Vector<E, N>>,
    mean: &Tensor<W>,
    inverse: &Tensor<W>,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<Vector<W, N>>,
    of_weight: &mut Tensor<Vector<W, N>>,
    of_bias: &mut Tensor<Vector<W, N>>,
    all: u32,
    of_parts: u32,
    of_sample: u32,
    channels: u32,
    of_group: u32,
    #[comptime] silu: bool,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let own = ABSOLUTE_POS;
    let (of_parts, of_sample) = (of_parts as usize, of_sample as usize);
    if own < all as usize {
        let (channels, of_group) = (channels as usize, of_group as usize);
        let sample = own / of_parts;
        let channel = own % channels;
        let group = sample * (channels / of_group) + channel / of_group;
        let mean = Vector::<W, N>::new(mean[group]);
        let inverse = Vector::<W, N>::new(inverse[group]);
        let (weight, bias) = (weight[channel], bias[channel]);
        let end = (sample + 1) * of_sample;
        let mut at = sample * of_sample + own % of_parts;
        let mut sum = Vector::<W, N>::zeroed();
        let mut sum_normalised = Vector::<W, N>::zeroed();
        while at < end {
            let normalised = (Vector::<W, N>::cast_from(x[at]) - mean) * inverse;
            let gradient = Vector::<W, N>::cast_from(gradient[at]);
            let before = at_z::<W, N>(gradient, normalised, weight, bias, silu);
            sum += before;
            sum_normalised += before * normalised;
            at += of_parts;
        }
        of_bias[own] = sum;
        of_weight[own] = sum_normalised;
    }
}

/// Sums over the parts of one channel of one sample, with one cube per channel.
#[cube(launch)]
fn channel_sums<W: Float>(
    weight_parts: &Tensor<W>,
    bias_parts: &Tensor<W>,
    of_weight: &mut Tensor<W>,
    of_bias: &mut Tensor<W>,
    parts: u32,
    channels: u32,
    #[comptime] units: usize,
    #[define(W)] _type: ElemType,
) {
    let (parts, channels) = (parts as usize, channels as usize);
    let first = CUBE_POS_Y as usize * parts * channels + CUBE_POS_X as usize;
    let row = CUBE_POS_Y as usize * channels + CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let mut by_weight = W::new(0.0_f32);
    let mut by_bias = W::new(0.0_f32);
    let mut part = unit;
    while part < parts {
        by_weight += weight_parts[first + part * channels];
        by_bias += bias_parts[first + part * channels];
        part += units;
    }
    let by_weight = sum_of_cube::<W>(by_weight, units);
    let by_bias = sum_of_cube::<W>(by_bias, units);
    if unit == 0 {
        of_weight[row] = by_weight;
        of_bias[row] = by_bias;
    }
}

/// Sums over the samples per channel, and computes the means over a group's channels that the gradient at x needs.
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

/// Computes the gradient at x. `channels` and `of_group` count vectors.
#[cube(launch)]
fn at_input<E: Float, W: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    gradient: &Tensor<Vector<E, N>>,
    mean: &Tensor<W>,
    inverse: &Tensor<W>,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<Vector<W, N>>,
    weighted: &Tensor<W>,
    weighted_normalised: &Tensor<W>,
    output: &mut Tensor<Vector<E, N>>,
    all: u32,
    of_sample: u32,
    channels: u32,
    of_group: u32,
    #[comptime] silu: bool,
    #[define(E, W)] _types: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < all as usize {
        let (channels, of_group) = (channels as usize, of_group as usize);
        let channel = at % channels;
        let group = at / of_sample as usize * (channels / of_group) + channel / of_group;
        let inverse = Vector::<W, N>::new(inverse[group]);
        let normalised = (Vector::<W, N>::cast_from(x[at]) - Vector::<W, N>::new(mean[group])) * inverse;
        let gradient = Vector::<W, N>::cast_from(gradient[at]);
        let before = at_z::<W, N>(gradient, normalised, weight[channel], bias[channel], silu);
        let of_x = before * weight[channel]
            - Vector::<W, N>::new(weighted[group])
            - normalised * Vector::<W, N>::new(weighted_normalised[group]);
        output[at] = Vector::<E, N>::cast_from(of_x * inverse);
    }
}

/// How the kernels traverse a tensor.
struct Sizes {
    samples: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    /// Adjacent channels per unit, all in one group.
    width: usize,
    /// Parts of each channel of a sample.
    parts: usize,
}

impl Sizes {
    fn new(x: &CubeTensor, groups: usize) -> Self {
        let [samples, channels, h, w] = x.shape().dims();
        let (pixels, of_group) = (h * w, channels / groups);
        let width = [MAX_WIDTH, 2].into_iter().find(|width| of_group.is_multiple_of(*width)).unwrap_or(1);
        let parts = (PART_UNITS * width / channels).clamp(1, (pixels / MIN_PART_PIXELS).max(1));
        Self { samples, pixels, channels, groups, width, parts }
    }

    /// Number of vectors in `[samples, rows, C]`, and in one sample of it.
    fn vectors(&self, rows: usize) -> (usize, usize) {
        let of_sample = rows * self.channels / self.width;
        (self.samples * of_sample, of_sample)
    }

    /// Number of vectors in a pixel, and in one group of a pixel.
    fn of_pixel(&self) -> (usize, usize) {
        let channels = self.channels / self.width;
        (channels, channels / self.groups)
    }
}

/// Brings `[N, C, H, W]` into the order `[N, H, W, C]` in memory; copies only if it has another order.
fn to_nhwc(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(permute_nchw_to_nhwc(tensor))
}

/// Creates an uninitialised tensor on the device of `like`.
fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), dtype)
}

fn storage(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_elem_type(dtype)
}

/// Cubes of an element-wise kernel with `count` units.
fn cubes(like: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS as u32);
    (cubecl::calculate_cube_count_elemwise(&like.client, count, dim), dim)
}

/// One cube for each of `count` in each sample.
fn rows(samples: usize, count: usize) -> (CubeCount, CubeDim) {
    (CubeCount::Static(count as u32, samples as u32, 1), CubeDim::new_1d(UNITS as u32))
}

impl GroupNormKernels for Cube {
    fn forward(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, kind: Kind) -> Forward<Self> {
        let [n, c, h, w] = x.shape().dims();
        let sizes = Sizes::new(&x, kind.groups);
        let (x, weight, bias) = (to_nhwc(x), into_contiguous(weight), into_contiguous(bias));
        let (dtype, wide) = (x.dtype, weight.dtype);
        let types = [storage(dtype), storage(wide)];
        let [means, squares] = [(); 2].map(|()| empty(&x, [n, sizes.parts, c], wide));
        let [mean, inverse] = [(); 2].map(|()| empty(&x, [n, kind.groups], wide));
        let output = empty(&x, [n, h, w, c], dtype);
        let (all, of_sample) = sizes.vectors(sizes.pixels);
        let (all_parts, of_parts) = sizes.vectors(sizes.parts);
        let (channels, of_group) = sizes.of_pixel();

        let (count, dim) = cubes(&x, all_parts);
        part_statistics::launch(
            &x.client,
            count,
            dim,
            sizes.width,
            x.clone().into_tensor_arg(),
            means.clone().into_tensor_arg(),
            squares.clone().into_tensor_arg(),
            all_parts as u32,
            of_parts as u32,
            of_sample as u32,
            types,
        );
        let (count, dim) = rows(n, kind.groups);
        group_statistics::launch(
            &x.client,
            count,
            dim,
            means.into_tensor_arg(),
            squares.into_tensor_arg(),
            mean.clone().into_tensor_arg(),
            inverse.clone().into_tensor_arg(),
            EPSILON as f32,
            sizes.parts as u32,
            sizes.pixels as u32,
            c as u32,
            kind.groups as u32,
            UNITS,
            storage(wide),
        );
        let (count, dim) = cubes(&x, all);
        apply::launch(
            &x.client,
            count,
            dim,
            sizes.width,
            x.clone().into_tensor_arg(),
            mean.clone().into_tensor_arg(),
            inverse.clone().into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            all as u32,
            of_sample as u32,
            channels as u32,
            of_group as u32,
            kind.silu,
            types,
        );
        (permute_nhwc_to_nchw(output), mean, inverse)
    }

    fn backward(
        (x, mean, inverse): Forward<Self>,
        weight: CubeTensor,
        bias: CubeTensor,
        gradient: CubeTensor,
        kind: Kind,
    ) -> [CubeTensor; 3] {
        let [n, c, h, w] = x.shape().dims();
        let sizes = Sizes::new(&x, kind.groups);
        let [x, gradient] = [x, gradient].map(to_nhwc);
        let [weight, bias] = [weight, bias].map(into_contiguous);
        let (dtype, wide) = (x.dtype, weight.dtype);
        let types = [storage(dtype), storage(wide)];
        let [weight_parts, bias_parts] = [(); 2].map(|()| empty(&x, [n, sizes.parts, c], wide));
        let [of_weight, of_bias] = [(); 2].map(|()| empty(&x, [n, c], wide));
        let [at_weight, at_bias] = [(); 2].map(|()| empty(&x, [c], wide));
        let [weighted, weighted_normalised] = [(); 2].map(|()| empty(&x, [n, kind.groups], wide));
        let output = empty(&x, [n, h, w, c], dtype);
        let (all, of_sample) = sizes.vectors(sizes.pixels);
        let (all_parts, of_parts) = sizes.vectors(sizes.parts);
        let (channels, of_group) = sizes.of_pixel();

        let (count, dim) = cubes(&x, all_parts);
        part_sums::launch(
            &x.client,
            count,
            dim,
            sizes.width,
            x.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            mean.clone().into_tensor_arg(),
            inverse.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.clone().into_tensor_arg(),
            weight_parts.clone().into_tensor_arg(),
            bias_parts.clone().into_tensor_arg(),
            all_parts as u32,
            of_parts as u32,
            of_sample as u32,
            channels as u32,
            of_group as u32,
            kind.silu,
            types,
        );
        let (count, dim) = rows(n, c);
        channel_sums::launch(
            &x.client,
            count,
            dim,
            weight_parts.into_tensor_arg(),
            bias_parts.into_tensor_arg(),
            of_weight.clone().into_tensor_arg(),
            of_bias.clone().into_tensor_arg(),
            sizes.parts as u32,
            c as u32,
            UNITS,
            storage(wide),
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
            sizes.pixels as u32,
            c as u32,
            (c / kind.groups) as u32,
            storage(wide),
        );
        let (count, dim) = cubes(&x, all);
        at_input::launch(
            &x.client,
            count,
            dim,
            sizes.width,
            x.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            mean.into_tensor_arg(),
            inverse.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            weighted.into_tensor_arg(),
            weighted_normalised.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            all as u32,
            of_sample as u32,
            channels as u32,
            of_group as u32,
            kind.silu,
            types,
        );
        [permute_nhwc_to_nchw(output), at_weight, at_bias]
    }
}
