//! Arithmetic on the gradient of a whole model.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Gradients, Tensor};

use crate::models::statistics_dtype;
use crate::models::weights::{ParameterVisitor, visit_parameters};

/// Gradients that add up over backward passes, each of which may cover a part of a model only; in f32 at least.
#[derive(Default)]
pub struct GradientSum(GradientsParams);

impl GradientSum {
    /// Takes the gradients of the parameters that `visit` shows out of `gradients`.
    pub fn add(&mut self, gradients: &mut Gradients, visit: impl FnOnce(&mut Taking)) {
        visit(&mut Taking { sum: &mut self.0, gradients });
    }

    /// Takes the gradients of `module`'s parameters out of `gradients`.
    pub fn add_module<M: Module>(&mut self, gradients: &mut Gradients, module: &M) {
        self.add(gradients, |taking| module.visit(taking));
    }

    /// The sums by parameter so far.
    pub fn so_far(&self) -> &GradientsParams {
        &self.0
    }

    /// The sums by parameter.
    pub fn into_inner(self) -> GradientsParams {
        self.0
    }
}

/// Sees the parameters whose gradients [`GradientSum::add`] takes.
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

/// Euclidean norm of all gradients together, `[1]`, on the device; `None` if there is no gradient.
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

/// Takes the loss scale out of all gradients, and then scales them so that their global norm, known to be `norm` without
/// the loss scale, is at most `limit` (Pascanu et al. 2013, arXiv 1211.5063; PyTorch's `clip_grad_norm_`); a limit of 0 is
/// none.
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

/// `||a - b|| / ||b||` over all gradients together, in f64 on the host: the measure of the exactness contract. Infinite if a
/// parameter has a gradient on one side only.
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
                // Frozen, or a running statistic.
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
