//! Networks with random weights in place of those that would have to be fetched: memory and speed do not depend on weights,
//! and the gradient must not depend on the batch split with any of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use checkpoints::hub::Location;
use checkpoints::{
    Activation, ClipArchitecture, HostTensor, LpipsNetwork, SafetensorsError, Tower, load_lpips_linear,
    write_safetensors,
};
use rand::RngExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::config::{Config, ModelConfig};
use crate::losses::{Features, LossKeys, Sees};
use crate::models::architectures::{NAMES, by_name};
use crate::models::clip::byte_vocabulary;
use crate::models::discriminator::DiscriminatorNorm;
use crate::models::initialize::rng_for;

const SEED: u64 = 0;

/// Why there are no random networks.
#[derive(Debug, thiserror::Error)]
pub enum RandomError {
    /// What the model is built like stands in its checkpoint alone.
    #[error(
        "`model.pretrained` is {spec}, and what it is built like is known only once it is fetched: fetch it by \
         --pretrained, or name its like by --architecture ({known})",
        known = NAMES.join(", ")
    )]
    UnknownModel {
        /// What was asked for.
        spec: String,
    },
    /// `--architecture` names nothing.
    #[error("--architecture: is \"{name}\", must be one of {known}", known = NAMES.join(", "))]
    UnknownArchitecture {
        /// What was asked for.
        name: String,
    },
    /// What CLIP is built like stands in its files alone.
    #[error(
        "`clip.pretrained` is {spec}, and what it is built like is known only once it is fetched: fetch it by --pretrained, \
         or set clip.pretrained to one of {known}"
    )]
    UnknownClip {
        /// What was asked for.
        spec: String,
        /// What is known.
        known: String,
    },
    /// The disk.
    #[error("random weights cannot be written: {0}")]
    Io(#[from] io::Error),
    /// The disk.
    #[error("random weights cannot be written: {0}")]
    Write(#[from] SafetensorsError),
}

impl RandomError {
    /// Whether the command line and the configuration alone are to blame.
    pub fn is_wrong_usage(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Write(_))
    }
}

/// The networks of what is measured or tried. Their folder is removed when this is dropped.
#[derive(Debug)]
pub struct Networks {
    folder: TempDir,
    /// The built-in architecture in place of a model from the Hub.
    model: Option<String>,
    discriminator: bool,
    backbone: Option<PathBuf>,
    linear: Option<PathBuf>,
    clip: Option<PathBuf>,
    /// Only where the tokenizer that is named is on the Hub.
    tokenizer: bool,
}

impl Networks {
    /// Everything as `config` says; what is on the Hub is fetched as by a run.
    ///
    /// # Errors
    /// If there is no space for temporary files.
    pub fn as_configured() -> Result<Self, RandomError> {
        let folder = tempfile::Builder::new().prefix("train-sweep-").tempdir()?;
        Ok(Self {
            folder,
            model: None,
            discriminator: false,
            backbone: None,
            linear: None,
            clip: None,
            tokenizer: false,
        })
    }

    /// Random weights for all that `config` has on the Hub, in files; local files stay what they are. `architecture` is that
    /// of the model, where its name on the Hub says nothing.
    ///
    /// # Errors
    /// If nothing says what a network is built like, or if the files cannot be written.
    pub fn random_for(config: &Config, architecture: Option<&str>) -> Result<Self, RandomError> {
        let mut networks = Self::as_configured()?;
        let folder = networks.folder.path().to_owned();
        let losses = &config.losses;
        networks.model = match (&config.model.pretrained, architecture) {
            (Some(_), Some(name)) if by_name(name).is_none() => {
                return Err(RandomError::UnknownArchitecture { name: name.to_owned() });
            }
            (Some(_), Some(name)) => Some(name.to_owned()),
            (Some(spec), None) if is_remote(spec) => {
                Some(model_of(spec).ok_or_else(|| RandomError::UnknownModel { spec: spec.clone() })?.to_owned())
            }
            _ => None,
        };
        let adversary = losses.adversarial.weight != 0.0;
        networks.discriminator = adversary && config.discriminator.pretrained.as_deref().is_some_and(is_remote);
        if losses.perceptual.has_lpips() {
            let perceptual = &losses.perceptual;
            let local = perceptual.backbone.as_deref().filter(|spec| !is_remote(spec));
            if local.is_none() {
                let path = folder.join("lpips-backbone.safetensors");
                networks.backbone = Some(save(&lpips_backbone(perceptual.network), path)?);
            }
            let whole = local.is_some_and(|path| load_lpips_linear(perceptual.network, Path::new(path)).is_ok());
            if perceptual.linear.as_deref().map_or(!whole, is_remote) {
                networks.linear = Some(lpips_linear(perceptual.network, &folder)?);
            }
        }
        if losses.has(Sees::Clip) || losses.perceptual.is_on() && losses.perceptual.features == Features::Clip {
            if is_remote(config.clip.location()) {
                networks.clip = Some(clip(config.clip.location(), &folder)?);
            }
            networks.tokenizer = networks.clip.is_some() || config.clip.tokenizer.as_deref().is_some_and(is_remote);
        }
        Ok(networks)
    }

