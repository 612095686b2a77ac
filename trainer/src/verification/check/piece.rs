//! A piece of what a run computes: its values and gradients on a device, and how far they are from the CPU's.

use std::panic::{self, AssertUnwindSafe};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};

use super::{Deviations, deviation};
use crate::device::panics;
use crate::models::weights::ModelError;

/// Samples of each check: two, so that what mixes them is seen.
pub(super) const SAMPLES: usize = 2;

/// Where a piece is computed.
pub(super) struct Place {
    /// With autodiff.
    pub(super) device: Device,
    pub(super) dtype: DType,
}

/// The values of a piece, and its gradients at its input and at its parameters.
#[derive(Default)]
pub(super) struct Values {
    pub(super) output: Vec<f32>,
    pub(super) gradients: Vec<Vec<f32>>,
}

impl Values {
    pub(super) fn deviations(&self, reference: &Self) -> Deviations {
        let pairs = self.gradients.iter().zip(&reference.gradients);
        let gradients = pairs.map(|(a, b)| deviation(a, b)).reduce(|a, b| if a.is_nan() || a > b { a } else { b });
        Deviations { output: Some(deviation(&self.output, &reference.output)), gradient: gradients }
    }
}

/// Why a piece has no values.
#[derive(Debug, thiserror::Error)]
pub(super) enum PieceError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the device failed: {0}")]
    Device(String),
}

pub(super) type Run<'a> = Box<dyn Fn(&Place) -> Result<Values, PieceError> + 'a>;

/// A piece of what a run computes.
pub(super) struct Piece<'a> {
    pub(super) name: String,
    /// Whether it computes in half precision where the run does.
    pub(super) half: bool,
    pub(super) run: Run<'a>,
}

/// The values of `run`, or what it said: kernels that cannot be compiled or launched panic.
pub(super) fn attempt<T>(run: impl FnOnce() -> Result<T, PieceError>) -> Result<T, String> {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(panics::last()),
    }
}

/// Numbers in -1..1 that look random and differ by `seed`.
pub(super) fn numbers(seed: usize, len: usize) -> Vec<f32> {
    let value = |i: usize| {
        let x = (i + 1) as f64 * 12.9898 + seed as f64 * 78.233;
        let hash = (x.sin() * 43_758.545_3).fract();
        hash as f32
    };
    (0..len).map(value).collect()
}

pub(super) fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
}

pub(super) fn random<const D: usize>(seed: usize, shape: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    tensor(&numbers(seed, shape.iter().product()), shape, device, dtype)
}

/// Smooth images with some noise, `[SAMPLES, 3, side, side]` in -1..1, in f32 and with autodiff.
pub(super) fn images(seed: usize, side: usize, place: &Place) -> Tensor<4> {
    let shape = [SAMPLES, 3, side, side];
    let noise = numbers(seed, shape.iter().product());
    let value = |(i, noise): (usize, f32)| {
        let (row, column) = (i / side % side, i % side);
        let wave = (row as f32 * 0.31 + seed as f32).sin() * (column as f32 * 0.23 + (i / (side * side)) as f32).cos();
        0.7 * wave + 0.25 * noise
    };
    let values: Vec<f32> = noise.into_iter().enumerate().map(value).collect();
    tensor(&values, shape, &place.device, DType::F32)
}

pub(super) fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, PieceError> {
    tensor.without_autodiff().try_into_vec_as::<f32>().map_err(|error| PieceError::Device(error.to_string()))
}

/// Collects the gradients of the parameters that it visits.
pub(super) struct ParameterGradients<'a> {
    gradients: &'a mut Gradients,
    values: Result<Vec<f32>, PieceError>,
}

impl ModuleVisitor for ParameterGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
        if let Ok(values) = &mut self.values {
            match read(gradient) {
                Ok(more) => values.extend(more),
                Err(error) => self.values = Err(error),
            }
        }
    }
}

/// The values of `forward` at `input`, and the gradients of their sum with random weights: at `input`, and at the parameters that
/// `visit` shows.
pub(super) fn through<const I: usize, const O: usize>(
    input: Tensor<I>,
    forward: impl FnOnce(Tensor<I>) -> Tensor<O>,
    visit: impl FnOnce(&mut ParameterGradients),
) -> Result<Values, PieceError> {
    let leaf = input.detach().require_grad();
    let output = forward(leaf.clone());
    let weights = random(99, output.dims(), &output.device(), output.dtype());
    let values = read(output.clone())?;
    let mut gradients = (output * weights).sum().backward();
    let mut taken = ParameterGradients { gradients: &mut gradients, values: Ok(Vec::new()) };
    visit(&mut taken);
    let parameters = taken.values?;
    let at_input = leaf.grad_remove(&mut gradients).map(read).transpose()?;
    let both = at_input.into_iter().chain((!parameters.is_empty()).then_some(parameters));
    Ok(Values { output: values, gradients: both.collect() })
}

/// The same for a module.
pub(super) fn through_module<M: Module, const O: usize>(
    module: &M,
    input: Tensor<4>,
    forward: impl FnOnce(&M, Tensor<4>) -> Tensor<O>,
) -> Result<Values, PieceError> {
    through(input, |input| forward(module, input), |taken| module.visit(taken))
}
