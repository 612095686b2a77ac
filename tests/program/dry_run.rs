//! `train --dry-run` and `train init`: what comes before a first run.

use std::fs;

use serde_json::Value;

use crate::command::{command, finished, run, small};
use crate::hub::{by_hub, everything, write_images};
use crate::stand_in_hub::Hub;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_dry_run_says_what_a_run_needs_and_leaves_nothing_behind() {
    let folder = small();
    let dry = |more: &[&str]| run(folder.path(), &[&["--config", "small.toml", "--dry-run"], more].concat());
    let found = json(&dry(&["--json"]).success().stdout);
    let needs = &found["needs"];
    assert_eq!((&needs["training"], &needs["validation"], &needs["captioned"]), (&96.into(), &4.into(), &Value::Null));
    assert_eq!(needs["weights"], Value::Array(Vec::new()));
    assert_eq!(found["config"]["batch"]["effective"], 4);
    // Weights, average, gradient and two moments; without the average four of these five.
    let without = json(&dry(&["--json", "--set", "ema.decay=0"]).success().stdout);
    let bytes = |found: &Value| found["needs"]["state_memory"].as_u64().unwrap();
    assert!(bytes(&found) > 100_000);
    assert_eq!(4 * bytes(&found), 5 * bytes(&without));
    let text = dry(&["--set", "losses.clip_text.weight=0"]).success().stdout;
    for part in ["100 images; 96 to train on, 4 to validate on", "effective 4, micro-batch 3 (2 passes)", "runs/small"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(!folder.path().join("runs").exists());
    let folder_source = ["--set", "data.source=folder", "--set", "data.path=nowhere"];
    assert!(dry(&folder_source).error(1).contains("nowhere"));
    assert!(dry(&["--set", "data.resolution=17"]).error(2).contains("data.resolution"));
    assert!(
        dry(&["--set", "model.pretrained=nowhere.ckpt"])
            .error(1)
            .contains("`model.pretrained`: there is no nowhere.ckpt")
    );
    run(folder.path(), &["--config", "small.toml", "--set", "run.steps=1"]).success();
    assert!(dry(&[]).error(2).contains("runs/small"));
}

#[test]
fn a_dry_run_knows_what_has_to_be_downloaded() {
    let folder = tempfile::tempdir().unwrap();
    let repositories = everything(folder.path());
    let size = |repository: usize, file: &str| repositories[repository].1[file].len() as u64;
    let expected = [
        ("model.pretrained", size(0, "model.ckpt")),
        ("losses.perceptual.backbone", size(2, "model.safetensors")),
        ("losses.perceptual.linear", size(3, "LPIPS_v0.1_vgg-a78928a0.pth")),
    ];
    let hub = Hub::new(everything(folder.path()));
    write_images(&folder.path().join("images"), 8);
    let arguments = ["--config", "small-gpu.toml", "--device", "cpu", "--dry-run"];
    let dry = |more: &[&str]| {
        let arguments = [&arguments[..], more].concat();
        finished(by_hub(command(folder.path(), &arguments), &hub).output().unwrap())
    };
    let found = json(&dry(&["--json"]).success().stdout);
    let weights = found["needs"]["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 4);
    assert!(weights.iter().all(|weights| weights["download"] == true), "{weights:?}");
    for (key, bytes) in expected {
        let found = weights.iter().find(|weights| weights["key"] == key).unwrap();
        let found = found["bytes"].as_u64().unwrap();
        // The small files beside weights may come with them.
        assert!((bytes..bytes + 2000).contains(&found), "{key}: {found} for {bytes}");
    }
    assert_eq!(hub.fetched(), [""; 0]);
    // Known by its name.
    assert!(found["needs"]["model"].as_str().unwrap().contains("16384 codes"), "{found}");
    assert!(dry(&[]).success().stdout.contains("to download"));
    let error = run(folder.path(), &arguments).error(1);
    assert!(error.contains("hf://boris/vqgan_f16_16384"), "{error}");
}

#[test]
fn a_configuration_for_this_machine_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    write_images(&folder.path().join("my images"), 8);
    let written = run(folder.path(), &["init", "--data", "my images"]).success().stdout;
    assert!(written.contains("train --config mine.toml --dry-run"), "{written}");
    let text = fs::read_to_string(folder.path().join("mine.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    assert!(table["extends"].as_str().is_some_and(|base| base.ends_with(".toml")));
    assert_eq!(table["data"]["source"].as_str(), Some("folder"));
    assert!(text.contains("# 8 images"), "{text}");
    let dry = ["--config", "mine.toml", "--dry-run", "--json"];
    let found = json(&run(folder.path(), &dry).success().stdout);
    assert_eq!((&found["needs"]["training"], &found["needs"]["validation"]), (&6.into(), &2.into()));
    let error = run(folder.path(), &["init"]).error(1);
    assert!(error.contains("mine.toml"), "{error}");
    let from = ["init", "--from", "small-gpu.toml", "--output", "gpu.toml", "--json"];
    assert_eq!(json(&run(folder.path(), &from).success().stdout)["extends"], "small-gpu.toml");
    // A file of one's own is a base too, from anywhere.
    fs::create_dir(folder.path().join("configs")).unwrap();
    fs::write(folder.path().join("configs/own.toml"), "[run]\nsteps = 7\n").unwrap();
    run(folder.path(), &["init", "--from", "own", "--output", "configs/mine.toml"]).success();
    let found = json(&run(folder.path(), &["--config", "configs/mine.toml", "--dry-run", "--json"]).success().stdout);
    assert_eq!(found["config"]["run"]["steps"], 7);
    let error = run(folder.path(), &["init", "--data", "nowhere", "--output", "other.toml"]).error(1);
    assert!(error.contains("nowhere") && !folder.path().join("other.toml").exists(), "{error}");
    assert_eq!(run(folder.path(), &["init", "--from", "nothing", "--output", "other.toml"]).code, 2);
}
