//! Winograd's minimal filtering F(2x2, 3x3): four neighbouring results of nine weights from 16 products in place of 36
//! (Winograd 1980; Lavin and Gray 2015, arXiv 1509.09308, section 4.1).
//!
//! A tile of 4x4 pixels and a kernel become 16 points each, and the products of these become 2x2 results. Points lie in planes of
//! their own, so that a convolution is one with a kernel of one pixel for each of them. All factors are 1 and 1/2, so results are
//! nearly as exact as those of the 36 products.

use std::ops::Range;

use num_traits::Zero;

use crate::Element;
use crate::conv2d::band::Reading;
use crate::real::Real;

/// Results along a side of a tile.
pub const TILE: usize = 2;
/// Points along a side of a tile.
pub const SIDE: usize = 4;
/// Points of a tile.
pub const POINTS: usize = SIDE * SIDE;
/// The point whose product belongs to all results as it is.
pub const SHARED_POINT: usize = SIDE + 1;

/// Values that [`lay_out`] and [`results`] keep of a row of tiles: its points along rows, and a row of pixels.
pub fn scratch(tiles: usize) -> usize {
    SIDE * SIDE * tiles + TILE * (tiles + 1)
}

/// Four values along one side to their points.
#[inline(always)]
fn points<R: Real>(values: [R; SIDE]) -> [R; SIDE] {
    [values[0] - values[2], values[1] + values[2], values[2] - values[1], values[1] - values[3]]
}

/// The points of the tiles of a row of pixels, along the row.
#[inline(always)]
fn points_of_row<R: Real>(row: &[R], out: &mut [R]) {
    let tiles = out.len() / SIDE;
    let (first, out) = out.split_at_mut(tiles);
    let (second, out) = out.split_at_mut(tiles);
    let (third, fourth) = out.split_at_mut(tiles);
    let pairs = row.as_chunks::<TILE>().0;
    let outputs = first.iter_mut().zip(second).zip(third.iter_mut().zip(fourth));
    for ((near, far), ((first, second), (third, fourth))) in pairs.iter().zip(&pairs[1..]).zip(outputs) {
        [*first, *second, *third, *fourth] = points([near[0], near[1], far[0], far[1]]);
    }
}

/// Lays out the points of a band of one channel, those of each row of tiles where [`Reading::offset`] finds them.
#[inline(always)]
pub fn lay_out<E: Element>(
    reading: &Reading,
    channel: &[E],
    rows: &Range<usize>,
    scratch: &mut [E::Wide],
    out: &mut [E::Wide],
) {
    let Reading { image: [height, width], before, width: tiles, .. } = *reading;
    let of_row = SIDE * tiles;
    let (along, line) = scratch.split_at_mut(SIDE * of_row);
    let start = before[1].min(line.len());
    let end = (start + width).min(line.len());
    line.fill(E::Wide::zero());
    for index in 0..rows.len() {
        // A row of tiles begins with the last two rows of pixels of the one before.
        let known = if index == 0 { 0 } else { SIDE - TILE };
        along.copy_within(along.len() - known * of_row.., 0);
        for (down, along) in along.chunks_mut(of_row).enumerate().skip(known) {
            let y = ((rows.start + index) * TILE + down).wrapping_sub(before[0]);
            if y < height {
                for (value, pixel) in line[start..end].iter_mut().zip(&channel[y * width..]) {
                    *value = pixel.widen();
                }
                points_of_row(line, along);
            } else {
                along.fill(E::Wide::zero());
            }
        }
        let mut lines = along.chunks(of_row);
        let [first, second, third, fourth] = std::array::from_fn(|_| lines.next().unwrap_or_default());
        for right in 0..SIDE {
            let mut planes = out.chunks_mut(rows.len() * tiles).skip(right).step_by(SIDE);
            let planes: [&mut [E::Wide]; SIDE] = std::array::from_fn(|_| match planes.next() {
                Some(plane) => &mut plane[index * tiles..(index + 1) * tiles],
                None => &mut [],
            });
            let [a, b, c, d] = planes;
            let of_column = right * tiles..(right + 1) * tiles;
            let inputs = first[of_column.clone()].iter().zip(&second[of_column.clone()]);
            let inputs = inputs.zip(third[of_column.clone()].iter().zip(&fourth[of_column]));
            for (((a, b), (c, d)), ((first, second), (third, fourth))) in
                a.iter_mut().zip(b).zip(c.iter_mut().zip(d)).zip(inputs)
            {
                [*a, *b, *c, *d] = points([*first, *second, *third, *fourth]);
            }
        }
    }
}

/// Kernels whose points are computed at a time.
pub const KERNELS: usize = 16;

/// The points of some kernels, of which each has its nine weights in a lane.
#[inline(always)]
pub fn points_of_weights<R: Real>(weights: &[[R; KERNELS]; 9], out: &mut [[R; KERNELS]; POINTS]) {
    let half = (R::one() + R::one()).recip();
    let mut along = [[R::zero(); KERNELS]; 3 * SIDE];
    for row in 0..3 {
        for lane in 0..KERNELS {
            let [first, second, third] = [0, 1, 2].map(|column| weights[row * 3 + column][lane]);
            along[row * SIDE][lane] = first;
            along[row * SIDE + 1][lane] = (first + third + second) * half;
            along[row * SIDE + 2][lane] = (first + third - second) * half;
            along[row * SIDE + 3][lane] = third;
        }
    }
    for right in 0..SIDE {
        for lane in 0..KERNELS {
            let [first, second, third] = [0, 1, 2].map(|row| along[row * SIDE + right][lane]);
            out[right][lane] = first;
            out[SIDE + right][lane] = (first + third + second) * half;
            out[2 * SIDE + right][lane] = (first + third - second) * half;
            out[3 * SIDE + right][lane] = third;
        }
    }
}

/// The results of a row of tiles from the products at their points: its rows, the last of which may be missing.
#[inline(always)]
pub fn results<E: Element>(products: [&[E::Wide]; POINTS], scratch: &mut [E::Wide], out: &mut [E], width: usize) {
    let tiles = products[0].len();
    let along = &mut scratch[..SIDE * tiles];
    for (row, out) in out.chunks_mut(width).enumerate() {
        for (right, along) in along.chunks_mut(tiles).enumerate() {
            let of = |down: usize| products[down * SIDE + right].iter();
            for (along, ((first, second), third)) in along.iter_mut().zip(of(row).zip(of(row + 1)).zip(of(row + 2))) {
                *along = if row == 0 { *first + *second + *third } else { *first - *second - *third };
            }
        }
        let (first, rest) = along.split_at(tiles);
        let (second, rest) = rest.split_at(tiles);
        let (third, fourth) = rest.split_at(tiles);
        let (pairs, last) = out.as_chunks_mut::<TILE>();
        let whole = pairs.len();
        let inputs = first.iter().zip(second).zip(third.iter().zip(fourth));
        for (out, ((first, second), (third, fourth))) in pairs.iter_mut().zip(inputs) {
            *out = [E::narrow(*first + *second + *third), E::narrow(*second - *third - *fourth)];
        }
        for out in last {
            *out = E::narrow(first[whole] + second[whole] + third[whole]);
        }
    }
}