    /// Temporary files go here.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What has random weights though the configuration names others, in its own words.
    pub fn random(&self) -> Vec<String> {
        let all = [
            ("model.pretrained", self.model.is_some()),
            ("discriminator.pretrained", self.discriminator),
            ("losses.perceptual.backbone", self.backbone.is_some()),
            ("losses.perceptual.linear", self.linear.is_some()),
            ("clip.pretrained", self.clip.is_some()),
        ];
        all.into_iter().filter(|(_, random)| *random).map(|(key, _)| key.to_owned()).collect()
    }

    /// `config` with these networks.
    pub fn config(&self, mut config: Config) -> Config {
        if let Some(name) = &self.model {
            config.model =
                ModelConfig { architecture: Some(name.clone()), train: config.model.train, ..ModelConfig::default() };
        }
        if self.discriminator {
            // The published ones are taming's.
            config.discriminator.pretrained = None;
            config.discriminator.norm = DiscriminatorNorm::Batch;
        }
        let text = |path: &PathBuf| path.display().to_string();
        if let Some(path) = &self.backbone {
            config.losses.perceptual.backbone = Some(text(path));
        }
        if let Some(path) = &self.linear {
            config.losses.perceptual.linear = Some(text(path));
        }
        if let Some(path) = &self.clip {
            config.clip.pretrained = Some(text(path));
        }
        if self.tokenizer {
            config.clip.tokenizer = None;
        }
        config
    }
}

fn is_remote(spec: &str) -> bool {
    matches!(Location::parse(spec), Ok(Location::Hub { .. }))
}

/// The architecture of a model that is known by its name on the Hub.
pub(crate) fn architecture_of(spec: &str) -> Option<checkpoints::Architecture> {
    model_of(spec).and_then(by_name)
}

/// The built-in architecture of a model that is known by its name on the Hub.
fn model_of(spec: &str) -> Option<&'static str> {
    let Ok(Location::Hub { owner, name, file, .. }) = Location::parse(spec) else { return None };
    let file = file.unwrap_or_default();
    match (owner.as_str(), name.as_str()) {
        ("boris" | "dalle-mini", "vqgan_f16_16384" | "vqgan_imagenet_f16_16384") => Some("taming-f16-16384"),
        ("amused", "amused-256" | "amused-512") => Some("amused"),
        ("FoundationVision" | "peizesun", _) if file.contains("vq_ds16") => Some("llamagen-vq-16"),
        ("FoundationVision" | "peizesun", _) if file.contains("vq_ds8") => Some("llamagen-vq-8"),
        _ => None,
    }
}

type Tensors = BTreeMap<String, HostTensor>;

/// Uniform within `bound`.
pub(crate) fn uniform(name: &str, shape: &[usize], bound: f32) -> HostTensor {
    let mut rng = rng_for(SEED, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-bound..=bound)).collect();
    HostTensor::from_f32(shape, &values)
}

fn constant(shape: &[usize], value: f32) -> HostTensor {
    HostTensor::from_f32(shape, &vec![value; shape.iter().product()])
}

/// Of a ReLU network, which keeps the size of its activations.
pub(crate) fn lpips_backbone(network: LpipsNetwork) -> Tensors {
    let mut tensors = Tensors::new();
    for (index, shape) in network.convolutions() {
        let inputs = shape[1..].iter().product::<usize>() as f32;
        let name = format!("features.{index}.weight");
        tensors.insert(name.clone(), uniform(&name, shape, (6.0 / inputs).sqrt()));
        tensors.insert(format!("features.{index}.bias"), constant(&shape[..1], 0.0));
    }
    tensors
}

