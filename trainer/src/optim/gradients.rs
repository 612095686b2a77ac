//! Arithmetic on the gradient of a whole model.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Gradients, Tensor};

use crate::models::statistics_dtype;
use crate::models::weights::{ParameterVisitor, visit_parameters};

/// Sums gradients over backward passes, each of which may cover only a part of a model; in f32 at least.
#[derive(Default)]
pub struct GradientSum(GradientsParams);

impl GradientSum {
    /// Moves the gradients of the parameters that `visit` visits out of `gradients` and adds them.
    pub fn add(&mut self, gradients: &mut Gradients, visit: impl FnOnce(&mut Taking)) {
        visit(&mut Taking { sum: &mut self.0, gradients });
    }

    /// Moves the gradients of `module`'s parameters out of `gradients` and adds them.
    pub fn add_module<M: Module>(&mut self, gradients: &mut Gradients, module: &M) {
        self.add(gradients, |taking| module.visit(taking));
    }

    /// The sums by parameter so far.
    pub fn so_far(&self) -> &GradientsParams {
        &self.0
    }

    /// Returns the sums by parameter of `module`. A sum that f16 cannot hold becomes infinite if its parameter is in
    /// f16, because a single pass over the whole batch would have given infinity. So whether a step overflows does not
    /// depend on the number of passes, whose partial sums are smaller.
    pub fn into_gradients<M: Module>(mut self, module: &M) -> GradientsParams {
        module.visit(&mut OverflowAsHeld(&mut self.0));
        self.0
    }
}

/// From this value on f16 rounds to infinity.
const BEYOND_F16: f64 = 65_520.0;

/// Returns `sum`, or infinity where `narrow` is f16 and cannot hold it.
pub fn overflow_as<const D: usize>(sum: Tensor<D>, narrow: DType) -> Tensor<D> {
    if narrow != DType::F16 {
        return sum;
    }
    let beyond = sum.clone().abs().greater_equal_elem(BEYOND_F16);
    sum.mask_fill(beyond, f64::INFINITY)
}

struct OverflowAsHeld<'a>(&'a mut GradientsParams);

impl ModuleVisitor for OverflowAsHeld<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.val().dtype() != DType::F16 {
            return;
        }
        if let Some(sum) = self.0.remove::<D>(param.id) {
            self.0.register(param.id, overflow_as(sum, DType::F16));
        }
    }
}

/// Visits the parameters whose gradients [`GradientSum::add`] takes.
pub struct Taking<'a> {
    sum: &'a mut GradientsParams,
    gradients: &'a mut Gradients,
}

impl ModuleVisitor for Taking<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
        let wide = statistics_dtype(gradient.dtype());
        let gradient = gradient.cast(wide);
        let sum = match self.sum.remove::<D>(param.id) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.sum.register(param.id, sum);
    }
}

/// Adds two gradients of `model`, either of which may lack some of its parameters.
pub fn add_gradients<M: Module>(model: &M, a: GradientsParams, b: GradientsParams) -> GradientsParams {
    struct Add(GradientsParams, GradientsParams);
    impl ParameterVisitor for Add {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            let Some(b) = self.1.remove::<D>(id) else { return };
            let sum = match self.0.remove::<D>(id) {
                Some(a) => a + b,
                None => b,
            };
            self.0.register(id, sum);
        }
    }
    let mut add = Add(a, b);
    visit_parameters(model, &mut add);
    add.0
}

/// Returns the Euclidean norm of all gradients together, `[1]`, on the device; `None` if there is no gradient.
pub fn global_norm<M: Module>(model: &M, gradients: &GradientsParams) -> Option<Tensor<1>> {
    struct SumOfSquares<'a>(&'a GradientsParams, Option<Tensor<1>>);
    impl ParameterVisitor for SumOfSquares<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            if let Some(gradient) = self.0.get::<D>(id) {
                let square = gradient.square().sum();
                self.1 = Some(match self.1.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    let mut sum = SumOfSquares(gradients, None);
    visit_parameters(model, &mut sum);
    sum.1.map(Tensor::sqrt)
}

/// Returns the Euclidean norm of each parameter's gradient, grouped by the parameters' blocks (`encoder.down.0`). Reads
/// them from the device in one transfer.
///
/// # Errors
/// The device's error, if it failed.
pub fn norms_by_block<M: Module>(model: &M, gradients: &GradientsParams) -> Result<BTreeMap<String, Vec<f64>>, String> {
    struct Squares<'a>(&'a GradientsParams, Vec<String>, Vec<Tensor<1>>);
    impl ParameterVisitor for Squares<'_> {
        fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, _value: Tensor<D>) {
            if let Some(gradient) = self.0.get::<D>(id) {
                self.1.push(block(name).to_owned());
                self.2.push(gradient.square().sum());
            }
        }
    }
    let mut squares = Squares(gradients, Vec::new(), Vec::new());
    visit_parameters(model, &mut squares);
    let Squares(_, blocks, squares) = squares;
    let mut norms = BTreeMap::<String, Vec<f64>>::new();
    if !squares.is_empty() {
        let squares = Tensor::cat(squares, 0).try_into_data().map_err(|error| error.to_string())?.convert::<f64>();
        for (block, square) in blocks.into_iter().zip(squares.iter::<f64>()) {
            norms.entry(block).or_default().push(square.sqrt());
        }
    }
    Ok(norms)
}

