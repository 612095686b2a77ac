//! Burn's Adam and AdamW over a whole model.
//!
//! The update rules are Burn's, but not its `ModuleOptimizer`. That reads saved state onto the default device, which in
//! a build with CUDA is a GPU that the machine may not have, and identifies it by numbers. Here the state is on its
//! parameter's device, and is saved under the parameter's name.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{
    Adam, AdamConfig, AdamState, AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, Optimizer,
};
use burn::tensor::{DType, Tensor, TensorData};
use checkpoints::{Dtype, HostTensor};

use super::config::{OptimizerConfig, OptimizerName};
use crate::models::weights::{ModelError, ParameterVisitor, StateDict, read_back, visit_parameters};

pub(crate) const MOMENT_1: &str = "moment_1";
pub(crate) const MOMENT_2: &str = "moment_2";
pub(crate) const TIME: &str = "time";

/// An optimizer with its state.
pub struct ModelOptimizer {
    rule: Rule,
    state: State,
}

#[derive(Clone)]
enum Rule {
    Adam(Adam),
    AdamW(AdamW),
}

/// State by parameter; `GradientsParams` is Burn's container of tensors of any rank. Moments at time 0 belong to a
/// parameter that has taken no step: they only reserve the memory for it.
#[derive(Default)]
struct State {
    moment_1: GradientsParams,
    moment_2: GradientsParams,
    time: HashMap<ParamId, usize>,
}

impl State {
    fn take<const D: usize>(&mut self, id: ParamId) -> Option<AdaptiveMomentumState<D>> {
        let time = self.time.remove(&id)?;
        Some(AdaptiveMomentumState::new(time, self.moment_1.remove(id)?, self.moment_2.remove(id)?))
    }

    fn put<const D: usize>(&mut self, id: ParamId, momentum: AdaptiveMomentumState<D>) {
        self.time.insert(id, momentum.time);
        self.moment_1.register(id, momentum.moment_1);
        self.moment_2.register(id, momentum.moment_2);
    }
}

impl Rule {
    fn step<const D: usize>(
        &self,
        learning_rate: f64,
        value: Tensor<D>,
        gradient: Tensor<D>,
        momentum: Option<AdaptiveMomentumState<D>>,
    ) -> (Tensor<D>, Option<AdaptiveMomentumState<D>>) {
        match self {
            Self::Adam(adam) => {
                let (value, state) = adam.step(learning_rate, value, gradient, momentum.map(AdamState::new));
                (value, state.map(|state| state.momentum))
            }
            Self::AdamW(adam) => {
                let (value, state) = adam.step(learning_rate, value, gradient, momentum.map(AdamWState::new));
                (value, state.map(|state| state.momentum))
            }
        }
    }
}

impl ModelOptimizer {
    /// Creates the optimizer of `config`, without state.
    pub fn new(config: &OptimizerConfig) -> Self {
        let [beta_1, beta_2] = config.betas.map(|beta| beta as f32);
        let (epsilon, decay) = (config.epsilon as f32, config.weight_decay as f32);
        let rule = match config.name {
            OptimizerName::Adam => {
                let decay = (decay > 0.0).then(|| WeightDecayConfig::new(decay));
                let adam = AdamConfig::new().with_beta_1(beta_1).with_beta_2(beta_2);
                Rule::Adam(adam.with_epsilon(epsilon).with_weight_decay(decay).build())
            }
            OptimizerName::AdamW => {
                let adam = AdamWConfig::new().with_beta_1(beta_1).with_beta_2(beta_2);
                Rule::AdamW(adam.with_epsilon(epsilon).with_weight_decay(decay).build())
            }
        };
        Self { rule, state: State::default() }
    }

