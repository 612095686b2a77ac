//! What a discriminator's logits say about real and fake images (Goodfellow et al. 2014, arXiv 1406.2661).
//!
//! Logits are `[N, 1, h, w]`, one per patch. A value is one per sample, `[N]`, the mean over its patches, in f32 at least.

use burn::tensor::Tensor;
use burn::tensor::activation::{relu, softplus};
use serde::{Deserialize, Serialize};

use crate::models::statistics_dtype;

/// The pair of losses that generator and discriminator are trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The generator's loss for the logits of its images.
    pub fn generator(self, fake: Tensor<4>) -> Tensor<1> {
        match self {
            Self::Hinge | Self::Vanilla => -per_sample(wide(fake)),
            Self::NonSaturating => per_sample(softplus(-wide(fake), 1.0)),
        }
    }

    /// The discriminator's loss, the sum of [`of_real`](Self::of_real) and [`of_fake`](Self::of_fake).
    pub fn discriminator(self, real: Tensor<4>, fake: Tensor<4>) -> Tensor<1> {
        self.of_real(real) + self.of_fake(fake)
    }

    /// The real images' part of the discriminator's loss.
    pub fn of_real(self, real: Tensor<4>) -> Tensor<1> {
        self.of_fake(-real)
    }

    /// The discriminator's loss for the logits of `kind`, per sample `[N]`, with the term of `lecam` if `weight` is not 0.
    pub fn discriminator_of(self, kind: RealOrFake, logits: Tensor<4>, lecam: &LeCam, weight: f64) -> Tensor<1> {
        let (value, term) = match kind {
            RealOrFake::Real => (self.of_real(logits.clone()), lecam.of_real(logits)),
            RealOrFake::Fake => (self.of_fake(logits.clone()), lecam.of_fake(logits)),
        };
        if weight == 0.0 { value } else { value + term * weight }
    }

    /// The generated images' part of the discriminator's loss.
    pub fn of_fake(self, fake: Tensor<4>) -> Tensor<1> {
        let per_patch = match self {
            Self::Hinge => relu(wide(fake) + 1.0),
            Self::Vanilla | Self::NonSaturating => softplus(wide(fake), 1.0),
        };
        per_sample(per_patch) * 0.5
    }
}

/// LeCam regularisation of the discriminator (Tseng et al. 2021, arXiv 2104.03310), which keeps its logits for real images
/// near the moving average of those for fake ones and the other way round, for data sets of few images.
///
/// Within an optimizer step the averages stand still, so that no sample's value depends on another's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LeCam {
    /// Moving average of the logits of real images.
    pub real: f64,
    /// Moving average of the logits of generated images.
    pub fake: f64,
    /// Share of an average that one step leaves; 0.99 in the authors' code.
    pub decay: f64,
}

impl LeCam {
    /// Averages of a discriminator that is undecided.
    pub fn new(decay: f64) -> Self {
        Self { real: 0.0, fake: 0.0, decay }
    }

    /// After a step whose logits had these means over the effective batch.
    #[must_use]
    pub fn updated(self, mean_real: f64, mean_fake: f64) -> Self {
        let blend = |average: f64, new: f64| average * self.decay + new * (1.0 - self.decay);
        Self { real: blend(self.real, mean_real), fake: blend(self.fake, mean_fake), ..self }
    }

    /// The whole term, the sum of [`of_real`](Self::of_real) and [`of_fake`](Self::of_fake).
    pub fn per_sample(self, real: Tensor<4>, fake: Tensor<4>) -> Tensor<1> {
        self.of_real(real) + self.of_fake(fake)
    }

    /// The real images' part: `relu(real - average of fake)^2`, rectified as in the authors' code.
    pub fn of_real(self, real: Tensor<4>) -> Tensor<1> {
        per_sample(relu(wide(real) - self.fake).square())
    }

    /// The generated images' part: `relu(average of real - fake)^2`.
    pub fn of_fake(self, fake: Tensor<4>) -> Tensor<1> {
        per_sample(relu(-wide(fake) + self.real).square())
    }
}

/// Each sample's mean logit, `[N]`: what [`LeCam::updated`] takes the mean of.
pub fn mean_logits(logits: Tensor<4>) -> Tensor<1> {
    per_sample(wide(logits))
}

/// The two kinds of images that a discriminator learns to tell apart.
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
