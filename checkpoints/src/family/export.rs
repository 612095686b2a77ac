//! Exports a VQGAN as a family's own programs load it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strum::VariantArray;

use super::{Architecture, ExportFile, Family, QuantizerKind, in_words};
use crate::disk::write_whole;
use crate::files::{WeightsError, write_safetensors, write_torch};
use crate::tensor::HostTensor;

/// A VQGAN as a family's own programs load it.
#[derive(Debug, Clone)]
pub struct Export {
    /// Whose it is.
    pub family: Family,
    /// The weights in the family's names and shapes.
    pub tensors: BTreeMap<String, HostTensor>,
    /// The configuration: `config.json` for diffusers, `config.yaml` for taming, none for LlamaGen, whose programs
    /// take it on the command line.
    pub config: Option<ConfigFile>,
    /// LlamaGen: the training arguments that belong to the model (`args`), without which a codebook of any length
    /// could not be told from one of length 1.
    pub args: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A configuration beside exported weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Name of the file.
    pub name: &'static str,
    /// Its whole text.
    pub text: String,
}

/// Gives canonical weights the names, shapes and configuration of a family.
///
/// taming and diffusers do not scale codes to length 1: for them a codebook of such codes is written at length 1, which
/// finds the same codes. A model without attention in the middle is latent-diffusion's and not taming's own, and the
/// configuration names that class.
///
/// # Errors
/// [`WeightsError::Architecture`] when the family's programs would not load the same model without further arguments,
/// or a weight is missing or has another shape than the architecture says.
pub fn export_vqgan(
    weights: &BTreeMap<String, HostTensor>,
    architecture: &Architecture,
    family: Family,
) -> Result<Export, WeightsError> {
    architecture.check()?;
    refuse_obstacle(architecture, family)?;
    let layout = family.layout();
    let levels = architecture.channels.len();
    let more = (layout.more_tensors)().into_iter();
    let mut tensors: BTreeMap<String, HostTensor> = more.map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    for (canonical, shape) in architecture.parameters() {
        let wrong = |what: String| WeightsError::Architecture(format!("{canonical} {what}"));
        let weight = weights.get(&canonical).ok_or_else(|| wrong("is missing among the weights".to_owned()))?;
        if weight.shape != shape {
            return Err(wrong(format!("is {:?}, must be {shape:?}", weight.shape)));
        }
        let weight = (layout.convert)(&canonical, weight.clone(), architecture);
        tensors.insert((layout.name_of)(&canonical, levels), weight);
    }
    Ok(Export { family, tensors, config: (layout.config)(architecture), args: (layout.args)(architecture) })
}

impl Export {
    /// Writes the files that the family's programs load into `folder`, which is made if need be, and gives the
    /// weights' path: `diffusion_pytorch_model.safetensors` for `VQModel.from_pretrained`, `model.ckpt` with a
    /// `state_dict` for taming, `vqgan.pt` with a `model` for LlamaGen. The configuration is written beside it.
    ///
    /// # Errors
    /// When a file cannot be written. Files appear under their names only when they are whole.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, WeightsError> {
        let failed = |path: &Path, source| WeightsError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        if let Some(config) = &self.config {
            let path = folder.join(config.name);
            std::fs::write(&path, &config.text).map_err(|source| failed(&path, source))?;
        }
        match self.family.layout().weights_file {
            ExportFile::Safetensors(name) => {
                let path = folder.join(name);
                let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
                let written = write_safetensors(&path, &self.tensors, Some(&metadata));
                written.map_err(|source| WeightsError::Safetensors { path: path.clone(), source })?;
                Ok(path)
            }
            ExportFile::Torch { name, key } => {
                let path = folder.join(name);
                let written = write_whole(&path, |output| write_torch(output, key, &self.tensors, self.args.as_ref()));
                written.map_err(|source| WeightsError::Torch { path: path.clone(), source })?;
                Ok(path)
            }
        }
    }
}

/// Refuses what a family's programs would not load as the same model, and says which other family's would.
fn refuse_obstacle(architecture: &Architecture, family: Family) -> Result<(), WeightsError> {
    let Some(what) = obstacle(architecture, family) else {
        return Ok(());
    };
    let able = in_words(Family::VARIANTS.iter().filter(|family| obstacle(architecture, **family).is_none()), "and");
    Err(WeightsError::Architecture(format!("{family} cannot have {what}; {able} can")))
}

/// What of an architecture a family's programs cannot build.
fn obstacle(architecture: &Architecture, family: Family) -> Option<&'static str> {
    match architecture.quantizer.kind {
        QuantizerKind::Gumbel if !family.layout().has_gumbel => Some("a Gumbel quantizer"),
        QuantizerKind::Gumbel | QuantizerKind::Nearest => (family.layout().obstacle)(architecture),
    }
}
