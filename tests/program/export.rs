//! What a trained model is used for: reconstructions, and weights that others load.

use checkpoints::WeightsFile;
use serde_json::Value;

use crate::command::{fixture, run, small};

#[test]
fn a_run_reconstructs_pictures() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let picture = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 90]));
    picture.save(folder.path().join("mine.png")).unwrap();
    let finished =
        run(folder.path(), &["reconstruct", "mine.png", "--checkpoint", "runs/small", "--output", "out"]).success();
    assert!(finished.stdout.starts_with("mine.png  "), "{}", finished.stdout);
    let reconstruction = image::open(folder.path().join("out/mine.png")).unwrap();
    assert_eq!((reconstruction.width(), reconstruction.height()), (16, 16));

    let missing = run(folder.path(), &["reconstruct", "yours.png", "--checkpoint", "runs/small"]).error(1);
    assert!(missing.contains("yours.png"), "{missing}");
    let odd = ["reconstruct", "mine.png", "--checkpoint", "runs/small", "--resolution", "15"];
    let odd = run(folder.path(), &odd).error(2);
    assert!(odd.contains("multiple of 2"), "{odd}");
    let none = run(folder.path(), &["reconstruct", "mine.png", "--checkpoint", "runs/none"]).error(1);
    assert!(none.contains("runs/none"), "{none}");
}

/// Whatever is read is written again, in the same family, with the same names, shapes and values.
#[test]
fn an_export_has_what_the_pretrained_model_had() {
    let folder = small();
    for (model, format) in
        [("taming/model.ckpt", "taming"), ("llamagen/model.pt", "llamagen"), ("diffusers/attention", "diffusers")]
    {
        let source = fixture(model).display().to_string();
        let arguments = ["export", "--checkpoint", &source, "--format", format, "--output", format, "--json"];
        let finished = run(folder.path(), &arguments).success();
        let result: Value = serde_json::from_str(&finished.stdout).unwrap();
        let written = WeightsFile::open(folder.path().join(result["weights"].as_str().unwrap())).unwrap();
        let original = WeightsFile::open(&source).unwrap();
        let mut compared = 0;
        for name in original.names().filter(|name| !name.starts_with("loss.") && !name.contains("codebook_used")) {
            let (a, b) = (original.read(name).unwrap(), written.read(name).unwrap());
            assert_eq!(a.shape, b.shape, "{name}");
            assert_eq!(a.to_f32(), b.to_f32(), "{name}");
            compared += 1;
        }
        assert!(compared > 50, "{format}: {compared}");
    }
}

#[test]
fn a_run_is_exported_to_a_family_that_can_hold_it() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let export = |format: &str| {
        run(folder.path(), &["export", "--checkpoint", "runs/small", "--format", format, "--output", format])
    };
    let exported = export("diffusers").success();
    assert!(folder.path().join("diffusers/config.json").is_file(), "{}", exported.stdout);
    // What diffusers would load reconstructs as the run does, although diffusers knows no normalised codes.
    image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 16, y as u8 * 16, 90]))
        .save(folder.path().join("mine.png"))
        .unwrap();
    for (checkpoint, output) in [("runs/small", "a"), ("diffusers", "b")] {
        let arguments = ["--checkpoint", checkpoint, "--output", output, "--resolution", "16"];
        run(folder.path(), &[&["reconstruct", "mine.png"], &arguments[..]].concat()).success();
    }
    let picture = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8().into_raw();
    let (a, b) = (picture("a/mine.png"), picture("b/mine.png"));
    assert!(a.iter().zip(&b).all(|(a, b)| a.abs_diff(*b) <= 1), "{a:?}\n{b:?}");
    let error = export("taming").error(1);
    assert!(error.contains("32 groups"), "{error}");
}