/// Both files of LPIPS on `network`, its backbone and its linear layers, into `folder`.
pub(crate) fn write_lpips(network: LpipsNetwork, folder: &Path) -> Result<[PathBuf; 2], RandomError> {
    let backbone = save(&lpips_backbone(network), folder.join("lpips-backbone.safetensors"))?;
    Ok([backbone, lpips_linear(network, folder)?])
}

/// LPIPS's linear layers by the names that its authors gave them, all channels alike.
fn lpips_linear(network: LpipsNetwork, folder: &Path) -> Result<PathBuf, RandomError> {
    let channels = network.channels().into_iter().enumerate();
    let layer = |(layer, channels): (usize, usize)| {
        (format!("lin{layer}.model.1.weight"), constant(&[1, channels, 1, 1], 1.0 / channels as f32))
    };
    save(&channels.map(layer).collect(), folder.join("lpips-linear.safetensors"))
}

fn save(tensors: &Tensors, path: PathBuf) -> Result<PathBuf, RandomError> {
    write_safetensors(&path, tensors, None)?;
    Ok(path)
}

/// The published CLIPs that are most in use: owner and name, side of images and patches, image tower, text tower, length of
/// embeddings.
type Known = (&'static str, [usize; 2], Tower, Tower, usize, Activation);

fn known_clips() -> [Known; 7] {
    let tower = |width, layers, heads| Tower { width, layers, heads, mlp: 4 * width };
    let (base, large, huge) = (tower(768, 12, 12), tower(1024, 24, 16), tower(1280, 32, 16));
    let (small_text, text, large_text) = (tower(512, 12, 8), tower(768, 12, 12), tower(1024, 24, 16));
    let (openai, laion) = (Activation::QuickGelu, Activation::Gelu);
    [
        ("openai/clip-vit-base-patch32", [224, 32], base.clone(), small_text.clone(), 512, openai),
        ("openai/clip-vit-base-patch16", [224, 16], base.clone(), small_text.clone(), 512, openai),
        ("openai/clip-vit-large-patch14", [224, 14], large.clone(), text.clone(), 768, openai),
        ("openai/clip-vit-large-patch14-336", [336, 14], large.clone(), text.clone(), 768, openai),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", [224, 32], base, small_text, 512, laion),
        ("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", [224, 14], large, text, 768, laion),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", [224, 14], huge, large_text, 1024, laion),
    ]
}

fn clip(spec: &str, folder: &Path) -> Result<PathBuf, RandomError> {
    let Ok(Location::Hub { owner, name, .. }) = Location::parse(spec) else {
        return Err(io::Error::other(format!("{spec} is not on the Hub")).into());
    };
    let wanted = format!("{owner}/{name}");
    let all = known_clips();
    let known = || all.iter().map(|known| format!("hf://{}", known.0)).collect::<Vec<_>>().join(", ");
    let Some((_, [image_size, patch_size], vision, text, embedding, activation)) =
        all.iter().find(|known| known.0 == wanted)
    else {
        return Err(RandomError::UnknownClip { spec: spec.to_owned(), known: known() });
    };
    let (vocabulary, context_length) = (49_408, 77);
    let architecture = ClipArchitecture {
        image_size: *image_size,
        patch_size: *patch_size,
        vision: vision.clone(),
        text: text.clone(),
        context_length,
        vocabulary,
        embedding: *embedding,
        activation: *activation,
        layer_norm_epsilon: 1e-5,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        end_of_text: vocabulary as u32 - 1,
    };
    let folder = folder.join("clip");
    write_clip(&architecture, &folder)?;
    Ok(folder)
}

/// Into `folder`, as transformers writes it, with a tokenizer whose tokens are bytes.
pub(crate) fn write_clip(architecture: &ClipArchitecture, folder: &Path) -> Result<(), RandomError> {
    fs::create_dir_all(folder)?;
    let write = |name: &str, value: Value| fs::write(folder.join(name), value.to_string());
    write("config.json", transformers_config(architecture))?;
    write("vocab.json", Value::Object(byte_vocabulary(architecture.end_of_text)))?;
    fs::write(folder.join("merges.txt"), "#version: 0.2\n")?;
    save(&clip_weights(architecture), folder.join("model.safetensors")).map(drop)
}

/// By the names of transformers.
pub(crate) fn clip_weights(architecture: &ClipArchitecture) -> Tensors {
    let weight = |(name, shape): (String, Vec<usize>)| {
        let inputs = shape.iter().skip(1).product::<usize>().max(1) as f32;
        let tensor = match name.as_str() {
            "logit_scale" => constant(&shape, 4.6),
            name if name.contains("norm") && name.ends_with("weight") => constant(&shape, 1.0),
            name if name.ends_with("bias") => constant(&shape, 0.0),
            name => uniform(name, &shape, inputs.powf(-0.5)),
        };
        (name, tensor)
    };
    architecture.parameters().into_iter().map(weight).collect()
}

fn transformers_config(clip: &ClipArchitecture) -> Value {
    let activation = match clip.activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    };
    let tower = |tower: &Tower| {
        json!({ "hidden_size": tower.width, "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads,
                "intermediate_size": tower.mlp, "hidden_act": activation, "layer_norm_eps": clip.layer_norm_epsilon })
    };
    let (mut vision, mut text) = (tower(&clip.vision), tower(&clip.text));
    vision["image_size"] = clip.image_size.into();
    vision["patch_size"] = clip.patch_size.into();
    text["vocab_size"] = clip.vocabulary.into();
    text["max_position_embeddings"] = clip.context_length.into();
    text["eos_token_id"] = clip.end_of_text.into();
    json!({ "model_type": "clip", "projection_dim": clip.embedding, "text_config": text, "vision_config": vision })
}

