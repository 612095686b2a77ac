//! The InceptionV3 of FID: TensorFlow's network of 2015-12-05 in PyTorch's form.

use std::collections::BTreeMap;

use crate::files::{Fetched, WeightsError, WeightsFile};
use crate::tensor::HostTensor;

/// Tensors by which the network is known, and their shapes.
const FIRST: (&str, [usize; 4]) = ("Conv2d_1a_3x3.conv.weight", [32, 3, 3, 3]);
const LAST: (&str, [usize; 2]) = ("fc.weight", [1008, 2048]);

/// Reads the weights of `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity) or
/// `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid), by the names that both have.
///
/// # Errors
/// One line when the file is something else, such as torchvision's InceptionV3, which has other classes.
pub fn load_inception(weights: impl Into<Fetched>) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let file = WeightsFile::open_fetched(&weights.into())?;
    let names = file.unwrapped()?;
    let Some(prefix) = names.prefix_of(FIRST.0) else {
        return file.refuse(format!("it is no InceptionV3: it has no {}", FIRST.0));
    };
    for (name, shape) in [(FIRST.0, &FIRST.1[..]), (LAST.0, &LAST.1[..])] {
        let in_file = names.0.get(&format!("{prefix}{name}"));
        let found = in_file.and_then(|name| file.info(name)).map(|(_, shape)| shape.to_vec());
        if found.as_deref() != Some(shape) {
            let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
            return file.refuse(format!("it is not the InceptionV3 of FID: {name} is {found}, not {shape:?}"));
        }
    }
    let counts = |name: &str| name.ends_with("num_batches_tracked");
    let own = names.0.iter().filter_map(|(name, in_file)| Some((name.strip_prefix(prefix)?, *in_file)));
    own.filter(|(name, _)| !counts(name))
        .map(|(name, in_file)| Ok((name.to_owned(), file.read_weight(in_file)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::write_safetensors;

    fn loaded(tensors: &[(&str, &[usize])]) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inception.safetensors");
        let zeros = |shape: &[usize]| HostTensor::from_f32(shape, &vec![0.0; shape.iter().product()]);
        let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
        write_safetensors(&path, &tensors, None).unwrap();
        load_inception(&path)
    }

    #[test]
    fn only_the_network_of_fid_is_taken() {
        let first = ("Conv2d_1a_3x3.conv.weight", &FIRST.1[..]);
        let counted = ("Conv2d_1a_3x3.bn.num_batches_tracked", &[1][..]);
        let taken = loaded(&[first, ("fc.weight", &LAST.1), counted]).unwrap();
        assert_eq!(taken.keys().collect::<Vec<_>>(), ["Conv2d_1a_3x3.conv.weight", "fc.weight"]);
        for other in [&[first][..], &[first, ("fc.weight", &[1000, 2048])], &[("conv1.weight", &[64, 3, 7, 7])]] {
            assert!(matches!(loaded(other), Err(WeightsError::Unsupported { .. })));
        }
    }
}
