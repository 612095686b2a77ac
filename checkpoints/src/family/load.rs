//! Loads a VQGAN's weights under their canonical names.

use std::collections::BTreeMap;

use super::Architecture;
use super::architecture::is_projection;
use super::recognise::ModelNames;
use crate::files::{Differences, WeightsError, WeightsFile};
use crate::tensor::HostTensor;

/// What a user should be told about the names in a file with a VQGAN, a line each.
///
/// # Errors
/// As [`Architecture::infer`].
pub fn vqgan_notes(file: &WeightsFile) -> Result<Vec<String>, WeightsError> {
    let names = ModelNames::of(file)?;
    let prefix = names.unknown_prefix.iter().map(|prefix| format!("its weights are those that begin with {prefix}"));
    let note = names.family.layout().note.filter(|(tensor, _)| names.names.contains_key(*tensor));
    Ok(prefix.chain(note.map(|(_, note)| note.to_owned())).collect())
}

/// Reads a VQGAN's weights under their canonical names and in their canonical shapes, in the file's element types.
///
/// Tensors of a training (losses, discriminator, moving averages, counters) are not read, nor is the rest of a
/// latent-diffusion checkpoint. Prefixes of wrappers are removed.
///
/// # Errors
/// [`WeightsError::Mismatch`] names all tensors that are missing, unexpected or different at once; none is read then.
/// [`WeightsError::NotFinite`] names the first with an element that is infinite or not a number.
pub fn load_vqgan(
    file: &WeightsFile,
    architecture: &Architecture,
) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let names = ModelNames::of(file)?;
    let levels = architecture.channels.len();
    let mut left: BTreeMap<&str, &str> = names.names.iter().map(|(name, in_file)| (name.as_str(), *in_file)).collect();
    let mut found = Vec::new();
    let mut differences = Differences::default();
    for (canonical, shape) in architecture.parameters() {
        let Some((name, in_file)) = names.find(&canonical, levels) else {
            differences.missing.push(names.in_file(&canonical, levels));
            continue;
        };
        left.remove(name);
        let Some((dtype, stored)) = file.info(in_file) else {
            continue;
        };
        let is_matrix = is_projection(&canonical) && stored == &shape[..2];
        if differences.compare(in_file, (dtype, stored), if is_matrix { stored } else { &shape }) {
            found.push((canonical, shape, in_file));
        }
    }
    let unexpected = left.iter().filter(|(name, _)| !names.is_ignored(name));
    differences.unexpected = unexpected.map(|(_, in_file)| (*in_file).to_owned()).collect();
    differences.check(file.path())?;
    let read = |(canonical, shape, in_file): (String, Vec<usize>, &str)| {
        let tensor = file.read_weight(in_file)?.reshape(shape);
        let tensor = tensor.map_err(|source| WeightsError::Tensor { name: in_file.to_owned(), source })?;
        Ok((canonical, tensor))
    };
    found.into_iter().map(read).collect()
}
