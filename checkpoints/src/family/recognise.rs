//! Recognises whose VQGAN is in a file, and finds its parameters there.

use std::collections::BTreeMap;

use strum::VariantArray;

use super::{CODEBOOK, Family, MOVQ, QuantizerKind, family_name, in_words};
use crate::files::{WeightsError, WeightsFile, enumerate};

/// Names under which programs keep a VQGAN. The last is latent-diffusion's, whose diffusion model is beside it.
const HOLDERS: [&str; 3] = ["model", "vqgan", "first_stage_model"];
/// The parts of a VQGAN. Other names in a file are not the model's.
const PARTS: [&str; 5] = ["encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"];
/// A tensor that the VQGANs of all families have.
const FIRST: &str = "encoder.conv_in.weight";
/// What belongs to training alone: losses with their discriminator, and moving averages.
const TRAINING: [&str; 5] = ["loss.", "model_ema.", "discriminator.", "perceptual_loss.", "colorize"];

/// The tensors of a VQGAN in a file, whatever was wrapped around it.
pub(super) struct ModelNames<'a> {
    file: &'a WeightsFile,
    /// Name within the model -> name in the file.
    pub names: BTreeMap<String, &'a str>,
    /// What the file puts before the names of the model.
    around: String,
    /// The same, if it is not one of the usual [`HOLDERS`].
    pub unknown_prefix: Option<String>,
    pub family: Family,
    pub quantizer: QuantizerKind,
}

impl<'a> ModelNames<'a> {
    /// Recognises the family, and refuses by name other models that look like a VQGAN.
    pub fn of(file: &'a WeightsFile) -> Result<ModelNames<'a>, WeightsError> {
        let Placed { names, around, unknown_prefix } = Placed::of(file)?;
        let starts = |prefix: &str| names.keys().any(|name| name.starts_with(prefix));
        let is_of = |family: &&Family| family.layout().prefixes.iter().any(|prefix| starts(prefix));
        // taming's names are the plain ones, so it is asked last.
        let Some(&family) = Family::VARIANTS.iter().rev().find(is_of) else {
            let known = in_words(Family::VARIANTS.iter(), "or");
            return file.refuse(format!("it is not a VQGAN of {known}; its tensors are {}, ...", file.first_names()));
        };
        let layout = family.layout();
        let quantizer = match starts("quantize.embed.") || starts("quantize.proj.") {
            true if !layout.has_gumbel => {
                let able = in_words(Family::VARIANTS.iter().filter(|family| family.layout().has_gumbel), "and");
                return file.refuse(format!(
                    "it is a GumbelVQ (quantize.proj, quantize.embed), which only {able}'s format has; its other names \
                     are those of {family}"
                ));
            }
            true => QuantizerKind::Gumbel,
            false => QuantizerKind::Nearest,
        };
        if names.keys().any(|name| name.contains(".conv_y.") || name.contains(".norm_layer.")) {
            return file.refuse(MOVQ);
        }
        let own: &[&str] = match quantizer {
            QuantizerKind::Nearest => &[CODEBOOK],
            QuantizerKind::Gumbel => &["quantize.proj.weight", "quantize.proj.bias", "quantize.embed.weight"],
        };
        let is_foreign =
            |name: &str| name.starts_with("quantize.") && !own.contains(&name) && !layout.buffers.contains(&name);
        let foreign: Vec<&str> =
            names.iter().filter(|(name, _)| is_foreign(name)).map(|(_, in_file)| *in_file).collect();
        if !foreign.is_empty() {
            return file.refuse(format!(
                "its quantizer has {}, which a VQGAN's has not: SimVQ, LFQ, FSQ, residual quantizers and others are not \
                 supported",
                enumerate(&foreign)
            ));
        }
        if quantizer == QuantizerKind::Nearest && !names.contains_key(CODEBOOK) {
            return file.refuse(format!("it has no codebook ({CODEBOOK}); a KL autoencoder, FSQ and LFQ have none"));
        }
        Ok(ModelNames { file, names, around, unknown_prefix, family, quantizer })
    }

    /// Shape of a canonical parameter, if the file has it.
    pub fn shape(&self, canonical: &str, levels: usize) -> Option<&'a [usize]> {
        let (_, in_file) = self.find(canonical, levels)?;
        Some(self.file.info(in_file)?.1)
    }

