//! What the tests of the CLIP losses and of the cutouts share.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::WeightsFile;

/// The results of the reference implementations, from `tests/fixtures/make_clip_losses.py`.
pub struct Expected(WeightsFile);

impl Expected {
    pub fn open() -> Self {
        let path = "../tests/fixtures/clip_losses/expected.safetensors";
        Self(WeightsFile::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap())
    }

    /// A tensor of f64.
    pub fn read(&self, name: &str) -> Vec<f64> {
        let tensor = self.0.read(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        tensor.bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// Reads the same as rows.
    pub fn rows(&self, name: &str, count: usize) -> Tensor<2> {
        let values = self.read(name);
        chunks(&values, values.len() / count)
    }
}

/// f64, `[rows, columns]`.
pub fn rows(values: &[&[f64]]) -> Tensor<2> {
    let data = TensorData::new(values.concat(), [values.len(), values[0].len()]);
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}

/// Numbers in f64 without a pattern that a loss could have.
pub fn wave(rows: usize, columns: usize, phase: f64) -> Tensor<2> {
    let values: Vec<f64> = (0..rows * columns).map(|i| (i as f64 * 1.7 + phase).sin()).collect();
    chunks(&values, columns)
}

fn chunks(values: &[f64], columns: usize) -> Tensor<2> {
    let values: Vec<&[f64]> = values.chunks(columns).collect();
    rows(&values)
}

pub fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().try_into_vec().unwrap()
}

pub fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < tolerance), "{found:?} against {expected:?}");
}

/// Compares the gradient of the sum of `loss` at `at` with central differences of `step`.
pub fn assert_finite_differences(at: Tensor<2>, step: f64, tolerance: f64, loss: impl Fn(Tensor<2>) -> Tensor<1>) {
    let [_, columns] = at.dims();
    let leaf = at.clone().autodiff().require_grad();
    let mut gradients = loss(leaf.clone()).sum().backward();
    let gradient = read(leaf.grad_remove(&mut gradients).unwrap());
    let start = read(at);
    for (index, expected) in gradient.iter().enumerate() {
        let nudged = |amount: f64| {
            let mut values = start.clone();
            values[index] += amount;
            read(loss(chunks(&values, columns)).sum())[0]
        };
        let difference = (nudged(step) - nudged(-step)) / (2.0 * step);
        assert!((difference - expected).abs() < tolerance, "{index}: {expected} against {difference}");
    }
}
