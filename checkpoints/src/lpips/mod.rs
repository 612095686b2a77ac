//! LPIPS's weights: the convolutions of a classifier and the linear layers that weigh them (Zhang et al. 2018,
//! arXiv 1801.03924), from whatever files they come in.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::{Differences, Fetched, WeightsError, WeightsFile};
use crate::tensor::HostTensor;

#[cfg(test)]
mod tests;

/// A convolution's number among torchvision's layers, and its weight's shape `[out, in, height, width]`.
pub type Convolution = (usize, [usize; 4]);

/// The classifier whose features LPIPS compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LpipsNetwork {
    /// The network that VQGANs are trained with.
    Vgg16,
    /// A smaller network, with which LPIPS is mostly reported.
    AlexNet,
}

impl fmt::Display for LpipsNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LpipsNetwork::Vgg16 => "VGG16",
            LpipsNetwork::AlexNet => "AlexNet",
        })
    }
}

impl LpipsNetwork {
    /// Its convolutions, numbered as torchvision numbers the layers in `features`.
    pub fn convolutions(self) -> &'static [Convolution] {
        match self {
            LpipsNetwork::Vgg16 => &[
                (0, [64, 3, 3, 3]),
                (2, [64, 64, 3, 3]),
                (5, [128, 64, 3, 3]),
                (7, [128, 128, 3, 3]),
                (10, [256, 128, 3, 3]),
                (12, [256, 256, 3, 3]),
                (14, [256, 256, 3, 3]),
                (17, [512, 256, 3, 3]),
                (19, [512, 512, 3, 3]),
                (21, [512, 512, 3, 3]),
                (24, [512, 512, 3, 3]),
                (26, [512, 512, 3, 3]),
                (28, [512, 512, 3, 3]),
            ],
            LpipsNetwork::AlexNet => &[
                (0, [64, 3, 11, 11]),
                (3, [192, 64, 5, 5]),
                (6, [384, 192, 3, 3]),
                (8, [256, 384, 3, 3]),
                (10, [256, 256, 3, 3]),
            ],
        }
    }

    /// The layer before which each of the five slices of LPIPS ends.
    fn slices(self) -> [usize; 5] {
        match self {
            LpipsNetwork::Vgg16 => [4, 9, 16, 23, 30],
            LpipsNetwork::AlexNet => [2, 5, 8, 10, 12],
        }
    }

    /// Channels of the five features that are compared.
    pub fn channels(self) -> [usize; 5] {
        match self {
            LpipsNetwork::Vgg16 => [64, 128, 256, 512, 512],
            LpipsNetwork::AlexNet => [64, 192, 384, 256, 256],
        }
    }
}

/// The first convolution in classifiers, and in LPIPS with its five slices of layers.
const FIRST_CONVOLUTION: [&str; 2] = ["features.0.weight", "net.slice1.0.weight"];

/// Names that a linear layer can have. A dropout before it, if there is one, is layer 0.
fn linear_names(layer: usize) -> [String; 5] {
    [
        format!("lin{layer}.model.1.weight"),
        format!("lin{layer}.model.0.weight"),
        format!("lins.{layer}.model.1.weight"),
        format!("lins.{layer}.model.0.weight"),
        format!("lin{layer}.weight"),
    ]
}

/// Reads the convolutions of LPIPS: `features.N.weight`, `features.N.bias` by torchvision's numbers.
///
/// `weights` is a classifier of torchvision or timm, or something that has an LPIPS in it: the state dict of
/// `lpips.LPIPS`, or a checkpoint of taming, whose loss it is part of. Other tensors, such as classifiers' heads, are
/// ignored.
///
/// # Errors
/// One line when the file does not have these weights, or has those of another network. [`WeightsError::Mismatch`]
/// names all tensors that are missing or different, by the file's own names.
pub fn load_lpips_backbone(
    network: LpipsNetwork,
    weights: impl Into<Fetched>,
) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    convolutions(network, &WeightsFile::open_fetched(&weights.into())?)
}

