//! Group normalisation on the CPU: one thread per group of a sample, in the processor's cache.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;
use cpu_kernels::{Real, sigmoid, sum};
use num_traits::{Float, One, Zero};
use rayon::prelude::*;

use super::EPSILON;
use super::operation::{Forward, GroupNormKernels, Kind};
use crate::models::ops::flex::{Number, elements, tensor, with_number};

impl GroupNormKernels for Flex {
    fn forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, kind: Kind) -> Forward<Self> {
        with_number!(x.dtype(), forward(&x, &weight, &bias, kind))
    }

    fn backward(
        (x, mean, inverse): Forward<Self>,
        weight: FlexTensor,
        bias: FlexTensor,
        gradient: FlexTensor,
        kind: Kind,
    ) -> [FlexTensor; 3] {
        let all = [x, gradient, mean, inverse, weight, bias].map(|tensor| tensor.to_contiguous());
        with_number!(all[0].dtype(), backward(&all, kind))
    }
}

fn wide<W: Float>(value: f64) -> W {
    W::from(value).unwrap_or_else(W::nan)
}

fn forward<E: Number>(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor, kind: Kind) -> Forward<Flex> {
    let shape = x.shape();
    let [n, c, h, w] = shape.dims();
    let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
    let (values, weight, bias) = (elements::<E>(&x), elements::<E::Wide>(&weight), elements::<E::Wide>(&bias));
    let (pixels, of_group) = (h * w, c / kind.groups * h * w);
    let mut output = vec![E::narrow(E::Wide::zero()); values.len()];
    let groups = values.par_chunks(of_group).zip(output.par_chunks_mut(of_group)).enumerate();
    let (mean, inverse): (Vec<_>, Vec<_>) = groups
        .map(|(group, (x, y))| {
            let mean = sum(x, |x| x.widen().into()) / of_group as f64;
            let rounded = wide::<E::Wide>(mean);
            let variance = sum(x, |x| (x.widen() - rounded).powi(2).into()) / of_group as f64;
            let inverse = wide::<E::Wide>((variance + EPSILON).sqrt().recip());
            let first = group % kind.groups * (c / kind.groups);
            for (channel, (x, y)) in x.chunks(pixels).zip(y.chunks_mut(pixels)).enumerate() {
                let (scale, shift) = (weight[first + channel] * inverse, bias[first + channel]);
                let (mut z, mut of_z) = ([E::Wide::zero(); BLOCK], [E::Wide::one(); BLOCK]);
                for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
                    for (z, x) in z.iter_mut().zip(x) {
                        *z = (x.widen() - rounded) * scale + shift;
                    }
                    if kind.silu {
                        of_z[..x.len()].copy_from_slice(&z[..x.len()]);
                        sigmoid(&mut of_z[..x.len()]);
                    }
                    for (y, (z, of_z)) in y.iter_mut().zip(z.iter().zip(&of_z)) {
                        *y = E::narrow(*z * *of_z);
                    }
                }
            }
            (rounded, inverse)
        })
        .unzip();
    (tensor(output, [n, c, h, w]), tensor(mean, [n, kind.groups]), tensor(inverse, [n, kind.groups]))
}

