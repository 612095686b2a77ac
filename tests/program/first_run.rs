//! The first run that the README shows: `tiny-cpu.toml`, and its sister for one's own images.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::command::run;

/// A step or two of a configuration, on few images.
const SHORT: [&str; 8] = [
    "--set",
    "run.steps=2",
    "--set",
    "batch.effective=4",
    "--set",
    "validation.images=8",
    "--set",
    "validation.samples=2",
];

fn result(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&run(folder, arguments).success().stdout).unwrap()
}

#[test]
fn the_first_run_needs_nothing_and_shows_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let arguments =
        [&["--config", "tiny-cpu.toml", "--json"][..], &SHORT, &["--set", "losses.adversarial.start=0"]].concat();
    let result = result(folder, &arguments);
    for scores in ["before", "after"] {
        for key in ["psnr", "ssim", "clip", "caption", "right_caption", "codes_used"] {
            assert!(result[scores][key].is_f64(), "{scores} {key}: {result}");
        }
        assert!(result[scores]["lpips"].is_null());
    }
    // What it starts from knows shapes, and not these.
    let before = result["before"]["psnr"].as_f64().unwrap();
    assert!((13.0..22.0).contains(&before), "{before}");
    let grid = image::open(folder.join(result["grid"].as_str().unwrap())).unwrap();
    assert_eq!((grid.width(), grid.height()), (2 * 64 + 2, 3 * 64 + 4));
    let metrics = fs::read_to_string(folder.join("runs/tiny-cpu/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    for loss in ["pixel", "perceptual", "adversarial", "clip_image", "clip_text", "clip_contrastive", "codebook"] {
        assert!(last[loss].is_f64(), "{loss}: {last}");
    }
}

#[test]
fn clip_judges_a_run_without_clip_losses_where_that_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let off = ["image", "text", "contrastive"].map(|name| format!("losses.clip_{name}.weight=0"));
    let mut arguments = [&["--config", "tiny-cpu.toml", "--json"][..], &SHORT].concat();
    off.iter().for_each(|set| arguments.extend(["--set", set]));
    let judged = result(folder.path(), &arguments);
    assert!(judged["after"]["right_caption"].is_f64(), "{judged}");
    let unjudged = [&arguments[..], &["--run-dir", "unjudged", "--set", "validation.clip=false"]].concat();
    let unjudged = result(folder.path(), &unjudged);
    assert!(unjudged["after"]["clip"].is_null() && unjudged["after"]["right_caption"].is_null(), "{unjudged}");
    // A judge changes nothing of the run.
    assert_eq!(judged["after"]["psnr"], unjudged["after"]["psnr"]);
}

#[test]
fn the_gradient_of_the_first_run_does_not_depend_on_the_batch_split() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["sweep", "--config", "tiny-cpu.toml", "--steps", "2", "--micro", "32,4,1", "--precision", "fp32"];
    let arguments = [&arguments[..], &["--effective", "32", "--recompute", "none", "--json"]].concat();
    let sweep = result(folder.path(), &arguments);
    let rows = sweep["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{sweep}");
    for row in rows {
        let deviation = row["deviation"].as_f64().unwrap();
        assert!(deviation <= 1e-5, "{row}");
    }
}

#[test]
fn ones_own_images_need_no_captions() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    for number in 0..40u8 {
        image::RgbImage::from_fn(80, 70, |x, y| image::Rgb([number * 6, x as u8 * 3, y as u8 * 2]))
            .save(images.join(format!("{number}.png")))
            .unwrap();
    }
    let result = result(folder.path(), &[&["--config", "own-images-cpu.toml", "--json"][..], &SHORT].concat());
    assert!(result["after"]["clip"].is_f64() && result["after"]["caption"].is_null(), "{result}");
    assert!(folder.path().join("runs/own-images-cpu/report.html").is_file());
}

/// The table of scores in a page or an output: the first word of a row with its values before and after.
fn scores(text: &str) -> Vec<(String, f64, f64)> {
    let rows = text.lines().skip_while(|line| !line.starts_with("validation, 64 images")).skip(1);
    let row = |line: &str| {
        let (name, values) = line.split_once("  ")?;
        let mut values = values.split_whitespace().map(|value| value.parse().ok());
        Some((name.to_owned(), values.next()??, values.next()??))
    };
    rows.map_while(row).collect()
}

/// Two processors round differently, and a hundred steps enlarge that; a stale table is further off.
fn tolerance(name: &str) -> f64 {
    match name {
        "PSNR (dB)" => 0.5,
        "right caption of 64 (%)" => 12.0,
        "codes used (%)" => 2.0,
        "perplexity of the codes" => 25.0,
        _ => 0.04,
    }
}

// Takes minutes of all cores, so it is asked for by name.
#[test]
#[ignore = "trains for minutes"]
fn the_readme_shows_what_the_first_run_gives() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["--config", "tiny-cpu.toml"]).success().stdout;
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (shown, measured) = (scores(&readme), scores(&output));
    assert_eq!(measured.len(), 8, "{output}");
    assert_eq!(shown.len(), measured.len(), "{shown:?}");
    for ((name, before, after), (measured, measured_before, measured_after)) in shown.iter().zip(&measured) {
        assert_eq!(name, measured);
        assert!((before - measured_before).abs() <= tolerance(name), "{name} before: {before}, {measured_before}");
        assert!((after - measured_after).abs() <= tolerance(name), "{name} after: {after}, {measured_after}");
        let gain = measured_after - measured_before;
        match name.as_str() {
            // As few and as many codes as the images need: neither is better.
            "perplexity of the codes" => {}
            "mean absolute error" => assert!(gain < 0.0, "{name}: {gain}"),
            // Five of 512.
            "codes used (%)" => assert!(gain > -1.0, "{name}: {gain}"),
            _ => assert!(gain > 0.0, "{name}: {gain}"),
        }
    }
}
