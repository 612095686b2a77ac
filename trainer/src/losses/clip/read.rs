//! Reads the networks of `[clip]` and `[losses.clip_*]`, and what they are compared with.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use checkpoints::hub::FileChoice;
use checkpoints::shipped::CLIP_SHAPES;
use checkpoints::{Clip, ClipArchitecture, read_clip};
use tempfile::TempDir;

use super::captions::CaptionEncoder;
use super::config::ClipConfig;
use super::contrastive::{Against, ClipContrastiveConfig};
use super::cutouts::{CutoutSettings, Cutouts};
use super::direction::{self, ClipDirectionConfig};
use super::guidance::{ClipGuidance, ContrastiveTargets, TextTarget, Views};
use super::image::ClipImageConfig;
use super::text::ClipTextConfig;
use crate::losses::load::{LossError, fetch};
use crate::losses::loss::{LoadContext, LossKeys};
use crate::losses::table::LossTable;
use crate::models::clip::{ClipTokenizer, ImageEncoder, TextEncoder};
use crate::models::random::{clip_weights, known_clip, random_clip};
use crate::models::weights::WeightReader;

const CLIP: &str = "clip.pretrained";

/// Loads the CLIP losses of the four tables; `None` if all are off.
pub(super) fn guidance(
    (image, text, contrastive, direction): (
        &ClipImageConfig,
        &ClipTextConfig,
        &ClipContrastiveConfig,
        &ClipDirectionConfig,
    ),
    context: &LoadContext<'_>,
) -> Result<Option<ClipGuidance>, LossError> {
    let judges = context.around.judge_by_clip;
    if !(image.is_on() || text.is_on() || contrastive.is_on() || direction.is_on() || judges) {
        return Ok(None);
    }
    let compared = text.is_on() && text.needs_captions() || contrastive.is_on() && contrastive.needs_captions();
    let needs_captions = compared || judges;
    let needs_texts = needs_captions || text.is_on() || direction.is_on();
    let settings = context.around.clip;
    let ClipNetworks { architecture, encoder, texts, logit_scale } =
        networks(settings, context.around.seed, needs_texts, context.device, context.frozen)?;
    let (mut text_target, mut turn) = (None, None);
    if let Some(texts) = &texts {
        text_target = text.is_on().then(|| target(text, texts)).transpose()?;
        let ends = [&direction.from, &direction.to].map(|text| text.as_deref().unwrap_or_default());
        let embedded = direction.is_on().then(|| texts.embed(ends.into_iter())).transpose()?;
        turn = embedded.map(direction::between);
    }
    if let Some(text) = texts.as_ref().and_then(CaptionEncoder::take_truncated) {
        note!("longer than the {} tokens of CLIP, the rest is not seen: {text}", architecture.context_length);
    }
    let against = |what| contrastive.against.contains(&what);
    let targets = ContrastiveTargets {
        captions: against(Against::Captions),
        originals: against(Against::Originals),
        // The default is the checkpoint's own scale.
        logit_scale: contrastive.temperature.map_or(logit_scale, |temperature| 1.0 / temperature),
    };
    Ok(Some(ClipGuidance {
        encoder,
        captions: texts.filter(|_| needs_captions),
        views: views(settings, architecture.image_size, context.around.seed),
        architecture,
        image: image.is_on().then(|| image.weight()),
        text: text_target.map(|target| (text.weight(), target)),
        contrastive: contrastive.is_on().then(|| (contrastive.weight(), targets)),
        is_random: settings.is_random(),
        direction: turn.map(|turn| (direction.weight(), turn)),
    }))
}

/// The contents of a CLIP's files.
struct ClipNetworks {
    architecture: ClipArchitecture,
    encoder: ImageEncoder,
    /// Only if a loss needs texts.
    texts: Option<CaptionEncoder>,
    /// The factor of its cosines.
    logit_scale: f64,
}

