//! Loads a PatchGAN's weights (Isola et al. 2017, arXiv 1611.07004) from a VQGAN's checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use crate::files::{Differences, Fetched, WeightsError, WeightsFile};
use crate::tensor::{HostTensor, is_float};

#[cfg(test)]
mod tests;

const FIRST: &str = "main.0.weight";
/// Height and width of every convolution's kernel.
const KERNEL: usize = 4;

/// Reads the PatchGAN of a checkpoint: under `loss.discriminator.` in taming's, at the top-level key `discriminator` in
/// LlamaGen's, or a state dict of its own.
///
/// The names are those within the discriminator: `main.N.weight` and `main.N.bias` for convolutions `[out, in, 4, 4]`
/// and norms `[channels]`, `main.N.running_mean` and `main.N.running_var` for batch norms. With `n` inner layers, the
/// convolutions are at 0, 2, 5, ... 2 + 3 `n`, and a norm is behind each but the first and the last.
///
/// # Errors
/// One line when there is no discriminator, or another kind of one. [`WeightsError::Mismatch`] names all tensors that
/// do not fit a PatchGAN, by the file's own names.
pub fn load_discriminator(weights: impl Into<Fetched>) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let Fetched { weights, key } = weights.into();
    let file = match WeightsFile::open_with(&weights, Some(key.as_deref().unwrap_or("discriminator"))) {
        Err(WeightsError::Key { .. }) if key.is_none() => WeightsFile::open(&weights)?,
        opened => opened?,
    };
    let names = file.unwrapped()?;
    let Some(prefix) = names.prefix_of(FIRST) else {
        let names: Vec<&str> = file.names().collect();
        return match names.iter().find(|name| name.contains("final_linear.")) {
            Some(name) => {
                file.refuse(format!("its discriminator is StyleGAN's ({name}); only a PatchGAN is supported"))
            }
            None => file.refuse(format!("it has no PatchGAN, which begins with {FIRST}; it has {}, ...", names[0])),
        };
    };
    let prefix = format!("{prefix}main.");
    // Number and kind of a parameter -> its name in the file.
    let mut parameters = BTreeMap::new();
    for (name, in_file) in &names.0 {
        let Some(inner) = name.strip_prefix(&prefix) else {
            continue;
        };
        let name = *in_file;
        let place = inner.split_once('.').and_then(|(number, kind)| Some((number.parse::<usize>().ok()?, kind)));
        match place {
            Some((_, "num_batches_tracked")) => {}
            Some((number, kind @ ("weight" | "bias" | "running_mean" | "running_var"))) => {
                parameters.insert((number, kind), name);
            }
            Some((_, "loc" | "scale" | "initialized")) => {
                return file.refuse(format!(
                    "its discriminator has ActNorm ({name}); only batch and group norms are supported"
                ));
            }
            Some((_, kind)) if kind.starts_with("weight_") || kind.starts_with("parametrizations.") => {
                return file
                    .refuse(format!("its discriminator has a reparametrized weight ({name}), which is not supported"));
            }
            _ => return file.refuse(format!("its discriminator is not a PatchGAN: it has {name}")),
        }
    }
    let layers: BTreeSet<usize> = parameters.keys().map(|(number, _)| *number).collect();
    // At least as many parameters as layers, so that the number can be believed.
    let last = layers.last().copied().filter(|last| *last >= 2 && last % 3 == 2 && last / 3 < parameters.len());
    let Some(last) = last else {
        let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
        return file.refuse(format!("its layers are numbered {}, which is not a PatchGAN", numbers.join(", ")));
    };
    let mut check = Check { file: &file, prefix, parameters, differences: Differences::default() };
    let first = check.convolution(0, None);
    check.needs(0, "bias", first);
    let mut channels = first;
    for number in (2..last).step_by(3) {
        channels = check.convolution(number, Some(channels));
        check.takes(number, "bias", channels);
        check.norm(number + 1, channels);
    }
    let logits = check.convolution(last, Some(channels));
    check.needs(last, "bias", logits);
    if logits != 1 {
        check
            .differences
            .different
            .push(format!("{} gives {logits} channels, must give 1", check.name(last, "weight")));
    }
    check.read()
}

/// Compares the layers with those of a PatchGAN and collects the differences.
struct Check<'a> {
    file: &'a WeightsFile,
    prefix: String,
    parameters: BTreeMap<(usize, &'a str), &'a str>,
    differences: Differences,
}

impl Check<'_> {
    fn name(&self, number: usize, kind: &str) -> String {
        format!("{}{number}.{kind}", self.prefix)
    }

    fn shape(&mut self, number: usize, kind: &'static str) -> Option<&[usize]> {
        match self.parameters.get(&(number, kind)) {
            Some(name) => self.file.info(name).map(|(_, shape)| shape),
            None => {
                self.differences.missing.push(self.name(number, kind));
                None
            }
        }
    }

    /// Checks a convolution with this number of input channels; gives the number of its output channels.
    fn convolution(&mut self, number: usize, channels: Option<usize>) -> usize {
        let name = self.name(number, "weight");
        let Some(shape) = self.shape(number, "weight").map(<[usize]>::to_vec) else {
            return 0;
        };
        let [out, inner, height, width] = shape[..] else {
            self.differences.different.push(format!("{name} is {shape:?}, must be a convolution's"));
            return 0;
        };
        // Without the layer before it, any number of input channels is right.
        let expected = channels.filter(|channels| *channels > 0).unwrap_or(inner);
        if (inner, height, width) != (expected, KERNEL, KERNEL) {
            self.differences
                .different
                .push(format!("{name} is {shape:?}, must be {:?}", [out, expected, KERNEL, KERNEL]));
        }
        out
    }

    /// Checks a vector that must be there.
    fn needs(&mut self, number: usize, kind: &'static str, channels: usize) {
        let name = self.name(number, kind);
        let Some(shape) = self.shape(number, kind).map(<[usize]>::to_vec) else {
            return;
        };
        if shape != [channels] && channels > 0 {
            self.differences.different.push(format!("{name} is {shape:?}, must be {:?}", [channels]));
        }
    }

    /// Checks a vector that may be there.
    fn takes(&mut self, number: usize, kind: &'static str, channels: usize) {
        if self.parameters.contains_key(&(number, kind)) {
            self.needs(number, kind, channels);
        }
    }

    /// Checks a norm. A group norm has no statistics.
    fn norm(&mut self, number: usize, channels: usize) {
        self.needs(number, "weight", channels);
        self.needs(number, "bias", channels);
        let statistics = ["running_mean", "running_var"];
        if statistics.iter().any(|kind| self.parameters.contains_key(&(number, *kind))) {
            for kind in statistics {
                self.needs(number, kind, channels);
            }
        }
    }

    fn read(mut self) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
        for ((number, kind), name) in &self.parameters {
            // Layers repeat by threes: a norm, its activation, the next convolution.
            let is_activation = number % 3 == 1;
            let is_convolution = *number == 0 || number % 3 == 2;
            if is_activation || (is_convolution && kind.starts_with("running")) {
                self.differences.unexpected.push((*name).to_owned());
            } else if let Some((dtype, _)) = self.file.info(name).filter(|(dtype, _)| !is_float(*dtype)) {
                self.differences.different.push(format!("{name} is {dtype}, must be floating-point"));
            }
        }
        let Check { file, parameters, differences, .. } = self;
        differences.check(file.path())?;
        let read = |((number, kind), name): ((usize, &str), &str)| {
            Ok((format!("main.{number}.{kind}"), file.read_weight(name)?))
        };
        parameters.into_iter().map(read).collect()
    }
}
