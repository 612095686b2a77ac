//! How an evaluation measures. Figures compare only with those of the same protocol, so it is part of every result.

use serde::Serialize;

use super::cmmd::{SCALE, SIGMA};
use super::inception_score::SPLITS;
use crate::data::ImageSet;
use crate::evaluation::captions::AMONG;
use crate::models::inception::FidPackage;
use crate::models::ssim::WINDOW;

/// The protocol of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct Protocol {
    /// Where the images are from.
    pub data: String,
    /// All images there.
    pub source: ImageSet,
    /// Images that are evaluated, evenly spread over the source.
    pub images: usize,
    /// Side of the images, in pixels.
    pub resolution: u32,
    /// The part of an image that is evaluated.
    pub crop: &'static str,
    /// How it gets its size.
    pub resize: &'static str,
    /// What becomes of a reconstruction before it is measured.
    pub reconstruction: &'static str,
    /// How PSNR is computed.
    pub psnr: &'static str,
    /// How SSIM is computed.
    pub ssim: String,
    /// The network of LPIPS, if it is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<String>,
    /// The CLIP, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<String>,
    /// How captions are looked for, if there are captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<String>,
    /// How CMMD is computed, if there is a CLIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmmd: Option<String>,
    /// The weights of InceptionV3 and the package whose preparation of images it has, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception: Option<String>,
    /// What rFID compares reconstructions with, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rfid: Option<String>,
    /// How the Inception Score is computed, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<String>,
    /// Images in the lists of the worst and the best.
    pub samples: usize,
}

impl Protocol {
    /// The protocol for `images` of `source`, which are from `data`, without any network.
    pub fn new(data: String, source: ImageSet, images: usize, resolution: u32, samples: usize) -> Self {
        Self {
            data,
            source,
            images,
            resolution,
            crop: "the square in the centre, as long as the shorter side",
            resize: "Lanczos with 3 lobes, antialiased, to 8 bits",
            reconstruction: "clamped to the range of an image; rounded to 8 bits for InceptionV3 alone",
            psnr: "of RGB over each image, at most 100 dB, mean over images",
            ssim: format!("RGB in 0..1, Gaussian window of {WINDOW} pixels, K1 0.01, K2 0.03, mean over images"),
            lpips: None,
            clip: None,
            captions: None,
            cmmd: None,
            inception: None,
            rfid: None,
            inception_score: None,
            samples,
        }
    }

    /// Adds what is measured by InceptionV3; `reference` is what reconstructions are compared with.
    pub fn with_inception(self, weights: &str, package: FidPackage, reference: String) -> Self {
        let score = format!("of reconstructions, logits without bias, {SPLITS} splits of every {SPLITS}th image");
        Self {
            inception: Some(format!("{weights}, images of 8 bits resized and scaled as by {package}")),
            rfid: Some(format!("2048 features of reconstructions and of {reference}")),
            inception_score: Some(score),
            ..self
        }
    }

    /// Adds what is measured by a CLIP, with `captions` or without.
    pub fn with_clip(self, clip: String, captions: bool) -> Self {
        Self {
            cmmd: Some(format!("Gaussian kernel of bandwidth {SIGMA} on unit embeddings of {clip}, times {SCALE}")),
            captions: captions.then(|| format!("cosines; found among those of {AMONG} consecutive images")),
            clip: Some(clip),
            ..self
        }
    }
}
