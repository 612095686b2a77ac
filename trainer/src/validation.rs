//! How well a model reconstructs pictures that it was not trained on.

use burn::tensor::{DType, Device, Tensor};
use datasets::{DataError, Loader, ValidationSet};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::data::to_pixels;
use crate::engine::MicroBatch;
use crate::models::VqGan;
use crate::models::quantizer::{CodebookUse, count_codes};
use crate::models::statistics_dtype;

/// Figures of one validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Pictures that were looked at.
    pub images: usize,
    /// Mean absolute error of a value in -1..1.
    pub l1: f64,
    /// Peak signal-to-noise ratio in dB, mean over the pictures.
    pub psnr: f64,
    /// Share of the codes that occurred.
    pub codes_used: f64,
    /// `exp` of the entropy of the codes' frequencies.
    pub perplexity: f64,
}

/// Why there are no scores.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// The pictures.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device.
    #[error("the device failed during validation: {0}")]
    Device(String),
    /// Every picture of the split is broken.
    #[error("none of the {0} validation pictures can be read")]
    NoPictures(usize),
}

/// A model's scores, and the first pictures with their reconstructions as RGB bytes.
pub struct Validated {
    /// The figures.
    pub scores: Scores,
    /// Originals and reconstructions, as many as were asked for.
    pub samples: Vec<[Vec<u8>; 2]>,
}

/// Validates `model` (without autodiff) on the first `images` of `set`, `micro` at a time.
///
/// # Errors
/// If a picture limit is exceeded or the device fails.
pub fn validate(
    model: &VqGan,
    set: &Arc<ValidationSet>,
    images: usize,
    micro: usize,
    keep: usize,
) -> Result<Validated, ValidationError> {
    let (device, dtype) = model.place();
    let images = images.min(set.len());
    let mut loader = Loader::start(set.clone(), 0, Some(images as u64), 1, micro)?;
    let (mut sums, mut samples) = (Sums::new(model, &device), Vec::new());
    loop {
        let batch = loader.next_batch(micro)?;
        if batch.is_empty() {
            break;
        }
        let original = batch.images(&device, statistics_dtype(dtype));
        let (reconstruction, quantized) = model.reconstruct(original.clone());
        let reconstruction = reconstruction.clamp(-1.0, 1.0);
        sums.add(&original, &reconstruction).map_err(ValidationError::Device)?;
        sums.codes = sums.codes + count_codes(quantized.codes, model.quantizer().codes());
        if samples.len() < keep {
            let originals = to_pixels(original).map_err(ValidationError::Device)?;
            let reconstructions = to_pixels(reconstruction).map_err(ValidationError::Device)?;
            samples.extend(originals.into_iter().zip(reconstructions).map(|(a, b)| [a, b]));
            samples.truncate(keep);
        }
    }
    if sums.images == 0 {
        return Err(ValidationError::NoPictures(images));
    }
    Ok(Validated { scores: sums.scores().map_err(ValidationError::Device)?, samples })
}

struct Sums {
    images: usize,
    l1: f64,
    psnr: f64,
    codes: Tensor<1>,
}

impl Sums {
    fn new(model: &VqGan, device: &Device) -> Self {
        let codes = Tensor::zeros([model.quantizer().codes()], (device, DType::F32));
        Self { images: 0, l1: 0.0, psnr: 0.0, codes }
    }

    fn add(&mut self, original: &Tensor<4>, reconstruction: &Tensor<4>) -> Result<(), String> {
        let [n, c, h, w] = original.dims();
        let difference = (reconstruction.clone() - original.clone()).reshape([n, c * h * w]);
        let read = |t: Tensor<2>| t.try_into_vec_as::<f32>().map_err(|error| error.to_string());
        let absolute = read(difference.clone().abs().mean_dim(1))?;
        let squared = read(difference.square().mean_dim(1))?;
        self.images += n;
        self.l1 += absolute.into_iter().map(f64::from).sum::<f64>();
        self.psnr += squared.into_iter().map(|mse| psnr(f64::from(mse))).sum::<f64>();
        Ok(())
    }

    fn scores(self) -> Result<Scores, String> {
        let counts = self.codes.try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
        let CodebookUse { used, perplexity } = CodebookUse::from_counts(&counts);
        let n = self.images as f64;
        Ok(Scores { images: self.images, l1: self.l1 / n, psnr: self.psnr / n, codes_used: used, perplexity })
    }
}

/// In dB, for a mean squared error of values in -1..1; a perfect picture has 100 dB, not infinitely many.
fn psnr(mse: f64) -> f64 {
    let peak = 2.0_f64;
    (10.0 * (peak * peak / mse.max(1e-30)).log10()).min(100.0)
}

#[cfg(test)]
mod tests {
    use super::psnr;

    #[test]
    fn psnr_is_that_of_eight_bit_pictures() {
        // One level of 255 off everywhere: 20 log10(255) = 48.13 dB.
        let one_level = 2.0 / 255.0_f64;
        assert!((psnr(one_level * one_level) - 48.1308).abs() < 1e-3);
        assert_eq!(psnr(0.0), 100.0);
    }
}
