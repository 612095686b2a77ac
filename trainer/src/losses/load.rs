//! The losses of a configuration, with their networks fetched and read.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use checkpoints::hub::{self, Fetched, FileChoice, HubError, HubSettings, Location};
use checkpoints::{
    Clip, ClipArchitecture, Quantizer, QuantizerKind, WeightsError, load_lpips_backbone, load_lpips_linear, read_clip,
};

use super::clip::text::{Prompt, PromptError};
use super::clip::{CaptionEncoder, ClipGuidance, ContrastiveTargets, TextTarget, Views, direction};
use super::{
    Adversarial, CodebookLoss, GumbelLoss, ImageLoss, Losses, NearestLoss, PerceptualLoss, PixelLoss, PixelNorm, Weight,
};
use crate::config::{
    Against, ClipConfig, ClipContrastiveConfig, ClipDirectionConfig, ClipTextConfig, Config, LossesConfig,
    PerceptualConfig, PixelConfig, PixelNormConfig, Problem,
};
use crate::cutouts::{CutoutSettings, Cutouts};
use crate::download::DownloadBar;
use crate::models::clip::{ClipTokenizer, ImageEncoder, TextEncoder, TokenizerError};
use crate::models::lpips::Lpips;
use crate::models::quantizer::gumbel::SeededNoise;
use crate::models::weights::{ModelError, StateDict, WeightReader};

/// Why a loss cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// Its network cannot be fetched.
    #[error("`{key}`: {source}")]
    Hub {
        /// Where the network is asked for.
        key: &'static str,
        /// Why not.
        source: HubError,
    },
    /// There is no such file.
    #[error("`{key}`: there is no {}", path.display())]
    NoFile {
        /// Where the network is asked for.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Its network's weights cannot be read.
    #[error("`{key}`: {source}")]
    Weights {
        /// Where the network is asked for.
        key: &'static str,
        /// Why not.
        source: WeightsError,
    },
    /// Its network's weights do not make the network.
    #[error("`{key}`: {source}")]
    Model {
        /// Where the network is asked for.
        key: &'static str,
        /// Why not.
        source: ModelError,
    },
    /// The tokenizer of a CLIP.
    #[error("`clip.tokenizer`: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// No tokenizer where one is needed.
    #[error("`clip.tokenizer` is not set, and beside {} there is none: name a tokenizer.json, such as hf://openai/clip-vit-base-patch32/tokenizer.json", .0.display())]
    NoTokenizer(PathBuf),
    /// A loss's own settings.
    #[error("`{}` {}", .0.key, .0.message)]
    Setting(Problem),
}

impl LossError {
    /// Whether the configuration alone is to blame.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Hub { source, .. } => source.is_wrong_usage(),
            Self::Weights { source, .. } => matches!(source, WeightsError::NoActivation { .. }),
            _ => matches!(self, Self::Setting(_) | Self::NoTokenizer(_)),
        }
    }
}

/// Fetches what `spec` names, if it is not on this machine already.
pub(crate) fn fetch(key: &'static str, spec: &str, files: FileChoice) -> Result<Fetched, LossError> {
    let hub = |source| LossError::Hub { key, source };
    let location = Location::parse(spec).map_err(hub)?;
    if let Location::Local { path, .. } = &location
        && !path.exists()
    {
        return Err(LossError::NoFile { key, path: path.clone() });
    }
    hub::fetch(&location, files, &HubSettings::from_env(), &DownloadBar::default()).map_err(hub)
}

impl Losses {
    /// The losses of `config`, whose networks go to `device`, an autodiff one; what the configuration leaves open about the
    /// codebook is as `quantizer`'s checkpoint was trained.
    ///
    /// # Errors
    /// If a network cannot be fetched or read.
    pub fn load(config: &Config, quantizer: &Quantizer, device: &Device) -> Result<Self, LossError> {
        let losses = &config.losses;
        let mut image: Vec<(Weight, Box<dyn ImageLoss>)> = vec![(
            Weight { value: losses.pixel.weight, start: losses.pixel.start, ramp: losses.pixel.ramp },
            Box::new(PixelLoss(pixel_norm(&losses.pixel))),
        )];
        if losses.perceptual.weight != 0.0 {
            let weight = &losses.perceptual;
            let weight = Weight { value: weight.weight, start: weight.start, ramp: weight.ramp };
            image.push((weight, Box::new(perceptual(config, device)?)));
        }
        let codebook = &losses.codebook;
        let codebook_loss = match quantizer.kind {
            QuantizerKind::Nearest => CodebookLoss::Nearest(NearestLoss {
                beta: codebook.beta.unwrap_or(quantizer.beta),
                legacy: codebook.legacy.unwrap_or(quantizer.legacy_beta),
                entropy: codebook.entropy.unwrap_or(quantizer.entropy_ratio),
            }),
            QuantizerKind::Gumbel => CodebookLoss::Gumbel(GumbelLoss {
                training: codebook.gumbel_training(),
                noise: Arc::new(SeededNoise { seed: config.run.seed }),
            }),
        };
        let codebook_weight = Weight { value: codebook.weight, start: codebook.start, ramp: codebook.ramp };
        Ok(Self {
            image,
            codebook: (codebook_weight, codebook_loss),
            adversarial: (losses.adversarial.weight != 0.0).then(|| adversarial(config)),
            clip: ClipConfig::is_needed(losses).then(|| clip(config, device)).transpose()?,
        })
    }
}

