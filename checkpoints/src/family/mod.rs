//! VQGANs in the files of the programs that train them, one module per family.
//!
//! Weights have taming's names inside this project, the canonical names. A family's module says how its files differ:
//! their names, buffers and configuration, and which architectures its programs build. A new family is a new module
//! with its [`Layout`], and a line in the list below.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use strum::{EnumString, IntoStaticStr, VariantArray};

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
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray)]
        #[serde(rename_all = "lowercase")]
        #[strum(serialize_all = "lowercase")]
        pub enum Family { $($(#[$doc])+ $family,)+ }

        impl Family {
            fn layout(self) -> &'static Layout {
                match self { $(Family::$family => &$layout),+ }
            }
        }
    };
}

families! {
    /// taming-transformers, and the first stages of latent-diffusion.
    Taming => taming::LAYOUT,
    /// LlamaGen's image tokenizer.
    LlamaGen => llamagen::LAYOUT,
    /// `VQModel` of diffusers.
    Diffusers => diffusers::LAYOUT,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.layout().name)
    }
}

impl Family {
    /// Files beside the weights from which any family's configuration is read.
    pub(crate) fn config_files() -> Vec<&'static str> {
        Family::VARIANTS.iter().filter_map(|family| family.layout().config_file).collect()
    }
}

impl Quantizer {
    /// What the family trains with unless told otherwise.
    pub fn of(family: Family) -> Quantizer {
        family.layout().quantizer.clone()
    }
}

/// A canonical parameter's name in a family's files; `levels` is the number of resolutions.
pub fn family_name(family: Family, levels: usize, canonical: &str) -> String {
    (family.layout().name_of)(canonical, levels)
}

/// How a family's programs store a VQGAN.
struct Layout {
    /// The family's name in messages.
    name: &'static str,
    /// How names begin that only this family has. A file with one of them is recognised as the family's.
    prefixes: &'static [&'static str],
    /// Tensors of the quantizer beside its parameters, on which no reconstruction depends.
    buffers: &'static [&'static str],
    /// What the family trains with unless told otherwise.
    quantizer: Quantizer,
    /// Whether the family has a Gumbel quantizer.
    has_gumbel: bool,
    /// A canonical parameter's name in the family's files; the number is that of the resolutions.
    name_of: fn(&str, usize) -> String,
    /// The name that earlier versions of the family's programs gave to one of its parameters.
    old_name: fn(&str) -> Option<String>,
    /// The configuration beside the weights that says what their shapes do not show.
    config_file: Option<&'static str>,
    /// Takes over what the configuration, or arguments that were saved with the weights, say beyond the shapes.
    read_settings: fn(&mut Architecture, &WeightsFile, Option<&Json>) -> Result<(), WeightsError>,
    /// A tensor of whose presence the user should be told, in these words.
    note: Option<(&'static str, &'static str)>,
    /// What of an architecture the family's programs cannot build, or build differently unless told.
    obstacle: fn(&Architecture) -> Option<&'static str>,
    /// The weights' file that the family's programs load.
    weights_file: ExportFile,
    /// A weight, by its canonical name, as the family's files hold it.
    convert: fn(&str, HostTensor, &Architecture) -> HostTensor,
    /// Tensors that the family's programs want beside the parameters.
    more_tensors: fn() -> Vec<(&'static str, HostTensor)>,
    /// The configuration to be written beside the weights.
    config: fn(&Architecture) -> Option<ConfigFile>,
    /// The training's arguments to be written with the weights.
    args: fn(&Architecture) -> Option<Map<String, Json>>,
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
    let names: Vec<&str> = families.map(|family| family.layout().name).collect();
    match names.split_last() {
        None => "no other format".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, first)) => format!("{} {word} {last}", first.join(", ")),
    }
}

/// The codebook of a quantizer for the nearest code.
const CODEBOOK: &str = "quantize.embedding.weight";

/// Why a MoVQ is refused, both by its configuration and by its names.
const MOVQ: &str = "it is a MoVQ (norms modulated by the codes, norm_type \"spatial\"), which is not supported";

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
