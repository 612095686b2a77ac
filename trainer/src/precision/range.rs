//! Checks whether f16 is wide enough for a model.

use burn::tensor::Tensor;

use super::probe::{Probe, largest};
use crate::models::VqGan;
use crate::models::blocks::Block;

/// The largest finite f16.
const LARGEST_F16: f32 = 65_504.0;

/// Images differ and weights change, so a value above this limit is likely to exceed f16's range during a run.
const SAFE_LIMIT: f32 = LARGEST_F16 / 4.0;

/// The largest absolute output of a model's blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Range {
    /// The block, by the name of its parameters.
    pub place: String,
    /// The value.
    pub largest: f32,
}

impl Range {
    /// Runs `images`, `[N, 3, H, W]` in -1..1, through `model`, which computes in f32 and is without autodiff. Waits
    /// for the device after each block.
    pub fn of(model: &VqGan, images: Tensor<4>) -> Self {
        let probe = Probe::new(model);
        let mut range = Self { place: String::new(), largest: 0.0 };
        let mut through = |x: Tensor<4>, block: &Block| {
            let output = block.forward(x);
            let largest = largest(&output);
            if largest.is_nan() || largest > range.largest {
                range = Self { place: probe.name(block), largest };
            }
            output
        };
        let latent = model.encoder_blocks().iter().fold(images, &mut through);
        let quantized = model.quantize(latent).latent;
        model.decoder_blocks().iter().fold(quantized, through);
        range
    }

    /// Whether f16 holds the value with a margin.
    pub fn fits_f16(&self) -> bool {
        self.largest <= SAFE_LIMIT
    }

    /// Returns the advice for a user of fp16 whose model does not fit; `other` is the precision to use instead.
    pub fn advice(&self, other: &str) -> String {
        let Self { place, largest } = self;
        format!(
            "values of {place} reach {largest:.0}, and fp16 ends at {LARGEST_F16}: precision.compute = \"{other}\" is better here"
        )
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};
    use checkpoints::HostTensor;

    use super::*;
    use crate::models::initialize::random_weights;
    use crate::models::tests::tiny_architecture;

    /// Measures a model whose parameter `name` has `value` everywhere.
    fn range(name: &str, value: f32) -> Range {
        let architecture = tiny_architecture();
        let mut weights = random_weights(&architecture, 0);
        let bias = weights.get_mut(name).unwrap();
        *bias = HostTensor::from_f32(&bias.shape, &vec![value; bias.len()]);
        let device = Device::flex();
        let model = VqGan::new(&architecture, &weights, &device, DType::F32).unwrap();
        Range::of(&model, Tensor::random([1, 3, 16, 16], Distribution::Uniform(-1.0, 1.0), &device))
    }

    #[test]
    fn a_block_that_leaves_too_little_of_f16_is_named() {
        let small = range("decoder.conv_in.bias", 1.0);
        assert!(small.fits_f16(), "{small:?}");
        for value in [3e4, 1e6] {
            let large = range("decoder.conv_in.bias", value);
            assert!(!large.fits_f16(), "{large:?}");
            assert!(large.place.starts_with("decoder."), "{large:?}");
            assert!(large.largest >= value * 0.9, "{large:?}");
        }
        let at_the_end = range("decoder.conv_out.bias", 2e4);
        assert_eq!(at_the_end.place, "decoder.conv_out");
        let said = at_the_end.advice("bf16");
        assert!(said.starts_with("values of decoder.conv_out reach 20"), "{said}");
    }
}