/// Frozen networks are on the device in no other type than the one they compute in.
fn frozen_dtype(config: &Config) -> DType {
    config.precision.frozen().dtype()
}

fn pixel_norm(pixel: &PixelConfig) -> PixelNorm {
    match pixel.norm {
        PixelNormConfig::L1 => PixelNorm::L1,
        PixelNormConfig::L2 => PixelNorm::L2,
        PixelNormConfig::Mix => PixelNorm::Mix { l1: pixel.mix },
    }
}

fn adversarial(config: &Config) -> Adversarial {
    let loss = &config.losses.adversarial;
    Adversarial {
        weight: Weight { value: loss.weight, start: loss.start, ramp: loss.ramp },
        kind: loss.kind,
        adaptive: loss.adaptive,
        lecam: loss.lecam,
        discriminator_start: config.discriminator_start(),
    }
}

const BACKBONE: &str = "losses.perceptual.backbone";

fn perceptual(config: &Config, device: &Device) -> Result<PerceptualLoss, LossError> {
    let loss = &config.losses.perceptual;
    let weights = lpips_weights(loss)?;
    let network = Lpips::read(&WeightReader::frozen(&weights, device, frozen_dtype(config)), loss.network)
        .map_err(|source| LossError::Model { key: BACKBONE, source })?;
    Ok(PerceptualLoss::new(network))
}

fn lpips_weights(loss: &PerceptualConfig) -> Result<StateDict, LossError> {
    const LINEAR: &str = "losses.perceptual.linear";
    let wrong = |key| move |source| LossError::Weights { key, source };
    let unnamed = || Problem { key: BACKBONE, message: "is not set, and alexnet has no default".into() };
    let backbone = loss.backbone_location().ok_or_else(|| LossError::Setting(unnamed()))?;
    let backbone = fetch(BACKBONE, backbone, FileChoice::Any)?;
    let mut weights = load_lpips_backbone(loss.network, backbone.clone()).map_err(wrong(BACKBONE))?;
    // A whole LPIPS given as the backbone has its linear layers with it: nothing else has to be fetched.
    if loss.backbone.is_some() && loss.linear.is_none() {
        match load_lpips_linear(loss.network, backbone) {
            Err(WeightsError::Unsupported { .. }) => {}
            own => {
                weights.extend(own.map_err(wrong(BACKBONE))?);
                return Ok(weights);
            }
        }
    }
    let linear = fetch(LINEAR, loss.linear_location(), FileChoice::Any)?;
    weights.extend(load_lpips_linear(loss.network, linear).map_err(wrong(LINEAR))?);
    Ok(weights)
}

const CLIP: &str = "clip.pretrained";

fn clip(config: &Config, device: &Device) -> Result<ClipGuidance, LossError> {
    let losses = &config.losses;
    let ClipNetworks { architecture, encoder, texts, logit_scale } = clip_networks(config, device)?;
    let (text, direction) = match &texts {
        Some(texts) => (clip_text(&losses.clip_text, texts)?, clip_direction(&losses.clip_direction, texts)?),
        None => (None, None),
    };
    if let Some(text) = texts.as_ref().and_then(CaptionEncoder::take_truncated) {
        note!("longer than the {} tokens of CLIP, the rest is not seen: {text}", architecture.context_length);
    }
    let image = &losses.clip_image;
    Ok(ClipGuidance {
        encoder,
        captions: texts.filter(|_| losses.needs_captions()),
        views: views(config, architecture.image_size),
        architecture,
        image: weight(image.weight, image.start, image.ramp),
        text,
        contrastive: clip_contrastive(&losses.clip_contrastive, logit_scale),
        direction,
    })
}

/// What is read from a CLIP's files.
struct ClipNetworks {
    architecture: ClipArchitecture,
    encoder: ImageEncoder,
    /// Only if a loss needs texts.
    texts: Option<CaptionEncoder>,
    /// What its cosines are multiplied with.
    logit_scale: f64,
}

