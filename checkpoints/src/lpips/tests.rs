use std::path::Path;

use safetensors::Dtype;

use super::*;
use crate::fixtures::{Shapes, place, published};

const NETWORKS: [LpipsNetwork; 2] = [LpipsNetwork::Vgg16, LpipsNetwork::AlexNet];

/// The canonical names and shapes.
fn canonical(network: LpipsNetwork) -> Shapes {
    let convolutions = network.convolutions().iter().flat_map(|(number, shape)| {
        [(format!("features.{number}.weight"), shape.to_vec()), (format!("features.{number}.bias"), vec![shape[0]])]
    });
    let linear = network.channels().into_iter().enumerate();
    convolutions.chain(linear.map(|(layer, n)| (format!("lin{layer}.weight"), vec![1, n, 1, 1]))).collect()
}

fn shapes(weights: &BTreeMap<String, HostTensor>) -> Shapes {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
}

fn without_linear(mut all: Shapes) -> Shapes {
    all.retain(|name, _| !name.starts_with("lin"));
    all
}

/// What trainers do: the linear layers are the backbone's own where no other file is named.
fn load_lpips(
    network: LpipsNetwork,
    backbone: &Path,
    linear: Option<&Path>,
) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let mut weights = load_lpips_backbone(network, backbone)?;
    weights.extend(load_lpips_linear(network, linear.unwrap_or(backbone))?);
    Ok(weights)
}

fn load(network: LpipsNetwork, backbone: &Shapes, linear: Option<&Shapes>) -> Result<Shapes, String> {
    let folder = tempfile::tempdir().unwrap();
    let backbone = place(folder.path(), "backbone.safetensors", backbone);
    let linear = linear.map(|shapes| place(folder.path(), "linear.safetensors", shapes));
    let loaded = load_lpips(network, &backbone, linear.as_deref()).map_err(|error| error.to_string());
    if let Err(error) = &loaded {
        assert!(!error.contains('\n') && error.starts_with(folder.path().to_str().unwrap()), "{error}");
    }
    loaded.map(|weights| shapes(&weights))
}

#[test]
fn classifiers_with_a_file_of_linear_layers() {
    for (network, backbone, lpips) in [
        (LpipsNetwork::Vgg16, "torchvision-vgg16.txt", "lpips-vgg16.txt"),
        (LpipsNetwork::Vgg16, "timm-vgg16.txt", "lpips-vgg16.txt"),
        (LpipsNetwork::AlexNet, "torchvision-alexnet.txt", "lpips-alexnet.txt"),
    ] {
        // The package's own files have the linear layers alone, each once.
        let mut linear = published(lpips);
        linear.retain(|name, _| name.starts_with("lin") && !name.starts_with("lins"));
        assert_eq!(linear.len(), 5);
        // The heads are large, and of no use here.
        let mut backbone = published(backbone);
        backbone.values_mut().filter(|shape| shape.contains(&4096)).for_each(|shape| *shape = vec![1]);
        assert_eq!(load(network, &backbone, Some(&linear)), Ok(canonical(network)));
    }
}

#[test]
fn whole_lpips_and_the_loss_of_a_taming_checkpoint() {
    assert_eq!(load(LpipsNetwork::Vgg16, &published("lpips-vgg16.txt"), None), Ok(canonical(LpipsNetwork::Vgg16)));
    assert_eq!(
        load(LpipsNetwork::AlexNet, &published("lpips-alexnet.txt"), None),
        Ok(canonical(LpipsNetwork::AlexNet))
    );
    assert_eq!(load(LpipsNetwork::Vgg16, &published("taming-loss.txt"), None), Ok(canonical(LpipsNetwork::Vgg16)));
    for network in NETWORKS {
        // What this gives can be read again.
        assert_eq!(load(network, &canonical(network), None), Ok(canonical(network)));
    }
    // Made without dropout, the linear layer is the first; the list may be all there is.
    let renamed = |from: &str, to: &str| -> Shapes {
        let all = published("lpips-alexnet.txt").into_iter();
        all.filter(|(name, _)| !name.starts_with("lin") || name.starts_with(from))
            .map(|(name, shape)| (name.replace(".model.1.", to), shape))
            .collect()
    };
    for all in [renamed("lins.", ".model.1."), renamed("lins.", ".model.0."), renamed("lin", ".model.0.")] {
        assert_eq!(load(LpipsNetwork::AlexNet, &all, None), Ok(canonical(LpipsNetwork::AlexNet)));
    }
}

#[test]
fn every_tensor_lands_under_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let numbered = |names: &[(&str, &[usize])]| -> BTreeMap<String, HostTensor> {
        let tensor = |(index, (name, shape)): (usize, &(&str, &[usize]))| {
            let values = vec![index as f32; shape.iter().product()];
            ((*name).to_owned(), HostTensor::from_f32(shape, &values))
        };
        names.iter().enumerate().map(tensor).collect()
    };
    let all = published("lpips-alexnet.txt");
    let all: Vec<(&str, &[usize])> = all.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
    let path = folder.path().join("lpips.safetensors");
    crate::write_safetensors(&path, &numbered(&all), None).unwrap();
    // Another file of linear layers comes before those in the backbone.
    let other: Vec<(&str, &[usize])> = all[..5].iter().copied().rev().collect();
    let other = other.iter().map(|(name, _)| all.iter().find(|(known, _)| known == name).copied().unwrap());
    let other: Vec<_> = other.collect();
    let linear = folder.path().join("linear.safetensors");
    crate::write_safetensors(&linear, &numbered(&other), None).unwrap();

    let first = |weights: &BTreeMap<String, HostTensor>, name: &str| weights[name].to_f32()[0];
    let at = |name: &str| all.iter().position(|(known, _)| *known == name).unwrap() as f32;
    let weights = load_lpips(LpipsNetwork::AlexNet, &path, None).unwrap();
    assert_eq!(first(&weights, "features.0.weight"), at("net.slice1.0.weight"));
    assert_eq!(first(&weights, "features.6.bias"), at("net.slice3.6.bias"));
    assert_eq!(first(&weights, "features.10.weight"), at("net.slice5.10.weight"));
    assert_eq!(first(&weights, "lin3.weight"), at("lin3.model.1.weight"));
    let weights = load_lpips(LpipsNetwork::AlexNet, &path, Some(&linear)).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(|layer| first(&weights, &format!("lin{layer}.weight"))), [4., 3., 2., 1., 0.]);
}

