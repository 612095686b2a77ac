//! Products of matrices that lie in slices, by the crate `gemm`.

use num_traits::Float;

/// A matrix in a slice: the element of row i and column j is at `i * row + j * column`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub row: usize,
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix whose rows follow each other.
    pub fn rows(values: &'a [T], columns: usize) -> Self {
        Self { values, row: columns, column: 1 }
    }

    /// The same, with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// `out = left * right`, or adds it to `out`, whose rows follow each other: `[m, n] = [m, k] * [k, n]`. On this thread alone.
pub(crate) fn multiply<T: Float + 'static>(
    [m, n, k]: [usize; 3],
    left: Matrix<T>,
    right: Matrix<T>,
    out: &mut [T],
    add: bool,
) {
    if m * n == 0 {
        return;
    }
    let fits = |matrix: &Matrix<T>, [rows, columns]: [usize; 2]| {
        rows * columns == 0 || (rows - 1) * matrix.row + (columns - 1) * matrix.column < matrix.values.len()
    };
    assert!(fits(&left, [m, k]) && fits(&right, [k, n]) && m * n <= out.len(), "a matrix exceeds its slice");
    // SAFETY: the three matrices are within their slices, as was just checked; `out` is borrowed mutably, so it is no other.
    #[expect(unsafe_code, reason = "the crate has no safe interface")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
