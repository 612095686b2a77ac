//! The gradient at the weights: for each tap of the kernel, the gradient at the output times the pixels that the tap sees, summed over
//! all outputs of all samples.

use std::ops::Range;

use num_traits::Zero;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Geometry;
use super::band::Reading;
use super::products::{MOST_COLUMNS, add_products, columns, parts};
use crate::Element;
use crate::scratch::with_scratch;

/// Outputs of a band in each channel, at most; a band has at least one row.
const BAND_PIXELS: usize = 512;
/// Input channels of a task, and output channels of it, at most: what a task lays out stays in a core's second cache.
const CHANNELS: [usize; 2] = [128, 96];

/// Computes the gradient at the weights from some input channels to some output channels.
struct ComputeWeights<'a, 'b, E: Element> {
    geometry: &'a Geometry,
    reading: Reading,
    height: usize,
    images: &'a [E],
    gradient: &'a [E],
    inputs: Range<usize>,
    outputs: Range<usize>,
    /// For each output channel, `[input channels, taps]`.
    out: &'a mut [&'b mut [E]],
    /// For a band of the input channels, one of the output channels, and the sums.
    scratch: [&'a mut [E::Wide]; 3],
}

impl Geometry {
    fn reading(&self) -> Reading {
        let reach = [0, 1].map(|axis| (self.kernel[axis] - 1) / self.stride[axis]);
        let before = self.padding.map(|[before, _]| before);
        let width = self.output().unwrap_or([0; 2])[1];
        Reading { image: self.image, step: self.stride, before, reach, width }
    }
}

impl<E: Element> WithSimd for ComputeWeights<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { geometry, reading, height, scratch: [image, gradient, sums], .. } = self;
        let columns = columns::<S, E::Wide>();
        let panels = self.inputs.len().div_ceil(columns);
        let (taps, width) = (geometry.taps(), reading.width);
        let of_sample = [geometry.inputs * reading.image[0] * reading.image[1], geometry.outputs * height * width];
        let band = (BAND_PIXELS / width).clamp(1, height);
        let count = parts::<S>(self.outputs.len());
        let of_output = panels * taps * columns;
        sums.fill(E::Wide::zero());
        let mut offsets = Vec::new();
        for (images, gradients) in self.images.chunks(of_sample[0]).zip(self.gradient.chunks(of_sample[1])) {
            for start in (0..height).step_by(band) {
                let rows = start..(start + band).min(height);
                let of_panel = reading.of_channel(rows.len()) * columns;
                for (index, channel) in self.inputs.clone().enumerate() {
                    let pixels = reading.image[0] * reading.image[1];
                    let channel = &images[channel * pixels..][..pixels];
                    let image = &mut image[index / columns * of_panel..];
                    reading.lay_out_column(channel, &rows, [index % columns, columns], image);
                }
                offsets.clear();
                for row in 0..rows.len() {
                    for column in 0..width {
                        offsets.push(((row * reading.pitch() + column) * columns) as u32);
                    }
                }
                for part in 0..count {
                    let of_part = part * self.outputs.len() / count..(part + 1) * self.outputs.len() / count;
                    let together = of_part.len();
                    let factors = &mut gradient[..offsets.len() * together];
                    let first = ((self.outputs.start + of_part.start) * height + start) * width;
                    for (pixel, factors) in factors.chunks_exact_mut(together).enumerate() {
                        let gradients = gradients[first + pixel..].iter().step_by(height * width);
                        for (factor, gradient) in factors.iter_mut().zip(gradients) {
                            *factor = gradient.widen();
                        }
                    }
                    for panel in 0..panels {
                        for tap in 0..taps {
                            let at = [tap / geometry.kernel[1], tap % geometry.kernel[1]];
                            let seen = panel * of_panel + reading.offset(rows.len(), at) * columns;
                            let sums = &mut sums[of_part.start * of_output + (panel * taps + tap) * columns..];
                            add_products(
                                simd,
                                together,
                                factors,
                                (&image[seen..], &offsets),
                                (sums, of_output, columns),
                            );
                        }
                    }
                }
            }
        }
        for (out, sums) in self.out.iter_mut().zip(sums.chunks(of_output)) {
            for (index, out) in out.chunks_exact_mut(taps).enumerate() {
                let sums = &sums[index / columns * taps * columns + index % columns..];
                for (out, sum) in out.iter_mut().zip(sums.iter().step_by(columns)) {
                    *out = E::narrow(*sum);
                }
            }
        }
    }
}

/// The gradient at the weights, `[O, C, KH, KW]`.
pub fn weight_gradient<E: Element>(arch: Arch, geometry: &Geometry, images: &[E], gradient: &[E]) -> Vec<E> {
    let Geometry { inputs, outputs, .. } = *geometry;
    let taps = geometry.taps();
    let mut out = vec![E::zeroed(); outputs * inputs * taps];
    let [height, width] = geometry.output().unwrap_or([0; 2]);
    if out.is_empty() || height * width == 0 {
        return out;
    }
    let reading = geometry.reading();
    let mut tasks = Vec::new();
    // Tasks for every thread, of about the same size. Each lays out its input channels anew.
    let groups = outputs
        .div_ceil(CHANNELS[1])
        .next_multiple_of(rayon::current_num_threads().div_ceil(inputs.div_ceil(CHANNELS[0])));
    let of_group = outputs.div_ceil(groups);
    for (index, out) in out.chunks_mut(of_group * inputs * taps).enumerate() {
        let mut rows: Vec<_> = out.chunks_mut(inputs * taps).map(|row| row.chunks_mut(CHANNELS[0] * taps)).collect();
        let outputs = index * of_group..index * of_group + rows.len();
        for start in (0..inputs).step_by(CHANNELS[0]) {
            let rows: Vec<_> = rows.iter_mut().filter_map(Iterator::next).collect();
            tasks.push((start..(start + CHANNELS[0]).min(inputs), outputs.clone(), rows));
        }
    }
    tasks.into_par_iter().for_each(|(inputs, outputs, mut out)| {
        let band = (BAND_PIXELS / width).clamp(1, height);
        let channels = inputs.len().next_multiple_of(MOST_COLUMNS);
        let sizes =
            [channels * reading.of_channel(band), outputs.len() * band * width, outputs.len() * channels * taps];
        with_scratch(sizes.iter().sum(), |scratch: &mut [E::Wide]| {
            let (image, scratch) = scratch.split_at_mut(sizes[0]);
            let (factors, sums) = scratch.split_at_mut(sizes[1]);
            arch.dispatch(ComputeWeights {
                geometry,
                reading,
                height,
                images,
                gradient,
                inputs,
                outputs,
                out: &mut out,
                scratch: [image, factors, sums],
            });
        });
    });
    out
}
