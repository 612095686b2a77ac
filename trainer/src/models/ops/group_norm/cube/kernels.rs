//! The kernels.

use cubecl::prelude::*;

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
pub(super) fn part_statistics<E: Float, W: Float, N: Size>(
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
pub(super) fn group_statistics<W: Float>(
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
pub(super) fn apply<E: Float, W: Float, N: Size>(
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
pub(super) fn part_sums<E: Float, W: Float, N: Size>(
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
pub(super) fn channel_sums<W: Float>(
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
pub(super) fn combine<W: Float>(
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
pub(super) fn at_input<E: Float, W: Float, N: Size>(
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
