//! A run from its first step to its last, stopped and resumed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::{command, finished, run, small};

/// The lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The newest checkpoint's files by name.
fn weights(run: &Path) -> Vec<(String, Vec<u8>)> {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let folder = run.join("checkpoints").join(latest.trim());
    let files = ["model.safetensors", "ema.safetensors"];
    files.into_iter().map(|name| (name.to_owned(), fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn a_run_leaves_everything_that_its_folder_promises() {
    let folder = small();
    let finished = run(folder.path(), &["--config", "small.toml"]).success();
    assert!(finished.stdout.contains("mean absolute error"), "{}", finished.stdout);
    assert!(finished.stdout.contains("before") && finished.stdout.contains("after"), "{}", finished.stdout);
    assert!(finished.stderr.contains("device: cpu"), "{}", finished.stderr);
    let run_dir = folder.path().join("runs/small");
    let lines = metrics(&run_dir);
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    for key in [
        "loss",
        "pixel",
        "codebook",
        "learning_rate",
        "grad_norm",
        "loss_scale",
        "images_per_second",
        "data_wait",
        "peak_memory",
        "micro",
    ] {
        assert!(lines[0][key].as_f64().is_some_and(|value| value >= 0.0), "{key}: {}", lines[0]);
    }
    assert_eq!(lines[0]["skipped"], false);
    for step in ["000000", "000002", "000004"] {
        let grid = image::open(run_dir.join(format!("samples/step-{step}.png"))).unwrap();
        assert_eq!((grid.width(), grid.height()), (3 * 96 + 2 * 2, 2 * 96 + 2));
    }
    assert!(run_dir.join("checkpoints/step-000004/manifest.json").is_file());
    // The resolved configuration runs again as it is.
    run(&run_dir, &["--config", "config.toml", "--run-dir", "again"]).success();
    assert_eq!(weights(&run_dir), weights(&run_dir.join("again")));
}

#[test]
fn json_output_is_one_object() {
    let folder = small();
    let finished = run(folder.path(), &["--config", "small.toml", "--json"]).success();
    let result: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(result["step"], 4);
    assert!(result["before"]["l1"].as_f64().unwrap() > 0.0);
    assert!(result["after"]["psnr"].as_f64().unwrap() > 0.0);
}

/// Same seed, other micro-batch, other number of threads: the same run but for rounding.
#[test]
fn the_cut_and_the_workers_do_not_change_the_run() {
    let folder = small();
    let losses = |name: &str, sets: &[&str]| -> Vec<f64> {
        let mut arguments = vec!["--config", "small.toml", "--run-dir", name];
        arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
        run(folder.path(), &arguments).success();
        metrics(&folder.path().join(name)).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let reference = losses("a", &["batch.micro=4", "data.workers=1"]);
    let cut = losses("b", &["batch.micro=1", "data.workers=3", "data.prefetch=2"]);
    for (a, b) in reference.iter().zip(&cut) {
        assert!((a - b).abs() < 1e-4 * a.abs(), "{reference:?} {cut:?}");
    }
    let same_cut = losses("c", &["batch.micro=4", "data.workers=0"]);
    assert_eq!(reference, same_cut);
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();

    // Without a schedule the number of steps does not change what a step does.
    run(folder.path(), &["--config", "small.toml", "--run-dir", "parts", "--set", "run.steps=2"]).success();
    let resumed = run(folder.path(), &["--config", "small.toml", "--run-dir", "parts", "--resume"]).success();
    assert!(resumed.stderr.contains("step 2 of 4"), "{}", resumed.stderr);
    assert_eq!(weights(&folder.path().join("whole")), weights(&folder.path().join("parts")));
    let loss = |run: &str| -> Vec<Value> {
        metrics(&folder.path().join(run)).iter().map(|line| line["loss"].clone()).collect()
    };
    assert_eq!(loss("whole"), loss("parts"));

    let again = run(folder.path(), &["--config", "small.toml", "--run-dir", "parts", "--resume"]).error(2);
    assert!(again.contains("finished"), "{again}");
    let changed = ["--config", "small.toml", "--run-dir", "parts", "--resume", "--set", "run.seed=4"];
    let changed = run(folder.path(), &changed).error(2);
    assert!(changed.contains("run.seed: 3 -> 4"), "{changed}");
    let nothing = run(folder.path(), &["--config", "small.toml", "--run-dir", "nowhere", "--resume"]).error(2);
    assert!(nothing.contains("nowhere holds no checkpoint"), "{nothing}");
    assert!(!folder.path().join("nowhere").exists());
}

/// The run's own folder says all that is needed to go on.
#[test]
fn a_run_resumes_by_its_folder_alone() {
    let folder = small();
    let sets = ["--set", "optimizer.learning_rate=2e-3", "--set", "run.steps=2"];
    run(folder.path(), &[&["--config", "small.toml", "--run-dir", "mine"], &sets[..]].concat()).success();
    let resumed = run(folder.path(), &["--resume", "--run-dir", "mine", "--set", "run.steps=3"]).success();
    assert!(resumed.stderr.contains("step 2 of 3"), "{}", resumed.stderr);
}

/// Other pictures would be split into training and validation in another way.
#[test]
fn a_run_is_not_resumed_on_other_pictures() {
    let folder = small();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    let save = |name: &str| image::RgbImage::new(20, 20).save(pictures.join(name)).unwrap();
    (0..8).for_each(|index| save(&format!("{index}.png")));
    let arguments = ["--config", "small.toml", "--set", "data.source=folder", "--set", "data.path=pictures"];
    run(folder.path(), &[&arguments[..], &["--set", "run.steps=2"]].concat()).success();
    save("new.png");
    let refused = run(folder.path(), &[&arguments[..], &["--resume"]].concat()).error(2);
    assert!(refused.contains("the pictures: 8 named") && refused.contains("-> 9 named"), "{refused}");
    // The same pictures elsewhere are the same pictures.
    fs::remove_file(pictures.join("new.png")).unwrap();
    fs::rename(&pictures, folder.path().join("moved")).unwrap();
    run(folder.path(), &[&arguments[..5], &["data.path=moved", "--resume"]].concat()).success();
}

/// `kill -9` costs at most the steps since the last checkpoint.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let folder = small();
    let arguments = ["--config", "small.toml", "--run-dir", "killed", "--set", "checkpoints.keep_last=99999"];
    let endless = [&arguments[..], &["--set", "run.steps=100000"]].concat();
    let mut child = command(folder.path(), &endless).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for(&folder.path().join("killed/checkpoints/step-000004"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let latest = fs::read_to_string(folder.path().join("killed/checkpoints/latest")).unwrap();
    let saved: u64 = latest.trim().trim_start_matches("step-").parse().unwrap();
    let steps = format!("run.steps={}", saved + 3);
    let resumed = command(folder.path(), &arguments).args(["--set", &steps, "--resume"]).output().unwrap();
    finished(resumed).success();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole", "--set", &steps]).success();
    assert_eq!(weights(&folder.path().join("whole")), weights(&folder.path().join("killed")));
    let steps: Vec<u64> =
        metrics(&folder.path().join("killed")).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=saved + 3).collect::<Vec<_>>());
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_and_says_how_to_go_on() {
    let folder = small();
    let arguments = ["--config", "small.toml", "--set", "run.steps=100000", "--set", "checkpoints.every_steps=0"];
    let mut child = command(folder.path(), &arguments)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_text(&folder.path().join("runs/small/metrics.jsonl"), &mut child);
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let stopped = finished(child.wait_with_output().unwrap());
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("--resume"), "{}", stopped.stderr);
    let step = metrics(&folder.path().join("runs/small")).len();
    assert!(folder.path().join(format!("runs/small/checkpoints/step-{step:06}")).is_dir());
}

#[cfg(unix)]
fn wait_for(path: &Path, child: &mut std::process::Child) {
    wait(|| path.is_dir(), child);
}

#[cfg(unix)]
fn wait_for_text(path: &Path, child: &mut std::process::Child) {
    wait(|| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0), child);
}

#[cfg(unix)]
fn wait(done: impl Fn() -> bool, child: &mut std::process::Child) {
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn a_broken_checkpoint_is_passed_over_by_name() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let model = folder.path().join("runs/small/checkpoints/step-000004/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&model, bytes).unwrap();
    let resumed = run(folder.path(), &["--config", "small.toml", "--resume"]).success();
    assert!(resumed.stderr.contains("passed over") && resumed.stderr.contains("step-000004"), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("step 2 of 4"), "{}", resumed.stderr);
}

/// Pretrained weights of every family train, and a run can start from another run.
#[test]
fn pretrained_models_train() {
    use crate::command::fixture;
    let folder = small();
    let train = |model: PathBuf, name: &str| {
        let text = format!(
            "[run]\nsteps = 1\ndevice = \"cpu\"\n[batch]\neffective = 2\nmicro = 1\n[model]\npretrained = \"{}\"\n\
             [data]\nresolution = 16\nimages = 20\nvalidation = 2\n",
            model.display()
        );
        fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        run(folder.path(), &["--config", name]).success()
    };
    let taming = train(fixture("taming/model.ckpt"), "taming");
    assert!(taming.stderr.contains("taming VQGAN, f2, 64 codes"), "{}", taming.stderr);
    train(fixture("llamagen/model.pt"), "llamagen");
    train(fixture("diffusers/attention"), "diffusers");
    train(folder.path().join("runs/taming"), "again");
}
