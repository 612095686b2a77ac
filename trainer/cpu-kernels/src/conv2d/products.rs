//! Sums of products in registers, on which all passes stand.

use pulp::Simd;

use crate::real::Real;

/// Vectors of a row that are computed at a time.
const VECTORS: usize = 2;

/// Columns that are computed at a time.
#[inline(always)]
pub fn columns<S: Simd, R: Real>() -> usize {
    VECTORS * R::lanes::<S>()
}

/// Columns that are computed at a time on any processor, at most.
pub const MOST_COLUMNS: usize = 32;

/// Rows that are computed at a time, at most: their sums, a row of values and a factor fit into registers.
#[inline(always)]
pub fn rows_at_once<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { MOST_ROWS } else { 6 }
}

/// Rows that are computed at a time on any processor, at most.
pub const MOST_ROWS: usize = 12;

/// Rows in equal parts that are computed at a time.
#[inline(always)]
pub fn parts<S: Simd>(rows: usize) -> usize {
    rows.div_ceil(rows_at_once::<S>())
}

/// Adds to `sums[m][..]` the sum over k of `factors[k][m] * values[offsets[k] + start..]`, for each `start`, the number of columns
/// apart, up to the length of a row of sums. There are `rows` of these.
///
/// Each is a sum over k from first to last, so its bits do not depend on the other rows and columns. What was there is added at
/// the end, so that rounding errors grow with the terms of a call and not with those of all.
#[inline(always)]
pub fn add_products<S: Simd, R: Real>(
    simd: S,
    rows: usize,
    factors: &[R],
    (values, offsets): (&[R], &[u32]),
    (sums, of_row, length): (&mut [R], usize, usize),
) {
    macro_rules! with_rows {
        ($($count:literal),+) => {
            match rows {
                $($count => add_rows::<S, R, $count>(simd, factors, (values, offsets), (sums, of_row, length)),)+
                _ => {}
            }
        };
    }
    with_rows!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
}

#[inline(always)]
fn add_rows<S: Simd, R: Real, const M: usize>(
    simd: S,
    factors: &[R],
    (values, offsets): (&[R], &[u32]),
    (sums, of_row, length): (&mut [R], usize, usize),
) {
    let (factors, _) = factors.as_chunks::<M>();
    let columns = columns::<S, R>();
    for start in (0..length).step_by(columns) {
        let mut accumulated = [[R::splat(simd, R::zero()); VECTORS]; M];
        let values = &values[start..];
        for (factors, offset) in factors.iter().zip(offsets) {
            let row = R::vectors::<S>(&values[*offset as usize..][..columns]);
            let mut loaded = [row[0]; VECTORS];
            loaded.copy_from_slice(&row[..VECTORS]);
            for m in 0..M {
                let factor = R::splat(simd, factors[m]);
                for v in 0..VECTORS {
                    accumulated[m][v] = R::multiply_add(simd, factor, loaded[v], accumulated[m][v]);
                }
            }
        }
        for m in 0..M {
            let row = R::vectors_mut::<S>(&mut sums[m * of_row + start..][..columns]);
            for v in 0..VECTORS {
                row[v] = R::sum(simd, row[v], accumulated[m][v]);
            }
        }
    }
}
