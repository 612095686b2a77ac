//! The gradient at the input: the convolution of that at the output with the kernels turned by 180 degrees and their channels
//! exchanged.

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::panel::{Row, WIDTH, multiply};
use super::tiles::{ALL_POINTS, AT_ONCE, Tiling, TransformTiles};
use super::transform::{KERNEL, OfInput, OfOutput, OfWeights, POINTS, TILE, Transform};
use super::transpose::{Block, SIDE, transpose};
use crate::Element;
use crate::conv2d::Geometry;
use crate::scratch::with_scratch;

/// Tiles in a block. Its products with a panel of the kernels stay in a core's second cache.
const BLOCK_TILES: usize = 64;
/// Bytes of transformed tiles at a time. Kernels are transformed anew for each such chunk, so it should have many tiles.
const CHUNK_BYTES: usize = 6 << 20;

/// Reads weights, `[from, to, 3, 3]`, where `from` are the channels of the gradient at the output.
#[derive(Clone, Copy)]
struct Kernels<'a, E> {
    weights: &'a [E],
    from: usize,
    to: usize,
}

impl<E: Element> Kernels<'_, E> {
    /// The nine weights from channel `from` to each channel of a panel.
    #[inline(always)]
    fn gather(&self, from: usize, panel: usize, taps: &mut [Row; KERNEL * KERNEL]) {
        const TAPS: usize = KERNEL * KERNEL;
        let lanes = WIDTH.min(self.to - panel * WIDTH);
        for lane in 0..lanes {
            let first = (from * self.to + panel * WIDTH + lane) * TAPS;
            let weights: &[E; TAPS] =
                self.weights[first..].first_chunk().unwrap_or_else(|| unreachable!("nine weights"));
            for tap in 0..TAPS {
                taps[TAPS - 1 - tap][lane] = weights[tap].to_f32();
            }
        }
    }

    /// Transforms the kernels to one panel: `[points, from]` rows.
    #[inline(always)]
    fn transform<S: Simd>(&self, simd: S, panel: usize, out: &mut [Row]) {
        let mut taps = [[0.0; WIDTH]; KERNEL * KERNEL];
        for from in 0..self.from {
            self.gather(from, panel, &mut taps);
            for vector in 0..WIDTH / S::F32_LANES {
                let mut kernel = [[simd.splat_f32s(0.0); KERNEL]; KERNEL];
                for i in 0..KERNEL {
                    for j in 0..KERNEL {
                        kernel[i][j] = S::as_simd_f32s(&taps[i * KERNEL + j]).0[vector];
                    }
                }
                let points = OfWeights::in_both(simd, kernel);
                for i in 0..POINTS {
                    for j in 0..POINTS {
                        S::as_mut_simd_f32s(&mut out[(i * POINTS + j) * self.from + from]).0[vector] = points[i][j];
                    }
                }
            }
        }
    }
}

/// Computes one panel of input channels for some blocks.
struct ComputePanel<'a, 'b, E> {
    kernels: Kernels<'a, E>,
    panel: usize,
    /// Tiles in a row of tiles, pixels in a row of the result.
    columns: usize,
    width: usize,
    /// Transformed tiles of each block, `[panels, points, tiles]`, and the rows of tiles in it.
    blocks: Vec<(&'a [Row], usize)>,
    /// For each row of tiles and each channel: the rows of the result that its tiles cover.
    out: &'a mut [Vec<&'b mut [E]>],
    /// Rows from a panel of a block to the next.
    of_panel: usize,
    /// For the transformed kernels and the products of a block.
    scratch: &'a mut [Row],
}

impl<E: Element> WithSimd for ComputePanel<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let from = self.kernels.from;
        let (kernels, products) = self.scratch.split_at_mut(ALL_POINTS * from);
        self.kernels.transform(simd, self.panel, kernels);
        let mut out = self.out.iter_mut();
        for (tiles, rows) in &self.blocks {
            let count = rows * self.columns;
            let products = &mut products[..ALL_POINTS * count];
            let of_point = kernels.chunks(from).zip(products.chunks_mut(count)).enumerate();
            for (point, (kernels, products)) in of_point {
                multiply(simd, (&tiles[point * count..], self.of_panel), kernels, products);
            }
            for i in 0..*rows {
                let Some(out) = out.next() else { break };
                Self::write(simd, [self.columns, self.width], products, i * self.columns, out);
            }
        }
    }
}