/// Reads the linear layers of LPIPS: `lin0.weight` to `lin4.weight`, each `[1, channels, 1, 1]`.
///
/// `weights` is the small file of linear layers, or something that has an LPIPS in it.
///
/// # Errors
/// As [`load_lpips_backbone`]; [`WeightsError::Unsupported`] where there are no linear layers at all.
pub fn load_lpips_linear(
    network: LpipsNetwork,
    weights: impl Into<Fetched>,
) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    linear_layers(network, &WeightsFile::open_fetched(&weights.into())?)
}

fn convolutions(network: LpipsNetwork, file: &WeightsFile) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let names = file.unwrapped()?;
    let found = FIRST_CONVOLUTION.iter().filter_map(|name| Some((names.prefix_of(name)?, *name)));
    let Some((prefix, first)) = found.min_by_key(|(prefix, _)| prefix.len()) else {
        let [classifier, lpips] = FIRST_CONVOLUTION;
        return file.refuse(format!("it has no convolutions of {network}, neither {classifier} nor LPIPS's {lpips}"));
    };
    // Number and kind of a parameter -> its name in the file.
    let mut parameters = BTreeMap::new();
    let group = if first.starts_with("net") { "net." } else { "features." };
    for (name, in_file) in &names.0 {
        let Some(inner) = name.strip_prefix(prefix).and_then(|name| name.strip_prefix(group)) else {
            continue;
        };
        let inner = match inner.split_once('.') {
            Some((slice, inner)) if slice.starts_with("slice") => inner,
            _ => inner,
        };
        let place = inner.split_once('.').and_then(|(number, kind)| Some((number.parse::<usize>().ok()?, kind)));
        let known = |number: usize| network.convolutions().iter().any(|(known, _)| *known == number);
        match place {
            Some((number, kind @ ("weight" | "bias"))) if known(number) => {
                parameters.insert((number, kind), *in_file);
            }
            _ => return file.refuse(format!("it is not {network}: it has {in_file}")),
        }
    }
    let mut wanted = Vec::new();
    for &(number, shape) in network.convolutions() {
        for (kind, shape) in [("weight", &shape[..]), ("bias", &shape[..1])] {
            let canonical = format!("features.{number}.{kind}");
            let in_file = match parameters.get(&(number, kind)) {
                Some(name) => (*name).to_owned(),
                None if group == "net." => {
                    let slice = 1 + network.slices().iter().filter(|end| **end <= number).count();
                    format!("{prefix}net.slice{slice}.{number}.{kind}")
                }
                None => format!("{prefix}{group}{number}.{kind}"),
            };
            wanted.push(Wanted { canonical, in_file, shape: shape.to_vec() });
        }
    }
    read(file, wanted)
}

fn linear_layers(network: LpipsNetwork, file: &WeightsFile) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let unwrapped = file.unwrapped()?;
    let first = linear_names(0);
    let mut styles = first.iter().enumerate();
    let Some((style, prefix)) = styles.find_map(|(style, name)| Some((style, unwrapped.prefix_of(name)?))) else {
        return file.refuse(format!("it has no linear layers of LPIPS ({})", first[0]));
    };
    let wanted = network.channels().into_iter().enumerate().map(|(layer, channels)| {
        let name = format!("{prefix}{}", linear_names(layer)[style]);
        Wanted {
            canonical: format!("lin{layer}.weight"),
            in_file: unwrapped.0.get(&name).map_or(name, |in_file| (*in_file).to_owned()),
            shape: vec![1, channels, 1, 1],
        }
    });
    read(file, wanted.collect())
}

/// A parameter that must be in a file.
struct Wanted {
    canonical: String,
    in_file: String,
    shape: Vec<usize>,
}

fn read(file: &WeightsFile, wanted: Vec<Wanted>) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let mut differences = Differences::default();
    for Wanted { in_file, shape, .. } in &wanted {
        match file.info(in_file) {
            None => differences.missing.push(in_file.clone()),
            Some(info) => drop(differences.compare(in_file, info, shape)),
        }
    }
    differences.check(file.path())?;
    wanted.into_iter().map(|Wanted { canonical, in_file, .. }| Ok((canonical, file.read_weight(&in_file)?))).collect()
}