fn clip_networks(config: &Config, device: &Device) -> Result<ClipNetworks, LossError> {
    let LossesConfig { clip_text, clip_direction, .. } = &config.losses;
    let dtype = frozen_dtype(config);
    let needs_texts = config.losses.needs_captions() || clip_text.weight != 0.0 || clip_direction.weight != 0.0;
    let fetched = fetch(CLIP, config.clip.location(), FileChoice::Clip)?;
    let path = fetched.weights.clone();
    let mut clip = read_clip(fetched, config.clip.activation, needs_texts)
        .map_err(|source| LossError::Weights { key: CLIP, source })?;
    let texts = needs_texts.then(|| caption_encoder(&config.clip, &clip, path, device, dtype)).transpose()?;
    // The text tower is as large as the other one, and is on the device now.
    clip.weights.retain(|name, _| !name.starts_with("text_"));
    let reader = WeightReader::frozen(&clip.weights, device, dtype);
    let encoder =
        ImageEncoder::read(&reader, &clip.architecture).map_err(|source| LossError::Model { key: CLIP, source })?;
    let learned = clip.weights.get("logit_scale").and_then(|scale| scale.to_f32().first().copied());
    let logit_scale = learned.map_or(100.0, |scale| f64::from(scale).exp().min(100.0));
    Ok(ClipNetworks { architecture: clip.architecture, encoder, texts, logit_scale })
}

/// On the device without autodiff: texts are only compared with.
fn caption_encoder(
    settings: &ClipConfig,
    clip: &Clip,
    path: PathBuf,
    device: &Device,
    dtype: DType,
) -> Result<CaptionEncoder, LossError> {
    let tokenizer = match (&settings.tokenizer, &clip.tokenizer) {
        (Some(spec), _) => fetch("clip.tokenizer", spec, FileChoice::Tokenizer)?.weights,
        (None, Some(beside)) => beside.clone(),
        (None, None) => return Err(LossError::NoTokenizer(path)),
    };
    let tokenizer = ClipTokenizer::open(&tokenizer, &clip.architecture)?;
    let device = device.clone().without_autodiff();
    let reader = WeightReader::frozen(&clip.weights, &device, dtype);
    let encoder =
        TextEncoder::read(&reader, &clip.architecture).map_err(|source| LossError::Model { key: CLIP, source })?;
    Ok(CaptionEncoder::new(tokenizer, encoder, device))
}

/// `None` for a loss that is off.
fn weight(value: f64, start: u64, ramp: u64) -> Option<Weight> {
    (value != 0.0).then_some(Weight { value, start, ramp })
}

fn clip_text(loss: &ClipTextConfig, texts: &CaptionEncoder) -> Result<Option<(Weight, TextTarget)>, LossError> {
    let Some(weight) = weight(loss.weight, loss.start, loss.ramp) else { return Ok(None) };
    if loss.prompts.is_empty() {
        return Ok(Some((weight, TextTarget::Captions)));
    }
    let prompts = prompts(&loss.prompts).map_err(LossError::Setting)?;
    let embeddings = texts.embed(prompts.iter().map(|prompt| prompt.text.as_str()))?;
    let weights = prompts.iter().map(|prompt| prompt.weight).collect();
    Ok(Some((weight, TextTarget::Prompts(Box::new(embeddings), weights))))
}

fn clip_direction(
    loss: &ClipDirectionConfig,
    texts: &CaptionEncoder,
) -> Result<Option<(Weight, Tensor<1>)>, LossError> {
    let Some(weight) = weight(loss.weight, loss.start, loss.ramp) else { return Ok(None) };
    let ends = [&loss.from, &loss.to].map(|text| text.as_deref().unwrap_or_default());
    Ok(Some((weight, direction::between(texts.embed(ends.into_iter())?))))
}

/// `learned` is the checkpoint's own scale.
fn clip_contrastive(loss: &ClipContrastiveConfig, learned: f64) -> Option<(Weight, ContrastiveTargets)> {
    let targets = ContrastiveTargets {
        captions: loss.against.contains(&Against::Captions),
        originals: loss.against.contains(&Against::Originals),
        logit_scale: loss.temperature.map_or(learned, |temperature| 1.0 / temperature),
    };
    Some((weight(loss.weight, loss.start, loss.ramp)?, targets))
}

/// Reads `losses.clip_text.prompts`.
pub(crate) fn prompts(texts: &[String]) -> Result<Vec<Prompt>, Problem> {
    let wrong = |error: PromptError| Problem { key: "losses.clip_text.prompts", message: format!("is wrong: {error}") };
    texts.iter().map(|text| text.parse().map_err(wrong)).collect()
}

fn views(config: &Config, size: usize) -> Views {
    let clip = &config.clip;
    let cutouts = CutoutSettings {
        count: clip.cutouts,
        power: clip.cutout_power,
        size,
        affine: clip.affine,
        perspective: clip.perspective,
        jitter: clip.jitter,
        erasing: clip.erasing,
        noise: clip.noise,
    };
    Views { whole: clip.whole, cutouts: Cutouts::new(cutouts), at_once: clip.cutouts_at_once, seed: config.run.seed }
}

#[cfg(test)]
mod tests;
