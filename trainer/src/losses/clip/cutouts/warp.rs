//! Rotation, shift and perspective of a view (kornia's `RandomAffine` and `RandomPerspective`) as one homography, with
//! a single bilinear sampling.
//!
//! Outside its edge a view repeats its border pixels, after the perspective too, where kornia fills in black.

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};

use super::uniform;
use crate::models::statistics_dtype;

/// Largest rotation, in degrees.
const DEGREES: f64 = 15.0;

/// Largest shift along an axis, as a share of the side.
const SHIFT: f64 = 0.1;

/// Largest move of a corner inwards along an axis, as a share of half the side.
const DISTORTION: f64 = 0.7;

/// Smallest distance to the horizon, 1 in the middle of the view. Points on or behind the horizon use the border.
const NEAREST: f64 = 1e-6;

type Matrix = [[f64; 3]; 3];

/// Maps a point of the output view to the point of the input seen there. Both are homogeneous: the square is -1..1 from
/// edge to edge, x to the right and y down, and the third coordinate is 1 in the middle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Homography(Matrix);

impl Homography {
    /// Draws a rotation and a shift with probability `affine`, then a perspective with probability `perspective`.
    pub fn draw(rng: &mut impl Rng, affine: f64, perspective: f64) -> Option<Self> {
        let chances: [f64; 2] = [rng.random(), rng.random()];
        let angle = uniform(rng, -DEGREES, DEGREES);
        let shift = [(); 2].map(|()| uniform(rng, -2.0 * SHIFT, 2.0 * SHIFT));
        let inwards = [(); 8].map(|()| uniform(rng, 0.0, DISTORTION));
        let affine = (chances[0] < affine).then(|| undo_affine(angle, shift));
        let perspective = (chances[1] < perspective).then(|| undo_perspective(inwards));
        match (affine, perspective) {
            (None, None) => None,
            (Some(only), None) | (None, Some(only)) => Some(Self::new(only)),
            (Some(affine), Some(perspective)) => Some(Self::new(product(&affine, &perspective))),
        }
    }

    fn new(matrix: Matrix) -> Self {
        Self(matrix.map(|row| row.map(|value| value / matrix[2][2])))
    }

    /// The same in pixel indices, for a view of `side` pixels.
    fn in_pixels(&self, side: usize) -> Matrix {
        let (scale, offset) = (2.0 / side as f64, 1.0 / side as f64 - 1.0);
        let to_square = [[scale, 0.0, offset], [0.0, scale, offset], [0.0, 0.0, 1.0]];
        let from_square = [[1.0 / scale, 0.0, -offset / scale], [0.0, 1.0 / scale, -offset / scale], [0.0, 0.0, 1.0]];
        product(&from_square, &product(&self.0, &to_square))
    }
}

/// Returns the inverse of a rotation by `angle` degrees about the middle, followed by a shift.
fn undo_affine(angle: f64, [x, y]: [f64; 2]) -> Matrix {
    let (sin, cos) = angle.to_radians().sin_cos();
    [[cos, sin, -(cos * x + sin * y)], [-sin, cos, sin * x - cos * y], [0.0, 0.0, 1.0]]
}

/// Returns the inverse of the perspective that moves the corners inwards, x and y each, clockwise from the top left.
fn undo_perspective(inwards: [f64; 8]) -> Matrix {
    let signs = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]];
    let mut corners = signs;
    for (index, amount) in inwards.into_iter().enumerate() {
        corners[index / 2][index % 2] *= 1.0 - amount;
    }
    let to_unit_square = [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]];
    adjugate(&product(&unit_square_to(corners), &to_unit_square))
}

