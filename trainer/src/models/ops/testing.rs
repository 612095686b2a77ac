//! What the tests of all operations need.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Random numbers within 2 of `around` that f16 and bf16 represent exactly.
pub(super) fn values<const D: usize>(
    seed: u64,
    shape: [usize; D],
    around: f64,
    device: &Device,
    dtype: DType,
) -> Tensor<D> {
    drawn(seed, shape, (device, dtype), |random| small_number(random) + around)
}

/// Random numbers of very different magnitudes that f16 and bf16 represent exactly: the order of the terms of a sum in
/// f32 shows in its last bits.
pub(super) fn scattered<const D: usize>(seed: u64, shape: [usize; D], place: (&Device, DType)) -> Tensor<D> {
    drawn(seed, shape, place, |random| small_number(random) * 0.5_f64.powi(random.random_range(0..8)))
}

/// A number in -2..2 of at most eight bits.
fn small_number(random: &mut ChaCha8Rng) -> f64 {
    (random.random_range(-1.0..1.0_f64) * 64.0).round() / 32.0
}

fn drawn<const D: usize>(
    seed: u64,
    shape: [usize; D],
    place: (&Device, DType),
    number: impl Fn(&mut ChaCha8Rng) -> f64,
) -> Tensor<D> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| number(&mut random)).collect();
    Tensor::from_data(TensorData::new(numbers, shape), place)
}

pub(super) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}

/// The same tensor with its elements in another order in memory, in which convolutions return them on a GPU.
pub(super) fn with_channels_last(x: Tensor<4>) -> Tensor<4> {
    (x.permute([0, 2, 3, 1]) * 1.0).permute([0, 3, 1, 2])
}

/// `||a - b|| / ||b||` of each pair.
pub(super) fn deviations<const N: usize>(a: &[Vec<f64>; N], b: &[Vec<f64>; N]) -> [f64; N] {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    std::array::from_fn(|i| {
        assert_eq!(a[i].len(), b[i].len());
        let differences = squares(&mut a[i].iter().zip(&b[i]).map(|(a, b)| a - b));
        (differences / squares(&mut b[i].iter().copied())).sqrt()
    })
}

/// Which of the precisions with bounds the device computes in. Models in f64 are for tests on the CPU only, because
/// Vulkan has no exponential in f64.
pub(super) fn precisions(bounds: [(DType, f64); 4], device: &Device) -> impl Iterator<Item = (DType, f64)> {
    let has = |dtype| device.supports_dtype(dtype) && (dtype != DType::F64 || *device == Device::flex());
    bounds.into_iter().filter(move |(dtype, _)| has(*dtype))
}
