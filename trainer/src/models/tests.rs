//! The model as a whole.

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::Architecture;

use super::architectures::by_name;

/// Contains every kind of block, but is small enough for many forward passes in a test.
pub(crate) fn tiny_architecture() -> Architecture {
    let tiny = by_name("tiny").unwrap();
    Architecture {
        base_channels: 8,
        channels: vec![8, 16],
        attention_levels: vec![1],
        mid_attention: true,
        latent_channels: 8,
        code_dim: 4,
        codes: 32,
        groups: 4,
        ..tiny
    }
}

/// Compares the gradient of the sum of `value` at `at` (f64, without autodiff) with central differences at some
/// `indices`. The error may be at most `tolerance` of the largest element.
pub(crate) fn check_gradient(
    value: impl Fn(Tensor<4>) -> Tensor<1>,
    at: &Tensor<4>,
    indices: impl IntoIterator<Item = usize>,
    tolerance: f64,
) {
    const STEP: f64 = 1e-6;
    let leaf = at.clone().autodiff().require_grad();
    let mut gradients = value(leaf.clone()).sum().backward();
    let gradient = leaf.grad_remove(&mut gradients).unwrap().into_data().try_into_vec::<f64>().unwrap();
    let largest = gradient.iter().fold(0.0, |largest: f64, g| largest.max(g.abs()));
    assert!(largest > 0.0 && largest.is_finite(), "{largest}");

    let (values, shape) = (at.clone().into_data().try_into_vec::<f64>().unwrap(), at.dims());
    let nudged = |index: usize, amount: f64| {
        let mut values = values.clone();
        values[index] += amount;
        let nudged = Tensor::<4>::from_data(TensorData::new(values, shape), (&at.device(), DType::F64));
        value(nudged.autodiff()).sum().without_autodiff().into_data().try_into_vec::<f64>().unwrap()[0]
    };
    for index in indices {
        let difference = (nudged(index, STEP) - nudged(index, -STEP)) / (2.0 * STEP);
        let error = (difference - gradient[index]).abs() / largest;
        assert!(error < tolerance, "{index}: {} against {difference}, off by {error:.1e}", gradient[index]);
    }
}

/// Fixed images of noise over waves in -1..1, `[samples, 3, height, width]` in f64, without autodiff.
pub(crate) fn test_images(samples: usize, height: usize, width: usize) -> Tensor<4> {
    let value = |i: usize| 0.6 * (i as f64 * 0.37).sin() + 0.3 * (i as f64 * 12.9898).sin();
    let values: Vec<f64> = (0..samples * 3 * height * width).map(value).collect();
    Tensor::from_data(TensorData::new(values, [samples, 3, height, width]), (&Device::flex(), DType::F64))
}
