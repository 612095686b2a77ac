//! What a trained model is used for: reconstructions, and weights that others load.

use checkpoints::WeightsFile;
use serde_json::Value;

use crate::command::{command, finished, fixture, run, small};

#[test]
fn a_run_reconstructs_images() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let image = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 90]));
    image.save(folder.path().join("mine.png")).unwrap();
    let finished =
        run(folder.path(), &["reconstruct", "mine.png", "--checkpoint", "runs/small", "--output", "out"]).success();
    assert!(finished.stdout.lines().nth(1).is_some_and(|line| line.starts_with("mine.png  ")), "{}", finished.stdout);
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
    for (model, format) in [
        ("taming/model.ckpt", "taming"),
        ("gumbel/model.ckpt", "taming"),
        ("llamagen/model.pt", "llamagen"),
        ("diffusers/attention", "diffusers"),
    ] {
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

/// What is written is read again, as a folder and as the file in it, whatever lies beside it.
#[test]
fn every_export_is_a_pretrained_model() {
    let folder = small();
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&run(folder.path(), &[arguments, &["--json"]].concat()).success().stdout).unwrap()
    };
    for (model, formats) in [
        ("taming/model.ckpt", &["taming"][..]),
        ("llamagen/model.pt", &["taming", "llamagen"]),
        ("diffusers/attention", &["diffusers"]),
        ("diffusers/middle", &["diffusers"]),
        ("diffusers/lookup", &["diffusers"]),
    ] {
        let source = fixture(model).display().to_string();
        for format in formats {
            let first = ["export", "--checkpoint", &source, "--format", format, "--output", format];
            let file = json(&first)["weights"].as_str().unwrap().to_owned();
            for checkpoint in [*format, &file] {
                let again = json(&["export", "--checkpoint", checkpoint, "--output", "again"]);
                assert_eq!(again["format"].as_str().unwrap().to_lowercase(), **format, "{model}");
                let open = |path: &str| WeightsFile::open(folder.path().join(path)).unwrap();
                let (a, b) = (open(&file), open(again["weights"].as_str().unwrap()));
                assert!(a.names().eq(b.names()));
                for name in a.names() {
                    let (a, b) = (a.read(name).unwrap(), b.read(name).unwrap());
                    assert_eq!((a.shape.clone(), a.to_f32()), (b.shape.clone(), b.to_f32()), "{model}: {name}");
                }
            }
            std::fs::remove_dir_all(folder.path().join("again")).unwrap();
            std::fs::remove_dir_all(folder.path().join(format)).unwrap();
        }
    }
    // As the model of a run.
    let source = fixture("taming/model.ckpt").display().to_string();
    let exported = json(&["export", "--checkpoint", &source, "--format", "taming", "--output", "taming"]);
    for pretrained in ["taming", exported["weights"].as_str().unwrap()] {
        let text = format!(
            "[run]\nsteps = 1\ndevice = \"cpu\"\n\n[batch]\neffective = 1\nmicro = 1\n\n[model]\npretrained = {pretrained:?}\n\n[data]\nsource = \"shapes\"\nimages = 8\nresolution = 32\nvalidation = 1\n\n[losses.perceptual]\nweight = 0\n"
        );
        std::fs::write(folder.path().join("tuned.toml"), text).unwrap();
        run(folder.path(), &["--config", "tuned.toml"]).success();
        std::fs::remove_dir_all(folder.path().join("runs")).unwrap();
    }
}

/// The layout of taming-transformers' own runs.
#[test]
fn a_log_folder_of_taming_is_a_pretrained_model() {
    let folder = small();
    let logs = folder.path().join("logs/2021-04-03T19-39-50_project");
    for inner in ["checkpoints/trainstep_checkpoints", "configs"] {
        std::fs::create_dir_all(logs.join(inner)).unwrap();
    }
    let config = logs.join("configs/2021-04-03T19-39-50-project.yaml");
    std::fs::write(config, "model:\n  target: taming.models.vqgan.VQModel\n").unwrap();
    std::fs::copy(fixture("taming/model.ckpt"), logs.join("checkpoints/last.ckpt")).unwrap();
    let export = |checkpoint: &str| run(folder.path(), &["export", "--checkpoint", checkpoint, "--output", "out"]);
    let name = "logs/2021-04-03T19-39-50_project";
    export(name).success();
    for other in ["checkpoints/epoch=000012.ckpt", "checkpoints/trainstep_checkpoints/step=1.ckpt"] {
        std::fs::write(logs.join(other), "not to be read").unwrap();
    }
    export(name).success();
    // The same file with its key named.
    export(&format!("{name}#state_dict")).success();
    export(&format!("{name}/checkpoints/last.ckpt#state_dict")).success();
    let error = export(&format!("{name}/checkpoints/last.ckpt#ema")).error(1);
    assert!(error.contains("state_dict"), "{error}");
    std::fs::remove_file(logs.join("checkpoints/last.ckpt")).unwrap();
    let error = export(name).error(1);
    assert!(error.contains("epoch=000012.ckpt"), "{error}");
}

#[test]
fn an_address_without_a_scheme_is_wrong_usage() {
    let folder = small();
    let arguments = ["export", "--checkpoint", "hf://owner/name", "--output", "out"];
    let mut export = command(folder.path(), &arguments);
    export.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "hf-mirror.example");
    let error = finished(export.output().unwrap()).error(2);
    assert!(error.contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn a_run_is_exported_to_a_family_that_can_hold_it() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let export = |format: &str| {
        run(folder.path(), &["export", "--checkpoint", "runs/small", "--format", format, "--output", format])
    };
    let exported = export("diffusers").success();
    let config = std::fs::read(folder.path().join("diffusers/config.json"));
    let config: Value =
        serde_json::from_slice(&config.unwrap()).unwrap_or_else(|error| panic!("{error}: {}", exported.stdout));
    assert_eq!(config["sample_size"], 16);
    // What diffusers would load reconstructs as the run does, although diffusers knows no normalised codes.
    image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 16, y as u8 * 16, 90]))
        .save(folder.path().join("mine.png"))
        .unwrap();
    for (checkpoint, output) in [("runs/small", "a"), ("diffusers", "b")] {
        let arguments = ["--checkpoint", checkpoint, "--output", output, "--resolution", "16"];
        run(folder.path(), &[&["reconstruct", "mine.png"], &arguments[..]].concat()).success();
    }
    let image = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8().into_raw();
    let (a, b) = (image("a/mine.png"), image("b/mine.png"));
    assert!(a.iter().zip(&b).all(|(a, b)| a.abs_diff(*b) <= 1), "{a:?}\n{b:?}");
    let error = export("taming").error(1);
    assert!(error.contains("32 groups") && error.ends_with("diffusers can"), "{error}");
}
