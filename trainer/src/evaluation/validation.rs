//! Measures how well a model reconstructs images that it was not trained on.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use datasets::{DataError, Loader, ValidationSet};
use serde::{Deserialize, Serialize};

use super::captions::CaptionMatches;
use super::metrics::{ImageJudge, ImageMetrics, Judges, MetricSums, null_is_nan};
use crate::config::Metric;
use crate::data::{next_batch, to_pixels};
use crate::engine::MicroBatch;
use crate::models::VqGan;
use crate::models::quantizer::{CodebookUse, count_codes};
use crate::models::statistics_dtype;

/// The metrics of one validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Images that were validated.
    pub images: usize,
    /// Mean absolute error of a value in -1..1.
    #[serde(deserialize_with = "null_is_nan")]
    pub l1: f64,
    /// Peak signal-to-noise ratio in dB, mean over the images.
    #[serde(deserialize_with = "null_is_nan")]
    pub psnr: f64,
    /// Structural similarity, mean over the images; `None` for images below 11 pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssim: Option<f64>,
    /// LPIPS, mean over the images, if the run has its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lpips: Option<f64>,
    /// Cosine of CLIP's embeddings of image and reconstruction, mean over the images, if the run has a CLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Cosine of CLIP's embeddings of reconstruction and caption, mean over the images, if the run has a CLIP that reads
    /// texts, and all images have captions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption: Option<f64>,
    /// Share of the reconstructions to which CLIP finds their own caption more similar than those of up to 63 other
    /// images, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_caption: Option<f64>,
    /// Share of the codes that were used.
    pub codes_used: f64,
    /// `exp` of the entropy of the codes' frequencies.
    pub perplexity: f64,
}

impl Scores {
    /// `captions` has the similarity to captions, and the share of those that are found.
    pub(super) fn new(sums: &MetricSums, captions: Option<(f64, f64)>, codes: CodebookUse) -> Self {
        let ImageMetrics { l1, psnr, ssim, lpips, clip } = sums.means();
        let (caption, right_caption) = captions.unzip();
        let CodebookUse { used: codes_used, perplexity } = codes;
        Self { images: sums.images, l1, psnr, ssim, lpips, clip, caption, right_caption, codes_used, perplexity }
    }

    /// The value of `metric`, if there is one.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::None => None,
            Metric::L1 => Some(self.l1),
            Metric::Psnr => Some(self.psnr),
            Metric::Ssim => self.ssim,
            Metric::Lpips => self.lpips,
            Metric::Clip => self.clip,
        }
    }
}

/// Why there are no scores.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// The images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device.
    #[error("the device failed during validation: {0}")]
    Device(String),
    /// Every image of the split is broken.
    #[error("none of the {0} validation images can be read")]
    NoImages(usize),
}

/// A model's scores, and the first images with their reconstructions as RGB bytes.
pub struct Validated {
    /// The scores.
    pub scores: Scores,
    /// Originals and reconstructions, as many as were asked for.
    pub samples: Vec<[Vec<u8>; 2]>,
}

/// How many images a validation takes.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Images, at most.
    pub images: usize,
    /// Images in a micro-batch.
    pub micro: usize,
    /// Images whose reconstructions are returned.
    pub samples: usize,
}

/// Validates `model` (without autodiff) on the first images of `set`. Returns `None` if `should_stop` says so between
/// micro-batches or while it waits. Calls `progress` after each micro-batch, and `say` about each slow image.
///
/// # Errors
/// If more than `data.max_bad` images are broken, if none can be read, or if the device fails.
pub fn validate(
    model: &VqGan,
    judges: Judges,
    set: &Arc<ValidationSet>,
    extent: Extent,
    should_stop: impl Fn() -> bool,
    progress: impl Fn(usize),
    say: impl Fn(&str),
) -> Result<Option<Validated>, ValidationError> {
    let Extent { images, micro, samples: keep } = extent;
    let (device, dtype) = model.place();
    let images = images.min(set.len());
    let mut loader = Loader::start(set.clone(), 0, Some(images as u64), 1, micro);
    let judge = ImageJudge::new(judges);
    let (mut sums, mut matches, mut samples) = (MetricSums::default(), Some(CaptionMatches::default()), Vec::new());
    let mut counts = Tensor::<1>::zeros([model.quantizer().codes()], (&device, DType::F32));
    loop {
        if should_stop() {
            return Ok(None);
        }
        let Some(batch) = next_batch(&mut loader, micro, || !should_stop(), &say)? else { return Ok(None) };
        if batch.is_empty() {
            break;
        }
        let original = batch.images(&device, statistics_dtype(dtype));
        let (reconstruction, quantized) = model.reconstruct(original.clone());
        let reconstruction = reconstruction.clamp(-1.0, 1.0);
        let measured = judge.measure(&original, &reconstruction, batch.captions());
        let (measured, embeddings) = measured.map_err(ValidationError::Device)?;
        measured.iter().for_each(|image| sums.add(image));
        // Only if every image has a caption.
        matches = match (matches, embeddings.and_then(|of| Some((of.captions?, of.reconstructions)))) {
            (Some(mut matches), Some((captions, reconstructions))) => {
                matches.add(captions, reconstructions).map_err(ValidationError::Device)?;
                Some(matches)
            }
            _ => None,
        };
        counts = counts + count_codes(quantized.codes, model.quantizer().codes());
        if samples.len() < keep {
            let originals = to_pixels(original).map_err(ValidationError::Device)?;
            let reconstructions = to_pixels(reconstruction).map_err(ValidationError::Device)?;
            samples.extend(originals.into_iter().zip(reconstructions).map(|(a, b)| [a, b]));
            samples.truncate(keep);
        }
        progress(batch.samples());
    }
    if sums.images == 0 {
        return Err(ValidationError::NoImages(images));
    }
    let counts = counts.try_into_vec_as::<f32>().map_err(|error| ValidationError::Device(error.to_string()))?;
    let captions = matches.map(CaptionMatches::scores).transpose().map_err(ValidationError::Device)?.flatten();
    Ok(Some(Validated { scores: Scores::new(&sums, captions, CodebookUse::from_counts(&counts)), samples }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that overflows in half precision has such scores, and its run can still be resumed.
    #[test]
    fn scores_that_are_no_numbers_come_back() {
        let nan = f64::NAN;
        let broken = Scores {
            images: 2,
            l1: nan,
            psnr: nan,
            ssim: None,
            lpips: None,
            clip: None,
            caption: None,
            right_caption: None,
            codes_used: 0.5,
            perplexity: 2.0,
        };
        let back: Scores = serde_json::from_str(&serde_json::to_string(&broken).unwrap()).unwrap();
        assert!(back.l1.is_nan() && back.psnr.is_nan());
        assert_eq!((back.images, back.codes_used, back.perplexity), (2, 0.5, 2.0));
    }
}
