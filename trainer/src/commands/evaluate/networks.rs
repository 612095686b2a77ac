//! The networks with which `train evaluate` measures.

use std::path::PathBuf;

use burn::tensor::{DType, Device};
use checkpoints::hub::FileChoice;
use checkpoints::{Activation, LpipsNetwork, load_inception};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::Common;
use crate::commands::CommandError;
use crate::config::Config;
use crate::losses::load::{LossError, fetch};
use crate::losses::{LoadContext, Losses, LossesConfig};
use crate::models::inception::{FidPackage, Inception};
use crate::training::TrainError;

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// A CLIP as in clip.pretrained, such as clip-shapes, for similarities, captions and CMMD
    #[arg(long, value_name = "MODEL")]
    pub(super) clip: Option<String>,
    /// Its tokenizer, where there is none beside it
    #[arg(long, value_name = "FILE", requires = "clip")]
    clip_tokenizer: Option<String>,
    /// Its activation, where no configuration is beside it
    #[arg(long, value_parser = named::<Activation>(&["quick_gelu", "gelu"]), requires = "clip")]
    clip_activation: Option<Activation>,
    /// Measure LPIPS 0.1 on this network
    #[arg(long, value_name = "NETWORK", value_parser = named::<LpipsNetwork>(&["vgg16", "alexnet"]))]
    lpips: Option<LpipsNetwork>,
    /// Its ImageNet weights, as in losses.perceptual.backbone
    #[arg(long, value_name = "FILE", requires = "lpips")]
    lpips_backbone: Option<String>,
    /// LPIPS's weights of its channels, as in losses.perceptual.linear
    #[arg(long, value_name = "FILE", requires = "lpips")]
    lpips_linear: Option<String>,
    /// InceptionV3 of FID, for rFID and the Inception Score: weights-inception-2015-12-05-6726825d.pth of torch-fidelity or
    /// pt_inception-2015-12-05-6726825d.pth of pytorch-fid
    #[arg(long, value_name = "FILE")]
    pub(super) inception: Option<String>,
    /// The package whose figures rFID is to equal: torch-fidelity, pytorch-fid; they resize images differently
    #[arg(long, value_name = "PACKAGE", default_value = "torch-fidelity", requires = "inception",
        value_parser = named::<FidPackage>(&["torch-fidelity", "pytorch-fid"]))]
    pub(super) fid: FidPackage,
    /// What rFID compares with, in place of the originals: mu and sigma in an .npz of pytorch-fid, or one of ADM's batches
    #[arg(long, value_name = "FILE", requires = "inception")]
    pub(super) reference: Option<PathBuf>,
}

/// The networks that measure.
pub(super) struct Networks {
    /// Those of LPIPS and CLIP.
    pub(super) losses: Losses,
    /// That of rFID.
    pub(super) inception: Option<Inception>,
}

/// Values by the names that they have in a configuration.
fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: serde::de::DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value::<T>(name.into()))
}

impl NetworkArgs {
    /// The name of LPIPS in a protocol.
    pub(super) fn lpips_name(&self) -> Option<String> {
        self.lpips.map(|network| format!("0.1 on {network}"))
    }

    /// Loads the networks for images of this resolution, in f32. Captions are read if there are `captions`.
    pub(super) fn load(&self, common: &Common, captions: bool, device: &Device) -> Result<Networks, CommandError> {
        let mut config = Config { losses: self.losses(captions), ..Config::default() };
        config.data.resolution = common.resolution;
        config.clip.pretrained.clone_from(&self.clip);
        config.clip.tokenizer.clone_from(&self.clip_tokenizer);
        config.clip.activation = self.clip_activation;
        // Reads the text tower too.
        config.validation.clip = self.clip.is_some() && captions;
        let around = config.surroundings();
        for table in config.losses.on() {
            table
                .check(&around)
                .map_err(|problem| CommandError::Usage(format!("`{}` {}", problem.key, problem.message)))?;
        }
        let context = LoadContext {
            around,
            quantizer: &common.quantizer,
            device: &device.clone().autodiff(),
            frozen: DType::F32,
            discriminator: None,
        };
        let losses = Losses::load(&config.losses, context).map_err(TrainError::from)?;
        Ok(Networks { losses, inception: self.load_inception(device).map_err(TrainError::from)? })
    }

    fn load_inception(&self, device: &Device) -> Result<Option<Inception>, LossError> {
        const KEY: &str = "--inception";
        let Some(location) = &self.inception else { return Ok(None) };
        let fetched = fetch(KEY, location, FileChoice::Any)?;
        let weights = load_inception(fetched).map_err(|source| LossError::Weights { key: KEY, source })?;
        let network = Inception::read(&weights, device, self.fid);
        network.map(Some).map_err(|source| LossError::Model { key: KEY, source })
    }

    /// The losses whose networks measure.
    fn losses(&self, captions: bool) -> LossesConfig {
        let mut losses = LossesConfig::default();
        losses.pixel.weight = 0.0;
        losses.codebook.weight = 0.0;
        if let Some(network) = self.lpips {
            losses.perceptual.weight = 1.0;
            losses.perceptual.network = network;
            losses.perceptual.backbone.clone_from(&self.lpips_backbone);
            losses.perceptual.linear.clone_from(&self.lpips_linear);
        }
        if self.clip.is_some() && !captions {
            losses.clip_image.weight = 1.0;
        }
        losses
    }
}
