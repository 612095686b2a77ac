//! Convolutions of any kernel and stride as products of matrices: the weights, `[O, C KH KW]`, times the pixels that each
//! output sees, `[C KH KW, H' W']`. These are laid out for a band of rows at a time ("im2col"), so that they stay in a core's
//! cache. Those of a 1x1 kernel are the image itself.

use std::borrow::Cow;
use std::ops::Range;

use num_traits::Zero;
use rayon::prelude::*;

use super::Geometry;
use crate::element::{Element, as_wide};
use crate::matrix::{Matrix, multiply};
use crate::scratch::with_scratch;

/// Outputs of a band, at most; a band has at least one row.
const BAND_PIXELS: usize = 512;
/// Bands of an image, at least, where it has so many rows: work for several threads.
const BANDS: usize = 8;
/// Bytes of pixels that are laid out at a time.
const COLUMN_BYTES: usize = 512 << 10;

/// Sizes of a convolution, and how it is cut into bands of output rows and blocks of input channels.
///
/// Both depend on the sizes alone and not on the number of samples or of threads, so that neither changes a result.
#[derive(Debug, Clone, Copy)]
struct Plan {
    geometry: Geometry,
    output: [usize; 2],
    /// Output rows of a band.
    band: usize,
    /// Input channels of a block.
    block: usize,
}

impl Plan {
    fn new(geometry: &Geometry, element: usize) -> Self {
        let output = geometry.output().unwrap_or([0; 2]);
        let band = (BAND_PIXELS / output[1].max(1)).min(output[0].div_ceil(BANDS)).max(1);
        let of_channel = geometry.taps() * band * output[1] * element;
        let block = (COLUMN_BYTES / of_channel.max(1)).clamp(1, geometry.inputs);
        Self { geometry: *geometry, output, band, block }
    }

    fn bands(&self) -> usize {
        self.output[0].div_ceil(self.band)
    }

    fn rows_of(&self, band: usize) -> Range<usize> {
        band * self.band..((band + 1) * self.band).min(self.output[0])
    }

    fn blocks(&self) -> usize {
        self.geometry.inputs.div_ceil(self.block)
    }

    fn channels_of(&self, block: usize) -> Range<usize> {
        block * self.block..((block + 1) * self.block).min(self.geometry.inputs)
    }

    fn is_pointwise(&self) -> bool {
        let Geometry { kernel, stride, padding, .. } = self.geometry;
        kernel == [1, 1] && stride == [1, 1] && padding == [[0; 2]; 2]
    }

    /// Values that [`columns`](Self::columns) and [`pixels`](Self::pixels) lay out.
    fn scratch(&self) -> [usize; 2] {
        let pixels = self.band * self.output[1];
        [self.block * self.geometry.taps() * pixels, self.geometry.outputs * pixels]
    }

    /// For each input channel of a block and each tap, the pixels that a band of outputs sees.
    fn columns<'a, E: Element>(
        &self,
        image: &'a [E],
        channels: Range<usize>,
        rows: Range<usize>,
        scratch: &'a mut [E::Wide],
    ) -> Matrix<'a, E::Wide> {
        let Geometry { image: [height, width], kernel, stride, padding, .. } = self.geometry;
        let out_width = self.output[1];
        let pixels = rows.len() * out_width;
        let image = &image[channels.start * height * width..channels.end * height * width];
        if let (true, Some(wide)) = (self.is_pointwise(), as_wide(image)) {
            return Matrix { values: &wide[rows.start * width..], row: height * width, column: 1 };
        }
        let scratch = &mut scratch[..channels.len() * kernel[0] * kernel[1] * pixels];
        let mut lines = scratch.chunks_mut(out_width);
        for channel in image.chunks(height * width) {
            for down in 0..kernel[0] {
                for right in 0..kernel[1] {
                    // Outputs from `inside.start` to `inside.end` see a pixel of the image at this tap.
                    let inside = inside(right, padding[1][0], stride[1], width, out_width);
                    for (row, line) in rows.clone().zip(&mut lines) {
                        let y = (row * stride[0] + down).wrapping_sub(padding[0][0]);
                        if y >= height || inside.is_empty() {
                            line.fill(E::Wide::zero());
                            continue;
                        }
                        line[..inside.start].fill(E::Wide::zero());
                        line[inside.end..].fill(E::Wide::zero());
                        let first = y * width + inside.start * stride[1] + right - padding[1][0];
                        let seen = channel[first..].iter().step_by(stride[1]);
                        line[inside.clone()].iter_mut().zip(seen).for_each(|(value, pixel)| *value = pixel.widen());
                    }
                }
            }
        }
        Matrix::rows(scratch, pixels)
    }

    /// A band of a tensor of the output's shape, `[O, pixels of the band]`.
    fn pixels<'a, E: Element>(
        &self,
        gradient: &'a [E],
        rows: Range<usize>,
        scratch: &'a mut [E::Wide],
    ) -> Matrix<'a, E::Wide> {
        let [height, width] = self.output;
        if let Some(wide) = as_wide(gradient) {
            return Matrix { values: &wide[rows.start * width..], row: height * width, column: 1 };
        }
        let pixels = rows.len() * width;
        for (line, channel) in scratch.chunks_mut(pixels).zip(gradient.chunks(height * width)) {
            let band = &channel[rows.start * width..rows.end * width];
            line.iter_mut().zip(band).for_each(|(value, pixel)| *value = pixel.widen());
        }
        Matrix::rows(scratch, pixels)
    }
}