/// Returns the first two parts of a parameter's name, and a number that follows them.
fn block(name: &str) -> &str {
    let mut ends = name.match_indices('.').map(|(end, _)| end).chain([name.len()]).skip(1);
    let Some(end) = ends.next() else { return name };
    match ends.next() {
        Some(next) if name[end + 1..next].parse::<usize>().is_ok() => &name[..next],
        _ => &name[..end],
    }
}

/// Divides all gradients by the loss scale, then scales them so that their global norm is at most `limit` (Pascanu et
/// al. 2013, arXiv 1211.5063; PyTorch's `clip_grad_norm_`). `norm` excludes the loss scale; a limit of 0 does not clip.
pub fn unscale_and_clip<M: Module>(
    model: &M,
    gradients: GradientsParams,
    loss_scale: f64,
    norm: f64,
    limit: f64,
) -> GradientsParams {
    struct Scale(GradientsParams, GradientsParams, f64);
    impl ParameterVisitor for Scale {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            if let Some(gradient) = self.0.remove::<D>(id) {
                self.1.register(id, gradient * self.2);
            }
        }
    }
    let clip = if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let factor = clip / loss_scale;
    if factor == 1.0 {
        return gradients;
    }
    let mut scale = Scale(gradients, GradientsParams::new(), factor);
    visit_parameters(model, &mut scale);
    scale.1
}

/// Returns `||a - b|| / ||b||` over all gradients together, in f64 on the host: the measure of the exactness contract.
/// It is infinite if a parameter has a gradient on one side only.
pub fn relative_deviation<M: Module>(model: &M, a: &GradientsParams, b: &GradientsParams) -> f64 {
    struct Compare<'a> {
        a: &'a GradientsParams,
        b: &'a GradientsParams,
        difference: f64,
        reference: f64,
    }
    impl ParameterVisitor for Compare<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            let read = |gradients: &GradientsParams| -> Option<Vec<f64>> {
                gradients.get::<D>(id)?.cast(DType::F64).into_data().try_into_vec().ok()
            };
            let (a, b) = match (read(self.a), read(self.b)) {
                (Some(a), Some(b)) => (a, b),
                // A frozen parameter or a running statistic.
                (None, None) => return,
                _ => {
                    self.difference = f64::INFINITY;
                    return;
                }
            };
            self.difference += a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            self.reference += b.iter().map(|b| b.powi(2)).sum::<f64>();
        }
    }
    let mut compare = Compare { a, b, difference: 0.0, reference: 0.0 };
    visit_parameters(model, &mut compare);
    (compare.difference / compare.reference).sqrt()
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::Device;

    use super::*;
    use crate::precision::compute_copy;

    #[test]
    fn a_block_is_named_by_two_parts_and_a_number() {
        for (name, expected) in [
            ("encoder.down.0.block.1.conv1.weight", "encoder.down.0"),
            ("encoder.conv_in.weight", "encoder.conv_in"),
            ("decoder.mid.attention.q.bias", "decoder.mid"),
            ("quantize.embedding", "quantize.embedding"),
            ("blocks.3", "blocks.3"),
            ("weight", "weight"),
        ] {
            assert_eq!(block(name), expected);
        }
    }

    /// Two passes with 40,000 each are finite in f16, but one with their sum is not.
    #[test]
    fn a_sum_that_f16_cannot_hold_overflows_in_however_many_passes() {
        let device = Device::flex().autodiff();
        for (dtype, expected) in [(DType::F16, true), (DType::BF16, false), (DType::F32, false)] {
            let layer = LinearConfig::new(1, 1).with_bias(false).init(&device);
            let layer = compute_copy(&layer, dtype);
            let sum = |passes: &[f32]| {
                let mut sum = GradientSum::default();
                for value in passes {
                    let input = Tensor::<2>::from_floats([[*value]], &device).cast(dtype);
                    sum.add_module(&mut layer.forward(input).sum().backward(), &layer);
                }
                let norm = global_norm(&layer, &sum.into_gradients(&layer)).unwrap();
                norm.into_data().iter::<f64>().next().unwrap()
            };
            assert_eq!(sum(&[4e4, 4e4]).is_infinite(), expected, "{dtype:?}");
            assert!((sum(&[3e4, 3e4]) / 6e4 - 1.0).abs() < 1e-2, "{dtype:?}");
        }
    }

    #[test]
    fn norms_of_the_parameters_make_up_the_global_norm() {
        let device = Device::flex().autodiff();
        let layer = LinearConfig::new(3, 2).init(&device);
        let input = Tensor::<2>::from_floats([[3.0, 0.0, 4.0]], &device);
        let gradients = GradientsParams::from_grads(layer.forward(input).sum().backward(), &layer);
        let norms = norms_by_block(&layer, &gradients).unwrap();
        // The input twice, and 1 for each of the two outputs.
        let expected = [("bias", 2f64.sqrt()), ("weight", 50f64.sqrt())];
        for ((block, norms), (name, norm)) in norms.iter().zip(expected) {
            assert_eq!(block, name);
            assert_eq!(norms.len(), 1);
            assert!((norms[0] - norm).abs() < 1e-6, "{block}: {norms:?}");
        }
        assert_eq!(norms.len(), 2);
        let global: f64 = global_norm(&layer, &gradients).unwrap().into_scalar();
        assert!((global - 52f64.sqrt()).abs() < 1e-6);
        assert!(norms_by_block(&layer, &GradientsParams::new()).unwrap().is_empty());
    }
}
