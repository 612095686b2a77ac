//! Measures how well a model reconstructs images that it was not trained on.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use datasets::{DataError, Loader, ValidationSet};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Metric;
use crate::data::{next_batch, to_pixels};
use crate::engine::MicroBatch;
use crate::losses::{ClipGuidance, ImageLoss, Losses};
use crate::models::VqGan;
use crate::models::clip::{ImageEncoder, preprocess};
use crate::models::quantizer::{CodebookUse, count_codes};
use crate::models::ssim::ssim;
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

/// Reads `null` as NaN, for which JSON has no other word.
fn null_is_nan<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
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

/// The networks of a run's losses with which validations measure too.
#[derive(Clone, Copy, Default)]
pub struct Judges<'a> {
    lpips: Option<&'a dyn ImageLoss>,
    clip: Option<&'a ClipGuidance>,
}

impl<'a> Judges<'a> {
    /// Takes the networks from `losses`. Those with random weights are left out.
    pub fn of(losses: &'a Losses) -> Self {
        let lpips = losses.perceptual.as_ref().filter(|perceptual| perceptual.loss.is_lpips());
        let lpips = lpips.map(|perceptual| &perceptual.loss as &dyn ImageLoss);
        Self { lpips, clip: losses.clip.as_ref().filter(|clip| !clip.is_random) }
    }
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
    let (mut sums, mut samples) = (Sums::new(model, judges, &device), Vec::new());
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
        sums.add(&original, &reconstruction, batch.captions()).map_err(ValidationError::Device)?;
        sums.codes = sums.codes + count_codes(quantized.codes, model.quantizer().codes());
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
    Ok(Some(Validated { scores: sums.scores().map_err(ValidationError::Device)?, samples }))
}

struct Sums<'a> {
    lpips_network: Option<&'a dyn ImageLoss>,
    /// Without autodiff.
    clip_network: Option<(&'a ClipGuidance, ImageEncoder)>,
    images: usize,
    l1: f64,
    psnr: f64,
    ssim: Option<f64>,
    lpips: f64,
    clip: f64,
    /// Of captions and reconstructions; `None` if an image has no caption, or CLIP reads none.
    matches: Option<CaptionMatches>,
    codes: Tensor<1>,
}

impl<'a> Sums<'a> {
    fn new(model: &VqGan, judges: Judges<'a>, device: &Device) -> Self {
        Self {
            lpips_network: judges.lpips,
            clip_network: judges.clip.map(|clip| (clip, clip.encoder.valid())),
            images: 0,
            l1: 0.0,
            psnr: 0.0,
            ssim: Some(0.0),
            lpips: 0.0,
            clip: 0.0,
            matches: judges.clip.and_then(|clip| clip.captions.as_ref()).map(|_| CaptionMatches::default()),
            codes: Tensor::zeros([model.quantizer().codes()], (device, DType::F32)),
        }
    }

    fn add(
        &mut self,
        original: &Tensor<4>,
        reconstruction: &Tensor<4>,
        captions: &[Option<String>],
    ) -> Result<(), String> {
        let [n, c, h, w] = original.dims();
        let difference = (reconstruction.clone() - original.clone()).reshape([n, c * h * w]);
        let mean = |t: Tensor<2>| read(t.mean_dim(1).reshape([n]));
        self.images += n;
        self.l1 += mean(difference.clone().abs())?.iter().sum::<f64>();
        self.psnr += mean(difference.square())?.into_iter().map(psnr).sum::<f64>();
        self.ssim = match (self.ssim, ssim(original, reconstruction)) {
            (Some(sum), Some(values)) => Some(sum + read(values)?.iter().sum::<f64>()),
            _ => None,
        };
        if let Some(network) = self.lpips_network {
            // The network's weights are on the autodiff device. Nothing is tracked there, so no graph is kept.
            let values = network.per_sample(original.clone().autodiff(), reconstruction.clone().autodiff());
            self.lpips += read(values.without_autodiff())?.iter().sum::<f64>();
        }
        if let Some((clip, encoder)) = &self.clip_network {
            let embed = |images: &Tensor<4>| encoder.forward(preprocess(images.clone(), &clip.architecture));
            let reconstruction = embed(reconstruction);
            self.clip += read(cosine(embed(original), reconstruction.clone()))?.iter().sum::<f64>();
            let texts: Option<Vec<&str>> = captions.iter().map(Option::as_deref).collect();
            self.matches = match (self.matches.take(), texts, &clip.captions) {
                (Some(mut matches), Some(texts), Some(encoder)) => {
                    let texts = encoder.embed(texts.into_iter()).map_err(|error| error.to_string())?;
                    matches.add(texts, reconstruction);
                    Some(matches)
                }
                _ => None,
            };
        }
        Ok(())
    }

