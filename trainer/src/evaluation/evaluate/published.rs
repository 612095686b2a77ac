//! What the authors of well-known tokenizers report.

use serde::Serialize;

/// The figures of one tokenizer, on the 50,000 validation images of ImageNet at 256 x 256 pixels.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Published {
    /// The model.
    pub model: &'static str,
    /// Downsampling from pixels to codes, in each direction.
    pub downsampling: u32,
    /// Number of codes.
    pub codes: u32,
    /// FID of reconstructions and originals.
    pub rfid: f64,
    /// Mean PSNR in dB, where it is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// Where it is reported.
    pub source: &'static str,
}

const TAMING: &str = "README of CompVis/taming-transformers; torch-fidelity";
const LATENT_DIFFUSION: &str = "README of CompVis/latent-diffusion, model zoo; torch-fidelity";
const LLAMAGEN: &str = "README of FoundationVision/LlamaGen and arXiv 2406.06525; ADM's evaluator";

/// The figures.
pub const PUBLISHED: [Published; 9] = [
    of("taming f16, 1024 codes", 16, 1024, 7.94, None, TAMING),
    of("taming f16, 16384 codes", 16, 16384, 4.98, None, TAMING),
    of("latent-diffusion vq-f4", 4, 8192, 0.58, Some(27.43), LATENT_DIFFUSION),
    of("latent-diffusion vq-f4-noattn", 4, 8192, 1.06, Some(25.21), LATENT_DIFFUSION),
    of("latent-diffusion vq-f8", 8, 16384, 1.14, Some(23.07), LATENT_DIFFUSION),
    of("latent-diffusion vq-f8-n256", 8, 256, 1.49, Some(22.35), LATENT_DIFFUSION),
    of("latent-diffusion vq-f16", 16, 16384, 5.15, Some(20.83), LATENT_DIFFUSION),
    of("LlamaGen vq_ds16_c2i", 16, 16384, 2.19, Some(20.79), LLAMAGEN),
    of("LlamaGen vq_ds8_c2i", 8, 16384, 0.59, None, LLAMAGEN),
];

const fn of(
    model: &'static str,
    downsampling: u32,
    codes: u32,
    rfid: f64,
    psnr: Option<f64>,
    source: &'static str,
) -> Published {
    Published { model, downsampling, codes, rfid, psnr, source }
}
