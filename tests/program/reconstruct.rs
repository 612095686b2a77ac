//! `train reconstruct` on files, folders and patterns.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::command::{Finished, command, finished, fixture, run};
use crate::hub::{by_hub, everything};
use crate::stand_in_hub::Hub;

const MODEL: [&str; 4] = ["--checkpoint", "vqgan-shapes", "--device", "cpu"];

fn save(root: &Path, names: &[&str]) {
    for (name, index) in names.iter().zip(1u32..) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let image = RgbImage::from_fn(80, 70, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, (index * 40) as u8]));
        image.save(path).unwrap();
    }
}

fn reconstruct(folder: &Path, arguments: &[&str]) -> Finished {
    run(folder, &[&["reconstruct"], arguments, &MODEL].concat())
}

fn json(finished: Finished) -> Value {
    serde_json::from_str(&finished.success().stdout).unwrap()
}

#[test]
fn folders_and_patterns_are_reconstructed_each_image_into_its_own_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    save(root, &["photos/a.png", "photos/old/a.jpg", "more/a.bmp", "more/b.png"]);
    fs::write(root.join("photos/broken.png"), "no image").unwrap();
    fs::write(root.join("more/notes.txt"), "no image").unwrap();
    let arguments = ["photos", "more/*", "--compare", "--clip", "clip-shapes"];
    let found = json(reconstruct(root, &[&arguments[..], &["--json"]].concat()));
    let images = found["images"].as_array().unwrap();
    let at = |key: &str| images.iter().map(|image| image[key].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(at("image"), ["photos/a.png", "photos/old/a.jpg", "more/a.bmp", "more/b.png"]);
    let reconstructions = ["a.png", "old/a.png", "a-2.png", "b.png"].map(|name| format!("reconstructions/{name}"));
    assert_eq!(at("reconstruction"), reconstructions);
    for (reconstruction, comparison) in at("reconstruction").into_iter().zip(at("comparison")) {
        let [one, both] = [reconstruction, comparison].map(|path| image::open(root.join(path)).unwrap().to_rgb8());
        assert_eq!((one.dimensions(), both.dimensions()), ((64, 64), (130, 64)));
        assert!(one.enumerate_pixels().all(|(x, y, pixel)| both.get_pixel(x + 66, y) == pixel), "{comparison}");
    }
    assert_eq!(found["skipped"][0]["image"], "photos/broken.png");
    for key in ["error", "psnr", "ssim", "clip"] {
        let values: Vec<f64> = images.iter().map(|image| image[key].as_f64().unwrap()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((found["mean"][key].as_f64().unwrap() - mean).abs() < 1e-9, "{key}: {found}");
    }
    assert!(found["mean"]["lpips"].is_null());

    // The same figures as a table. Reconstructions of before are no images of the folder.
    let table = reconstruct(root, &[".", "--clip", "clip-shapes"]).success();
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{}", table.stdout);
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(columns(lines[0]), ["image", "error", "PSNR", "SSIM", "CLIP", "reconstruction"]);
    let mean = &found["mean"];
    let number = |key: &str, digits: usize| format!("{:.digits$}", mean[key].as_f64().unwrap());
    let expected = [number("error", 4), number("psnr", 2), number("ssim", 4), number("clip", 4)];
    assert_eq!(columns(lines[5])[4..], expected, "{}", table.stdout);
    assert!(table.stderr.contains("skipped ./photos/broken.png"), "{}", table.stderr);
}

#[test]
fn lpips_is_measured_by_the_network_whose_weights_are_named() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &["a.png"]);
    let hub = Hub::new(everything(folder.path()));
    let vgg16 = ["reconstruct", "a.png", "--lpips", "hf://timm/vgg16.tv_in1k", "--json"];
    let measured = by_hub(command(folder.path(), &[&vgg16[..], &MODEL].concat()), &hub).output().unwrap();
    let vgg16 = json(finished(measured))["mean"]["lpips"].as_f64().unwrap();
    assert!(vgg16 > 0.0, "{vgg16}");

    fs::write(folder.path().join("no.pth"), "no weights").unwrap();
    for (option, name) in [("--lpips", "no.pth"), ("--lpips", "none.pth"), ("--clip", "no.pth"), ("--clip", "none")] {
        let error = reconstruct(folder.path(), &["a.png", option, name]).error(1);
        assert!(error.contains(option) && error.contains(name), "{error}");
    }
}

/// A run's own networks are used as far as nothing has to be fetched for them.
#[test]
fn a_run_is_measured_by_its_own_networks() {
    let folder = crate::command::small();
    save(folder.path(), &["a.png"]);
    let clip = fixture("clip/transformers").display().to_string();
    let sets = ["losses.clip_image.weight=1", &format!("clip.pretrained={clip}"), "clip.cutouts=0", "run.steps=1"];
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    let arguments: Vec<&str> = ["--config", "small.toml"].into_iter().chain(sets).collect();
    run(folder.path(), &arguments).success();
    let measure = |more: &[&str]| {
        let arguments = ["reconstruct", "a.png", "--checkpoint", "runs/small", "--json"];
        json(run(folder.path(), &[&arguments, more].concat()))["mean"].clone()
    };
    let found = measure(&[]);
    assert!(found["clip"].as_f64().is_some_and(|cosine| cosine.abs() <= 1.0), "{found}");
    assert_ne!(measure(&["--clip", "clip-shapes"])["clip"], found["clip"]);
    assert!(found["lpips"].is_null());
}

#[test]
fn arguments_without_an_image_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &["a.png"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    assert!(reconstruct(folder.path(), &["a.png", "b*.png"]).error(2).contains("b*.png"));
    reconstruct(folder.path(), &["empty"]).error(1);
    assert!(reconstruct(folder.path(), &["a.png", "b.png"]).error(1).contains("b.png"));
    assert!(reconstruct(folder.path(), &["a.png", "--output", "."]).error(2).contains("a.png"));
}
