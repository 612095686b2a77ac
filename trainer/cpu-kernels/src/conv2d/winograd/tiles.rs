//! Tiles of an image, transposed to vectors of channels and transformed.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::panel::{Row, WIDTH};
use super::transform::{POINTS, TILE, Transform};
use super::transpose::{Block, SIDE, transpose};
use crate::Element;

/// Points of a transformed tile.
pub const ALL_POINTS: usize = POINTS * POINTS;

/// Tiles that are transposed at a time, so that their pixels stay in the nearest cache.
pub const AT_ONCE: usize = 16;

/// Columns of pixels that these tiles read.
const PIXELS: usize = AT_ONCE * TILE + POINTS - TILE;

/// How the images of one tensor, `[N, C, H, W]`, are cut into tiles.
#[derive(Debug, Clone, Copy)]
pub struct Tiling {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    /// Rows and columns before the first that the first tile reads.
    pub before: [usize; 2],
    /// Rows of tiles in an image, and tiles in a row.
    pub tiles: [usize; 2],
}

impl Tiling {
    /// Panels of channels.
    pub fn panels(&self) -> usize {
        self.channels.div_ceil(WIDTH)
    }

    /// Elements of an image.
    pub fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Transforms all tiles, of `I` by `I` pixels, of some rows of tiles and of one panel of channels, to
    /// `[points, tiles]` rows of the panel. Rows of tiles are counted through all images.
    #[inline(always)]
    pub fn transform<S: Simd, E: Element, T: Transform<I, POINTS>, const I: usize>(
        &self,
        simd: S,
        images: &[E],
        rows_of_tiles: Range<usize>,
        panel: usize,
        out: &mut [Row],
    ) {
        let [rows, columns] = self.tiles;
        let count = rows_of_tiles.len() * columns;
        let out = &mut out[..ALL_POINTS * count];
        let mut pixels = [[[0.0; WIDTH]; PIXELS]; I];
        for (index, row_of_tiles) in rows_of_tiles.enumerate() {
            let image = &images[row_of_tiles / rows * self.image()..][..self.image()];
            for first in (0..columns).step_by(AT_ONCE) {
                let tiles = AT_ONCE.min(columns - first);
                self.transpose(simd, image, [row_of_tiles % rows, first], tiles, panel, &mut pixels);
                for tile in 0..tiles {
                    transform_tile::<S, T, I>(simd, &pixels, tile, &mut out[index * columns + first + tile..], count);
                }
            }
        }
    }

    /// Transposes the pixels of some neighbouring tiles, `I` rows of them, to rows of a panel; outside the image they are 0.
    #[inline(always)]
    fn transpose<S: Simd, E: Element, const I: usize>(
        &self,
        simd: S,
        image: &[E],
        [row, column]: [usize; 2],
        tiles: usize,
        panel: usize,
        pixels: &mut [[Row; PIXELS]; I],
    ) {
        let first_channel = panel * WIDTH;
        let channels = WIDTH.min(self.channels - first_channel);
        let top = (row * TILE) as isize - self.before[0] as isize;
        let left = (column * TILE) as isize - self.before[1] as isize;
        let wanted = (tiles - 1) * TILE + I;
        // The part of the pixels that is inside the image.
        let start = (-left).clamp(0, wanted as isize) as usize;
        let end = (self.width as isize - left).clamp(start as isize, wanted as isize) as usize;
        for (i, pixels) in pixels.iter_mut().enumerate() {
            let pixels = &mut pixels[..wanted];
            let y = top + i as isize;
            if y < 0 || y >= self.height as isize || start == end {
                pixels.fill([0.0; WIDTH]);
                continue;
            }
            pixels[..start].fill([0.0; WIDTH]);
            pixels[end..].fill([0.0; WIDTH]);
            let offset = y as usize * self.width + (left + start as isize) as usize;
            let source = &image[first_channel * self.height * self.width + offset..];
            let blocks = if channels == WIDTH { (end - start) / SIDE } else { 0 };
            let mut block = Block::default();
            for i in 0..blocks {
                let pixels = &mut pixels[start + i * SIDE..][..SIDE];
                for first in (0..WIDTH).step_by(SIDE) {
                    for (channel, row) in block.iter_mut().enumerate() {
                        let source = &source[(first + channel) * self.height * self.width + i * SIDE..][..SIDE];
                        for (value, source) in row.iter_mut().zip(source) {
                            *value = source.to_f32();
                        }
                    }
                    let block = transpose(simd, &block);
                    for (pixel, row) in pixels.iter_mut().zip(&block) {
                        pixel[first..first + SIDE].copy_from_slice(row);
                    }
                }
            }
            let done = blocks * SIDE;
            for channel in 0..channels {
                let source = &source[channel * self.height * self.width..][..end - start];
                for (pixel, value) in pixels[start..end].iter_mut().zip(source).skip(done) {
                    pixel[channel] = value.to_f32();
                }
            }
        }
    }
}

/// Transforms the tiles of one block, of one panel of channels; see [`Tiling::transform`].
pub struct TransformTiles<'a, E, T, const I: usize> {
    pub tiling: Tiling,
    pub images: &'a [E],
    pub rows_of_tiles: Range<usize>,
    pub panel: usize,
    pub transform: PhantomData<T>,
    pub out: &'a mut [Row],
}

impl<E: Element, T: Transform<I, POINTS>, const I: usize> WithSimd for TransformTiles<'_, E, T, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.tiling.transform::<S, E, T, I>(simd, self.images, self.rows_of_tiles, self.panel, self.out);
    }
}

/// Transforms one tile to a row of `out` for each point, `stride` apart.
#[inline(always)]
fn transform_tile<S: Simd, T: Transform<I, POINTS>, const I: usize>(
    simd: S,
    pixels: &[[Row; PIXELS]; I],
    tile: usize,
    out: &mut [Row],
    stride: usize,
) {
    for vector in 0..WIDTH / S::F32_LANES {
        let mut of_tile = [[simd.splat_f32s(0.0); I]; I];
        for i in 0..I {
            for j in 0..I {
                of_tile[i][j] = S::as_simd_f32s(&pixels[i][tile * TILE + j]).0[vector];
            }
        }
        let points = T::in_both(simd, of_tile);
        for i in 0..POINTS {
            for j in 0..POINTS {
                S::as_mut_simd_f32s(&mut out[(i * POINTS + j) * stride]).0[vector] = points[i][j];
            }
        }
    }
}