/// Returns the homography from (0, 0), (1, 0), (1, 1), (0, 1) to a convex quadrilateral's corners (Heckbert 1989).
fn unit_square_to([[x0, y0], [x1, y1], [x2, y2], [x3, y3]]: [[f64; 2]; 4]) -> Matrix {
    let (dx1, dx2, sx) = (x1 - x2, x3 - x2, x0 - x1 + x2 - x3);
    let (dy1, dy2, sy) = (y1 - y2, y3 - y2, y0 - y1 + y2 - y3);
    let area = dx1 * dy2 - dx2 * dy1;
    let g = (sx * dy2 - dx2 * sy) / area;
    let h = (dx1 * sy - sx * dy1) / area;
    [[x1 - x0 + g * x1, x3 - x0 + h * x3, x0], [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, 1.0]]
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

/// Returns the inverse up to a factor, which does not matter for a homography.
fn adjugate(m: &Matrix) -> Matrix {
    let minor = |r: usize, c: usize| {
        let ([r1, r2], [c1, c2]) = ([(r + 1) % 3, (r + 2) % 3], [(c + 1) % 3, (c + 2) % 3]);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    std::array::from_fn(|i| std::array::from_fn(|j| minor(j, i)))
}

/// Warps each of `views` `[V, C, S, S]` by its homography. A view without one stays the same to the last bit, whatever
/// the others have.
///
/// Burn's own `grid_sample_2d` would take the coordinates in the views' type, which is off by an eighth of a pixel in
/// half precision, and would compute them differently with autodiff than without.
pub(super) fn apply(views: Tensor<4>, homographies: &[Option<&Homography>]) -> Tensor<4> {
    if homographies.iter().all(Option::is_none) {
        return views;
    }
    let [v, c, side, _] = views.dims();
    let (device, dtype) = (views.device(), views.dtype());
    let wide = statistics_dtype(dtype);
    let pixels = side * side;

    // In pixel indices the identity is exact: a pixel's coordinates are integers.
    let identity = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let matrices = homographies.iter().map(|h| h.map_or(identity, |h| h.in_pixels(side)));
    let coefficients: Vec<f64> = matrices.flatten().flatten().collect();
    let coefficients = Tensor::<2>::from_data(TensorData::new(coefficients, [v, 9]), (&device, wide));
    let axis = |of: fn(usize, usize) -> usize| {
        let values: Vec<f64> = (0..pixels).map(|pixel| of(pixel, side) as f64).collect();
        Tensor::<2>::from_data(TensorData::new(values, [1, pixels]), (&device, wide))
    };
    let (column, row) = (axis(|pixel, side| pixel % side), axis(|pixel, side| pixel / side));
    let coordinate = |index: usize| {
        let coefficient = |at: usize| coefficients.clone().slice([0..v, at..at + 1]);
        let at = 3 * index;
        coefficient(at) * column.clone() + coefficient(at + 1) * row.clone() + coefficient(at + 2)
    };
    let depth = coordinate(2).clamp_min(NEAREST);
    let last = (side - 1) as f64;
    let x = (coordinate(0) / depth.clone()).clamp(0.0, last);
    let y = (coordinate(1) / depth).clamp(0.0, last);

    let (left, top) = (x.clone().floor(), y.clone().floor());
    let (right, bottom) = ((left.clone() + 1.0).clamp_max(last), (top.clone() + 1.0).clamp_max(last));
    let flat = views.cast(wide).reshape([v * c, pixels]);
    let at = |y: &Tensor<2>, x: &Tensor<2>| {
        let index = (y.clone() * side as f64 + x.clone()).int().reshape([v, 1, pixels]).expand([v, c, pixels]);
        flat.clone().gather(1, index.reshape([v * c, pixels])).reshape([v, c, pixels])
    };
    let mix = |a: Tensor<3>, b: Tensor<3>, share: &Tensor<3>| a.clone() + (b - a) * share.clone();
    let across = (x - left.clone()).reshape([v, 1, pixels]);
    let down = (y - top.clone()).reshape([v, 1, pixels]);
    let above = mix(at(&top, &left), at(&top, &right), &across);
    let below = mix(at(&bottom, &left), at(&bottom, &right), &across);
    mix(above, below, &down).reshape([v, c, side, side]).cast(dtype)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};
    use datasets::{Purpose, SampleKey};

    use super::*;
    use crate::losses::clip::fixture::Expected;

    fn tensor(values: Vec<f64>, shape: [usize; 4]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F64))
    }

    fn read(tensor: Tensor<4>) -> Vec<f64> {
        tensor.into_data().try_into_vec().unwrap()
    }

    fn through(matrix: &Matrix, [x, y]: [f64; 2]) -> [f64; 2] {
        let [x, y, z] = matrix.map(|row| row[0] * x + row[1] * y + row[2]);
        [x / z, y / z]
    }

    /// Evaluates `f` at the middle of each pixel, in -1..1.
    fn image(side: usize, f: impl Fn([f64; 2]) -> f64) -> Vec<f64> {
        let at = |index: usize| (2 * index + 1) as f64 / side as f64 - 1.0;
        (0..side * side).map(|pixel| f([at(pixel % side), at(pixel / side)])).collect()
    }

    // A plane is sampled exactly, so the warped view is the plane at the point that is seen.
    #[test]
    fn a_plane_is_seen_where_the_homography_points() {
        let side = 16;
        let plane = |[x, y]: [f64; 2]| 0.3 * x - 0.7 * y + 0.1;
        let cases = [
            undo_affine(9.0, [0.125, -0.05]),
            undo_perspective([0.1, 0.2, 0.05, 0.3, 0.0, 0.15, 0.25, 0.1]),
            product(&undo_affine(-12.0, [0.1, 0.1]), &undo_perspective([0.3; 8])),
        ];
        for matrix in cases {
            let homography = Homography::new(matrix);
            let view = tensor(image(side, plane), [1, 1, side, side]);
            let found = read(apply(view, &[Some(&homography)]));
            let edge = 1.0 - 1.0 / side as f64;
            let inside = |at: [f64; 2]| at.iter().all(|c| c.abs() < edge);
            let expected = image(side, |at| {
                let seen = through(&matrix, at);
                if inside(seen) { plane(seen) } else { f64::NAN }
            });
            let compared: Vec<_> = found.iter().zip(&expected).filter(|(_, e)| !e.is_nan()).collect();
            assert!(compared.len() > 80, "{}", compared.len());
            assert!(compared.iter().all(|(f, e)| (*f - *e).abs() < 1e-12), "{compared:?}");
        }
    }

    #[test]
    fn a_shift_moves_the_image_and_repeats_its_border() {
        let values: Vec<f64> = (0..16).map(f64::from).collect();
        let right_by_one = Homography::new(undo_affine(0.0, [0.5, 0.0]));
        let found = read(apply(tensor(values, [1, 1, 4, 4]), &[Some(&right_by_one)]));
        let expected = [0., 0., 1., 2., 4., 4., 5., 6., 8., 8., 9., 10., 12., 12., 13., 14.];
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn a_quarter_turn_moves_each_corner_to_the_next() {
        let turned = Homography::new(undo_affine(90.0, [0.0, 0.0]));
        let found = read(apply(tensor(vec![1., 2., 3., 4.], [1, 1, 2, 2]), &[Some(&turned)]));
        let expected = [3., 1., 4., 2.];
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn a_perspective_brings_the_corners_back() {
        let inwards = [0.1, 0.7, 0.05, 0.3, 0.0, 0.15, 0.65, 0.2];
        let matrix = undo_perspective(inwards);
        let corners = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]];
        for (index, corner) in corners.into_iter().enumerate() {
            let moved = [0, 1].map(|axis: usize| corner[axis] * (1.0 - inwards[2 * index + axis]));
            let back = through(&matrix, moved);
            assert!((0..2).all(|axis| (back[axis] - corner[axis]).abs() < 1e-12), "{back:?}");
        }
    }

    #[test]
    fn sampling_is_that_of_pytorchs_grid_sample() {
        let expected = Expected::open();
        let matrix: Vec<f64> = expected.read("warp.matrix");
        let matrix = std::array::from_fn(|i| std::array::from_fn(|j| matrix[3 * i + j]));
        let view = tensor(expected.read("warp.input"), [1, 3, 9, 9]);
        let found = read(apply(view, &[Some(&Homography::new(matrix))]));
        let off = found.iter().zip(expected.read("warp.output")).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-12, "{off:e}");
    }

    #[test]
    fn a_view_without_a_homography_stays_as_it_is() {
        let values: Vec<f32> = (0..2 * 3 * 49).map(|i| (i as f32 * 0.37).sin()).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let data = TensorData::new(values.clone(), [2, 3, 7, 7]);
            let views = Tensor::<4>::from_data(data, (&Device::flex(), dtype));
            let tilted = Homography::new(undo_perspective([0.3, 0.0, 0.1, 0.2, 0.6, 0.1, 0.0, 0.5]));
            let warped = apply(views.clone(), &[None, Some(&tilted)]);
            assert_eq!(warped.dtype(), dtype);
            let first = |t: Tensor<4>| t.narrow(0, 0, 1).into_data();
            assert_eq!(first(warped), first(views));
        }
    }

    // The horizon of a strong perspective crosses the view; the border is seen behind it too, and never NaN.
    #[test]
    fn every_draw_gives_finite_values_within_those_of_the_view() {
        let side = 8;
        let view = image(side, |[x, y]| 0.5 * x + 0.4 * y);
        let (low, high) = view.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        let mut crossed = 0;
        for draw in 0..300 {
            let rng = &mut SampleKey { seed: 1, draw }.rng(Purpose::Augment);
            let homography = Homography::draw(rng, 0.5, 1.0).unwrap();
            assert!((homography.0[2][2] - 1.0).abs() < 1e-12);
            crossed += usize::from(homography.0[2][0].abs() + homography.0[2][1].abs() > 1.0);
            let found = read(apply(tensor(view.clone(), [1, 1, side, side]), &[Some(&homography)]));
            assert!(found.iter().all(|v| (low - 1e-12..=high + 1e-12).contains(v)), "{found:?}");
        }
        assert!(crossed > 0);
    }

    #[test]
    fn probabilities_are_kept() {
        let count = |affine, perspective| {
            let drawn = (0..2000).filter_map(|draw| {
                Homography::draw(&mut SampleKey { seed: 1, draw }.rng(Purpose::Augment), affine, perspective)
            });
            drawn.count()
        };
        assert_eq!(count(0.0, 0.0), 0);
        assert_eq!(count(1.0, 0.0), 2000);
        let either = count(0.7, 0.7);
        assert!((1780..1860).contains(&either), "{either} of 2000 instead of 1820");
    }
}
