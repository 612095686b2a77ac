//! Losses of a discriminator's logits for real and fake images (Goodfellow et al. 2014, arXiv 1406.2661).
//!
//! Logits are `[N, 1, h, w]`, one per patch. A value per sample, `[N]`, is the mean over patches, in f32 at least.

use burn::tensor::Tensor;
use burn::tensor::activation::{relu, softplus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::models::statistics_dtype;

/// The pair of losses for training generator and discriminator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GanLoss {
    /// Margins for the discriminator, the logit itself for the generator (Lim and Ye 2017, arXiv 1705.02894).
    Hinge,
    /// Cross-entropy for the discriminator, the logit itself for the generator: taming's `vanilla`.
    Vanilla,
    /// Cross-entropy for both (Goodfellow et al. 2014, section 3).
    NonSaturating,
}

impl GanLoss {
    /// Returns the generator's loss for the logits of its images.
    pub fn generator(self, fake: Tensor<4>) -> Tensor<1> {
        match self {
            Self::Hinge | Self::Vanilla => -per_sample(wide(fake)),
            Self::NonSaturating => per_sample(softplus(-wide(fake), 1.0)),
        }
    }

    /// Returns the discriminator's loss, the sum of [`of_real`](Self::of_real) and [`of_fake`](Self::of_fake).
    pub fn discriminator(self, real: Tensor<4>, fake: Tensor<4>) -> Tensor<1> {
        self.of_real(real) + self.of_fake(fake)
    }

    /// Returns the real images' part of the discriminator's loss.
    pub fn of_real(self, real: Tensor<4>) -> Tensor<1> {
        self.of_fake(-real)
    }

    /// Returns the discriminator's loss for the logits of `kind`, `[N]`, plus the `lecam` term if `weight` is not 0.
    pub fn discriminator_of(self, kind: RealOrFake, logits: Tensor<4>, lecam: &LeCam, weight: f64) -> Tensor<1> {
        let (value, term) = match kind {
            RealOrFake::Real => (self.of_real(logits.clone()), lecam.of_real(logits)),
            RealOrFake::Fake => (self.of_fake(logits.clone()), lecam.of_fake(logits)),
        };
        if weight == 0.0 { value } else { value + term * weight }
    }

    /// Returns the fake images' part of the discriminator's loss.
    pub fn of_fake(self, fake: Tensor<4>) -> Tensor<1> {
        let per_patch = match self {
            Self::Hinge => relu(wide(fake) + 1.0),
            Self::Vanilla | Self::NonSaturating => softplus(wide(fake), 1.0),
        };
        per_sample(per_patch) * 0.5
    }
}

/// LeCam regularisation of the discriminator (Tseng et al. 2021, arXiv 2104.03310), for data sets of few images. It
/// keeps the logits of real images near the moving average of those of fake images, and vice versa.
///
/// The averages do not change within an optimizer step, so no sample's value depends on another's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LeCam {
    /// Moving average of the logits of real images.
    pub real: f64,
    /// Moving average of the logits of fake images.
    pub fake: f64,
    /// Share of an average that one step keeps; 0.99 in the authors' code.
    pub decay: f64,
}

impl LeCam {
    /// Starts with the averages of a discriminator that is undecided.
    pub fn new(decay: f64) -> Self {
        Self { real: 0.0, fake: 0.0, decay }
    }

    /// Returns the averages after a step with these mean logits over the effective batch.
    #[must_use]
    pub fn updated(self, mean_real: f64, mean_fake: f64) -> Self {
        let blend = |average: f64, new: f64| average * self.decay + new * (1.0 - self.decay);
        Self { real: blend(self.real, mean_real), fake: blend(self.fake, mean_fake), ..self }
    }

    /// Returns the whole term, the sum of [`of_real`](Self::of_real) and [`of_fake`](Self::of_fake).
    pub fn per_sample(self, real: Tensor<4>, fake: Tensor<4>) -> Tensor<1> {
        self.of_real(real) + self.of_fake(fake)
    }

    /// Returns the real images' part: `relu(real - average of fake)^2`, rectified as in the authors' code.
    pub fn of_real(self, real: Tensor<4>) -> Tensor<1> {
        per_sample(relu(wide(real) - self.fake).square())
    }

    /// Returns the fake images' part: `relu(average of real - fake)^2`.
    pub fn of_fake(self, fake: Tensor<4>) -> Tensor<1> {
        per_sample(relu(-wide(fake) + self.real).square())
    }
}

/// Returns each sample's mean logit, `[N]`; [`LeCam::updated`] takes the mean of these.
pub fn mean_logits(logits: Tensor<4>) -> Tensor<1> {
    per_sample(wide(logits))
}

/// The two kinds of images that a discriminator learns to distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealOrFake {
    /// Originals.
    Real,
    /// Reconstructions.
    Fake,
}

fn wide(logits: Tensor<4>) -> Tensor<4> {
    let dtype = statistics_dtype(logits.dtype());
    logits.cast(dtype)
}

fn per_sample(per_patch: Tensor<4>) -> Tensor<1> {
    let [n, c, h, w] = per_patch.dims();
    per_patch.reshape([n, c * h * w]).mean_dim(1).reshape([n])
}
