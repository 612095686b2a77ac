//! A moving average of the weights (Polyak and Juditsky 1992), which validates better than the weights themselves.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::models::weights::{ParameterVisitor, visit_parameters};

/// The average of a model's weights over its steps.
#[derive(Debug, Clone)]
pub struct Ema<M> {
    average: M,
    decay: f64,
}

impl<M: Module> Ema<M> {
    /// Resumes from `average`, without autodiff: a saved average, or a copy of the weights that a run starts from. The
    /// copy needs memory of its own, otherwise the first update allocates it.
    pub fn new(average: M, decay: f64) -> Self {
        Self { average, decay }
    }

    /// The averaged model, without autodiff.
    pub fn model(&self) -> &M {
        &self.average
    }

    /// Moves the average towards `model`'s weights after optimizer step `step`, counted from 0. Early steps keep less
    /// than `decay`, so that the start fades: at most `(1 + step) / (10 + step)`, as in TensorFlow's moving average.
    #[must_use]
    pub fn updated(self, model: &M, step: u64) -> Self {
        /// Tensors of any rank by parameter, for which `GradientsParams` serves as the container.
        struct Collect(GradientsParams);
        impl ParameterVisitor for Collect {
            fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, value: Tensor<D>) {
                self.0.register(id, value);
            }
        }
        struct Blend(GradientsParams, f64);
        impl ModuleMapper for Blend {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let (id, old, mapper) = param.consume();
                // Adds the difference, so that a frozen parameter keeps its value to the last bit.
                let blended = match self.0.remove::<D>(id) {
                    Some(new) => old.clone() + (new - old) * (1.0 - self.1),
                    None => old,
                };
                Param::from_mapped_value(id, blended, mapper)
            }
        }
        let mut weights = Collect(GradientsParams::new());
        visit_parameters(model, &mut weights);
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        Self { average: self.average.map(&mut Blend(weights.0, decay)), decay: self.decay }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    /// The same parameter with another value.
    fn constant(layer: &Linear, value: f64) -> Linear {
        let mut layer = layer.clone();
        layer.weight = layer.weight.map(|weight| weight.full_like(value).require_grad());
        layer
    }

    fn value(layer: &Linear) -> f32 {
        layer.weight.val().into_data().try_into_vec::<f32>().unwrap()[0]
    }

    #[test]
    fn a_late_step_keeps_the_decay_and_an_early_one_less() {
        let layer = LinearConfig::new(1, 1).with_bias(false).init(&Device::flex().autodiff());
        let (one, two) = (constant(&layer, 1.0), constant(&layer, 2.0));
        let late = Ema::new(one.valid(), 0.9).updated(&two, 1000);
        assert!((value(late.model()) - 1.1).abs() < 1e-6, "{}", value(late.model()));
        let early = Ema::new(one.valid(), 0.9).updated(&two, 0);
        assert!((value(early.model()) - 1.9).abs() < 1e-6, "{}", value(early.model()));
    }

    #[test]
    fn what_does_not_move_has_itself_as_its_average() {
        let layer = LinearConfig::new(1, 1).with_bias(false).init(&Device::flex().autodiff());
        for frozen in [0.1, -0.3, 1.7, 1e-7] {
            let layer = constant(&layer, frozen);
            let average = (0..50).fold(Ema::new(layer.valid(), 0.9), |average, step| average.updated(&layer, step));
            assert_eq!(value(average.model()), frozen as f32);
        }
    }
}
