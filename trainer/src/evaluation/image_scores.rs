//! Measures how well a model reconstructs single images.

use burn::tensor::{DType, Device, Tensor};
use checkpoints::{ClipArchitecture, LpipsNetwork};
use serde::Serialize;

use super::metrics::{cosine, psnr, read};
use crate::config::Config;
use crate::losses::clip::{ClipConfig, image_encoder};
use crate::losses::load::LossError;
use crate::losses::loss::LoadImageLoss;
use crate::losses::{ImageLoss, LoadContext, PerceptualConfig, PerceptualLoss};
use crate::models::clip::{ImageEncoder, preprocess};
use crate::models::lpips::Lpips;
use crate::models::ssim::ssim;

/// The scores of one reconstruction, or the means of several.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ImageScores {
    /// Mean absolute error of a value in -1..1.
    pub error: f64,
    /// Peak signal-to-noise ratio in dB.
    pub psnr: f64,
    /// Structural similarity; `None` for images below 11 pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssim: Option<f64>,
    /// LPIPS, if there is its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<f64>,
    /// Cosine of CLIP's embeddings of image and reconstruction, if there is a CLIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl ImageScores {
    /// Returns the means of `all`; `None` if there are none.
    pub fn mean(all: &[Self]) -> Option<Self> {
        let n = all.len() as f64;
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / n;
        let optional = |of: fn(&Self) -> Option<f64>| Some(all.iter().map(of).sum::<Option<f64>>()? / n);
        (!all.is_empty()).then(|| Self {
            error: mean(|scores| scores.error),
            psnr: mean(|scores| scores.psnr),
            ssim: optional(|scores| scores.ssim),
            lpips: optional(|scores| scores.lpips),
            clip: optional(|scores| scores.clip),
        })
    }
}

/// The networks that reconstructions are measured with.
#[derive(Default)]
pub struct ImageJudges {
    lpips: Option<PerceptualLoss>,
    clip: Option<(ClipArchitecture, ImageEncoder)>,
}

impl ImageJudges {
    /// Whether LPIPS and CLIP's similarity are measured.
    pub fn measure(&self) -> [bool; 2] {
        [self.lpips.is_some(), self.clip.is_some()]
    }

    /// Loads LPIPS as `[losses.perceptual]` says. `context` is that of a run.
    ///
    /// # Errors
    /// If its weights cannot be fetched or read.
    pub fn load_lpips(&mut self, table: &PerceptualConfig, context: &LoadContext<'_>) -> Result<(), LossError> {
        self.lpips = Some(PerceptualLoss::load(table, context)?);
        Ok(())
    }

    /// Loads the image tower of the CLIP of `[clip]` onto `device`, which is without autodiff.
    ///
    /// # Errors
    /// If its weights cannot be fetched or read.
    pub fn load_clip(&mut self, table: &ClipConfig, device: &Device) -> Result<(), LossError> {
        self.clip = Some(image_encoder(table, 0, device, DType::F32)?);
        Ok(())
    }

    /// Measures a reconstruction in -1..1. Both images are `[1, 3, H, W]` on the device of the networks, without autodiff.
    ///
    /// # Errors
    /// The device's message, if it fails.
    pub fn scores(&self, original: &Tensor<4>, reconstruction: &Tensor<4>) -> Result<ImageScores, String> {
        let first = |values: Tensor<1>| Ok::<_, String>(read(values)?.first().copied().unwrap_or(f64::NAN));
        let difference = reconstruction.clone() - original.clone();
        let lpips = self.lpips.as_ref().map(|network| {
            let values = network.per_sample(original.clone().autodiff(), reconstruction.clone().autodiff());
            first(values.without_autodiff())
        });
        let clip = self.clip.as_ref().map(|(architecture, encoder)| {
            let [a, b] =
                [original, reconstruction].map(|image| encoder.forward(preprocess(image.clone(), architecture)));
            first(cosine(&a, &b))
        });
        Ok(ImageScores {
            error: first(difference.clone().abs().mean())?,
            psnr: psnr(first(difference.square().mean())?),
            ssim: ssim(original, reconstruction).map(first).transpose()?,
            lpips: lpips.transpose()?,
            clip: clip.transpose()?,
        })
    }
}

/// Whether images of `resolution` pixels are large enough for LPIPS on `network`.
pub fn is_large_enough(network: LpipsNetwork, resolution: u32) -> bool {
    resolution as usize >= Lpips::smallest_input(network)
}

/// The networks of LPIPS, first that of `config`.
pub fn lpips_networks(config: &Config) -> [LpipsNetwork; 2] {
    match config.losses.perceptual.network {
        LpipsNetwork::Vgg16 => [LpipsNetwork::Vgg16, LpipsNetwork::AlexNet],
        LpipsNetwork::AlexNet => [LpipsNetwork::AlexNet, LpipsNetwork::Vgg16],
    }
}