impl<E: Element> ComputePanel<'_, '_, E> {
    /// Transforms products, `[points, tiles]` from `first` on, to the pixels of one row of tiles.
    #[inline(always)]
    fn write<S: Simd>(simd: S, shape: [usize; 2], products: &[Row], first: usize, out: &mut [&mut [E]]) {
        let [columns, width] = shape;
        let count = products.len() / ALL_POINTS;
        let mut pixels = [[[0.0; WIDTH]; AT_ONCE * TILE]; TILE];
        for start in (0..columns).step_by(AT_ONCE) {
            let tiles = AT_ONCE.min(columns - start);
            for tile in 0..tiles {
                for vector in 0..WIDTH / S::F32_LANES {
                    let mut points = [[simd.splat_f32s(0.0); POINTS]; POINTS];
                    for i in 0..POINTS {
                        for j in 0..POINTS {
                            let row = &products[(i * POINTS + j) * count + first + start + tile];
                            points[i][j] = S::as_simd_f32s(row).0[vector];
                        }
                    }
                    let of_tile = OfOutput::in_both(simd, points);
                    for i in 0..TILE {
                        for j in 0..TILE {
                            let pixel = &mut pixels[i][tile * TILE + j];
                            S::as_mut_simd_f32s(pixel).0[vector] = of_tile[i][j];
                        }
                    }
                }
            }
            let columns = start * TILE..((start + tiles) * TILE).min(width);
            let blocks = if out.len() == WIDTH { columns.len() / SIDE } else { 0 };
            let mut block = Block::default();
            for i in 0..TILE {
                for first_pixel in (0..blocks * SIDE).step_by(SIDE) {
                    for first in (0..WIDTH).step_by(SIDE) {
                        for (row, pixel) in block.iter_mut().zip(&pixels[i][first_pixel..]) {
                            row.copy_from_slice(&pixel[first..first + SIDE]);
                        }
                        let block = transpose(simd, &block);
                        for (out, row) in out[first..].iter_mut().zip(&block) {
                            let Some(out) = out.get_mut(i * width + columns.start + first_pixel..) else { continue };
                            for (out, value) in out.iter_mut().zip(row) {
                                *out = E::from_f32(*value);
                            }
                        }
                    }
                }
            }
            for (lane, out) in out.iter_mut().enumerate() {
                for (out, pixels) in out.chunks_mut(width).zip(&pixels) {
                    for (out, pixel) in out[columns.clone()].iter_mut().zip(pixels).skip(blocks * SIDE) {
                        *out = E::from_f32(pixel[lane]);
                    }
                }
            }
        }
    }
}

/// The gradient at the input, `[N, C, H, W]`.
pub fn input_gradient<E: Element>(arch: Arch, geometry: &Geometry, weights: &[E], gradient: &[E]) -> Vec<E> {
    let (from, to) = (geometry.outputs, geometry.inputs);
    let image = geometry.output().unwrap_or([0; 2]);
    let before = geometry.padding.map(|[before, _]| KERNEL - 1 - before);
    let [height, width] = geometry.image;
    let tiling = Tiling {
        channels: from,
        height: image[0],
        width: image[1],
        before,
        tiles: [height.div_ceil(TILE), width.div_ceil(TILE)],
    };
    let samples = gradient.len() / tiling.image();
    let mut out = vec![E::zeroed(); samples * to * height * width];
    let [rows_of_tiles, columns] = tiling.tiles;
    let in_block = (BLOCK_TILES / columns).max(1);
    let block = ALL_POINTS * in_block * columns * tiling.panels();
    let in_chunk = (CHUNK_BYTES / (block * size_of::<Row>())).max(1) * in_block;
    let of_panel = ALL_POINTS * in_block * columns;
    let panels = to.div_ceil(WIDTH);
    // For each row of tiles and each panel, the rows of the result in each channel.
    let mut parts: Vec<Vec<Vec<&mut [E]>>> = (0..panels).map(|_| Vec::new()).collect();
    for sample in out.chunks_mut(to * height * width) {
        let mut channels: Vec<_> = sample.chunks_mut(height * width).map(|out| out.chunks_mut(TILE * width)).collect();
        for _ in 0..rows_of_tiles {
            for (panel, channels) in channels.chunks_mut(WIDTH).enumerate() {
                parts[panel].push(channels.iter_mut().filter_map(Iterator::next).collect());
            }
        }
    }
    let kernels = Kernels { weights, from, to };
    let all = samples * rows_of_tiles;
    let threads = rayon::current_num_threads();
    with_scratch(block * in_chunk.min(all).div_ceil(in_block), |transformed: &mut [Row]| {
        for first in (0..all).step_by(in_chunk) {
            let in_chunk = in_chunk.min(all - first);
            let rows_of = |index: usize| first + index * in_block..first + ((index + 1) * in_block).min(in_chunk);
            let blocks = in_chunk.div_ceil(in_block);
            transformed[..blocks * block].par_chunks_mut(of_panel).enumerate().for_each(|(index, out)| {
                let (index, panel) = (index / tiling.panels(), index % tiling.panels());
                let (rows_of_tiles, transform) = (rows_of(index), PhantomData::<OfInput>);
                arch.dispatch(TransformTiles { tiling, images: gradient, rows_of_tiles, panel, transform, out });
            });
            // Each task transforms the kernels of its panel, so it takes as many blocks as it can.
            let tasks_of_panel = (2 * threads).div_ceil(panels).min(blocks);
            let in_task = blocks.div_ceil(tasks_of_panel);
            let transformed = &*transformed;
            let tasks = parts.par_iter_mut().enumerate().flat_map(|(panel, rows)| {
                let rows = &mut rows[first..first + in_chunk];
                rows.par_chunks_mut(in_task * in_block).enumerate().map(move |(task, out)| (panel, task, out))
            });
            tasks.for_each(|(panel, task, out)| {
                let blocks = (task * in_task..blocks.min((task + 1) * in_task))
                    .map(|index| {
                        let rows = rows_of(index).len();
                        (&transformed[index * block..][..block], rows)
                    })
                    .collect();
                with_scratch(ALL_POINTS * (from + in_block * columns), |scratch| {
                    arch.dispatch(ComputePanel { kernels, panel, columns, width, blocks, out, of_panel, scratch });
                });
            });
        }
    });
    out
}
