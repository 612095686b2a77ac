//! Compares reconstructions with their originals, image by image.

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::losses::{ClipGuidance, ImageLoss, Losses};
use crate::models::clip::{ImageEncoder, preprocess};
use crate::models::ssim::ssim;

/// The networks of a run's losses that measure too.
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

/// The metrics of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageMetrics {
    /// Mean absolute error of a value in -1..1.
    pub l1: f64,
    /// Peak signal-to-noise ratio in dB, at most 100.
    pub psnr: f64,
    /// Structural similarity; `None` for images below 11 pixels.
    pub ssim: Option<f64>,
    /// LPIPS, if there is its network.
    pub lpips: Option<f64>,
    /// Cosine of CLIP's embeddings of image and reconstruction, if there is a CLIP.
    pub clip: Option<f64>,
}

/// What CLIP makes of a micro-batch, `[N, E]` each, not of unit length.
pub struct Embeddings {
    /// Of the originals.
    pub originals: Tensor<2>,
    /// Of their reconstructions.
    pub reconstructions: Tensor<2>,
    /// Of their captions; `None` if an image has none, or CLIP reads none.
    pub captions: Option<Tensor<2>>,
}

/// Measures micro-batches.
pub struct ImageJudge<'a> {
    lpips: Option<&'a dyn ImageLoss>,
    /// The encoder is without autodiff.
    clip: Option<(&'a ClipGuidance, ImageEncoder)>,
}

impl<'a> ImageJudge<'a> {
    /// Measures with these networks.
    pub fn new(judges: Judges<'a>) -> Self {
        Self { lpips: judges.lpips, clip: judges.clip.map(|clip| (clip, clip.encoder.valid())) }
    }

    /// Whether it measures LPIPS.
    pub fn has_lpips(&self) -> bool {
        self.lpips.is_some()
    }

    /// The values of an embedding of CLIP, if there is one.
    pub fn embedding_width(&self) -> Option<usize> {
        self.clip.as_ref().map(|(clip, _)| clip.architecture.embedding)
    }

    /// Whether CLIP reads captions.
    pub fn reads_captions(&self) -> bool {
        self.clip.as_ref().is_some_and(|(clip, _)| clip.captions.is_some())
    }

    /// Measures each image of `[N, 3, H, W]` in -1..1, without a graph.
    ///
    /// # Errors
    /// What the device or the tokenizer says.
    pub fn measure(
        &self,
        original: &Tensor<4>,
        reconstruction: &Tensor<4>,
        captions: &[Option<String>],
    ) -> Result<(Vec<ImageMetrics>, Option<Embeddings>), String> {
        let [n, c, h, w] = original.dims();
        let difference = (reconstruction.clone() - original.clone()).reshape([n, c * h * w]);
        let mean = |t: Tensor<2>| read(t.mean_dim(1).reshape([n]));
        let l1 = mean(difference.clone().abs())?;
        let mse = mean(difference.square())?;
        let ssim = ssim(original, reconstruction).map(read).transpose()?;
        let lpips = self.lpips.map(|network| {
            // The network's weights are on the autodiff device. Nothing is tracked there, so no graph is kept.
            let values = network.per_sample(original.clone().autodiff(), reconstruction.clone().autodiff());
            read(values.without_autodiff())
        });
        let lpips = lpips.transpose()?;
        let embeddings = self.embed(original, reconstruction, captions)?;
        let clip = embeddings.as_ref().map(|both| read(cosine(&both.originals, &both.reconstructions))).transpose()?;
        let of = |values: &Option<Vec<f64>>, index: usize| values.as_ref().map(|values| values[index]);
        let image = |index: usize| ImageMetrics {
            l1: l1[index],
            psnr: psnr(mse[index]),
            ssim: of(&ssim, index),
            lpips: of(&lpips, index),
            clip: of(&clip, index),
        };
        Ok(((0..n).map(image).collect(), embeddings))
    }

