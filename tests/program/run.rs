//! A run from its first step to its last, stopped and resumed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::{run, small};

/// The lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The newest checkpoint's files by name.
pub fn weights(run: &Path) -> Vec<(String, Vec<u8>)> {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let folder = run.join("checkpoints").join(latest.trim());
    let files = ["model.safetensors", "ema.safetensors"];
    files.into_iter().map(|name| (name.to_owned(), fs::read(folder.join(name)).unwrap())).collect()
}

/// Every file of the newest checkpoint but the manifest, by name.
pub fn newest(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let is_step = |name: &String| name.strip_prefix("step-").is_some_and(|step| step.parse::<u64>().is_ok());
    let names = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    let newest = names.filter_map(|name| name.into_string().ok().filter(is_step)).max().unwrap();
    let files = fs::read_dir(run.join("checkpoints").join(newest)).unwrap();
    let files = files.map(|entry| entry.unwrap()).map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    files.filter(|(name, _)| name != "manifest.json").map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// A log's lines without what depends on the clock and on the machine.
pub fn repeatable(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        line.retain(|key, _| {
            !["images_per_second", "data_wait", "host_buffers", "peak_memory", "memory"].contains(&key.as_str())
        });
    }
    lines
}

/// Nothing that a run computes or logs differs.
pub fn assert_same_run(a: &Path, b: &Path) {
    assert_eq!(repeatable(a), repeatable(b));
    assert_eq!(fs::read(a.join("validation.jsonl")).unwrap(), fs::read(b.join("validation.jsonl")).unwrap());
    let (a, b) = (newest(a), newest(b));
    assert!(a.keys().eq(b.keys()), "{:?} {:?}", a.keys(), b.keys());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{name} differs");
    }
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

/// Every path of the result is there, and every command of it runs as it stands.
#[test]
fn a_finished_run_names_its_files_and_what_comes_next() {
    let folder = small();
    crate::hub::write_images(&folder.path().join("my images"), 8);
    let other = ["--config", "small.toml", "--run-dir", "runs/other", "--set", "run.steps=1"];
    run(folder.path(), &other).success();
    let sets = ["data.source=folder", "data.path=my images", "run.steps=2", "batch.effective=2", "batch.micro=1"];
    let arguments: Vec<&str> =
        ["--config", "small.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect();
    let finished = run(folder.path(), &arguments).success();
    assert!(finished.stderr.contains("data: 8 images; 6 to train on, 2 to validate on"), "{}", finished.stderr);
    assert!(!finished.stderr.contains(" 0.0 images/s"), "{}", finished.stderr);
    for file in ["samples/before-and-after.png", "report.html", "checkpoints/step-000002"] {
        let line = finished.stdout.lines().find(|line| line.ends_with(file));
        let path = line.and_then(|line| line.rsplit_once(": ")).unwrap_or_else(|| panic!("{}", finished.stdout)).1;
        assert!(folder.path().join(path).exists(), "{path}");
    }
    let commands: Vec<&str> = finished.stdout.lines().filter_map(|line| line.strip_prefix("  train ")).collect();
    assert_eq!(commands.len(), 3, "{}", finished.stdout);
    for (command, verb) in commands.iter().zip(["reconstruct", "report", "sweep"]) {
        assert!(command.starts_with(verb), "{command}");
        let program = crate::command::command(folder.path(), &[]);
        let script = format!("{} {command}", program.get_program().to_str().unwrap());
        let typed = std::process::Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
        assert!(typed.status.success(), "{command}: {}", String::from_utf8_lossy(&typed.stderr));
    }
    assert!(commands[1].contains("runs/small runs/other"), "{}", commands[1]);
    assert!(
        folder.path().join("reconstructions/7-compare.png").is_file() && folder.path().join("report.html").is_file()
    );

    // A finished run that is resumed says the same.
    let again = run(folder.path(), &["--resume", "runs/small", "--json"]).success();
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    for key in ["samples", "report", "checkpoint"] {
        let path = again[key].as_str().unwrap_or_else(|| panic!("{key}: {again}"));
        assert!(folder.path().join(path).exists(), "{path}");
    }
    assert_eq!(again["next"].as_array().unwrap().len(), 3);
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
fn the_batch_split_and_the_workers_do_not_change_the_run() {
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

/// The tests have no network.
#[test]
fn a_configuration_can_be_tried_without_what_it_has_on_the_hub() {
    let folder = small();
    let perceptual =
        ["losses.perceptual.weight=1", "losses.perceptual.backbone=hf://someone/vgg16", "data.resolution=32"];
    let train = |run_dir: &str, more: &[&str]| {
        let sets = perceptual.iter().chain(&["run.steps=1"]).flat_map(|set| ["--set", *set]);
        let all = ["--config", "small.toml", "--run-dir", run_dir].into_iter().chain(sets).chain(more.iter().copied());
        run(folder.path(), &all.collect::<Vec<_>>())
    };
    train("fetched", &[]).error(1);
    let tried = train("tried", &["--random-weights"]).success();
    let words = "random weights, of the same shapes, for losses.perceptual.backbone, losses.perceptual.linear\n";
    assert!(tried.stderr.contains(words), "{}", tried.stderr);
    assert!(metrics(&folder.path().join("tried"))[0]["perceptual"].as_f64().unwrap() > 0.0);
    let result: Value =
        serde_json::from_str(&train("scored", &["--random-weights", "--json"]).success().stdout).unwrap();
    assert!(result["after"]["psnr"].is_f64() && result["after"]["lpips"].is_null(), "{result}");
    let nothing = run(folder.path(), &["--config", "small.toml", "--random-weights", "--set", "run.steps=1"]).success();
    assert!(
        nothing.stderr.contains("random weights: the configuration has nothing on the Hub\n"),
        "{}",
        nothing.stderr
    );

    train("tried", &["--random-weights", "--resume"]).success();
    let unknown = "[model]\npretrained = \"hf://someone/something\"\n[data]\nsource = \"shapes\"\n";
    fs::write(folder.path().join("unknown.toml"), unknown).unwrap();
    let error = run(folder.path(), &["--config", "unknown.toml", "--random-weights"]).error(2);
    assert!(
        error.starts_with("error: --random-weights: what hf://someone/something is built like is known"),
        "{error}"
    );
}