/// The outputs of a row that see a pixel of the image, rather than padding, through the tap at `tap`.
fn inside(tap: usize, before: usize, stride: usize, size: usize, outputs: usize) -> Range<usize> {
    let start = before.saturating_sub(tap).div_ceil(stride).min(outputs);
    let end = (size + before).saturating_sub(tap).div_ceil(stride).min(outputs);
    start..end.max(start)
}

/// The weights in the type to compute in.
fn wide_weights<E: Element>(weights: &[E]) -> Cow<'_, [E::Wide]> {
    as_wide(weights).map_or_else(|| weights.iter().map(|weight| weight.widen()).collect(), Cow::Borrowed)
}

/// The output, `[N, O, H', W']`.
pub fn forward<E: Element>(geometry: &Geometry, images: &[E], weights: &[E], bias: Option<&[E]>) -> Vec<E> {
    let plan = Plan::new(geometry, size_of::<E::Wide>());
    let (taps, outputs) = (geometry.taps(), geometry.outputs);
    let [height, width] = plan.output;
    let weights = wide_weights(weights);
    let image = geometry.inputs * geometry.image[0] * geometry.image[1];
    let mut out = vec![E::zeroed(); images.len() / image * outputs * height * width];
    let bands = out.chunks_mut(outputs * height * width).enumerate().flat_map(|(sample, out)| {
        let mut channels: Vec<_> =
            out.chunks_mut(height * width).map(|out| out.chunks_mut(plan.band * width)).collect();
        let bands = 0..plan.bands();
        bands
            .map(|band| (sample, band, channels.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>()))
            .collect::<Vec<_>>()
    });
    bands.collect::<Vec<_>>().into_par_iter().for_each(|(sample, band, mut out)| {
        let rows = plan.rows_of(band);
        let pixels = rows.len() * width;
        let image = &images[sample * image..][..image];
        let [columns, sums] = plan.scratch();
        with_scratch(columns + sums, |scratch: &mut [E::Wide]| {
            let (columns, sums) = scratch.split_at_mut(columns);
            for block in 0..plan.blocks() {
                let channels = plan.channels_of(block);
                let k = channels.len() * taps;
                let left = Matrix::rows(&weights[channels.start * taps..], geometry.inputs * taps);
                let right = plan.columns(image, channels, rows.clone(), columns);
                multiply([outputs, pixels, k], left, right, sums, block > 0);
            }
            for (channel, (out, sums)) in out.iter_mut().zip(sums.chunks(pixels)).enumerate() {
                let bias = bias.map_or(E::Wide::zero(), |bias| bias[channel].widen());
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = E::narrow(*sum + bias));
            }
        });
    });
    out
}