    fn embed(
        &self,
        original: &Tensor<4>,
        reconstruction: &Tensor<4>,
        captions: &[Option<String>],
    ) -> Result<Option<Embeddings>, String> {
        let Some((clip, encoder)) = &self.clip else { return Ok(None) };
        let embed = |images: &Tensor<4>| encoder.forward(preprocess(images.clone(), &clip.architecture));
        let texts: Option<Vec<&str>> = captions.iter().map(Option::as_deref).collect();
        let captions = clip.captions.as_ref().zip(texts).map(|(encoder, texts)| encoder.embed(texts.into_iter()));
        Ok(Some(Embeddings {
            originals: embed(original),
            reconstructions: embed(reconstruction),
            captions: captions.transpose().map_err(|error| error.to_string())?,
        }))
    }
}

/// The sums of metrics over images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricSums {
    /// Images so far.
    pub images: usize,
    #[serde(deserialize_with = "null_is_nan")]
    l1: f64,
    #[serde(deserialize_with = "null_is_nan")]
    psnr: f64,
    ssim: Option<f64>,
    lpips: Option<f64>,
    clip: Option<f64>,
}

impl MetricSums {
    /// Adds an image. A metric that one image lacks has no mean.
    pub fn add(&mut self, image: &ImageMetrics) {
        let is_first = self.images == 0;
        let sum = |sum: Option<f64>, value: Option<f64>| if is_first { value } else { Some(sum? + value?) };
        *self = Self {
            images: self.images + 1,
            l1: self.l1 + image.l1,
            psnr: self.psnr + image.psnr,
            ssim: sum(self.ssim, image.ssim),
            lpips: sum(self.lpips, image.lpips),
            clip: sum(self.clip, image.clip),
        };
    }

    /// Returns the mean of each metric.
    pub fn means(&self) -> ImageMetrics {
        let n = self.images as f64;
        let mean = |sum: f64| sum / n;
        let Self { l1, psnr, ssim, lpips, clip, .. } = *self;
        let [ssim, lpips, clip] = [ssim, lpips, clip].map(|sum| sum.map(mean));
        ImageMetrics { l1: mean(l1), psnr: mean(psnr), ssim, lpips, clip }
    }
}

/// Reads `null` as NaN, for which JSON has no other word.
pub(super) fn null_is_nan<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
}

/// Reads values back from the device.
pub(super) fn read(values: Tensor<1>) -> Result<Vec<f64>, String> {
    let values = values.try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// Cosine of the angle between each row of `a` and the same row of `b`, both `[N, E]`, to `[N]`.
pub(super) fn cosine(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<1> {
    let [n, _] = a.dims();
    let [a, b] = [a, b].map(|rows| rows.clone().cast(DType::F32));
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
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn cosines_are_those_of_the_rows() {
        let rows = |values: [[f32; 2]; 3]| Tensor::<2>::from_data(values, &Device::flex());
        let found = cosine(&rows([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]]), &rows([[5.0, 0.0], [-1.0, -1.0], [4.0, 0.0]]));
        for (found, expected) in read(found).unwrap().into_iter().zip([1.0, -1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn psnr_is_that_of_eight_bit_images() {
        // One level of 255 off everywhere: 20 log10(255) = 48.13 dB.
        let one_level = 2.0 / 255.0_f64;
        assert!((psnr(one_level * one_level) - 48.1308).abs() < 1e-3);
        assert_eq!(psnr(0.0), 100.0);
        assert!(psnr(f64::NAN).is_nan());
    }

    #[test]
    fn a_metric_that_one_image_lacks_has_no_mean() {
        let image = |l1, lpips| ImageMetrics { l1, psnr: 10.0 * l1, ssim: Some(l1), lpips, clip: None };
        let mut sums = MetricSums::default();
        sums.add(&image(1.0, Some(0.5)));
        sums.add(&image(2.0, None));
        sums.add(&image(6.0, Some(0.5)));
        assert_eq!(sums.means(), ImageMetrics { l1: 3.0, psnr: 30.0, ssim: Some(3.0), lpips: None, clip: None });
        assert_eq!(sums.images, 3);
    }
}
