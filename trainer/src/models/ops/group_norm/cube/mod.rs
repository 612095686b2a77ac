//! Kernels for GPUs: three for the forward pass and four for the backward pass, instead of several dozen.
//!
//! In memory a pixel's channels are adjacent (NHWC), as in convolutions, so nothing is copied between a norm and a
//! convolution. Sums over the pixels of a channel or a group take two kernels: one sums each of `parts`, among which a
//! channel's pixels are interleaved; the next adds these up. A unit computes a few adjacent channels at a time.

mod kernels;

use burn::backend::Cube;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::kernels::{apply, at_input, channel_sums, combine, group_statistics, part_statistics, part_sums};
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