/// The gradient at the input, `[N, C, H, W]`.
pub fn input_gradient<E: Element>(geometry: &Geometry, weights: &[E], gradient: &[E]) -> Vec<E> {
    let plan = Plan::new(geometry, size_of::<E::Wide>());
    let Geometry { inputs, outputs, image: [height, width], kernel, stride, padding } = *geometry;
    let taps = geometry.taps();
    let weights = wide_weights(weights);
    let sample = outputs * plan.output[0] * plan.output[1];
    let mut out = vec![E::zeroed(); gradient.len() / sample.max(1) * inputs * height * width];
    let of_block = plan.block * height * width;
    let blocks = out
        .chunks_mut(inputs * height * width)
        .enumerate()
        .flat_map(|(sample, out)| out.chunks_mut(of_block).enumerate().map(move |(block, out)| (sample, block, out)));
    blocks.collect::<Vec<_>>().into_par_iter().for_each(|(index, block, out)| {
        let gradient = &gradient[index * sample..][..sample];
        let channels = plan.channels_of(block);
        let k = channels.len() * taps;
        let [columns, pixels] = plan.scratch();
        with_scratch(columns + pixels + out.len(), |scratch: &mut [E::Wide]| {
            let (columns, scratch) = scratch.split_at_mut(columns);
            let (pixels, sums) = scratch.split_at_mut(pixels);
            sums.fill(E::Wide::zero());
            for band in 0..plan.bands() {
                let rows = plan.rows_of(band);
                let count = rows.len() * plan.output[1];
                let left = Matrix::rows(&weights[channels.start * taps..], inputs * taps).transposed();
                multiply([k, count, outputs], left, plan.pixels(gradient, rows.clone(), pixels), columns, false);
                let mut lines = columns.chunks(plan.output[1]);
                for sums in sums.chunks_mut(height * width) {
                    for down in 0..kernel[0] {
                        for right in 0..kernel[1] {
                            let inside = inside(right, padding[1][0], stride[1], width, plan.output[1]);
                            for (row, line) in rows.clone().zip(&mut lines) {
                                let y = (row * stride[0] + down).wrapping_sub(padding[0][0]);
                                if y >= height || inside.is_empty() {
                                    continue;
                                }
                                let first = y * width + inside.start * stride[1] + right - padding[1][0];
                                let seen = sums[first..].iter_mut().step_by(stride[1]);
                                seen.zip(&line[inside.clone()]).for_each(|(sum, value)| *sum = *sum + *value);
                            }
                        }
                    }
                }
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = E::narrow(*sum));
        });
    });
    out
}

/// The gradient at the weights, `[O, C, KH, KW]`.
///
/// A task takes a block of input channels, and where these are few one of some parts of all bands; the parts are added in
/// their order.
pub fn weight_gradient<E: Element>(geometry: &Geometry, images: &[E], gradient: &[E]) -> Vec<E> {
    let plan = Plan::new(geometry, size_of::<E::Wide>());
    let (taps, outputs, inputs) = (geometry.taps(), geometry.outputs, geometry.inputs);
    let sample = [inputs * geometry.image[0] * geometry.image[1], outputs * plan.output[0] * plan.output[1]];
    let parts = BANDS.div_ceil(plan.blocks()).min(plan.bands().max(1));
    let of_part = plan.bands().div_ceil(parts);
    let tasks: Vec<_> = (0..plan.blocks()).flat_map(|block| (0..parts).map(move |part| (block, part))).collect();
    let sums: Vec<Vec<E::Wide>> = tasks
        .into_par_iter()
        .map(|(block, part)| {
            let channels = plan.channels_of(block);
            let k = channels.len() * taps;
            let mut sums = vec![E::Wide::zero(); outputs * k];
            let [columns, pixels] = plan.scratch();
            with_scratch(columns + pixels, |scratch: &mut [E::Wide]| {
                let (columns, pixels) = scratch.split_at_mut(columns);
                for (image, gradient) in images.chunks(sample[0]).zip(gradient.chunks(sample[1])) {
                    for band in part * of_part..((part + 1) * of_part).min(plan.bands()) {
                        let rows = plan.rows_of(band);
                        let count = rows.len() * plan.output[1];
                        let right = plan.columns(image, channels.clone(), rows.clone(), columns).transposed();
                        multiply([outputs, k, count], plan.pixels(gradient, rows, pixels), right, &mut sums, true);
                    }
                }
            });
            sums
        })
        .collect();
    let mut out = vec![E::zeroed(); outputs * inputs * taps];
    for (block, parts) in sums.chunks(parts).enumerate() {
        let channels = plan.channels_of(block);
        let k = channels.len() * taps;
        for output in 0..outputs {
            let out = &mut out[(output * inputs + channels.start) * taps..][..k];
            for (i, out) in out.iter_mut().enumerate() {
                let sum = parts.iter().fold(E::Wide::zero(), |sum, part| sum + part[output * k + i]);
                *out = E::narrow(sum);
            }
        }
    }
    out
}
