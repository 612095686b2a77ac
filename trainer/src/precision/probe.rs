//! Finds the first value in a step that is not finite.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use crate::models::VqGan;
use crate::models::blocks::Block;
use crate::models::weights::{ParameterVisitor, visit_parameters};

/// Checks values during a step and waits for the device each time: for finding a fault, not for training.
pub struct Probe {
    names: HashMap<ParamId, String>,
    /// The loss with the largest gradient at an image so far, and the largest value of that gradient.
    largest: RefCell<Option<(String, f32)>>,
    found: RefCell<Option<Found>>,
}

/// Where the first value that is not finite appeared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    direction: Direction,
    place: String,
    dtype: DType,
    /// The loss with the largest gradient at the image, if all these gradients were finite.
    loss: Option<String>,
}

/// The direction of the pass through the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        };
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        write!(f, "the {direction} pass of {} in {dtype}", self.place)?;
        match &self.loss {
            Some(loss) => write!(f, ", where most of the gradient is that of {loss}"),
            None => Ok(()),
        }
    }
}

impl Probe {
    /// Creates a probe for steps of `model`, whose blocks it names.
    pub fn new(model: &VqGan) -> Self {
        struct Names(HashMap<ParamId, String>);
        impl ParameterVisitor for Names {
            fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, _value: Tensor<D>) {
                self.0.insert(id, name.to_owned());
            }
        }
        let mut names = Names(HashMap::new());
        visit_parameters(model, &mut names);
        Self { names: names.0, largest: RefCell::new(None), found: RefCell::new(None) }
    }

    /// Returns what was found first, if anything.
    pub fn take(&self) -> Option<Found> {
        self.largest.borrow_mut().take();
        self.found.borrow_mut().take()
    }

    /// Checks the gradient of `loss` at the images.
    pub fn loss(&self, loss: &str, at_image: &Tensor<4>) {
        self.look(Direction::Backward, || loss.to_owned(), at_image, None);
        let size = largest(at_image);
        if self.largest.borrow().as_ref().is_none_or(|(_, largest)| size > *largest) {
            *self.largest.borrow_mut() = Some((loss.to_owned(), size));
        }
    }

    /// Checks the output of `place`.
    pub fn forward<const D: usize>(&self, place: impl FnOnce() -> String, value: &Tensor<D>) {
        self.look(Direction::Forward, place, value, None);
    }

    /// Checks the gradient that `place` passes on in the backward pass.
    pub fn backward<const D: usize>(&self, place: impl FnOnce() -> String, gradient: &Tensor<D>) {
        let loss = self.largest.borrow().as_ref().map(|(loss, _)| loss.clone());
        self.look(Direction::Backward, place, gradient, loss);
    }

    /// Checks the gradients of `block`'s parameters.
    pub fn parameters(&self, block: &Block, gradients: &GradientsParams) {
        struct Look<'a>(&'a Probe, &'a GradientsParams);
        impl ModuleVisitor for Look<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let place = || self.0.names.get(&param.id).cloned().unwrap_or_default();
                if let Some(gradient) = self.1.get::<D>(param.id) {
                    self.0.backward(place, &gradient);
                }
            }
        }
        block.visit(&mut Look(self, gradients));
    }

    /// Checks the gradients of a whole module, which is reported as `place`.
    pub fn module<M: Module>(&self, place: &str, module: &M, gradients: &GradientsParams) {
        struct Look<'a>(&'a Probe, &'a str, &'a GradientsParams);
        impl ParameterVisitor for Look<'_> {
            fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, _value: Tensor<D>) {
                if let Some(gradient) = self.2.get::<D>(id) {
                    self.0.look(Direction::Backward, || format!("{} ({name})", self.1), &gradient, None);
                }
            }
        }
        visit_parameters(module, &mut Look(self, place, gradients));
    }

    /// Returns the common prefix of the names of the block's parameters.
    pub fn name(&self, block: &Block) -> String {
        struct Common<'a>(&'a HashMap<ParamId, String>, Option<Vec<&'a str>>);
        impl ModuleVisitor for Common<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(name) = self.0.get(&param.id) else { return };
                let mut path: Vec<&str> = name.split('.').collect();
                path.pop();
                self.1 = Some(match self.1.take() {
                    Some(so_far) => so_far.into_iter().zip(path).take_while(|(a, b)| a == b).map(|(a, _)| a).collect(),
                    None => path,
                });
            }
        }
        let mut common = Common(&self.names, None);
        block.visit(&mut common);
        common.1.unwrap_or_default().join(".")
    }

    fn look<const D: usize>(
        &self,
        direction: Direction,
        place: impl FnOnce() -> String,
        value: &Tensor<D>,
        loss: Option<String>,
    ) {
        if self.found.borrow().is_none() && !is_finite(value) {
            *self.found.borrow_mut() = Some(Found { direction, place: place(), dtype: value.dtype(), loss });
        }
    }
}

