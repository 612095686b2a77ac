//! The gradient at the weights: at each point a product over tiles, of the transformed gradient and the transformed input.

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::panel::{Row, WIDTH, multiply_transposed};
use super::tiles::{ALL_POINTS, Tiling, TransformTiles};
use super::transform::{KERNEL, OfGradient, OfInput, OfWeightGradient, POINTS, TILE, Transform};
use crate::Element;
use crate::conv2d::Geometry;
use crate::scratch::with_scratch;

/// Tiles in a block, which is transformed by one task for each panel.
const BLOCK_TILES: usize = 32;
/// Tiles whose products are added up before they are transformed to weights.
const CHUNK_TILES: usize = 128;

const TAPS: usize = KERNEL * KERNEL;

/// Adds the gradient of a chunk for one panel of inputs and one of outputs.
struct AddPanel<'a> {
    /// Transformed gradient, transformed input, and the number of tiles of each block.
    blocks: Vec<[&'a [Row]; 2]>,
    /// `[taps, outputs, inputs]`.
    sums: &'a mut [[Row; WIDTH]],
    scratch: &'a mut [Row],
}

impl WithSimd for AddPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (products, _) = self.scratch.as_chunks_mut::<WIDTH>();
        for (point, products) in products.iter_mut().enumerate() {
            multiply_transposed(simd, &self.blocks, point, ALL_POINTS, products);
        }
        for output in 0..WIDTH {
            for vector in 0..WIDTH / S::F32_LANES {
                let mut points = [[simd.splat_f32s(0.0); POINTS]; POINTS];
                for i in 0..POINTS {
                    for j in 0..POINTS {
                        points[i][j] = S::as_simd_f32s(&products[i * POINTS + j][output]).0[vector];
                    }
                }
                let taps = OfWeightGradient::in_both(simd, points);
                for i in 0..KERNEL {
                    for j in 0..KERNEL {
                        let sum = &mut S::as_mut_simd_f32s(&mut self.sums[i * KERNEL + j][output]).0[vector];
                        *sum = simd.add_f32s(*sum, taps[i][j]);
                    }
                }
            }
        }
    }
}

/// The gradient at the weights, `[O, C, 3, 3]`, summed over the samples one after the other.
pub fn weight_gradient<E: Element>(arch: Arch, geometry: &Geometry, images: &[E], gradient: &[E]) -> Vec<E> {
    let [[top, _], [left, _]] = geometry.padding;
    let [height, width] = geometry.output().unwrap_or([0; 2]);
    let tiles = [height.div_ceil(TILE), width.div_ceil(TILE)];
    let [rows_of_tiles, columns] = tiles;
    let input = Tiling {
        channels: geometry.inputs,
        height: geometry.image[0],
        width: geometry.image[1],
        before: [top, left],
        tiles,
    };
    let output = Tiling { channels: geometry.outputs, height, width, before: [0, 0], tiles };
    let in_block = (BLOCK_TILES / columns).max(1);
    let in_chunk = (CHUNK_TILES / (in_block * columns)).max(1) * in_block;
    let panels = [output.panels(), input.panels()];
    let of_panel = ALL_POINTS * in_block * columns;
    let block = of_panel * (panels[0] + panels[1]);
    let mut sums = vec![[[0.0; WIDTH]; WIDTH]; panels[0] * panels[1] * TAPS];
    with_scratch(block * in_chunk.min(rows_of_tiles).div_ceil(in_block), |transformed| {
        for sample in 0..images.len() / input.image() {
            for first in (0..rows_of_tiles).step_by(in_chunk) {
                let blocks = in_chunk.min(rows_of_tiles - first).div_ceil(in_block);
                let rows_of = |index: usize| {
                    let first = first + index * in_block;
                    first..(first + in_block).min(rows_of_tiles)
                };
                transformed[..blocks * block].par_chunks_mut(of_panel).enumerate().for_each(|(task, out)| {
                    let (index, panel) = (task / (panels[0] + panels[1]), task % (panels[0] + panels[1]));
                    let rows = rows_of(index);
                    let rows_of_tiles = sample * rows_of_tiles + rows.start..sample * rows_of_tiles + rows.end;
                    if panel < panels[0] {
                        let (tiling, images, transform) = (output, gradient, PhantomData::<OfGradient>);
                        arch.dispatch(TransformTiles { tiling, images, rows_of_tiles, panel, transform, out });
                    } else {
                        let (tiling, panel, transform) = (input, panel - panels[0], PhantomData::<OfInput>);
                        arch.dispatch(TransformTiles { tiling, images, rows_of_tiles, panel, transform, out });
                    }
                });
                let transformed = &*transformed;
                sums.par_chunks_mut(TAPS).enumerate().for_each(|(task, sums)| {
                    let panels_of_task = [task % panels[0], panels[0] + task / panels[0]];
                    let blocks = (0..blocks)
                        .map(|index| {
                            let rows = ALL_POINTS * rows_of(index).len() * columns;
                            panels_of_task.map(|panel| &transformed[index * block + panel * of_panel..][..rows])
                        })
                        .collect();
                    with_scratch(ALL_POINTS * WIDTH, |scratch| arch.dispatch(AddPanel { blocks, sums, scratch }));
                });
            }
        }
    });
    let mut out = vec![E::zeroed(); geometry.outputs * geometry.inputs * TAPS];
    out.par_chunks_mut(geometry.inputs * TAPS).enumerate().for_each(|(output, out)| {
        for (input, out) in out.chunks_mut(TAPS).enumerate() {
            let task = input / WIDTH * panels[0] + output / WIDTH;
            for (tap, out) in out.iter_mut().enumerate() {
                *out = E::from_f32(sums[task * TAPS + tap][output % WIDTH][input % WIDTH]);
            }
        }
    });
    out
}
