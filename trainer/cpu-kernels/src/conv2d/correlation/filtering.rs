//! Winograd's minimal filtering F(2, 3) along rows: two neighbouring results of three weights from four products in place of six
//! (Winograd 1980; Lavin and Gray 2015, arXiv 1509.09308, equation 5).
//!
//! Four pixels and three weights become four points each, and the products of these become two results. Points lie in planes of
//! their own, so that a convolution is one with a kernel of one column for each of them. All factors are 1 and 1/2, so the results are
//! as exact as those of the six products.

use std::ops::Range;

use num_traits::Zero;

use crate::Element;
use crate::conv2d::band::Reading;
use crate::real::Real;

/// Results of a tile.
pub const TILE: usize = 2;
/// Points of a tile.
pub const POINTS: usize = 4;
/// The point whose product belongs to both results as it is.
pub const SHARED_POINT: usize = 1;

/// Pixels that some neighbouring tiles see.
pub fn pixels(tiles: usize) -> usize {
    TILE * (tiles + 1)
}

/// The points of the tiles of a row of pixels, each in its plane.
#[inline(always)]
fn points_of_pixels<R: Real>(row: &[R], planes: [&mut [R]; POINTS]) {
    let [first, second, third, fourth] = planes;
    let pairs = row.as_chunks::<TILE>().0;
    let outputs = first.iter_mut().zip(second).zip(third.iter_mut().zip(fourth));
    for ((near, far), ((first, second), (third, fourth))) in pairs.iter().zip(&pairs[1..]).zip(outputs) {
        *first = near[0] - far[0];
        *second = near[1] + far[0];
        *third = far[0] - near[1];
        *fourth = near[1] - far[1];
    }
}

/// Lays out the points of a band of one channel, those of each row of tiles where [`Reading::offset`] finds them. `line` is for one
/// row of [`pixels`].
#[inline(always)]
pub fn lay_out<E: Element>(
    reading: &Reading,
    channel: &[E],
    rows: &Range<usize>,
    line: &mut [E::Wide],
    out: &mut [E::Wide],
) {
    let Reading { image: [height, width], before, reach, width: tiles, .. } = *reading;
    let count = rows.len() + reach[0];
    let start = before[1].min(line.len());
    let end = (start + width).min(line.len());
    for row in 0..count {
        line.fill(E::Wide::zero());
        let y = (rows.start + row).wrapping_sub(before[0]);
        if y < height {
            for (value, pixel) in line[start..end].iter_mut().zip(&channel[y * width..]) {
                *value = pixel.widen();
            }
        }
        let mut planes = out.chunks_mut(count * tiles);
        let planes = std::array::from_fn(|_| match planes.next() {
            Some(plane) => &mut plane[row * tiles..(row + 1) * tiles],
            None => &mut [],
        });
        points_of_pixels(line, planes);
    }
}

/// The points of three weights.
#[inline(always)]
pub fn points_of_weights<R: Real>(weights: [R; 3]) -> [R; POINTS] {
    let half = (R::one() + R::one()).recip();
    let outer = weights[0] + weights[2];
    [weights[0], (outer + weights[1]) * half, (outer - weights[1]) * half, weights[2]]
}

/// The results of a row of tiles from the products at their points; a last tile may have one alone.
#[inline(always)]
pub fn results<E: Element>(products: [&[E::Wide]; POINTS], out: &mut [E]) {
    let [first, second, third, fourth] = products;
    let (pairs, last) = out.as_chunks_mut::<TILE>();
    let tiles = pairs.len();
    let inputs = first.iter().zip(second).zip(third.iter().zip(fourth));
    for (out, ((first, second), (third, fourth))) in pairs.iter_mut().zip(inputs) {
        *out = [E::narrow(*first + *second + *third), E::narrow(*second - *third - *fourth)];
    }
    for out in last {
        *out = E::narrow(first[tiles] + second[tiles] + third[tiles]);
    }
}