/// Whether all of `value` is finite; waits for the device. A value that cannot be read counts as finite: that the device has
/// failed is reported elsewhere.
fn is_finite<const D: usize>(value: &Tensor<D>) -> bool {
    let nan = value.clone().without_autodiff().contains_nan();
    largest(value).is_finite() && !nan.try_into_data().is_ok_and(|nan| nan.iter::<bool>().any(|nan| nan))
}

/// Returns the largest absolute value, or 0 if it cannot be read.
pub(super) fn largest<const D: usize>(value: &Tensor<D>) -> f32 {
    let largest = value.clone().without_autodiff().max_abs().cast(DType::F32);
    largest.try_into_vec_as::<f32>().map_or(0.0, |values| values.first().copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::models::initialize::random_weights;
    use crate::models::tests::tiny_architecture;

    fn probe() -> (VqGan, Probe) {
        let architecture = tiny_architecture();
        let model = VqGan::new(&architecture, &random_weights(&architecture, 0), &Device::flex(), DType::F32).unwrap();
        let probe = Probe::new(&model);
        (model, probe)
    }

    #[test]
    fn every_block_has_a_name_of_its_own() {
        let (model, probe) = probe();
        let blocks = model.encoder_blocks().into_iter().chain(model.decoder_blocks());
        let names: Vec<String> = blocks.map(|block| probe.name(&block)).collect();
        for name in
            ["encoder.conv_in", "encoder.down.0.block.0", "quant_conv", "decoder.mid.attn_1", "decoder.conv_out"]
        {
            assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
        }
        let different: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }

    #[test]
    fn the_first_of_several_is_the_one_that_is_named() {
        let (_, probe) = probe();
        let device = Device::flex();
        let values = |value: f32| Tensor::<1>::from_data([1.0, value, 2.0], (&device, DType::F16));
        probe.forward(|| "a".into(), &values(3.0));
        assert_eq!(probe.take(), None);
        for (wrong, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf"), (7e4, "7e4")] {
            probe.backward(|| "b".into(), &values(wrong));
            probe.forward(|| "c".into(), &values(f32::NAN));
            let found = probe.take().map(|found| found.to_string());
            assert_eq!(found.as_deref(), Some("the backward pass of b in f16"), "{shown}");
        }
    }

    #[test]
    fn an_overflow_in_a_network_is_put_down_to_the_loss_with_the_largest_gradient() {
        let (_, probe) = probe();
        let device = Device::flex();
        let at_image = |value: f32| Tensor::<4>::full([1, 3, 2, 2], value, &device);
        for _ in 0..2 {
            probe.loss("the loss pixel", &at_image(1e3));
            probe.loss("the loss perceptual", &at_image(-2e4));
            probe.loss("the loss adversarial", &at_image(1.0));
            probe.backward(|| "decoder.conv_out".into(), &at_image(f32::INFINITY));
            let found = probe.take().unwrap().to_string();
            let said = "the backward pass of decoder.conv_out in f32, where most of the gradient is that of the loss perceptual";
            assert_eq!(found, said);
        }
        probe.loss("the loss pixel", &at_image(f32::NAN));
        assert_eq!(probe.take().unwrap().to_string(), "the backward pass of the loss pixel in f32");
    }
}
