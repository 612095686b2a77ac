//! Decompositions of symmetric matrices in double precision, row by row, by nalgebra.

use nalgebra::DMatrix;

/// Returns `L`, `[n, n]` and zero above its diagonal, with `L L^T = matrix + shift`, where `shift` is added to the diagonal;
/// `None` if that is not positive definite.
///
/// # Panics
/// If `matrix` has not `n * n` values.
pub fn cholesky(matrix: &[f64], n: usize, shift: f64) -> Option<Vec<f64>> {
    let mut matrix = DMatrix::from_row_slice(n, n, matrix);
    (0..n).for_each(|at| matrix[(at, at)] += shift);
    // nalgebra keeps columns together, so the transposed factor has the rows together.
    Some(matrix.cholesky()?.l().transpose().as_slice().to_vec())
}

/// Returns the eigenvalues of a symmetric matrix, `[n, n]`, in no order.
///
/// # Panics
/// If `matrix` has not `n * n` values.
pub fn eigenvalues(matrix: &[f64], n: usize) -> Vec<f64> {
    DMatrix::from_row_slice(n, n, matrix).symmetric_eigenvalues().as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 5;

    /// `A A^T` of values without a pattern.
    fn positive() -> Vec<f64> {
        let a = |row: usize, column: usize| ((row * 7 + column * 3) as f64).sin();
        let entry = |row: usize, column: usize| (0..N).map(|k| a(row, k) * a(column, k)).sum::<f64>();
        let at = |index: usize| entry(index / N, index % N) + f64::from(u8::from(index.is_multiple_of(N + 1)));
        (0..N * N).map(at).collect()
    }

    #[test]
    fn a_factor_times_its_transpose_is_the_matrix() {
        let matrix = positive();
        let factor = cholesky(&matrix, N, 0.5).unwrap();
        for (row, column) in (0..N).flat_map(|row| (0..N).map(move |column| (row, column))) {
            let product: f64 = (0..N).map(|k| factor[row * N + k] * factor[column * N + k]).sum();
            let expected = matrix[row * N + column] + if row == column { 0.5 } else { 0.0 };
            assert!((product - expected).abs() < 1e-12);
            assert!(column <= row || factor[row * N + column] == 0.0);
        }
        assert!(cholesky(&[1.0, 2.0, 2.0, 1.0], 2, 0.0).is_none());
    }

    #[test]
    fn eigenvalues_have_the_trace_and_the_squares_of_the_matrix() {
        let matrix = positive();
        let values = eigenvalues(&matrix, N);
        let trace: f64 = matrix.iter().step_by(N + 1).sum();
        let squares: f64 = matrix.iter().map(|value| value * value).sum();
        assert!((values.iter().sum::<f64>() - trace).abs() < 1e-12);
        assert!((values.iter().map(|value| value * value).sum::<f64>() - squares).abs() < 1e-11);
        let mut two = eigenvalues(&[2.0, 1.0, 1.0, 2.0], 2);
        two.sort_by(f64::total_cmp);
        assert!((two[0] - 1.0).abs() < 1e-14 && (two[1] - 3.0).abs() < 1e-14);
    }
}
