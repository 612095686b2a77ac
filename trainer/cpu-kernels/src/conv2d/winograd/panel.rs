//! Products of panels, in registers.
//!
//! Matrices are cut into panels of [`WIDTH`] columns: a row of a panel is a few vectors of any processor, and a product
//! reads panels in the order of memory.

use pulp::Simd;

/// Columns of a panel.
pub const WIDTH: usize = 32;

/// A row of a panel.
pub type Row = [f32; WIDTH];

/// Vectors of a row that are computed at a time.
const VECTORS: usize = 2;

/// Rows of a result that are computed at a time: their sums, a row of the right operand and a factor fit into registers.
#[inline(always)]
fn rows_at_once<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
}

/// Calls the given function with a constant for the number of rows.
macro_rules! with_rows {
    ($count:expr, $function:ident, $($argument:expr),+) => {
        match $count {
            1 => $function::<_, 1>($($argument),+),
            2 => $function::<_, 2>($($argument),+),
            3 => $function::<_, 3>($($argument),+),
            4 => $function::<_, 4>($($argument),+),
            5 => $function::<_, 5>($($argument),+),
            6 => $function::<_, 6>($($argument),+),
            7 => $function::<_, 7>($($argument),+),
            8 => $function::<_, 8>($($argument),+),
            9 => $function::<_, 9>($($argument),+),
            10 => $function::<_, 10>($($argument),+),
            11 => $function::<_, 11>($($argument),+),
            _ => $function::<_, 12>($($argument),+),
        }
    };
}

/// `out[m] = sum over b and k of left[b][m][k] * right[b * WIDTH + k]`. The left operand comes with the number of rows from
/// the begin of a panel to the begin of the next.
///
/// Each row is a sum over k from first to last, so its bits do not depend on the other rows.
#[inline(always)]
pub fn multiply<S: Simd>(simd: S, left: (&[Row], usize), right: &[Row], out: &mut [Row]) {
    let rows = out.len();
    let parts = rows.div_ceil(rows_at_once::<S>());
    let mut first = 0;
    for part in 0..parts {
        let count = (rows - first).div_ceil(parts - part);
        with_rows!(count, multiply_rows, simd, left, first, right, &mut out[first..first + count]);
        first += count;
    }
}

#[inline(always)]
fn multiply_rows<S: Simd, const M: usize>(
    simd: S,
    (left, of_panel): (&[Row], usize),
    first: usize,
    right: &[Row],
    out: &mut [Row],
) {
    for column in (0..WIDTH).step_by(VECTORS * S::F32_LANES) {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; M];
        for (panel, right) in right.chunks(WIDTH).enumerate() {
            let left = &left[panel * of_panel + first..][..M];
            let left: &[Row; M] = left.first_chunk().unwrap_or_else(|| unreachable!("M rows"));
            for (k, right) in right.iter().enumerate() {
                let right = load(simd, right, column);
                for m in 0..M {
                    let factor = simd.splat_f32s(left[m][k % WIDTH]);
                    for v in 0..VECTORS {
                        sums[m][v] = simd.mul_add_f32s(factor, right[v], sums[m][v]);
                    }
                }
            }
        }
        store(simd, out, column, sums);
    }
}

/// `out[m] = sum over b and k of left[b][k][m] * right[b][k]` for all columns m of the left panel; `blocks` are `[left, right]`,
/// each of which has `parts` equal parts. Only one of them is multiplied.
#[inline(always)]
pub fn multiply_transposed<S: Simd>(
    simd: S,
    blocks: &[[&[Row]; 2]],
    part: usize,
    parts: usize,
    out: &mut [Row; WIDTH],
) {
    if S::REGISTER_COUNT >= 32 {
        for first in (0..WIDTH).step_by(8) {
            multiply_columns::<S, 8>(simd, blocks, part, parts, first, &mut out[first..first + 8]);
        }
    } else {
        for first in (0..WIDTH).step_by(4) {
            multiply_columns::<S, 4>(simd, blocks, part, parts, first, &mut out[first..first + 4]);
        }
    }
}

#[inline(always)]
fn multiply_columns<S: Simd, const M: usize>(
    simd: S,
    blocks: &[[&[Row]; 2]],
    part: usize,
    parts: usize,
    first: usize,
    out: &mut [Row],
) {
    for column in (0..WIDTH).step_by(VECTORS * S::F32_LANES) {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; M];
        for [left, right] in blocks {
            let count = left.len() / parts;
            let (left, right) = (&left[part * count..][..count], &right[part * count..][..count]);
            for k in 0..count {
                let right = load(simd, &right[k], column);
                for m in 0..M {
                    let factor = simd.splat_f32s(left[k][(first + m) % WIDTH]);
                    for v in 0..VECTORS {
                        sums[m][v] = simd.mul_add_f32s(factor, right[v], sums[m][v]);
                    }
                }
            }
        }
        store(simd, out, column, sums);
    }
}

#[inline(always)]
fn load<S: Simd>(_: S, row: &Row, column: usize) -> [S::f32s; VECTORS] {
    let (row, _) = S::as_simd_f32s(row);
    let first = column / S::F32_LANES;
    let mut vectors = [row[first]; VECTORS];
    for v in 1..VECTORS {
        vectors[v] = row[first + v];
    }
    vectors
}

#[inline(always)]
fn store<S: Simd, const M: usize>(_: S, out: &mut [Row], column: usize, sums: [[S::f32s; VECTORS]; M]) {
    let first = column / S::F32_LANES;
    for (row, sums) in out.iter_mut().zip(sums) {
        let (row, _) = S::as_mut_simd_f32s(row);
        for (v, sum) in sums.into_iter().enumerate() {
            row[first + v] = sum;
        }
    }
}
