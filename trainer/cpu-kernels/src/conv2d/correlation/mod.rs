//! The output of a convolution, and the gradient at its input: both sum, for each pixel of the result, the pixels that the taps
//! of the kernel see, times weights.

mod filtering;
mod tasks;

use pulp::Arch;
use rayon::prelude::*;

use self::tasks::{ComputeBand, LayOutWeights, Parts};
use super::Geometry;
use super::band::Reading;
use super::products::MOST_COLUMNS;
use crate::Element;
use crate::scratch::with_scratch;

/// Results of a band in each channel, at most, where a row has fewer.
const BAND_PIXELS: usize = 1024;
/// Bytes of a band of the image that are laid out at a time, for as many channels as fit: they stay in a core's second cache.
const BLOCK_BYTES: usize = 384 << 10;
/// Tiles of a band in each channel, at most, and bytes of their points that are laid out at a time: only those of one point are read at
/// a time.
const BAND_TILES: usize = 128;
const FILTERED_BYTES: usize = 1 << 20;
/// Products that are added one after the other, at most, which bounds rounding errors; those at points are larger than their sum.
const TERMS: usize = 512;
const FILTERED_TERMS: usize = 96;

/// A weight of a kernel, and the pixel that it sees for the first result: row and column of the padded image.
#[derive(Debug, Clone, Copy)]
struct Tap {
    weight: usize,
    at: [usize; 2],
}

/// Results that see the image through the same taps: every `step`-th row and column from the first.
#[derive(Debug, Clone)]
struct Phase {
    first: [usize; 2],
    taps: Vec<Tap>,
}

/// What one of the passes computes.
#[derive(Debug, Clone)]
struct Correlation {
    /// Channels of the image and of the result.
    from: usize,
    to: usize,
    /// From a weight to that of the next channel of the image and of the result.
    weights: [usize; 2],
    reading: Reading,
    /// Height and width of the result, and the rows and columns from one result of a phase to the next.
    result: [usize; 2],
    step: [usize; 2],
    phases: Vec<Phase>,
    /// Whether phases are the points of [`filtering`].
    filtered: bool,
}

impl Correlation {
    fn output(geometry: &Geometry) -> Self {
        let Geometry { inputs, outputs, image, kernel, stride, padding } = *geometry;
        let result = geometry.output().unwrap_or([0; 2]);
        let tap = |weight: usize| Tap { weight, at: [weight / kernel[1], weight % kernel[1]] };
        Self {
            from: inputs,
            to: outputs,
            weights: [geometry.taps(), inputs * geometry.taps()],
            reading: Reading {
                image,
                step: stride,
                before: padding.map(|[before, _]| before),
                reach: [0, 1].map(|axis| (kernel[axis] - 1) / stride[axis]),
                width: result[1],
            },
            result,
            step: [1; 2],
            phases: vec![Phase { first: [0; 2], taps: (0..geometry.taps()).map(tap).collect() }],
            filtered: false,
        }
    }

    /// The output by minimal filtering, for a kernel of 3x3 and a stride of one.
    fn filtered_output(geometry: &Geometry) -> Self {
        let direct = Self::output(geometry);
        let point = |point: usize| {
            let tap = Tap { weight: 0, at: [point / filtering::SIDE, point % filtering::SIDE] };
            Phase { first: [0; 2], taps: vec![tap] }
        };
        let width = direct.reading.width.div_ceil(filtering::TILE);
        let reading = Reading { step: [filtering::SIDE; 2], reach: [0; 2], width, ..direct.reading };
        let phases = (0..filtering::POINTS).map(point).collect();
        Self { reading, step: [filtering::TILE, 1], phases, filtered: true, ..direct }
    }

    /// A pixel of the input is seen by the output through those taps alone that lie on its stride.
    fn input_gradient(geometry: &Geometry) -> Self {
        let Geometry { inputs, outputs, image, kernel, stride, padding } = *geometry;
        let gradient = geometry.output().unwrap_or([0; 2]);
        let before = [0, 1].map(|axis| ((kernel[axis] - 1).saturating_sub(padding[axis][0])).div_ceil(stride[axis]));
        // The taps of a phase along one axis, and the pixel of the padded gradient that each sees for the first result.
        let along = |axis: usize, phase: usize| {
            let seen = phase + padding[axis][0];
            let taps = (seen % stride[axis]..kernel[axis]).step_by(stride[axis]);
            taps.map(move |tap| (tap, (seen + before[axis] * stride[axis] - tap) / stride[axis])).collect::<Vec<_>>()
        };
        let phase = |first: [usize; 2]| {
            let rows = along(0, first[0]).into_iter();
            let taps = rows.flat_map(|(down, y)| {
                let columns = along(1, first[1]).into_iter();
                columns.map(move |(right, x)| Tap { weight: down * kernel[1] + right, at: [y, x] })
            });
            Phase { first, taps: taps.collect() }
        };
        let phases: Vec<_> =
            (0..stride[0] * stride[1]).map(|index| phase([index / stride[1], index % stride[1]])).collect();
        let reach = [0, 1].map(|axis| {
            let seen = phases.iter().flat_map(|phase| phase.taps.iter().map(|tap| tap.at[axis]));
            seen.max().unwrap_or(0)
        });
        Self {
            from: outputs,
            to: inputs,
            weights: [inputs * geometry.taps(), geometry.taps()],
            reading: Reading { image: gradient, step: [1; 2], before, reach, width: image[1].div_ceil(stride[1]) },
            result: image,
            step: stride,
            phases,
            filtered: false,
        }
    }

