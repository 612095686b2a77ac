//! VQGANs in the files of the programs that train them, one module per family.
//!
//! Weights have taming's names inside this project, the canonical names. A family's module says how its files differ:
//! their names, buffers and configuration, and which architectures its programs build. A new family is a new module
//! with its [`Layout`], and a line in the list below.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

mod architecture;
mod diffusers;
mod export;
mod infer;
mod llamagen;
mod load;
mod recognise;
mod taming;
#[cfg(test)]
mod tests;

use crate::files::{WeightsError, WeightsFile};
use crate::tensor::HostTensor;
pub use architecture::{Architecture, GumbelTraining, Quantizer, QuantizerKind};
pub use export::{ConfigFile, Export, export_vqgan};
pub use load::{load_vqgan, vqgan_notes};

macro_rules! families {
    ($($(#[$doc:meta])+ $family:ident => $layout:expr,)+) => {
        /// Who made the model: decides the names in its files and the defaults of its quantizer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Family { $($(#[$doc])+ $family,)+ }

        impl Family {
            const ALL: &[Family] = &[$(Family::$family),+];

            fn layout(self) -> &'static dyn Layout {
                match self { $(Family::$family => &$layout),+ }
            }
        }
    };
}

families! {
    /// taming-transformers, and the first stages of latent-diffusion.
    Taming => taming::Taming,
    /// LlamaGen's image tokenizer.
    LlamaGen => llamagen::LlamaGen,
    /// `VQModel` of diffusers.
    Diffusers => diffusers::Diffusers,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.layout().name())
    }
}

impl Family {
    /// Files beside the weights from which any family's configuration is read.
    pub(crate) fn config_files() -> Vec<&'static str> {
        Family::ALL.iter().filter_map(|family| family.layout().config_file()).collect()
    }
}

impl Quantizer {
    /// What the family trains with unless told otherwise.
    pub fn of(family: Family) -> Quantizer {
        family.layout().quantizer()
    }
}

/// A canonical parameter's name in a family's files; `levels` is the number of resolutions.
pub fn family_name(family: Family, levels: usize, canonical: &str) -> String {
    family.layout().name_of(canonical, levels)
}

/// How a family's programs store a VQGAN.
trait Layout {
    /// The family's name in messages.
    fn name(&self) -> &'static str;

    /// How names begin that only this family has. A file with one of them is recognised as the family's.
    fn prefixes(&self) -> &'static [&'static str];

    /// A canonical parameter's name in the family's files; `levels` is the number of resolutions.
    fn name_of(&self, canonical: &str, levels: usize) -> String;

    /// The name that earlier versions of the family's programs gave to one of its parameters.
    fn old_name(&self, _name: &str) -> Option<String> {
        None
    }

    /// Tensors of the quantizer beside its parameters, on which no reconstruction depends.
    fn buffers(&self) -> &'static [&'static str];

    /// What the family trains with unless told otherwise.
    fn quantizer(&self) -> Quantizer;

    /// Whether the family has a Gumbel quantizer.
    fn has_gumbel(&self) -> bool {
        false
    }

    /// The configuration beside the weights that says what their shapes do not show.
    fn config_file(&self) -> Option<&'static str> {
        None
    }

    /// Takes over what the configuration, or arguments that were saved with the weights, say beyond the shapes.
    fn read_settings(
        &self,
        _architecture: &mut Architecture,
        _file: &WeightsFile,
        _config: Option<&Json>,
    ) -> Result<(), WeightsError> {
        Ok(())
    }

    /// What the user should be told about a file in which the model has some names.
    fn note(&self, _has: &dyn Fn(&str) -> bool) -> Option<&'static str> {
        None
    }

    /// What of an architecture the family's programs cannot build, or build differently unless told.
    fn obstacle(&self, architecture: &Architecture) -> Option<&'static str>;

    /// The weights' file that the family's programs load.
    fn weights_file(&self) -> ExportFile;

    /// A weight as the family's files hold it.
    fn convert(&self, canonical: &str, weight: HostTensor, architecture: &Architecture) -> HostTensor;

    /// Tensors that the family's programs want beside the parameters.
    fn more_tensors(&self) -> Vec<(&'static str, HostTensor)> {
        Vec::new()
    }

    /// The configuration to be written beside the weights.
    fn config(&self, _architecture: &Architecture) -> Option<ConfigFile> {
        None
    }

    /// The training's arguments to be written with the weights.
    fn args(&self, _architecture: &Architecture) -> Option<Map<String, Json>> {
        None
    }
}

/// A file of exported weights.
enum ExportFile {
    /// A safetensors file of this name.
    Safetensors(&'static str),
    /// A file of `torch.save`, with the weights under `key`.
    Torch { name: &'static str, key: &'static str },
}

/// Families in a sentence, as in "taming, LlamaGen or diffusers".
fn in_words<'a>(families: impl Iterator<Item = &'a Family>, word: &str) -> String {
    let names: Vec<&str> = families.map(|family| family.layout().name()).collect();
    match names.split_last() {
        None => "no other format".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, first)) => format!("{} {word} {last}", first.join(", ")),
    }
}

/// The codebook of a quantizer for the nearest code.
const CODEBOOK: &str = "quantize.embedding.weight";

/// Why a MoVQ is refused, both by its configuration and by its names.
const MOVQ: &str = "it is a MoVQ (norms modulated by the codes, norm_type \"spatial\"), which is not built here";

/// Turns the number of a level around if it is of the decoder: taming counts the decoder's levels from the finest, the
/// other families from the coarsest.
fn level_from_coarsest(side: &str, level: &str, levels: usize) -> String {
    match level.parse::<usize>() {
        Ok(level) if side == "decoder" => levels.saturating_sub(level + 1).to_string(),
        _ => level.to_owned(),
    }
}

/// What of an architecture neither taming's nor LlamaGen's code can build.
fn obstacle_of_multiples(architecture: &Architecture) -> Option<&'static str> {
    let Architecture { base_channels, channels, groups, .. } = architecture;
    if *groups != 32 {
        Some("other than 32 groups")
    } else if channels.iter().any(|c| c % base_channels != 0) {
        Some("channels that are no multiple of base_channels")
    } else {
        None
    }
}

/// Scales codes to length 1, which finds the same codes in programs that do not scale them themselves.
fn with_unit_codes(canonical: &str, weight: HostTensor, architecture: &Architecture) -> HostTensor {
    if canonical != CODEBOOK || !architecture.quantizer.l2_norm {
        return weight;
    }
    let mut values = weight.to_f32();
    let length = weight.shape.last().copied().unwrap_or(1).max(1);
    for code in values.chunks_mut(length) {
        // The same lower bound as torch.nn.functional.normalize.
        let norm = code.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        code.iter_mut().for_each(|x| *x /= norm);
    }
    HostTensor::from_f32(&weight.shape, &values)
}
