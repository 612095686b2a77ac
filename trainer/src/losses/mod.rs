//! What a model is trained for. A loss is one file; [`Losses`] is what the engine sees of all of them.

pub mod adversarial;
pub mod clip;
mod codebook;
mod perceptual;
mod pixel;

pub use codebook::{CodebookLoss, EntropyCoupling, EntropyGradient, sum_probabilities};
pub use perceptual::PerceptualLoss;
pub use pixel::{PixelLoss, PixelNorm};

use burn::tensor::Tensor;
use checkpoints::Quantizer;

use crate::config::{LossesConfig, PixelNormConfig};

/// A loss that sees nothing but images, so that its gradient can be taken at the image and its graph freed before the
/// next loss begins.
pub trait ImageLoss: Send {
    /// Its key in the configuration and in metrics.
    fn name(&self) -> &'static str;

    /// Value for each sample, `[N]`, of `reconstruction` given `original`, both `[N, 3, H, W]` in -1..1.
    ///
    /// No sample's value may depend on another sample: the batch is cut anywhere.
    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1>;
}

/// When and how strongly a loss counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight {
    /// The weight once it is fully on.
    pub value: f64,
    /// First optimizer step at which it counts.
    pub start: u64,
    /// Number of optimizer steps over which it grows from nothing to `value`.
    pub ramp: u64,
}

impl Weight {
    /// A weight that counts from the first step.
    pub fn constant(value: f64) -> Self {
        Self { value, start: 0, ramp: 0 }
    }

    /// The weight at an optimizer step, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        match step.checked_sub(self.start) {
            None => 0.0,
            Some(since) if since < self.ramp => self.value * (since + 1) as f64 / (self.ramp + 1) as f64,
            Some(_) => self.value,
        }
    }
}

/// All losses of a run.
pub struct Losses {
    /// The losses that see the image alone.
    pub image: Vec<(Weight, Box<dyn ImageLoss>)>,
    /// The loss that sees the latents.
    pub codebook: (Weight, CodebookLoss),
}

impl Losses {
    /// Whether a loss couples the samples of an effective batch, so that a step needs two passes.
    pub fn are_coupled(&self) -> bool {
        self.codebook.1.is_coupled()
    }

    /// The losses of `config`; what it leaves open about the codebook is as `quantizer`'s checkpoint was trained.
    pub fn new(config: &LossesConfig, quantizer: &Quantizer) -> Self {
        let pixel = &config.pixel;
        let norm = match pixel.norm {
            PixelNormConfig::L1 => PixelNorm::L1,
            PixelNormConfig::L2 => PixelNorm::L2,
            PixelNormConfig::Mix => PixelNorm::Mix { l1: pixel.mix },
        };
        let pixel_weight = Weight { value: pixel.weight, start: pixel.start, ramp: pixel.ramp };
        let codebook = &config.codebook;
        let codebook_loss = CodebookLoss {
            beta: codebook.beta.unwrap_or(quantizer.beta),
            legacy: codebook.legacy.unwrap_or(quantizer.legacy_beta),
            entropy: codebook.entropy.unwrap_or(quantizer.entropy_ratio),
        };
        let codebook_weight = Weight { value: codebook.weight, start: codebook.start, ramp: codebook.ramp };
        Self { image: vec![(pixel_weight, Box::new(PixelLoss(norm)))], codebook: (codebook_weight, codebook_loss) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_starts_ramps_and_stays() {
        let weight = Weight { value: 2.0, start: 3, ramp: 3 };
        let at: Vec<f64> = (0..9).map(|step| weight.at(step)).collect();
        assert_eq!(at, [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
    }
}
