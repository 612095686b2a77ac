//! The losses of a configuration, with their networks fetched and read.

use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor};
use checkpoints::hub::{self, FileChoice, HubError, HubSettings, Location};
use checkpoints::{Clip, Quantizer, WeightsError, load_clip, load_lpips};

use super::clip::text::{Prompt, PromptError};
use super::clip::{CaptionEncoder, ClipGuidance, ContrastiveTargets, TextTarget, Views, direction};
use super::{Adversarial, CodebookLoss, ImageLoss, Losses, PerceptualLoss, PixelLoss, PixelNorm, Weight};
use crate::config::{Against, ClipConfig, Config, PixelConfig, PixelNormConfig, Problem};
use crate::cutouts::{CutoutSettings, Cutouts};
use crate::download::DownloadBar;
use crate::models::clip::{ClipTokenizer, ImageEncoder, TextEncoder, TokenizerError};
use crate::models::lpips::Lpips;
use crate::models::weights::{ModelError, WeightReader};

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
        matches!(self, Self::Setting(_) | Self::NoTokenizer(_))
    }
}

/// Fetches what `spec` names, if it is not on this machine already.
pub(crate) fn fetch(key: &'static str, spec: &str, files: FileChoice) -> Result<PathBuf, LossError> {
    let hub = |source| LossError::Hub { key, source };
    let location = Location::parse(spec).map_err(hub)?;
    if let Location::Local(path) = &location
        && !path.exists()
    {
        return Err(LossError::NoFile { key, path: path.clone() });
    }
    let fetched = hub::fetch(&location, files, &HubSettings::from_env(), &DownloadBar::default()).map_err(hub)?;
    Ok(fetched.weights)
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
        let codebook_loss = CodebookLoss {
            beta: codebook.beta.unwrap_or(quantizer.beta),
            legacy: codebook.legacy.unwrap_or(quantizer.legacy_beta),
            entropy: codebook.entropy.unwrap_or(quantizer.entropy_ratio),
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

fn perceptual(config: &Config, device: &Device) -> Result<PerceptualLoss, LossError> {
    const BACKBONE: &str = "losses.perceptual.backbone";
    let loss = &config.losses.perceptual;
    let unnamed = || Problem { key: BACKBONE, message: "is not set, and alexnet has no default".into() };
    let backbone = loss.backbone_location().ok_or_else(|| LossError::Setting(unnamed()))?;
    let backbone = fetch(BACKBONE, backbone, FileChoice::Any)?;
    let linear = fetch("losses.perceptual.linear", loss.linear_location(), FileChoice::Any)?;
    let weights = load_lpips(loss.network, &backbone, Some(&linear))
        .map_err(|source| LossError::Weights { key: BACKBONE, source })?;
    let network = Lpips::read(&WeightReader::frozen(&weights, device, DType::F32), loss.network)
        .map_err(|source| LossError::Model { key: BACKBONE, source })?;
    Ok(PerceptualLoss::new(network))
}

const CLIP: &str = "clip.pretrained";

fn clip(config: &Config, device: &Device) -> Result<ClipGuidance, LossError> {
    let (losses, settings) = (&config.losses, &config.clip);
    let path = fetch(CLIP, settings.location(), FileChoice::Clip)?;
    let clip = load_clip(&path).map_err(|source| LossError::Weights { key: CLIP, source })?;
    let model = |source| LossError::Model { key: CLIP, source };
    let reader = WeightReader::frozen(&clip.weights, device, DType::F32);
    let encoder = ImageEncoder::read(&reader, &clip.architecture).map_err(model)?;

    let weight = |value: f64, start, ramp| (value != 0.0).then_some(Weight { value, start, ramp });
    let text = weight(losses.clip_text.weight, losses.clip_text.start, losses.clip_text.ramp);
    let contrastive =
        weight(losses.clip_contrastive.weight, losses.clip_contrastive.start, losses.clip_contrastive.ramp);
    let turn = weight(losses.clip_direction.weight, losses.clip_direction.start, losses.clip_direction.ramp);
    let against = |what| losses.clip_contrastive.against.contains(&what);
    let texts = match losses.needs_captions() || text.is_some() || turn.is_some() {
        true => Some(caption_encoder(settings, &clip, path, device)?),
        false => None,
    };
    let embed = |texts_to_embed: &[&str]| -> Result<Tensor<2>, LossError> {
        let encoder = texts.as_ref().ok_or_else(|| LossError::NoTokenizer(PathBuf::new()))?;
        Ok(encoder.embed(texts_to_embed.iter().copied())?)
    };
    let text = match text {
        Some(weight) if losses.clip_text.prompts.is_empty() => Some((weight, TextTarget::Captions)),
        Some(weight) => {
            let prompts = prompts(&losses.clip_text.prompts).map_err(LossError::Setting)?;
            let texts: Vec<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
            let weights = prompts.iter().map(|prompt| prompt.weight).collect();
            Some((weight, TextTarget::Prompts(Box::new(embed(&texts)?), weights)))
        }
        None => None,
    };
    let turn = match turn {
        Some(weight) => {
            let (from, to) = (losses.clip_direction.from.as_deref(), losses.clip_direction.to.as_deref());
            let ends = embed(&[from.unwrap_or_default(), to.unwrap_or_default()])?;
            Some((weight, direction::between(ends)))
        }
        None => None,
    };
    if let Some(text) = texts.as_ref().and_then(CaptionEncoder::take_truncated) {
        eprintln!("longer than the {} tokens of CLIP, the rest is not seen: {text}", clip.architecture.context_length);
    }
    let learned = clip.weights.get("logit_scale").and_then(|scale| scale.to_f32().first().copied());
    let learned = learned.map_or(100.0, |scale| f64::from(scale).exp().min(100.0));
    let views = views(config, clip.architecture.image_size);
    Ok(ClipGuidance {
        encoder,
        architecture: clip.architecture,
        captions: texts.filter(|_| losses.needs_captions()),
        views,
        image: weight(losses.clip_image.weight, losses.clip_image.start, losses.clip_image.ramp),
        text,
        contrastive: contrastive.map(|weight| {
            let logit_scale = losses.clip_contrastive.temperature.map_or(learned, |temperature| 1.0 / temperature);
            let targets = ContrastiveTargets {
                captions: against(Against::Captions),
                originals: against(Against::Originals),
                logit_scale,
            };
            (weight, targets)
        }),
        direction: turn,
    })
}

/// On the device without autodiff: texts are only compared with.
fn caption_encoder(
    settings: &ClipConfig,
    clip: &Clip,
    path: PathBuf,
    device: &Device,
) -> Result<CaptionEncoder, LossError> {
    let tokenizer = match (&settings.tokenizer, &clip.tokenizer) {
        (Some(spec), _) => fetch("clip.tokenizer", spec, FileChoice::Any)?,
        (None, Some(beside)) => beside.clone(),
        (None, None) => return Err(LossError::NoTokenizer(path)),
    };
    let tokenizer = ClipTokenizer::open(&tokenizer, &clip.architecture)?;
    let device = device.clone().without_autodiff();
    let reader = WeightReader::frozen(&clip.weights, &device, DType::F32);
    let encoder =
        TextEncoder::read(&reader, &clip.architecture).map_err(|source| LossError::Model { key: CLIP, source })?;
    Ok(CaptionEncoder::new(tokenizer, encoder, device))
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