/// Loads the networks; `needs_texts` says whether the text tower is needed.
fn networks(
    settings: &ClipConfig,
    seed: u64,
    needs_texts: bool,
    device: &Device,
    dtype: DType,
) -> Result<ClipNetworks, LossError> {
    // Dropping it removes a shipped model's files.
    let (mut clip, path, _folder) = read(settings, seed, needs_texts)?;
    let texts = needs_texts.then(|| caption_encoder(settings, &clip, path, device, dtype)).transpose()?;
    // The text tower is as large as the image tower, and is on the device already.
    clip.weights.retain(|name, _| !name.starts_with("text_"));
    let reader = WeightReader::frozen(&clip.weights, device, dtype);
    let encoder =
        ImageEncoder::read(&reader, &clip.architecture).map_err(|source| LossError::Model { key: CLIP, source })?;
    let learned = clip.weights.get("logit_scale").and_then(|scale| scale.to_f32().first().copied());
    let logit_scale = learned.map_or(100.0, |scale| f64::from(scale).exp().min(100.0));
    Ok(ClipNetworks { architecture: clip.architecture, encoder, texts, logit_scale })
}

/// Reads the model of `[clip]`. Returns it with its file, and with the folder that this file needs.
fn read(settings: &ClipConfig, seed: u64, with_texts: bool) -> Result<(Clip, PathBuf, Option<TempDir>), LossError> {
    if let Some(architecture) = random_clip(settings.location()).and_then(known_clip) {
        let weights = clip_weights(&architecture, seed);
        return Ok((Clip { architecture, weights, tokenizer: None }, settings.location().into(), None));
    }
    let shipped = (settings.location() == CLIP_SHAPES.name).then(|| CLIP_SHAPES.unpack()).transpose();
    let folder = shipped.map_err(|source| LossError::Unpack { key: CLIP, source })?;
    let fetched = match &folder {
        Some(folder) => folder.path().to_owned().into(),
        None => fetch(CLIP, settings.location(), FileChoice::Clip)?,
    };
    let path = fetched.weights.clone();
    let clip = read_clip(fetched, settings.activation, with_texts);
    Ok((clip.map_err(|source| LossError::Weights { key: CLIP, source })?, path, folder))
}

/// Loads the image tower alone of the model of `[clip]`, frozen, with its architecture.
pub(crate) fn image_encoder(
    settings: &ClipConfig,
    seed: u64,
    device: &Device,
    dtype: DType,
) -> Result<(ClipArchitecture, ImageEncoder), LossError> {
    let ClipNetworks { architecture, encoder, .. } = networks(settings, seed, false, device, dtype)?;
    Ok((architecture, encoder))
}

/// Puts it on the device without autodiff: texts are only compared with.
fn caption_encoder(
    settings: &ClipConfig,
    clip: &Clip,
    path: PathBuf,
    device: &Device,
    dtype: DType,
) -> Result<CaptionEncoder, LossError> {
    let open = |path: &Path| ClipTokenizer::open(path, &clip.architecture);
    let tokenizer = match (&settings.tokenizer, &clip.tokenizer) {
        (Some(spec), _) => open(&fetch("clip.tokenizer", spec, FileChoice::Tokenizer)?.weights)?,
        (None, Some(beside)) => open(beside)?,
        (None, None) if settings.is_random() => ClipTokenizer::of_bytes(&clip.architecture)?,
        (None, None) => return Err(LossError::NoTokenizer(path)),
    };
    let device = device.clone().without_autodiff();
    let reader = WeightReader::frozen(&clip.weights, &device, dtype);
    let encoder =
        TextEncoder::read(&reader, &clip.architecture).map_err(|source| LossError::Model { key: CLIP, source })?;
    Ok(CaptionEncoder::new(tokenizer, encoder, device))
}

fn target(text: &ClipTextConfig, texts: &CaptionEncoder) -> Result<TextTarget, LossError> {
    if text.prompts.is_empty() {
        return Ok(TextTarget::Captions);
    }
    let prompts = text.prompts().map_err(LossError::Setting)?;
    let embeddings = texts.embed(prompts.iter().map(|prompt| prompt.text.as_str()))?;
    let weights = prompts.iter().map(|prompt| prompt.weight).collect();
    Ok(TextTarget::Prompts(Box::new(embeddings), weights))
}

fn views(clip: &ClipConfig, size: usize, seed: u64) -> Views {
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
    Views { whole: clip.whole, cutouts: Cutouts::new(cutouts), at_once: clip.cutouts_at_once, seed }
}
