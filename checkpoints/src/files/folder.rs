//! Finds the weights in a model's folder by their usual names.

use std::path::{Path, PathBuf};

use super::{INDEX, WeightsError};

/// What diffusers and transformers call the weights in a model's folder, best first.
const USUAL_NAMES: [&str; 6] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
];
/// Subfolders of a pipeline that hold its VQGAN.
const PIPELINE_FOLDERS: [&str; 3] = ["vqvae", "vqgan", "movq"];

/// The weights in a folder of diffusers or transformers, or the VQGAN's in the folder of a pipeline.
pub(super) fn find_weights(folder: &Path) -> Result<PathBuf, WeightsError> {
    let folders: Vec<&str> = std::iter::once("").chain(PIPELINE_FOLDERS).collect();
    in_folder(folder, &USUAL_NAMES, &folders)
}

/// The weights in a model's folder, or in one of its inner `folders`, by the `names` that they can have.
pub(crate) fn in_folder(folder: &Path, names: &[&str], folders: &[&str]) -> Result<PathBuf, WeightsError> {
    for inner in folders {
        for name in names {
            let paths = [name.to_string(), format!("{name}{INDEX}")].map(|name| folder.join(inner).join(name));
            if let Some(path) = paths.into_iter().find(|path| path.is_file()) {
                return Ok(path);
            }
        }
    }
    let inner: Vec<&str> = folders.iter().filter(|inner| !inner.is_empty()).copied().collect();
    let inner = if inner.is_empty() { String::new() } else { format!(" or in its {}", inner.join(", ")) };
    let names = names[..names.len().min(4)].join(", ");
    Err(WeightsError::NotWeights {
        path: folder.to_owned(),
        what: format!("there is no {names} in it{inner}; if the file has another name, name the file itself"),
    })
}
