use std::fs::File;

use super::*;
use crate::files::write_torch;
use crate::fixtures::{Shapes, place, published, shared_fixture};

/// The PatchGAN in a taming checkpoint, by the names that it has for itself.
fn patchgan() -> Shapes {
    let all = published("taming-loss.txt").into_iter();
    all.filter_map(|(name, shape)| Some((name.strip_prefix("loss.discriminator.")?.to_owned(), shape))).collect()
}

fn canonical() -> Shapes {
    let mut all = patchgan();
    all.retain(|name, _| !name.ends_with("num_batches_tracked"));
    all
}

fn load(shapes: &Shapes) -> Result<Shapes, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = place(folder.path(), "model.safetensors", shapes);
    let shapes = |weights: BTreeMap<String, HostTensor>| {
        weights.into_iter().map(|(name, tensor)| (name, tensor.shape)).collect()
    };
    let loaded = load_discriminator(&path).map_err(|error| error.to_string());
    if let Err(error) = &loaded {
        assert!(!error.contains('\n') && error.starts_with(folder.path().to_str().unwrap()), "{error}");
    }
    loaded.map(shapes)
}

fn changed(edit: impl FnOnce(&mut Shapes)) -> Result<Shapes, String> {
    let mut shapes = patchgan();
    edit(&mut shapes);
    load(&shapes)
}

fn numbered(shapes: &Shapes) -> BTreeMap<String, HostTensor> {
    let tensor = |(index, (name, shape)): (usize, (&String, &Vec<usize>))| {
        (name.clone(), HostTensor::from_f32(shape, &vec![index as f32; shape.iter().product()]))
    };
    shapes.iter().enumerate().map(tensor).collect()
}

#[test]
fn the_discriminators_of_checkpoints_are_found() {
    assert_eq!(load(&published("taming-loss.txt")), Ok(canonical()));
    assert_eq!(load(&patchgan()), Ok(canonical()));
    let wrapped = patchgan().into_iter().map(|(name, shape)| (format!("module.{name}"), shape));
    assert_eq!(load(&wrapped.collect()), Ok(canonical()));
    // A group norm, and biases where there is no batch norm to make them idle.
    let group = changed(|all| {
        all.retain(|name, _| !name.contains("running"));
        all.insert("main.5.bias".to_owned(), vec![256]);
    });
    assert!(group.is_ok_and(|all| all.contains_key("main.5.bias") && all.len() == 14));
    // Another number of layers.
    let short = changed(|all| {
        all.retain(|name, _| !name.starts_with("main.8.") && !name.starts_with("main.9."));
        let last = ["weight", "bias"].map(|kind| all.remove(&format!("main.11.{kind}")).unwrap());
        all.insert("main.8.weight".to_owned(), vec![1, 256, 4, 4]);
        all.insert("main.8.bias".to_owned(), last[1].clone());
    });
    assert_eq!(short.unwrap().len(), 14);
}

#[test]
fn a_top_level_key_holds_llamagens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let tensors = numbered(&patchgan());
    write_torch(File::create(&path).unwrap(), "discriminator", &tensors, None).unwrap();
    let weights = load_discriminator(&path).unwrap();
    assert_eq!(weights.len(), canonical().len());
    for (name, tensor) in weights {
        assert_eq!(tensor, tensors[&name], "{name}");
    }

    // The fixtures' checkpoints have a piece of one each, where the real ones have the whole.
    let fixtures = shared_fixture("");
    let error = load_discriminator(fixtures.join("llamagen/model.pt")).unwrap_err().to_string();
    assert!(error.ends_with("model.pt: its layers are numbered 0, which is not a PatchGAN"), "{error}");

    write_torch(File::create(&path).unwrap(), "discriminator", &numbered(&published("stylegan.txt")), None).unwrap();
    let error = load_discriminator(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("its discriminator is StyleGAN's (final_linear.0.bias); only a PatchGAN is supported"),
        "{error}"
    );
}

