//! Bands of rows of an image, padded and laid out so that each tap of a kernel sees its pixels one after the other.

use std::ops::Range;

use num_traits::Zero;

use crate::Element;

/// How a convolution reads an image.
///
/// With a stride of two, a tap sees every other row and column: these are the planes, `step[0] * step[1]` for each channel. In a
/// plane, the pixels that a tap sees for neighbouring results are neighbours. Rows of a plane follow each other, so those of a
/// whole band do, but for a few pixels at the end of each row that belong to no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Height and width of the image.
    pub image: [usize; 2],
    /// Rows and columns from the pixels of one result to those of the next.
    pub step: [usize; 2],
    /// Zeros before the first row and column.
    pub before: [usize; 2],
    /// Rows and columns of a plane that are needed beside those of the results.
    pub reach: [usize; 2],
    /// Results in a row.
    pub width: usize,
}

impl Reading {
    /// Pixels from a row of a plane to the next.
    pub fn pitch(&self) -> usize {
        self.width + self.reach[1]
    }

    /// Pixels of a channel for a band with so many rows of results.
    pub fn of_channel(&self, rows: usize) -> usize {
        self.step[0] * self.step[1] * (rows + self.reach[0]) * self.pitch()
    }

    /// Where a tap finds its pixel of the first result of a band, whose row in the padded image is `at[0]` and column `at[1]`.
    pub fn offset(&self, rows: usize, at: [usize; 2]) -> usize {
        let plane = at[0] % self.step[0] * self.step[1] + at[1] % self.step[1];
        (plane * (rows + self.reach[0]) + at[0] / self.step[0]) * self.pitch() + at[1] / self.step[1]
    }

    /// Calls `with` with the place of each row of a channel for a band, the columns in it that come from the image, and the first
    /// pixel of these; the rest of the row are zeros.
    #[inline(always)]
    fn each_row(&self, rows: &Range<usize>, mut with: impl FnMut(usize, Range<usize>, usize)) {
        let [height, width] = self.image;
        let mut place = 0;
        for down in 0..self.step[0] {
            for right in 0..self.step[1] {
                let from = self.before[1].saturating_sub(right).div_ceil(self.step[1]).min(self.pitch());
                let to = (width + self.before[1]).saturating_sub(right).div_ceil(self.step[1]).min(self.pitch());
                for row in rows.start..rows.end + self.reach[0] {
                    let y = (row * self.step[0] + down).wrapping_sub(self.before[0]);
                    if y < height && from < to {
                        with(place, from..to, y * width + from * self.step[1] + right - self.before[1]);
                    } else {
                        with(place, 0..0, 0);
                    }
                    place += self.pitch();
                }
            }
        }
    }

    /// Lays out a band of one channel, row by row.
    #[inline(always)]
    pub fn lay_out<E: Element>(&self, channel: &[E], rows: &Range<usize>, out: &mut [E::Wide]) {
        self.each_row(rows, |place, inside, first| {
            let out = &mut out[place..place + self.pitch()];
            out[..inside.start].fill(E::Wide::zero());
            out[inside.end..].fill(E::Wide::zero());
            if inside.is_empty() {
                return;
            }
            let out = &mut out[inside];
            if self.step[1] == 1 {
                for (out, pixel) in out.iter_mut().zip(&channel[first..]) {
                    *out = pixel.widen();
                }
            } else {
                for (out, pixel) in out.iter_mut().zip(channel[first..].iter().step_by(self.step[1])) {
                    *out = pixel.widen();
                }
            }
        });
    }

    /// Lays out a band of one channel as one of `columns` columns.
    #[inline(always)]
    pub fn lay_out_column<E: Element>(
        &self,
        channel: &[E],
        rows: &Range<usize>,
        [column, columns]: [usize; 2],
        out: &mut [E::Wide],
    ) {
        self.each_row(rows, |place, inside, first| {
            let out = &mut out[place * columns..(place + self.pitch()) * columns];
            let (before, out) = out.split_at_mut(inside.start * columns);
            let (out, after) = out.split_at_mut(inside.len() * columns);
            for out in before.chunks_exact_mut(columns).chain(after.chunks_exact_mut(columns)) {
                out[column] = E::Wide::zero();
            }
            if self.step[1] == 1 {
                for (out, pixel) in out.chunks_exact_mut(columns).zip(&channel[first..]) {
                    out[column] = pixel.widen();
                }
            } else {
                for (out, pixel) in out.chunks_exact_mut(columns).zip(channel[first..].iter().step_by(self.step[1])) {
                    out[column] = pixel.widen();
                }
            }
        });
    }
}
