//! Networks with random weights in place of those that would have to be fetched.

use std::io;
use std::path::Path;

use checkpoints::hub::Location;
use checkpoints::load_lpips_linear;
use tempfile::TempDir;

use crate::config::{Config, ModelConfig};
use crate::models::architectures::{NAMES, by_name};
use crate::models::discriminator::DiscriminatorNorm;
use crate::models::random::{RANDOM, known_clip, known_clip_names};

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
    #[error("temporary files cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl RandomError {
    /// Whether the command line and the configuration alone are to blame.
    pub fn is_wrong_usage(&self) -> bool {
        !matches!(self, Self::Io(_))
    }
}

/// Which networks of a configuration have random weights, and a folder for what is measured with them. The folder is removed
/// when this is dropped.
#[derive(Debug)]
pub struct Networks {
    folder: TempDir,
    /// The built-in architecture in place of a model from the Hub.
    model: Option<String>,
    discriminator: bool,
    backbone: bool,
    linear: bool,
    /// The name of the CLIP on the Hub.
    clip: Option<String>,
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
            backbone: false,
            linear: false,
            clip: None,
            tokenizer: false,
        })
    }

    /// Random weights for all that `config` has on the Hub; local files stay what they are. `architecture` is that of the
    /// model, where its name on the Hub says nothing.
    ///
    /// # Errors
    /// If nothing says what a network is built like, or if there is no space for temporary files.
    pub fn random_for(config: &Config, architecture: Option<&str>) -> Result<Self, RandomError> {
        let mut networks = Self::as_configured()?;
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
            networks.backbone = local.is_none();
            let whole = local.is_some_and(|path| load_lpips_linear(perceptual.network, Path::new(path)).is_ok());
            networks.linear = perceptual.linear.as_deref().map_or(!whole, is_remote);
        }
        if config.has_clip() {
            if is_remote(config.clip.location()) {
                networks.clip = Some(clip(config.clip.location())?);
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
            ("losses.perceptual.backbone", self.backbone),
            ("losses.perceptual.linear", self.linear),
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
        if self.backbone {
            config.losses.perceptual.backbone = Some(RANDOM.to_owned());
        }
        if self.linear {
            config.losses.perceptual.linear = Some(RANDOM.to_owned());
        }
        if let Some(name) = &self.clip {
            config.clip.pretrained = Some(format!("{RANDOM}:{name}"));
        }
        if self.tokenizer {
            config.clip.tokenizer = None;
        }
        config
    }
}

/// The name of a CLIP on the Hub whose architecture is known.
fn clip(spec: &str) -> Result<String, RandomError> {
    let name = match Location::parse(spec) {
        Ok(Location::Hub { owner, name, .. }) => format!("{owner}/{name}"),
        _ => String::new(),
    };
    match known_clip(&name) {
        Some(_) => Ok(name),
        None => {
            let published = known_clip_names().into_iter().filter(|name| name.contains('/'));
            let known = published.map(|name| format!("hf://{name}")).collect::<Vec<_>>().join(", ");
            Err(RandomError::UnknownClip { spec: spec.to_owned(), known })
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let perceptual = &random.losses.perceptual;
        assert_eq!([&perceptual.backbone, &perceptual.linear], [&Some(RANDOM.to_owned()); 2]);
        assert_eq!(random.clip.pretrained.as_deref(), Some("random:openai/clip-vit-base-patch32"));
        // Nothing of it is on the Hub any more.
        let again = Networks::random_for(&random, None).unwrap();
        assert!(again.random().is_empty());
        assert_eq!(again.config(random.clone()), random);

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