#[test]
fn other_discriminators_are_named() {
    let error = load(&published("actnorm.txt")).unwrap_err();
    assert!(error.ends_with("has ActNorm (main.3.initialized); only batch and group norms are supported"), "{error}");
    let error = load(&published("torchvision-alexnet.txt")).unwrap_err();
    assert!(
        error.ends_with("it has no PatchGAN, which begins with main.0.weight; it has classifier.1.bias, ..."),
        "{error}"
    );
    let error = changed(|all| {
        all.insert("main.2.weight_orig".to_owned(), vec![1]);
    });
    assert!(error.unwrap_err().ends_with("has a reparametrized weight (main.2.weight_orig), which is not supported"));
    let error = changed(|all| {
        all.insert("main.2.conv.weight".to_owned(), vec![1]);
    });
    assert!(error.unwrap_err().ends_with("its discriminator is not a PatchGAN: it has main.2.conv.weight"));
    for number in ["12", "4000000001"] {
        let error = changed(|all| {
            all.insert(format!("main.{number}.weight"), vec![1]);
        });
        let words = format!("its layers are numbered 0, 2, 3, 5, 6, 8, 9, 11, {number}, which is not a PatchGAN");
        assert!(error.unwrap_err().ends_with(&words));
    }
}

#[test]
fn all_that_does_not_fit_is_named() {
    let error = changed(|all| {
        all.remove("main.0.bias");
        all.remove("main.6.running_var");
        all.insert("main.2.weight".to_owned(), vec![128, 32, 4, 4]);
        all.insert("main.9.weight".to_owned(), vec![100]);
        all.insert("main.11.weight".to_owned(), vec![1, 512, 1, 1]);
        all.insert("main.5.running_mean".to_owned(), vec![256]);
        all.insert("main.4.weight".to_owned(), vec![1]);
    })
    .unwrap_err();
    for words in [
        "2 missing (main.0.bias, main.6.running_var); 2 unexpected (main.4.weight, main.5.running_mean); 3 different (",
        "main.2.weight is [128, 32, 4, 4], must be [128, 64, 4, 4]",
        "main.9.weight is [100], must be [512]",
        "main.11.weight is [1, 512, 1, 1], must be [1, 512, 4, 4]",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let error = changed(|all| {
        all.insert("main.11.weight".to_owned(), vec![3, 512, 4, 4]);
        all.insert("main.11.bias".to_owned(), vec![3]);
    });
    assert!(error.unwrap_err().ends_with("1 different (main.11.weight gives 3 channels, must give 1)"));
    let error = changed(|all| {
        all.insert("main.5.weight".to_owned(), vec![256]);
    });
    assert!(error.unwrap_err().contains("main.5.weight is [256], must be a convolution's"));
}

#[test]
fn wrappers_are_seen_through_and_weights_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = numbered(&patchgan());
    let save = |tensors: &BTreeMap<String, HostTensor>| {
        let wrap = |name: &str| format!("loss.discriminator.{}", name.replacen("main.", "main._orig_mod.", 1));
        let wrapped = tensors.iter().map(|(name, tensor)| (wrap(name), tensor.clone())).collect();
        crate::write_safetensors(&path, &wrapped, None).unwrap();
        load_discriminator(&path)
    };
    assert_eq!(save(&tensors).unwrap()["main.2.weight"], tensors["main.2.weight"]);
    for value in [f32::NAN, f32::INFINITY] {
        let mut broken = tensors.clone();
        broken.insert("main.0.bias".to_owned(), HostTensor::from_f32([64], &[value; 64]));
        let error = save(&broken).unwrap_err();
        let WeightsError::NotFinite { name, count, .. } = &error else { panic!("{error}") };
        assert_eq!((name.as_str(), *count), ("loss.discriminator.main._orig_mod.0.bias", 64));
    }
}