fn backward<E: Number>([x, gradient, mean, inverse, weight, bias]: &[FlexTensor; 6], kind: Kind) -> [FlexTensor; 3] {
    let [n, c, h, w] = x.shape().dims();
    let (x, gradient) = (elements::<E>(x), elements::<E>(gradient));
    let [mean, inverse, weight, bias] = [mean, inverse, weight, bias].map(elements::<E::Wide>);
    let (pixels, channels, of_group) = (h * w, c / kind.groups, c / kind.groups * h * w);
    let mut at_x = vec![E::narrow(E::Wide::zero()); x.len()];
    // For each channel of each sample: its share of the gradients at weight and bias.
    let mut sums = vec![(0.0, 0.0); n * c];
    x.par_chunks(of_group)
        .zip(gradient.par_chunks(of_group))
        .zip(at_x.par_chunks_mut(of_group))
        .zip(sums.par_chunks_mut(channels))
        .enumerate()
        .for_each(|(group, (((x, gradient), at_x), sums))| {
            let first = group % kind.groups * channels;
            let of_channel = |channel| Channel {
                mean: mean[group],
                inverse: inverse[group],
                weight: weight[first + channel],
                bias: bias[first + channel],
                silu: kind.silu,
            };
            let mut block = Block { normalised: [E::Wide::zero(); BLOCK], at_z: [E::Wide::zero(); BLOCK] };
            let (mut of_weighted, mut of_weighted_normalised) = (0.0, 0.0);
            for (channel, sums) in sums.iter_mut().enumerate() {
                let (range, of) = (channel * pixels..(channel + 1) * pixels, of_channel(channel));
                let given = x[range.clone()].chunks(BLOCK).zip(gradient[range.clone()].chunks(BLOCK));
                for ((x, gradient), at_x) in given.zip(at_x[range].chunks_mut(BLOCK)) {
                    let Block { normalised, at_z } = &mut block;
                    of.normalise(x, normalised);
                    of.backward_silu(gradient, normalised, at_z);
                    sums.0 += dot(&at_z[..x.len()], &normalised[..x.len()]);
                    sums.1 += sum(&at_z[..x.len()], Into::into);
                    if E::IS_WIDE {
                        at_x.iter_mut().zip(at_z).for_each(|(at_x, at_z)| *at_x = E::narrow(*at_z));
                    }
                }
                of_weighted += sums.1 * of.weight.into();
                of_weighted_normalised += sums.0 * of.weight.into();
            }
            let mean_of = |sum: f64| wide::<E::Wide>(sum / of_group as f64);
            let (a, b) = (mean_of(of_weighted), mean_of(of_weighted_normalised));
            for channel in 0..channels {
                let (range, of) = (channel * pixels..(channel + 1) * pixels, of_channel(channel));
                let given = x[range.clone()].chunks(BLOCK).zip(gradient[range.clone()].chunks(BLOCK));
                for ((x, gradient), at_x) in given.zip(at_x[range].chunks_mut(BLOCK)) {
                    let Block { normalised, at_z } = &mut block;
                    of.normalise(x, normalised);
                    // Half precision would have rounded it in `at_x`; computing it again takes longer.
                    if E::IS_WIDE {
                        at_z.iter_mut().zip(&*at_x).for_each(|(at_z, at_x)| *at_z = at_x.widen());
                    } else {
                        of.backward_silu(gradient, normalised, at_z);
                    }
                    for (at_x, (normalised, at_z)) in at_x.iter_mut().zip(normalised.iter().zip(&*at_z)) {
                        *at_x = E::narrow((*at_z * of.weight - a - *normalised * b) * of.inverse);
                    }
                }
            }
        });
    let of_samples = |of: fn(&(f64, f64)) -> f64| -> Vec<E::Wide> {
        (0..c).map(|channel| wide((0..n).map(|sample| of(&sums[sample * c + channel])).sum())).collect()
    };
    [tensor(at_x, [n, c, h, w]), tensor(of_samples(|sums| sums.0), [c]), tensor(of_samples(|sums| sums.1), [c])]
}

/// Elements per step of the backward pass, on the stack: a thread that allocates reserves at least 64 MiB of addresses.
const BLOCK: usize = 512;

/// A channel of a sample in the backward pass.
struct Channel<W> {
    mean: W,
    inverse: W,
    weight: W,
    bias: W,
    silu: bool,
}

/// Normalised elements of a channel, and the gradient at them before SiLU.
struct Block<W> {
    normalised: [W; BLOCK],
    at_z: [W; BLOCK],
}

impl<W: Real> Channel<W> {
    fn normalise<E: Number<Wide = W>>(&self, x: &[E], normalised: &mut [W; BLOCK]) {
        for (normalised, x) in normalised.iter_mut().zip(x) {
            *normalised = (x.widen() - self.mean) * self.inverse;
        }
    }

    fn backward_silu<E: Number<Wide = W>>(&self, gradient: &[E], normalised: &[W; BLOCK], at_z: &mut [W; BLOCK]) {
        if !self.silu {
            at_z.iter_mut().zip(gradient).for_each(|(at_z, gradient)| *at_z = gradient.widen());
            return;
        }
        let z = |normalised: W| normalised * self.weight + self.bias;
        for (at_z, normalised) in at_z.iter_mut().zip(normalised).take(gradient.len()) {
            *at_z = z(*normalised);
        }
        sigmoid(&mut at_z[..gradient.len()]);
        for (at_z, (gradient, normalised)) in at_z.iter_mut().zip(gradient.iter().zip(normalised)) {
            let s = *at_z;
            *at_z = gradient.widen() * s * (W::one() + z(*normalised) * (W::one() - s));
        }
    }
}

/// Sums products in f64, eight at a time.
fn dot<W: Copy + Into<f64>>(a: &[W], b: &[W]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (*a).into() * (*b).into();
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| (*a).into() * (*b).into()).sum::<f64>()
}
