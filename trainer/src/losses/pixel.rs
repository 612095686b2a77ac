//! Difference of pixels: mean absolute error, mean squared error, or a mix of both.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load::LossError;
use super::loss::{ImageLoss, LoadContext, LoadImageLoss, Sees, Surroundings};
use super::table::{LossTable, loss_table};
use crate::problem::{Problem, problem, share};

loss_table! {
    /// `[losses.pixel]`: the difference of the pixels.
    pixel: PixelConfig, weight = 1.0,
    /// The norm of the difference.
    norm: PixelNorm = PixelNorm::L1,
    /// Share of `l1` in `mix`, 0..1.
    #[schemars(range(min = 0.0, max = 1.0))]
    mix: f64 = 0.5,
}

/// The norm of a difference of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PixelNorm {
    /// Mean absolute error, as taming and latent-diffusion train with.
    L1,
    /// Mean squared error.
    L2,
    /// `mix * L1 + (1 - mix) * L2`.
    Mix,
}

impl LossTable for PixelConfig {
    fn sees(&self) -> Sees {
        Sees::Images
    }

    fn check(&self, _around: &Surroundings) -> Result<(), Problem> {
        share("losses.pixel.mix", self.mix)?;
        if self.norm != PixelNorm::Mix && self.mix != Self::default().mix {
            return problem("losses.pixel.mix", "has no effect: it needs losses.pixel.norm = \"mix\"");
        }
        Ok(())
    }
}

/// The loss `pixel`.
#[derive(Debug, Clone, Copy)]
pub struct PixelLoss {
    /// The norm of the difference.
    pub norm: PixelNorm,
    /// Share of L1 in [`PixelNorm::Mix`], 0..1.
    pub mix: f64,
}

impl ImageLoss for PixelLoss {
    fn name(&self) -> &'static str {
        "pixel"
    }

    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        let [n, c, h, w] = original.dims();
        let difference = (reconstruction - original).reshape([n, c * h * w]);
        let l1 = |d: Tensor<2>| d.abs().mean_dim(1).reshape([n]);
        let l2 = |d: Tensor<2>| d.square().mean_dim(1).reshape([n]);
        match self.norm {
            PixelNorm::L1 => l1(difference),
            PixelNorm::L2 => l2(difference),
            PixelNorm::Mix => l1(difference.clone()) * self.mix + l2(difference) * (1.0 - self.mix),
        }
    }
}

impl LoadImageLoss for PixelLoss {
    type Table = PixelConfig;

    const METRIC: (&'static str, &'static str) = ("pixel", "loss/pixel");

    fn load(table: &PixelConfig, _context: &LoadContext<'_>) -> Result<Self, LossError> {
        Ok(Self { norm: table.norm, mix: table.mix })
    }

    fn example() -> Option<Self> {
        Some(Self { norm: PixelNorm::Mix, mix: 0.5 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn each_norm_is_the_mean_over_a_samples_pixels() {
        let device = Device::flex();
        let original = Tensor::<4>::zeros([2, 1, 1, 2], &device);
        let reconstruction = Tensor::<4>::from_data([[[[1.0, -3.0]]], [[[0.5, 0.5]]]], &device);
        let value = |norm| {
            let loss = PixelLoss { norm, mix: 0.5 }.per_sample(original.clone(), reconstruction.clone());
            loss.into_data_as::<f32>().try_to_vec::<f32>().unwrap()
        };
        assert_eq!(value(PixelNorm::L1), [2.0, 0.5]);
        assert_eq!(value(PixelNorm::L2), [5.0, 0.25]);
        assert_eq!(value(PixelNorm::Mix), [3.5, 0.375]);
    }
}
