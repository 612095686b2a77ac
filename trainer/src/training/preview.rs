//! What a run would need: everything is read and checked, and nothing is downloaded, computed or written.

use std::path::Path;

use checkpoints::Architecture;
use checkpoints::hub::{FileChoice, Presence};
use checkpoints::shipped::{CLIP_SHAPES, VQGAN_SHAPES};
use serde::Serialize;

use super::TrainError;
use super::folder::RunFolder;
use super::pretrained::{PretrainedError, describe, initial, random_architecture};
use super::start::{check_captions, check_precision};
use crate::config::{Compute, Config, Loaded};
use crate::data::{self, ImageCounts};
use crate::device::Choice;
use crate::losses::LossKeys;
use crate::losses::load::look;
use crate::memory::random_networks::architecture_of;
use crate::models::random::is_random;
use crate::optim::Trainable;

/// What a run would need.
#[derive(Debug, Clone, Serialize)]
pub struct Preview {
    /// The device, in words.
    pub device: String,
    /// How many images there are.
    #[serde(flatten)]
    pub images: ImageCounts,
    /// What the user should know of the images.
    pub notes: Vec<String>,
    /// The pretrained weights that the configuration names.
    pub weights: Vec<Weights>,
    /// The model, in words; `None` if that is known only once it is fetched.
    pub model: Option<String>,
    /// Bytes of the model's weights, gradients, optimizer state, average and half-precision copy.
    pub state_memory: Option<u64>,
}

/// Pretrained weights that a run would read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Weights {
    /// The key that names them.
    pub key: &'static str,
    /// Where they are.
    pub location: String,
    /// Whether they have to be downloaded.
    pub download: bool,
    /// Bytes to download; `None` if that is known only on the way.
    pub bytes: Option<u64>,
}

/// Finds out what a run of `loaded` in `folder` would need.
///
/// # Errors
/// What would keep the run from its first step, as far as that can be known without downloads.
pub fn preview(loaded: &Loaded, folder: &Path) -> Result<Preview, TrainError> {
    let config = &loaded.config;
    if !RunFolder::find(folder)?.store().steps()?.is_empty() {
        return Err(TrainError::Occupied(folder.to_owned()));
    }
    let device = config.run.device.parse::<Choice>()?.open()?;
    check_precision(loaded, &device)?;
    let data = data::open(config)?;
    check_captions(config, &data)?;
    let weights = weights(config)?;
    let is_downloaded = weights.iter().any(|weights| weights.key == MODEL && weights.download);
    let architecture = architecture(config, is_downloaded)?;
    if let Some(architecture) = &architecture {
        config.check_against(architecture).map_err(|problem| loaded.locate(problem))?;
    }
    Ok(Preview {
        device: device.description,
        images: ImageCounts::of(&data, config),
        notes: data.notes,
        weights,
        model: architecture.as_ref().map(describe),
        state_memory: architecture.as_ref().map(|architecture| state_memory(config, architecture)).transpose()?,
    })
}

const MODEL: &str = "model.pretrained";
const CLIP: &str = "clip.pretrained";

/// The pretrained weights that `config` needs, and which of them have to be downloaded.
fn weights(config: &Config) -> Result<Vec<Weights>, TrainError> {
    let perceptual = Some(&config.losses.perceptual).filter(|table| table.has_lpips());
    let discriminator = config.losses.adversarial.is_on().then_some(&config.discriminator);
    let clip = config.has_clip().then_some(&config.clip);
    let lpips = perceptual.into_iter().flat_map(|table| table.files());
    let lpips = lpips.map(|(key, location)| (key, Some(location), FileChoice::Any));
    let others = [
        (MODEL, config.model.pretrained.as_deref(), FileChoice::Vqgan),
        ("discriminator.pretrained", discriminator.and_then(|table| table.pretrained.as_deref()), FileChoice::Vqgan),
        (CLIP, clip.map(|table| table.location()), FileChoice::Clip),
        ("clip.tokenizer", clip.and_then(|table| table.tokenizer.as_deref()), FileChoice::Tokenizer),
    ];
    let [model, others @ ..] = others;
    let needed = [model].into_iter().chain(lpips).chain(others);
    let needed = needed.filter_map(|(key, location, files)| Some((key, location?, files)));
    needed
        .map(|(key, location, files)| {
            let is_shipped = [(MODEL, VQGAN_SHAPES.name), (CLIP, CLIP_SHAPES.name)].contains(&(key, location));
            let presence = if is_shipped || is_random(location) { Presence::Here } else { look(key, location, files)? };
            let (download, bytes) = match presence {
                Presence::Here => (false, None),
                Presence::Download(bytes) => (true, bytes),
            };
            Ok(Weights { key, location: location.to_owned(), download, bytes })
        })
        .collect()
}

/// The model's architecture. Weights that are here are read as a run reads them.
fn architecture(config: &Config, is_downloaded: bool) -> Result<Option<Architecture>, TrainError> {
    match &config.model.pretrained {
        None => random_architecture(&config.model)
            .map(Some)
            .map_err(|problem| TrainError::Architecture(PretrainedError::Architecture(problem))),
        Some(spec) if is_downloaded => Ok(architecture_of(spec)),
        Some(_) => Ok(Some(initial(config)?.architecture)),
    }
}

/// Bytes that stay on the device over the whole run, without those of other networks: weights, average and their sums in
/// f32, the gradient and two moments of what is trained, and the copy to compute with.
fn state_memory(config: &Config, architecture: &Architecture) -> Result<u64, TrainError> {
    let parameters = architecture.parameters();
    let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    let trainable = Trainable::new(&config.model.train, &names)?;
    let mut bytes = 0;
    for (name, shape) in &parameters {
        let count = shape.iter().product::<usize>() as u64;
        let copies = 1 + u64::from(config.ema.decay > 0.0) + 3 * u64::from(trainable.is_trained(name));
        bytes += 4 * count * copies + 2 * count * u64::from(config.precision.compute != Compute::Fp32);
    }
    Ok(bytes)
}
