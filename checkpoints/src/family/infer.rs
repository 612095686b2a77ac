//! Infers an architecture from the names and shapes of the weights.

use std::path::Path;

use super::recognise::ModelNames;
use super::{Architecture, Quantizer};
use crate::files::{WeightsError, WeightsFile, read_config};

impl Architecture {
    /// Infers the architecture from the names and shapes in a file.
    ///
    /// `config` is a configuration of the family, which is `config.json` for diffusers; without it, the one beside the
    /// weights is read. What neither shapes nor configuration say is the family's default. taming and LlamaGen have no
    /// configuration that is read: what taming's YAML says of a VQGAN, its state dict shows.
    ///
    /// # Errors
    /// [`WeightsError::Unsupported`] names a model that is no VQGAN (or is a MoVQ or KL autoencoder);
    /// [`WeightsError::Architecture`] says what does not go together.
    pub fn infer(file: &WeightsFile, config: Option<&Path>) -> Result<Architecture, WeightsError> {
        let names = ModelNames::of(file)?;
        let layout = names.family.layout();
        let config = match (config, layout.config_file) {
            (Some(path), _) => Some(read_config(path)?),
            (None, Some(name)) => file.json_beside(name)?,
            (None, None) => None,
        };

        let mut levels = 0;
        let first_conv = |level: usize| format!("encoder.down.{level}.block.0.conv1.weight");
        let mut channels = Vec::new();
        while let Some(shape) = names.shape(&first_conv(levels), levels) {
            channels.push(dimension(&first_conv(levels), shape, 0)?);
            levels += 1;
        }
        let has = |name: String| names.shape(&name, levels).is_some();
        let size = |name: &str, axis: usize| match names.shape(name, levels) {
            Some(shape) => dimension(name, shape, axis),
            None => Err(WeightsError::NoTensor { path: file.path().to_owned(), name: names.in_file(name, levels) }),
        };
        let res_blocks = (0..).take_while(|block| has(format!("encoder.down.0.block.{block}.conv1.weight"))).count();
        let attended = |side: &str| -> Vec<usize> {
            let levels = 0..levels;
            levels.filter(|level| has(format!("{side}.{level}.attn.0.norm.weight"))).collect()
        };
        let attention_levels = attended("encoder.down");
        if attended("decoder.up") != attention_levels {
            return file.refuse("encoder and decoder have attention at different levels");
        }
        let quantizer = Quantizer { kind: names.quantizer, ..layout.quantizer.clone() };
        let mut architecture = Architecture {
            family: names.family,
            in_channels: size("encoder.conv_in.weight", 1)?,
            out_channels: size("decoder.conv_out.weight", 0)?,
            base_channels: size("encoder.conv_in.weight", 0)?,
            channels,
            res_blocks,
            attention_levels,
            mid_attention: has("encoder.mid.attn_1.norm.weight".to_owned()),
            latent_channels: size("encoder.conv_out.weight", 0)?,
            code_dim: size(quantizer.codebook(), 1)?,
            codes: size(quantizer.codebook(), 0)?,
            groups: 32,
            quantizer,
            lookup_from_codebook: false,
            scaling_factor: None,
            diffusers: serde_json::Map::new(),
        };
        (layout.read_settings)(&mut architecture, file, config.as_ref())?;
        architecture.check()?;
        Ok(architecture)
    }
}

fn dimension(name: &str, shape: &[usize], axis: usize) -> Result<usize, WeightsError> {
    let missing = || WeightsError::Architecture(format!("{name} has the shape {shape:?}"));
    shape.get(axis).copied().ok_or_else(missing)
}