    /// What the file calls, or would call, a canonical parameter.
    pub fn in_file(&self, canonical: &str, levels: usize) -> String {
        if let Some((_, in_file)) = self.find(canonical, levels) {
            return in_file.to_owned();
        }
        format!("{}{}", self.around, family_name(self.family, levels, canonical))
    }

    /// A canonical parameter's name within the model, and its name in the file.
    pub fn find(&self, canonical: &str, levels: usize) -> Option<(&str, &'a str)> {
        let layout = self.family.layout();
        let name = (layout.name_of)(canonical, levels);
        let entry = self.names.get_key_value(&name);
        let entry = entry.or_else(|| self.names.get_key_value(&(layout.old_name)(&name)?));
        entry.map(|(name, in_file)| (name.as_str(), *in_file))
    }

    /// Whether a name within the model is of a known tensor that is no weight of a VQGAN.
    pub fn is_ignored(&self, name: &str) -> bool {
        TRAINING.iter().any(|prefix| name.starts_with(prefix)) || self.family.layout().buffers.contains(&name)
    }
}

/// The names of the one model in a file.
struct Placed<'a> {
    names: BTreeMap<String, &'a str>,
    around: String,
    unknown_prefix: Option<String>,
}

impl<'a> Placed<'a> {
    /// Removes what is around the names of a VQGAN: [`HOLDERS`] anywhere, else one prefix that all its names have. A
    /// name with another prefix is not the model's. In a file without any prefix, all names are.
    fn of(file: &'a WeightsFile) -> Result<Placed<'a>, WeightsError> {
        let all = file.unwrapped()?.0;
        // The file's own name of each model's first tensor, by the model's prefix.
        let mut models: BTreeMap<String, &str> = BTreeMap::new();
        for (name, in_file) in all.iter().filter(|(name, _)| inside(name) == FIRST) {
            models.entry(prefix(name)).or_insert(in_file);
        }
        let prefix_of_model = match models.len() {
            _ if models.contains_key("") => "",
            0 | 1 => models.keys().next().map_or("", String::as_str),
            _ => {
                let prefixes: Vec<&str> = models.keys().map(String::as_str).collect();
                return file.refuse(format!(
                    "it holds several models, whose names begin with {}; save the state dict of only one",
                    enumerate(&prefixes)
                ));
            }
        };
        let around = models.get(prefix_of_model).and_then(|in_file| in_file.strip_suffix(FIRST)).unwrap_or_default();
        let nothing_around = all.contains_key(FIRST) || models.is_empty();
        let mut names = BTreeMap::new();
        for (name, in_file) in &all {
            let inside = inside(name);
            if !inside.is_empty() && prefix(name) == prefix_of_model {
                file.insert(&mut names, inside, in_file)?;
            } else if nothing_around {
                file.insert(&mut names, name.clone(), in_file)?;
            }
        }
        let unknown_prefix = (!prefix_of_model.is_empty()).then(|| prefix_of_model.to_owned());
        Ok(Placed { names, around: around.to_owned(), unknown_prefix })
    }
}

/// What a name has before the first of a VQGAN's [`PARTS`], without [`HOLDERS`]; all of it if it has no such part.
fn prefix(name: &str) -> String {
    let parts = name.split('.').take_while(|part| !PARTS.contains(part)).filter(|part| !HOLDERS.contains(part));
    parts.map(|part| format!("{part}.")).collect()
}

/// A name from the first of a VQGAN's [`PARTS`] on, without [`HOLDERS`]; empty if it has no such part.
fn inside(name: &str) -> String {
    let parts = name.split('.').skip_while(|part| !PARTS.contains(part)).filter(|part| !HOLDERS.contains(part));
    parts.collect::<Vec<_>>().join(".")
}