#[cfg(test)]
mod tests {
    use checkpoints::{load_clip, load_lpips_backbone};

    use super::*;
    use crate::models::clip::ClipTokenizer;

    #[test]
    fn everything_on_the_hub_gets_random_weights_of_its_shapes_and_nothing_else_does() {
        let mut config = Config::default();
        config.model.pretrained = Some("hf://boris/vqgan_f16_16384".into());
        config.model.train = vec!["decoder".into()];
        config.losses.perceptual.weight = 1.0;
        config.losses.clip_image.weight = 1.0;
        let networks = Networks::random_for(&config, None).unwrap();
        assert_eq!(
            networks.random(),
            ["model.pretrained", "losses.perceptual.backbone", "losses.perceptual.linear", "clip.pretrained"]
        );
        let random = networks.config(config.clone());
        assert_eq!(random.check(), Ok(()));
        assert_eq!(random.model.architecture.as_deref(), Some("taming-f16-16384"));
        assert_eq!(random.model.train, config.model.train);
        let path = |spec: &Option<String>| PathBuf::from(spec.clone().unwrap());
        let perceptual = &random.losses.perceptual;
        load_lpips_backbone(perceptual.network, path(&perceptual.backbone)).unwrap();
        load_lpips_linear(perceptual.network, path(&perceptual.linear)).unwrap();
        let clip = load_clip(path(&random.clip.pretrained)).unwrap();
        assert_eq!(clip.architecture.vision.width, 768);
        let tokenizer = ClipTokenizer::open(&clip.tokenizer.unwrap(), &clip.architecture).unwrap();
        let tokens = tokenizer.encode("a red circle").unwrap();
        assert_eq!((tokens.ids[0], tokens.ids[11]), (49_406, 49_407), "{:?}", &tokens.ids[..12]);

        let mut local = Config::default();
        local.model.pretrained = Some("model.ckpt".into());
        let networks = Networks::random_for(&local, None).unwrap();
        assert!(networks.random().is_empty());
        assert_eq!(networks.config(local.clone()), local);
    }

    #[test]
    fn what_is_built_like_nobody_knows_is_said() {
        let mut config = Config::default();
        config.model.pretrained = Some("hf://someone/something".into());
        let error = |config: &Config, name| Networks::random_for(config, name).unwrap_err().to_string();
        assert!(error(&config, None).contains("fetch it by --pretrained"), "{}", error(&config, None));
        assert!(error(&config, Some("tny")).starts_with("--architecture: is \"tny\", must be one of tiny, "));
        let networks = Networks::random_for(&config, Some("ldm-f4-8192")).unwrap();
        assert_eq!(networks.config(config.clone()).model.architecture.as_deref(), Some("ldm-f4-8192"));
        config.model.pretrained = None;
        config.losses.clip_text.weight = 1.0;
        config.clip.pretrained = Some("hf://someone/clip".into());
        assert!(error(&config, None).contains("hf://openai/clip-vit-base-patch32"), "{}", error(&config, None));
    }
}
