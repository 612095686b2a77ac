//! The transforms of F(4x4, 3x3), each in one dimension over vectors of channels (Lavin and Gray 2015, arXiv 1509.09308,
//! section 4.1 and its sequel; the interpolation points are 0, 1, -1, 2, -2 and infinity).

use pulp::Simd;

/// Points of a transformed tile along one side.
pub const POINTS: usize = 6;
/// Pixels of the output along a side of a tile.
pub const TILE: usize = 4;
/// Weights along a side of the kernel.
pub const KERNEL: usize = 3;

/// A transform in one dimension. Everything in it is inlined, as what is not inlined has no vector instructions: so these are
/// types and not closures.
pub trait Transform<const I: usize, const O: usize> {
    fn of<S: Simd>(simd: S, values: [S::f32s; I]) -> [S::f32s; O];

    /// Transforms the columns, then the rows of a tile.
    #[inline(always)]
    fn in_both<S: Simd>(simd: S, tile: [[S::f32s; I]; I]) -> [[S::f32s; O]; O] {
        let zero = simd.splat_f32s(0.0);
        let mut columns = [[zero; O]; I];
        for j in 0..I {
            let mut column = [zero; I];
            for i in 0..I {
                column[i] = tile[i][j];
            }
            columns[j] = Self::of(simd, column);
        }
        let mut out = [[zero; O]; O];
        for i in 0..O {
            let mut row = [zero; I];
            for j in 0..I {
                row[j] = columns[j][i];
            }
            out[i] = Self::of(simd, row);
        }
        out
    }
}

#[inline(always)]
fn splat<S: Simd, const N: usize>(simd: S, values: [f32; N]) -> [S::f32s; N] {
    let mut out = [simd.splat_f32s(0.0); N];
    for i in 0..N {
        out[i] = simd.splat_f32s(values[i]);
    }
    out
}

/// `c - a b`.
#[inline(always)]
fn subtract_product<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    simd.mul_add_f32s(simd.neg_f32s(a), b, c)
}

/// `B^T d`: six pixels of the input.
pub struct OfInput;

impl Transform<6, 6> for OfInput {
    #[inline(always)]
    fn of<S: Simd>(simd: S, d: [S::f32s; 6]) -> [S::f32s; 6] {
        let [two, four, five] = splat(simd, [2.0, 4.0, 5.0]);
        // d4 - 4 d2, d3 - 4 d1, d4 - d2 and 2 (d3 - d1) give the four in the middle.
        let (even, odd) = (subtract_product(simd, four, d[2], d[4]), subtract_product(simd, four, d[1], d[3]));
        let (near, far) = (simd.sub_f32s(d[4], d[2]), simd.mul_f32s(two, simd.sub_f32s(d[3], d[1])));
        [
            simd.mul_add_f32s(four, d[0], subtract_product(simd, five, d[2], d[4])),
            simd.add_f32s(even, odd),
            simd.sub_f32s(even, odd),
            simd.add_f32s(near, far),
            simd.sub_f32s(near, far),
            simd.mul_add_f32s(four, d[1], subtract_product(simd, five, d[3], d[5])),
        ]
    }
}

/// `A^T m`: six points to four pixels of the output.
pub struct OfOutput;

impl Transform<6, 4> for OfOutput {
    #[inline(always)]
    fn of<S: Simd>(simd: S, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let [two, four, eight] = splat(simd, [2.0, 4.0, 8.0]);
        let (ones, twos) = (simd.add_f32s(m[1], m[2]), simd.add_f32s(m[3], m[4]));
        let (one, two_apart) = (simd.sub_f32s(m[1], m[2]), simd.sub_f32s(m[3], m[4]));
        [
            simd.add_f32s(m[0], simd.add_f32s(ones, twos)),
            simd.mul_add_f32s(two, two_apart, one),
            simd.mul_add_f32s(four, twos, ones),
            simd.add_f32s(m[5], simd.mul_add_f32s(eight, two_apart, one)),
        ]
    }
}

/// `A y`: four pixels of the gradient at the output to six points.
pub struct OfGradient;

impl Transform<4, 6> for OfGradient {
    #[inline(always)]
    fn of<S: Simd>(simd: S, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let [two, four] = splat(simd, [2.0, 4.0]);
        let (even, odd) = (simd.add_f32s(y[0], y[2]), simd.add_f32s(y[1], y[3]));
        let (even_two, odd_two) =
            (simd.mul_add_f32s(four, y[2], y[0]), simd.mul_f32s(two, simd.mul_add_f32s(four, y[3], y[1])));
        [
            y[0],
            simd.add_f32s(even, odd),
            simd.sub_f32s(even, odd),
            simd.add_f32s(even_two, odd_two),
            simd.sub_f32s(even_two, odd_two),
            y[3],
        ]
    }
}

/// `G g`: three weights to six points.
pub struct OfWeights;

impl Transform<3, 6> for OfWeights {
    #[inline(always)]
    fn of<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; 6] {
        let [quarter, sixth, twelfth, of_24] = splat(simd, [0.25, 1.0 / 6.0, 1.0 / 12.0, 1.0 / 24.0]);
        let outer = simd.mul_f32s(sixth, simd.add_f32s(g[0], g[2]));
        let wide = simd.mul_add_f32s(of_24, g[0], simd.mul_f32s(sixth, g[2]));
        let (middle, middle_wide) = (simd.mul_f32s(sixth, g[1]), simd.mul_f32s(twelfth, g[1]));
        [
            simd.mul_f32s(quarter, g[0]),
            simd.neg_f32s(simd.add_f32s(outer, middle)),
            simd.sub_f32s(middle, outer),
            simd.add_f32s(wide, middle_wide),
            simd.sub_f32s(wide, middle_wide),
            g[2],
        ]
    }
}

/// `G^T u`: six points to three gradients at weights.
pub struct OfWeightGradient;

impl Transform<6, 3> for OfWeightGradient {
    #[inline(always)]
    fn of<S: Simd>(simd: S, u: [S::f32s; 6]) -> [S::f32s; 3] {
        let [quarter, sixth, twelfth, of_24] = splat(simd, [0.25, 1.0 / 6.0, 1.0 / 12.0, 1.0 / 24.0]);
        let (near, far) = (simd.add_f32s(u[1], u[2]), simd.add_f32s(u[3], u[4]));
        let (near_apart, far_apart) = (simd.sub_f32s(u[2], u[1]), simd.sub_f32s(u[3], u[4]));
        [
            simd.mul_add_f32s(quarter, u[0], simd.sub_f32s(simd.mul_f32s(of_24, far), simd.mul_f32s(sixth, near))),
            simd.mul_add_f32s(sixth, near_apart, simd.mul_f32s(twelfth, far_apart)),
            simd.add_f32s(u[5], simd.mul_f32s(sixth, simd.sub_f32s(far, near))),
        ]
    }
}