    fn scores(self) -> Result<Scores, String> {
        let counts = self.codes.try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
        let CodebookUse { used, perplexity } = CodebookUse::from_counts(&counts);
        let n = self.images as f64;
        let matches = self.matches.map(CaptionMatches::scores).transpose()?;
        Ok(Scores {
            images: self.images,
            l1: self.l1 / n,
            psnr: self.psnr / n,
            ssim: self.ssim.map(|sum| sum / n),
            lpips: self.lpips_network.map(|_| self.lpips / n),
            clip: self.clip_network.map(|_| self.clip / n),
            caption: matches.map(|(similarity, _)| similarity),
            right_caption: matches.map(|(_, right)| right),
            codes_used: used,
            perplexity,
        })
    }
}

/// Captions that each reconstruction is compared with, its own included.
const AMONG: usize = 64;

/// Embeddings of captions and reconstructions, `[n, E]`, by micro-batch.
#[derive(Default)]
struct CaptionMatches {
    captions: Vec<Tensor<2>>,
    reconstructions: Vec<Tensor<2>>,
}

impl CaptionMatches {
    fn add(&mut self, captions: Tensor<2>, reconstructions: Tensor<2>) {
        self.captions.push(captions.cast(DType::F32));
        self.reconstructions.push(reconstructions.cast(DType::F32));
    }

    /// Returns the mean cosine of reconstructions and their own captions, and the share of those that are the most similar
    /// of up to [`AMONG`] captions.
    fn scores(self) -> Result<(f64, f64), String> {
        let [captions, reconstructions] =
            [self.captions, self.reconstructions].map(|parts| unit(Tensor::cat(parts, 0)));
        let n = captions.dims()[0];
        let (mut similarity, mut right) = (0.0, 0);
        for (texts, images) in captions.split(AMONG, 0).into_iter().zip(reconstructions.split(AMONG, 0)) {
            let among = texts.dims()[0];
            let cosines = read(images.matmul(texts.transpose()).flatten::<1>(0, 1))?;
            for (own, row) in cosines.chunks(among).enumerate() {
                similarity += row[own];
                right += usize::from(row.iter().enumerate().all(|(other, cosine)| other == own || *cosine < row[own]));
            }
        }
        Ok((similarity / n as f64, right as f64 / n as f64))
    }
}

/// Scales the rows of `x`, `[N, E]`, to unit length.
fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).clamp_min(1e-12).sqrt()
}

pub(super) fn read(values: Tensor<1>) -> Result<Vec<f64>, String> {
    let values = values.try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// Cosine of the angle between each row of `a` and the same row of `b`, both `[N, E]`, to `[N]`.
pub(super) fn cosine(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let [n, _] = a.dims();
    let (a, b) = (a.cast(DType::F32), b.cast(DType::F32));
    let length = |t: &Tensor<2>| t.clone().square().sum_dim(1).clamp_min(1e-12).sqrt();
    let lengths = length(&a) * length(&b);
    ((a * b).sum_dim(1) / lengths).reshape([n])
}

/// PSNR in dB, for a mean squared error of values in -1..1. A perfect image has 100 dB in place of infinity.
pub(super) fn psnr(mse: f64) -> f64 {
    let peak = 2.0_f64;
    let decibels = 10.0 * (peak * peak / mse).log10();
    // Not `min`, which would turn NaN into a perfect score.
    if decibels > 100.0 { 100.0 } else { decibels }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn a_caption_is_right_if_no_other_of_64_is_as_similar() {
        // Captions in one plane, each 1 degree further; the second half's reconstructions lie at their neighbour's caption.
        let row = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let rows = |angles: Vec<f32>| {
            let values: Vec<f32> = angles.iter().copied().flat_map(row).collect();
            Tensor::<2>::from_data(TensorData::new(values, [angles.len(), 2]), &Device::flex())
        };
        let mut matches = CaptionMatches::default();
        for half in [0.0, 1.0] {
            let captions: Vec<f32> = (0..64).map(|at| at as f32).collect();
            let reconstructions = captions.iter().map(|degrees| degrees + half).collect();
            matches.add(rows(captions) * 3.0, rows(reconstructions));
        }
        let (similarity, right) = matches.scores().unwrap();
        // The last one has no neighbour above it.
        assert_eq!(right, 65.0 / 128.0);
        assert!((similarity - (1.0 + 1f64.to_radians().cos()) / 2.0).abs() < 1e-5, "{similarity}");
    }

    #[test]
    fn cosines_are_those_of_the_rows() {
        let rows = |values: [[f32; 2]; 3]| Tensor::<2>::from_data(values, &Device::flex());
        let found = cosine(rows([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]]), rows([[5.0, 0.0], [-1.0, -1.0], [4.0, 0.0]]));
        for (found, expected) in read(found).unwrap().into_iter().zip([1.0, -1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

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

    #[test]
    fn psnr_is_that_of_eight_bit_images() {
        // One level of 255 off everywhere: 20 log10(255) = 48.13 dB.
        let one_level = 2.0 / 255.0_f64;
        assert!((psnr(one_level * one_level) - 48.1308).abs() < 1e-3);
        assert_eq!(psnr(0.0), 100.0);
        assert!(psnr(f64::NAN).is_nan());
    }
}