    /// Allocates the moments of `model`'s trained parameters that have none yet. So a lack of memory shows before the
    /// first step changes anything.
    pub fn allocate<M: Module>(&mut self, model: &M) {
        struct Allocate<'a>(&'a mut State);
        impl ModuleVisitor for Allocate<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                if value.is_require_grad() && !self.0.time.contains_key(&param.id) {
                    let value = value.without_autodiff();
                    let zeros = || Tensor::<D>::zeros(value.dims(), (&value.device(), value.dtype()));
                    self.0.put(param.id, AdaptiveMomentumState::new(0, zeros(), zeros()));
                }
            }
        }
        model.visit(&mut Allocate(&mut self.state));
    }

    /// Updates every parameter that has a gradient; the others stay unchanged.
    #[must_use]
    pub fn step<M: Module>(&mut self, learning_rate: f64, model: M, gradients: GradientsParams) -> M {
        struct Step<'a>(&'a mut ModelOptimizer, f64, GradientsParams);
        impl ModuleMapper for Step<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let (id, value, mapper) = param.consume();
                let Some(gradient) = self.2.remove::<D>(id) else {
                    return Param::from_mapped_value(id, value, mapper);
                };
                // Frees the reserved moments before the rule creates the first ones.
                let momentum = self.0.state.take(id).filter(|momentum| momentum.time > 0);
                let (value, momentum) = self.0.rule.step(self.1, value.without_autodiff(), gradient, momentum);
                if let Some(momentum) = momentum {
                    self.0.state.put(id, momentum);
                }
                Param::from_mapped_value(id, value.autodiff().require_grad(), mapper)
            }
        }
        model.map(&mut Step(self, learning_rate, gradients))
    }

    /// Returns the state on the host: `<parameter>.moment_1`, `<parameter>.moment_2`, `<parameter>.time` (its steps).
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_dict<M: Module>(&self, model: &M) -> Result<StateDict, ModelError> {
        struct Read<'a>(&'a State, StateDict, Option<ModelError>);
        impl ParameterVisitor for Read<'_> {
            fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, _value: Tensor<D>) {
                let Some(time) = self.0.time.get(&id).filter(|time| **time > 0) else { return };
                for (moment, moments) in [(MOMENT_1, &self.0.moment_1), (MOMENT_2, &self.0.moment_2)] {
                    let Some(tensor) = moments.get::<D>(id) else { continue };
                    match read_back(tensor) {
                        Ok(tensor) => drop(self.1.insert(format!("{name}.{moment}"), tensor)),
                        Err(error) => self.2 = Some(error),
                    }
                }
                let bytes = (*time as i64).to_le_bytes().to_vec();
                self.1.insert(format!("{name}.{TIME}"), HostTensor { dtype: Dtype::I64, shape: Vec::new(), bytes });
            }
        }
        let mut read = Read(&self.state, StateDict::new(), None);
        visit_parameters(model, &mut read);
        match read.2 {
            Some(error) => Err(error),
            None => Ok(read.1),
        }
    }

    /// Loads a state that [`state_dict`](Self::state_dict) wrote, onto the device of `model`'s parameters.
    ///
    /// # Errors
    /// If one of two moments is missing or does not have its parameter's shape.
    pub fn load_state_dict<M: Module>(&mut self, model: &M, state: &StateDict) -> Result<(), ModelError> {
        struct Load<'a>(&'a mut State, &'a StateDict, Option<ModelError>);
        impl Load<'_> {
            fn momentum<const D: usize>(
                &self,
                name: &str,
                value: &Tensor<D>,
            ) -> Result<Option<AdaptiveMomentumState<D>>, ModelError> {
                let entry = |part: &str| {
                    let key = format!("{name}.{part}");
                    self.1.get(&key).ok_or(ModelError::Missing(key))
                };
                let Ok(time) = entry(TIME) else { return Ok(None) };
                let time = time.bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
                let moment = |part: &str| {
                    let host = entry(part)?;
                    if host.shape != value.dims() {
                        let shapes = format!("{:?}, its parameter has {:?}", host.shape, value.dims());
                        return Err(ModelError::Shape { name: format!("{name}.{part}"), shapes });
                    }
                    let data = TensorData::new(host.to_f32(), host.shape.clone());
                    Ok(Tensor::<D>::from_data(data, (&value.device(), DType::F32)))
                };
                Ok(Some(AdaptiveMomentumState::new(time as usize, moment(MOMENT_1)?, moment(MOMENT_2)?)))
            }
        }
        impl ParameterVisitor for Load<'_> {
            fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, value: Tensor<D>) {
                match self.momentum(name, &value) {
                    Ok(Some(momentum)) => self.0.put(id, momentum),
                    Ok(None) => {}
                    Err(error) => self.2 = Some(error),
                }
            }
        }
        let mut load = Load(&mut self.state, state, None);
        visit_parameters(model, &mut load);
        load.2.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::ModuleOptimizer;
    use burn::tensor::Device;

    use super::*;

    fn gradients(layer: &Linear, step: usize) -> GradientsParams {
        let input = Tensor::<2>::full([2, 3], 0.3 + step as f64, &Device::flex()).autodiff();
        GradientsParams::from_grads(layer.forward(input).square().mean().backward(), layer)
    }

    fn values(layer: &Linear) -> Vec<f32> {
        layer.weight.val().into_data().try_into_vec().unwrap()
    }

    fn both(name: OptimizerName) -> (ModelOptimizer, ModuleOptimizer) {
        let config =
            OptimizerConfig { name, betas: [0.8, 0.95], epsilon: 1e-6, weight_decay: 0.1, ..Default::default() };
        let reference = match name {
            OptimizerName::Adam => AdamConfig::new()
                .with_beta_1(0.8)
                .with_beta_2(0.95)
                .with_epsilon(1e-6)
                .with_weight_decay(Some(WeightDecayConfig::new(0.1)))
                .init(),
            OptimizerName::AdamW => {
                AdamWConfig::new().with_beta_1(0.8).with_beta_2(0.95).with_epsilon(1e-6).with_weight_decay(0.1).init()
            }
        };
        (ModelOptimizer::new(&config), reference)
    }

    #[test]
    fn steps_are_those_of_burns_own_optimizer_also_after_a_save() {
        let device = Device::flex().autodiff();
        for name in [OptimizerName::Adam, OptimizerName::AdamW] {
            let (mut ours, mut reference) = both(name);
            let start = LinearConfig::new(3, 2).init(&device);
            let (mut a, mut b) = (start.clone(), start.clone());
            ours.allocate(&a);
            assert!(ours.state_dict(&a).unwrap().is_empty());
            for step in 0..4 {
                if step == 2 {
                    let saved = ours.state_dict(&a).unwrap();
                    ours = both(name).0;
                    ours.load_state_dict(&a, &saved).unwrap();
                    ours.allocate(&a);
                }
                (a, b) = {
                    let (grad_a, grad_b) = (gradients(&a, step), gradients(&b, step));
                    (ours.step(0.01, a, grad_a), reference.step(0.01, b, grad_b))
                };
            }
            assert_eq!(values(&a), values(&b));
            assert_ne!(values(&a), values(&start));
        }
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let device = Device::flex().autodiff();
        let (mut ours, _) = both(OptimizerName::Adam);
        let layer = LinearConfig::new(3, 2).init(&device);
        let grad = gradients(&layer, 0);
        let layer = ours.step(0.01, layer, grad);
        let saved = ours.state_dict(&layer).unwrap();
        let other = LinearConfig::new(4, 2).init(&device);
        assert!(both(OptimizerName::Adam).0.load_state_dict(&other, &saved).is_err());
    }
}