#[test]
fn other_networks_are_named() {
    let vgg16 = LpipsNetwork::Vgg16;
    for (network, name, words) in [
        (vgg16, "torchvision-alexnet.txt", "it is not VGG16: it has features.3.bias"),
        (vgg16, "torchvision-vgg16-bn.txt", "it is not VGG16: it has features.1.bias"),
        (vgg16, "torchvision-vgg19.txt", "it is not VGG16: it has features.16.bias"),
        (vgg16, "lpips-squeezenet.txt", "it is not VGG16: it has net.slice2.3.expand1x1.bias"),
        (LpipsNetwork::AlexNet, "taming-loss.txt", "it has loss.perceptual_loss.net.slice1.2.bias"),
        (LpipsNetwork::AlexNet, "stylegan.txt", "it has no convolutions of AlexNet, neither features.0.weight nor"),
    ] {
        let error = load(network, &published(name), None).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_is_missing_or_different_is_named() {
    let network = LpipsNetwork::AlexNet;
    let whole = published("lpips-alexnet.txt");
    let error = load(network, &without_linear(canonical(network)), None).unwrap_err();
    let words = "backbone.safetensors: it has no linear layers of LPIPS (lin0.model.1.weight)";
    assert!(error.ends_with(words), "{error}");
    let error = load(network, &whole, Some(&without_linear(canonical(network)))).unwrap_err();
    assert!(error.ends_with("linear.safetensors: it has no linear layers of LPIPS (lin0.model.1.weight)"), "{error}");
    let linear: Shapes =
        published("lpips-alexnet.txt").into_iter().filter(|(name, _)| name.starts_with("lin")).collect();
    let error = load(network, &linear, None).unwrap_err();
    assert!(error.contains("it has no convolutions of AlexNet"), "{error}");

    let error = load(network, &whole, Some(&published("lpips-vgg16.txt"))).unwrap_err();
    let words = "linear.safetensors does not fit the architecture: 4 different \
                 (lin1.model.1.weight is [1, 128, 1, 1], must be [1, 192, 1, 1], lin2";
    assert!(error.contains(words), "{error}");

    let mut broken = whole.clone();
    broken.remove("net.slice5.10.bias");
    broken.insert("net.slice1.0.weight".to_owned(), vec![64, 1, 11, 11]);
    let error = load(network, &broken, None).unwrap_err();
    let words =
        "1 missing (net.slice5.10.bias); 1 different (net.slice1.0.weight is [64, 1, 11, 11], must be [64, 3, 11, 11])";
    assert!(error.ends_with(words), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("integers.safetensors");
    let tensor = |shape: &Vec<usize>| HostTensor {
        dtype: Dtype::U8,
        shape: shape.clone(),
        bytes: vec![0; shape.iter().product()],
    };
    let tensors = whole.iter().map(|(name, shape)| (name.clone(), tensor(shape))).collect();
    crate::write_safetensors(&path, &tensors, None).unwrap();
    let error = load_lpips(network, &path, None).unwrap_err().to_string();
    assert!(error.contains("net.slice1.0.bias is U8, must be floating-point"), "{error}");
}

#[test]
fn wrappers_are_seen_through_and_weights_that_are_not_finite_are_named() {
    let network = LpipsNetwork::AlexNet;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let values = vec![0.5; shape.iter().product()];
        (name, HostTensor::from_f32(shape, &values))
    };
    let tensors: BTreeMap<String, HostTensor> = canonical(network).into_iter().map(tensor).collect();
    let save = |tensors: &BTreeMap<String, HostTensor>| {
        let wrap = |name: &str| format!("loss.{}", name.replacen('.', "._forward_module.", 1));
        let wrapped = tensors.iter().map(|(name, tensor)| (wrap(name), tensor.clone())).collect();
        crate::write_safetensors(&path, &wrapped, None).unwrap();
        load_lpips(network, &path, None)
    };
    assert_eq!(save(&tensors).unwrap(), tensors);
    for name in ["features.3.bias", "lin1.weight"] {
        let mut broken = tensors.clone();
        broken.insert(name.to_owned(), HostTensor::from_f32(&tensors[name].shape, &[f32::NAN; 192]));
        let error = save(&broken).unwrap_err();
        assert!(matches!(&error, WeightsError::NotFinite { count: 192, .. }), "{error}");
    }
}

#[test]
fn a_configuration_beside_a_classifier_changes_nothing() {
    let network = LpipsNetwork::AlexNet;
    let folder = tempfile::tempdir().unwrap();
    let path = place(folder.path(), "model.safetensors", &published("lpips-alexnet.txt"));
    for config in [r#"{"architecture": "vgg16", "num_classes": 1000, "act_fn": "relu"}"#, "no json", ""] {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        load_lpips(network, &path, None).unwrap();
    }
}
