//! Names of tensors without what wrappers put into them.

use std::collections::BTreeMap;

use super::{WeightsError, WeightsFile};

/// What DistributedDataParallel, torch.compile, FSDP, activation checkpointing and DeepSpeed put into the names of the
/// modules that they wrap, anywhere in a name. No module of a network is called so.
const WRAPPERS: [&str; 5] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];

/// Names without what wrappers put into them -> names in the file.
#[derive(Debug)]
pub(crate) struct Unwrapped<'a>(pub(crate) BTreeMap<String, &'a str>);

impl Unwrapped<'_> {
    /// What comes before `ending` in the shortest name that has it at its end, as whole parts; empty if the name is
    /// `ending`.
    pub(crate) fn prefix_of(&self, ending: &str) -> Option<&str> {
        let prefixes = self.0.keys().filter_map(|name| name.strip_suffix(ending));
        prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.')).min_by_key(|prefix| prefix.len())
    }
}

impl WeightsFile {
    /// All names without what wrappers put into them.
    pub(crate) fn unwrapped(&self) -> Result<Unwrapped<'_>, WeightsError> {
        let mut names = BTreeMap::new();
        for in_file in self.names() {
            let parts: Vec<&str> = in_file.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
            self.insert(&mut names, parts.join("."), in_file)?;
        }
        Ok(Unwrapped(names))
    }

    /// Adds the name of a tensor, or refuses a file in which two tensors would have it.
    pub(crate) fn insert<'a>(
        &self,
        names: &mut BTreeMap<String, &'a str>,
        name: String,
        in_file: &'a str,
    ) -> Result<(), WeightsError> {
        match names.insert(name.clone(), in_file) {
            None => Ok(()),
            Some(other) => {
                let names = Box::new([other.to_owned(), in_file.to_owned()]);
                Err(WeightsError::Twice { path: self.path().to_owned(), name, names })
            }
        }
    }
}