    /// Rows of results of each phase in a band: as many as leave the fewest sums that nobody needs.
    fn band(&self) -> usize {
        let rows = self.result[0].div_ceil(self.step[0]).max(1);
        let most = if self.filtered { BAND_TILES } else { BAND_PIXELS };
        let most = (most / self.reading.pitch()).clamp(1, rows);
        let sums = |band: &usize| {
            let of = |rows: usize| if rows == 0 { 0 } else { self.length(rows).next_multiple_of(MOST_COLUMNS) };
            let count = rows / band * of(*band) + of(rows % band);
            (count, usize::MAX - band)
        };
        (most.div_ceil(2)..=most).min_by_key(sums).unwrap_or(1)
    }

    /// Channels of the image that are laid out at a time.
    fn block(&self, element: usize) -> usize {
        let (bytes, terms) = if self.filtered { (FILTERED_BYTES, FILTERED_TERMS) } else { (BLOCK_BYTES, TERMS) };
        let fitting = bytes / (self.reading.of_channel(self.band()) * element).max(1);
        let taps = self.phases.iter().map(|phase| phase.taps.len()).max().unwrap_or(0);
        fitting.min(terms / taps.max(1)).clamp(1, self.from.max(1))
    }

    /// Results of a band in one channel: they follow each other, with those between rows that nobody needs.
    fn length(&self, rows: usize) -> usize {
        (rows - 1) * self.reading.pitch() + self.reading.width
    }

    /// Weights of each channel of the result, of all phases.
    fn of_channel(&self) -> usize {
        self.from * self.phases.iter().map(|phase| phase.taps.len()).sum::<usize>()
    }
}

/// The output, `[N, O, H', W']`; `filtered` by fewer products, where [`can_filter`].
pub fn forward<E: Element>(
    arch: Arch,
    geometry: &Geometry,
    filtered: bool,
    x: &[E],
    weights: &[E],
    bias: Option<&[E]>,
) -> Vec<E> {
    let correlation = if filtered { Correlation::filtered_output(geometry) } else { Correlation::output(geometry) };
    compute(arch, &correlation, x, weights, bias)
}

/// Whether minimal filtering can compute the output.
pub fn can_filter(geometry: &Geometry) -> bool {
    geometry.kernel == [3; 2] && geometry.stride == [1; 2]
}

/// The gradient at the input, `[N, C, H, W]`.
pub fn input_gradient<E: Element>(arch: Arch, geometry: &Geometry, weights: &[E], gradient: &[E]) -> Vec<E> {
    compute(arch, &Correlation::input_gradient(geometry), gradient, weights, None)
}

fn compute<E: Element>(
    arch: Arch,
    correlation: &Correlation,
    images: &[E],
    weights: &[E],
    bias: Option<&[E]>,
) -> Vec<E> {
    let Correlation { from, to, reading, result, step, .. } = correlation;
    let of_image = from * reading.image[0] * reading.image[1];
    let samples = images.len().checked_div(of_image).unwrap_or(0);
    let of_result = to * result[0] * result[1];
    let mut out = vec![E::zeroed(); samples * of_result];
    if out.is_empty() {
        return out;
    }
    let band = correlation.band();
    let rows = result[0].div_ceil(step[0]);
    let bands = rows.div_ceil(band);
    let count = arch.dispatch(Parts(*to));
    let of_channel = correlation.of_channel();
    with_scratch(to * of_channel, |laid_out: &mut [E::Wide]| {
        let mut rest = &mut laid_out[..];
        let mut parts = Vec::new();
        for part in 0..count {
            let channels = part * to / count..(part + 1) * to / count;
            let (out, after) = rest.split_at_mut(channels.len() * of_channel);
            rest = after;
            parts.push((channels, out));
        }
        parts.par_iter_mut().for_each(|(channels, out)| {
            arch.dispatch(LayOutWeights { correlation, weights, channels: channels.clone(), out });
        });
        let parts: Vec<_> = parts.into_iter().map(|(channels, out)| (channels, &*out)).collect();
        // Where the bands of all samples are too few for the threads, each is computed by several of them.
        let groups = (2 * rayon::current_num_threads()).div_ceil(samples * bands);
        let parts: Vec<_> = parts.chunks(count.div_ceil(groups)).collect();
        let mut tasks = Vec::new();
        for (image, out) in images.chunks(of_image).zip(out.chunks_mut(of_result)) {
            let mut channels: Vec<_> =
                out.chunks_mut(result[0] * result[1]).map(|out| out.chunks_mut(band * step[0] * result[1])).collect();
            for index in 0..bands {
                let rows = index * band..((index + 1) * band).min(rows);
                let mut channels = channels.iter_mut().filter_map(Iterator::next);
                for parts in &parts {
                    let out: Vec<_> =
                        channels.by_ref().take(parts.iter().map(|(channels, _)| channels.len()).sum()).collect();
                    tasks.push((image, rows.clone(), *parts, out));
                }
            }
        }
        tasks.into_par_iter().for_each(|(image, rows, parts, mut out)| {
            let scratch = correlation.block(size_of::<E::Wide>()) * reading.of_channel(rows.len()) + 2 * MOST_COLUMNS;
            let length = correlation.length(rows.len()).next_multiple_of(MOST_COLUMNS);
            let sums = correlation.phases.len() * out.len() * length;
            with_scratch(scratch + sums, |both| {
                let (scratch, sums) = both.split_at_mut(scratch);
                let out = &mut out;
                arch.dispatch(ComputeBand { correlation, image, bias, rows, parts, out, scratch, sums });
            });
        });
    });
    out
}
