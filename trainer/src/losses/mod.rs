//! What a model is trained for. A loss is one file; [`Losses`] is what the engine sees of all of them.

mod adversarial;
pub mod clip;
mod codebook;
mod gumbel;
pub mod load;
mod perceptual;
mod pixel;

pub use adversarial::{Adversarial, AdversarialState, GanLoss, Half, LeCam, adaptive_weight, mean_logits};
pub use clip::{ClipEmbeddings, ClipGuidance, ContrastiveCoupling};
pub use codebook::{CodebookLoss, EntropyCoupling, EntropyGradient, NearestLoss, sum_probabilities};
pub use gumbel::{GumbelLoss, divergence};
pub use perceptual::PerceptualLoss;
pub use pixel::{PixelLoss, PixelNorm};

use burn::tensor::Tensor;

use crate::engine::StepSettings;

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

/// A micro-batch as the losses of images see it.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// The optimizer step, counted from 0.
    pub step: u64,
    /// What a sample counts in the mean over the effective batch.
    pub per_sample: f64,
    /// What a gradient at the reconstruction is multiplied with.
    pub loss_scale: f64,
    /// The originals, `[n, 3, H, W]` in -1..1, in f32 at least and without autodiff.
    pub original: Tensor<4>,
    /// The reconstructions, `[n, 3, H, W]`, likewise.
    pub reconstruction: Tensor<4>,
    /// Index of the first sample in the effective batch.
    pub first: usize,
    /// Each sample's position in the training stream: the key of its randomness.
    pub draws: &'a [u64],
    /// What each sample shows, where that is known.
    pub captions: &'a [Option<String>],
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
    /// The loss that a discriminator gives.
    pub adversarial: Option<Adversarial>,
    /// The losses that CLIP gives.
    pub clip: Option<ClipGuidance>,
}

impl Losses {
    /// Whether the entropy term counts in a step.
    pub fn entropy_couples(&self, step: u64) -> bool {
        let (weight, loss) = &self.codebook;
        weight.at(step) != 0.0 && loss.is_coupled()
    }

    /// Whether a loss couples the samples of an effective batch in this step, so that it needs two passes.
    pub fn are_coupled(&self, settings: &StepSettings<'_>) -> bool {
        let adversarial = self.adversarial.as_ref().filter(|loss| loss.weight.at(settings.step) != 0.0);
        self.entropy_couples(settings.step)
            || adversarial.is_some_and(|loss| loss.needs_first_pass(&settings.adversarial))
            || self.clip.as_ref().is_some_and(|clip| clip.is_coupled(settings.step))
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
