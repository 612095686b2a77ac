//! CMMD: the maximum mean discrepancy of two sets of images by their CLIP embeddings (Jayasumana et al. 2024, arXiv
//! 2401.09603).

use std::io;

use burn::tensor::{Device, Tensor};

use super::embeddings::EmbeddingFile;
use crate::evaluation::captions::unit;

/// Bandwidth of the Gaussian kernel between embeddings of unit length, as in the paper's code.
pub const SIGMA: f64 = 10.0;

/// Factor of the result, likewise.
pub const SCALE: f64 = 1000.0;

/// Rows whose kernel is computed at a time.
const TILE: usize = 1024;

/// Returns `SCALE * (E k(x, x') + E k(y, y') - 2 E k(x, y))` of the rows x and y of two files, with
/// `k(a, b) = exp(-|a - b|^2 / (2 SIGMA^2))`. As in the paper's code, the means include the pairs of a row with itself.
///
/// # Errors
/// What the device or the system says.
pub fn cmmd(x: &mut EmbeddingFile, y: &mut EmbeddingFile, device: &Device) -> io::Result<f64> {
    let within_x = mean_distance(x, None, device)?;
    let within_y = mean_distance(y, None, device)?;
    let between = mean_distance(x, Some(y), device)?;
    Ok(SCALE * (2.0 * between - within_x - within_y))
}

/// The mean of `1 - k` over all pairs of rows of `x` and `y`, or of `x` and `x`. The kernel itself is so near to 1 that
/// single precision would round away what counts.
fn mean_distance(x: &mut EmbeddingFile, mut y: Option<&mut EmbeddingFile>, device: &Device) -> io::Result<f64> {
    let (rows, columns) = (x.rows(), y.as_ref().map_or(x.rows(), |y| y.rows()));
    let mut sum = 0.0;
    for first in (0..rows).step_by(TILE) {
        let left = unit(x.read(first, TILE, device)?);
        // Within one set the tiles beside the diagonal count twice.
        let start = if y.is_some() { 0 } else { first };
        for second in (start..columns).step_by(TILE) {
            let right = match y.as_mut() {
                Some(y) => y.read(second, TILE, device)?,
                None => x.read(second, TILE, device)?,
            };
            let twice = if y.is_none() && second > first { 2.0 } else { 1.0 };
            sum += twice * tile(left.clone(), unit(right))?;
        }
    }
    Ok(sum / (rows as f64 * columns as f64))
}

/// The sum of `1 - k` over all pairs of rows of unit length.
fn tile(left: Tensor<2>, right: Tensor<2>) -> io::Result<f64> {
    // |a - b|^2 / (2 SIGMA^2), which is in 0..0.02.
    let exponent = (left.matmul(right.transpose()) * -1.0 + 1.0) / (SIGMA * SIGMA);
    // 1 - exp(-e) without cancellation, by its series; the next term is below 1e-10 of it.
    let series = [5.0, 4.0, 3.0, 2.0]
        .into_iter()
        .fold(exponent.ones_like(), |inner, order| (exponent.clone() * inner / -order) + 1.0);
    let sums = (exponent * series).sum_dim(1).flatten::<1>(0, 1);
    let sums = sums.try_into_vec_as::<f32>().map_err(|error| io::Error::other(error.to_string()))?;
    Ok(sums.into_iter().map(f64::from).sum())
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    const WIDTH: usize = 24;

    fn rows(count: usize, phase: f64) -> Vec<Vec<f64>> {
        let value = |row: usize, column: usize| (phase + row as f64 * 1.3 + column as f64 * 0.7 * phase).sin() + 0.3;
        (0..count).map(|row| (0..WIDTH).map(|column| value(row, column)).collect()).collect()
    }

    fn file(rows: &[Vec<f64>], folder: &std::path::Path, name: &str) -> EmbeddingFile {
        let mut file = EmbeddingFile::open(&folder.join(name), WIDTH, 0).unwrap();
        let values: Vec<f32> = rows.iter().flatten().map(|value| *value as f32).collect();
        file.append(Tensor::from_data(TensorData::new(values, [rows.len(), WIDTH]), &Device::flex())).unwrap();
        file
    }

    /// The definition, in double precision.
    fn definition(x: &[Vec<f64>], y: &[Vec<f64>]) -> f64 {
        let unit = |row: &Vec<f64>| {
            let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter().map(|value| value / length).collect::<Vec<f64>>()
        };
        let mean = |a: &[Vec<f64>], b: &[Vec<f64>]| {
            let kernel = |a: &Vec<f64>, b: &Vec<f64>| {
                let square: f64 = unit(a).iter().zip(unit(b)).map(|(a, b)| (a - b).powi(2)).sum();
                (-square / (2.0 * SIGMA * SIGMA)).exp()
            };
            a.iter().flat_map(|a| b.iter().map(move |b| kernel(a, b))).sum::<f64>() / (a.len() * b.len()) as f64
        };
        SCALE * (mean(x, x) + mean(y, y) - 2.0 * mean(x, y))
    }

    #[test]
    fn the_value_is_that_of_the_definition() {
        let folder = tempfile::tempdir().unwrap();
        // More rows than a tile has.
        let (x, y) = (rows(TILE + 40, 1.0), rows(300, 1.1));
        let [mut x_file, mut y_file] = [(&x, "x"), (&y, "y")].map(|(rows, name)| file(rows, folder.path(), name));
        let found = cmmd(&mut x_file, &mut y_file, &Device::flex()).unwrap();
        let expected = definition(&x, &y);
        assert!(expected > 0.01 && (found - expected).abs() < 1e-4 * expected, "{found} {expected}");
        let mut same = file(&x, folder.path(), "same");
        assert!(cmmd(&mut x_file, &mut same, &Device::flex()).unwrap().abs() < 1e-4);
    }
}
