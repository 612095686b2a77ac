//! Fine-tuning taming's VQGAN with a Gumbel quantizer, from its checkpoint to an export.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{SMALL, fixture, run};
use crate::run::{metrics, weights};

/// [`SMALL`] from the small Gumbel checkpoint.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (before, rest) = SMALL.split_once("[model]").unwrap();
    let (_, after) = rest.split_once("[data]").unwrap();
    let model = fixture("gumbel/model.ckpt").display().to_string();
    let losses = "[losses.codebook]\nkl_weight = 1e-3\ntemperature_end = 0.5\ntemperature_steps = 4\n";
    let text = format!("{before}[model]\npretrained = {model:?}\n{losses}[data]{after}");
    fs::write(folder.path().join("gumbel.toml"), text).unwrap();
    folder
}

#[test]
fn a_gumbel_vqgan_is_trained_resumed_and_exported() {
    let folder = folder();
    let train = |name: &str, more: &[&str]| {
        run(folder.path(), &[&["--config", "gumbel.toml", "--run-dir", name], more].concat()).success()
    };
    train("whole", &[]);
    train("parts", &["--set", "run.steps=2"]);
    train("parts", &["--resume"]);
    assert_eq!(weights(&folder.path().join("whole")), weights(&folder.path().join("parts")));

    let lines = metrics(&folder.path().join("whole"));
    let figures = |key: &str| -> Vec<f64> { lines.iter().map(|line| line[key].as_f64().unwrap()).collect() };
    let half = 0.2 * 0.5f64.sqrt();
    for (found, expected) in figures("temperature").iter().zip([0.9, 0.7 + half, 0.7, 0.7 - half]) {
        assert!((found - expected).abs() < 1e-6, "{found} against {expected}");
    }
    for (codebook, kl) in figures("codebook").iter().zip(figures("kl")) {
        assert!(kl > 0.0 && (codebook - 1e-3 * kl).abs() < 1e-6 * kl, "{codebook} {kl}");
    }

    let export = ["export", "--checkpoint", "whole", "--output", "exported"];
    run(folder.path(), &export).success();
    image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 16, y as u8 * 16, 90]))
        .save(folder.path().join("mine.png"))
        .unwrap();
    let reconstruct = |checkpoint: &str| {
        let arguments =
            ["reconstruct", "mine.png", "--checkpoint", checkpoint, "--output", "out", "--resolution", "16"];
        run(folder.path(), &arguments).success();
        image::open(folder.path().join("out/mine.png")).unwrap().to_rgb8().into_raw()
    };
    let model = fixture("gumbel/model.ckpt").display().to_string();
    let trained = reconstruct("whole");
    assert_eq!(trained, reconstruct("whole"), "no code is drawn");
    assert_eq!(trained, reconstruct("exported/model.ckpt"));
    assert_ne!(trained, reconstruct(&model));
    for format in ["diffusers", "llamagen"] {
        let refused = run(folder.path(), &[&export[..], &["--format", format]].concat()).error(1);
        assert!(refused.contains("taming"), "{refused}");
    }
    let refused = run(folder.path(), &["--config", "gumbel.toml", "--set", "losses.codebook.entropy=0.1"]).error(2);
    assert!(refused.contains("losses.codebook.entropy"), "{refused}");
}

#[test]
fn a_gumbel_vqgans_gradient_is_the_same_for_every_split() {
    let folder = folder();
    let arguments = ["sweep", "--config", "gumbel.toml", "--steps", "2", "--micro", "4,3,1", "--json"];
    let finished = run(folder.path(), &[&arguments[..], &["--recompute", "none,blocks"]].concat()).success();
    let sweep: Value = serde_json::from_str(&finished.stdout).unwrap();
    let rows = sweep["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 7);
    for row in rows {
        let deviation = row["deviation"].as_f64().unwrap();
        assert!(row["status"] == "ok" && deviation <= 1e-5, "{row}");
    }
}
