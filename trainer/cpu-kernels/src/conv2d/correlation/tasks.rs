//! What is computed in vectors, piece by piece.

use std::ops::Range;

use num_traits::Zero;
use pulp::{Simd, WithSimd};

use super::{Correlation, filtering};
use crate::Element;
use crate::conv2d::products::{add_products, columns, parts};

/// Parts of the channels of the result that are computed at a time.
pub struct Parts(pub usize);

impl WithSimd for Parts {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        parts::<S>(self.0)
    }
}

/// Lays out the weights of some channels of the result, for each phase `[from, taps, channels]`.
pub struct LayOutWeights<'a, E: Element> {
    pub correlation: &'a Correlation,
    pub weights: &'a [E],
    pub channels: Range<usize>,
    pub out: &'a mut [E::Wide],
}

impl<E: Element> WithSimd for LayOutWeights<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Correlation { from, weights: [of_from, of_to], phases, filtered, .. } = self.correlation;
        let count = self.channels.len();
        let weights = &self.weights[self.channels.start * of_to..];
        if *filtered {
            let mut kernels = [[E::Wide::zero(); filtering::KERNELS]; 9];
            let mut points = [[E::Wide::zero(); filtering::KERNELS]; filtering::POINTS];
            for channel in 0..*from {
                for (m, weights) in weights[channel * of_from..].chunks(*of_to).take(count).enumerate() {
                    for (kernels, weight) in kernels.iter_mut().zip(weights) {
                        kernels[m] = weight.widen();
                    }
                }
                filtering::points_of_weights(&kernels, &mut points);
                for (point, values) in points.iter().enumerate() {
                    self.out[(point * from + channel) * count..][..count].copy_from_slice(&values[..count]);
                }
            }
            return;
        }
        let mut out = self.out.chunks_exact_mut(count);
        for phase in phases {
            for from in 0..*from {
                for (tap, out) in phase.taps.iter().zip(&mut out) {
                    let weights = weights[from * of_from + tap.weight..].iter().step_by(*of_to);
                    for (out, weight) in out.iter_mut().zip(weights) {
                        *out = weight.widen();
                    }
                }
            }
        }
    }
}

/// Computes some channels of the result for a band of rows.
pub struct ComputeBand<'a, 'b, E: Element> {
    pub correlation: &'a Correlation,
    pub image: &'a [E],
    pub bias: Option<&'a [E]>,
    /// Rows of results of each phase.
    pub rows: Range<usize>,
    /// The channels, in parts, each with its weights.
    pub parts: &'a [(Range<usize>, &'a [E::Wide])],
    /// The rows of each channel.
    pub out: &'a mut [&'b mut [E]],
    /// For a band of some channels of the image.
    pub scratch: &'a mut [E::Wide],
    /// For the sums of all phases and channels.
    pub sums: &'a mut [E::Wide],
}

impl<E: Element> WithSimd for ComputeBand<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Correlation { from, reading, phases, .. } = self.correlation;
        let rows = self.rows.len();
        let of_channel = reading.of_channel(rows);
        let length = self.correlation.length(rows).next_multiple_of(columns::<S, E::Wide>());
        let first = self.parts[0].0.start;
        let of_phase = self.out.len() * length;
        self.begin_sums(of_phase, length);
        let block = self.correlation.block(size_of::<E::Wide>());
        let mut offsets = Vec::new();
        let mut line = vec![E::Wide::zero(); filtering::scratch(reading.width)];
        for start in (0..*from).step_by(block) {
            let block = block.min(from - start);
            self.lay_out(start..start + block, &mut line);
            let mut before = 0;
            for (phase, sums) in phases.iter().zip(self.sums.chunks_mut(of_phase)) {
                offsets.clear();
                for channel in 0..block {
                    for tap in &phase.taps {
                        offsets.push((channel * of_channel + reading.offset(rows, tap.at)) as u32);
                    }
                }
                for (channels, weights) in self.parts {
                    let count = channels.len();
                    let factors = &weights[(before + start * phase.taps.len()) * count..][..offsets.len() * count];
                    let sums = &mut sums[(channels.start - first) * length..];
                    add_products(simd, count, factors, (self.scratch, &offsets), (sums, length, length));
                }
                before += from * phase.taps.len();
            }
        }
        self.write([of_phase, length], &mut line);
    }
}

impl<E: Element> ComputeBand<'_, '_, E> {
    /// Sums begin with the bias.
    #[inline(always)]
    fn begin_sums(&mut self, of_phase: usize, length: usize) {
        let first = self.parts[0].0.start;
        for (phase, sums) in self.sums.chunks_mut(of_phase).enumerate() {
            for (channel, sums) in sums.chunks_mut(length).enumerate() {
                let bias = match self.bias {
                    Some(bias) if !self.correlation.filtered || phase == filtering::SHARED_POINT => {
                        bias[first + channel].widen()
                    }
                    _ => E::Wide::zero(),
                };
                sums.fill(bias);
            }
        }
    }

    /// Lays out a band of some channels of the image.
    #[inline(always)]
    fn lay_out(&mut self, channels: Range<usize>, line: &mut [E::Wide]) {
        let Correlation { reading, filtered, .. } = self.correlation;
        let (pixels, of_channel) = (reading.image[0] * reading.image[1], reading.of_channel(self.rows.len()));
        let images = self.image[channels.start * pixels..channels.end * pixels].chunks(pixels);
        for (image, out) in images.zip(self.scratch.chunks_mut(of_channel)) {
            if *filtered {
                filtering::lay_out(reading, image, &self.rows, line, out);
            } else {
                reading.lay_out(image, &self.rows, out);
            }
        }
    }

    /// Writes the result of all sums.
    #[inline(always)]
    fn write(&mut self, [of_phase, length]: [usize; 2], line: &mut [E::Wide]) {
        let Correlation { reading, result, step, phases, filtered, .. } = self.correlation;
        if *filtered {
            for (channel, out) in self.out.iter_mut().enumerate() {
                for (row, out) in out.chunks_mut(filtering::TILE * result[1]).enumerate() {
                    let start = channel * length + row * reading.width;
                    let products = std::array::from_fn(|point| &self.sums[point * of_phase + start..][..reading.width]);
                    filtering::results(products, line, out, result[1]);
                }
            }
            return;
        }
        for (phase, sums) in phases.iter().zip(self.sums.chunks(of_phase)) {
            for (out, sums) in self.out.iter_mut().zip(sums.chunks(length)) {
                let out = out.chunks_mut(result[1]).skip(phase.first[0]).step_by(step[0]);
                for (out, sums) in out.zip(sums.chunks(reading.pitch())) {
                    if step[1] == 1 {
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = E::narrow(*sum);
                        }
                    } else {
                        let out = out.iter_mut().skip(phase.first[1]).step_by(step[1]);
                        for (out, sum) in out.zip(sums) {
                            *out = E::narrow(*sum);
                        }
                    }
                }
            }
        }
    }
}
