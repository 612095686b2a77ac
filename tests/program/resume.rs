//! Runs that go on: after an end, after `kill -9`, from another checkpoint, with another configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::command::{command, finished, run, small};
use crate::run::{metrics, weights};

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
    assert!(refused.contains("pictures: 8 named") && refused.contains("-> 9 named"), "{refused}");
    // The same pictures elsewhere are the same pictures.
    fs::remove_file(pictures.join("new.png")).unwrap();
    fs::rename(&pictures, folder.path().join("moved")).unwrap();
    run(folder.path(), &[&arguments[..5], &["data.path=moved", "--resume"]].concat()).success();
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

/// Every file of the newest checkpoint but the manifest, by name.
fn newest(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let files = fs::read_dir(run.join("checkpoints").join(latest.trim())).unwrap();
    let files = files.map(|entry| entry.unwrap()).map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    files.filter(|(name, _)| name != "manifest.json").map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// A log's lines without what depends on the clock and on the machine.
fn repeatable(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        line.retain(|key, _| !["images_per_second", "data_wait", "peak_memory", "memory"].contains(&key.as_str()));
    }
    lines
}

/// Nothing that a run computes or logs differs.
fn assert_same_run(a: &Path, b: &Path) {
    assert_eq!(repeatable(a), repeatable(b));
    assert_eq!(fs::read(a.join("validation.jsonl")).unwrap(), fs::read(b.join("validation.jsonl")).unwrap());
    let (a, b) = (newest(a), newest(b));
    assert!(a.keys().eq(b.keys()), "{:?} {:?}", a.keys(), b.keys());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{name} differs");
    }
}

/// A loss scale that is too high at first and grows again, and thus is lowered in the midst of the run.
const FP16: &str = "[precision]\ncompute = \"fp16\"\n[precision.scaler]\ninit = 16777216.0\ngrowth_interval = 3\n";

/// Kills a run of `steps` steps `rounds` times, each time at another moment, and lets it go on.
fn killed_and_resumed(rounds: u32, steps: u32, precision: &str) {
    let folder = small();
    let text = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    let text = text
        .replace("steps = 4", &format!("steps = {steps}"))
        .replace("every_steps = 2\nsamples", "every_steps = 3\nsamples");
    let text = text.replace("[checkpoints]\n", "[checkpoints]\nbest = \"psnr\"\nkeep_every = 10\n");
    let discriminator = "[losses.adversarial]\nweight = 0.5\nstart = 4\nlecam = 0.01\nadaptive = \"previous-step\"\n\
                         [discriminator]\nstart = 2\nlayers = 1\nchannels = 8\n[schedule]\nwarmup = 5\n";
    fs::write(folder.path().join("small.toml"), text + discriminator + precision).unwrap();
    let started = std::time::Instant::now();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    let whole = started.elapsed();

    let killed = folder.path().join("killed");
    let go_on = || {
        let resume: &[&str] = if killed.join("checkpoints/latest").exists() { &["--resume"] } else { &[] };
        let mut command =
            command(folder.path(), &[&["--config", "small.toml", "--run-dir", "killed"], resume].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // A kill after the last checkpoint, but before the end of the process, leaves a run that is through.
    let check_end = |output| {
        let ended = finished(output);
        assert!(ended.code == 0 || ended.code == 2 && ended.stderr.contains("it is finished"), "{}", ended.stderr);
        assert_same_run(&folder.path().join("whole"), &killed);
    };
    let (mut random, mut kills) = (0x9e37_79b9_u64, 0);
    for _ in 0..rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Late enough that most rounds save something, early enough that ten of them do not end the run.
        let share = 0.05 + 0.25 * (random >> 40) as f64 / f64::from(1 << 24);
        let mut child = go_on();
        std::thread::sleep(whole.mul_f64(share));
        if child.try_wait().unwrap().is_some() {
            check_end(child.wait_with_output().unwrap());
            // From the beginning again, so that there is something to kill.
            fs::remove_dir_all(&killed).unwrap();
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
    }
    println!("{kills} of {rounds} rounds were kills");
    check_end(go_on().wait_with_output().unwrap());
    if precision == FP16 {
        let skipped = metrics(&killed).iter().filter(|line| line["skipped"] == true).count();
        assert!((2..20).contains(&skipped), "{skipped}");
    }
}

/// `kill -9` costs the steps since the last checkpoint and nothing else.
#[test]
fn a_killed_run_is_the_same_run() {
    killed_and_resumed(4, 40, "");
}

#[test]
fn a_killed_run_in_half_precision_is_the_same_run() {
    killed_and_resumed(2, 15, FP16);
}

#[test]
#[ignore = "takes minutes: cargo test --release -p vqgan-trainer --test program -- --ignored hundred --nocapture"]
fn a_run_that_is_killed_a_hundred_times_is_the_same_run() {
    killed_and_resumed(100, 40, "");
    killed_and_resumed(100, 40, FP16);
}

/// The checkpoints of a run that leaves the numbers are of no use; the one before them stays, whatever `keep_last` says.
#[test]
fn a_run_that_leaves_the_numbers_keeps_what_was_good() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    run(folder.path(), &["--config", "small.toml", "--set", "run.steps=2"]).success();
    let sets = ["optimizer.learning_rate=1e38", "optimizer.clip_norm=0", "run.steps=20", "precision.max_skips=5"];
    let often = ["checkpoints.every_steps=1", "checkpoints.keep_last=2"];
    let sets = sets.iter().chain(&often).flat_map(|set| ["--set", *set]);
    let arguments = ["--resume", "runs/small", "--allow", "optimizer"].into_iter().chain(sets);
    let error = run(folder.path(), &arguments.collect::<Vec<_>>()).error(1);
    assert!(error.contains("6 steps in a row, up to step 9, were skipped"), "{error}");
    let good = ["--resume", "runs/small/checkpoints/step-000002", "--config", "small.toml", "--run-dir", "runs/small"];
    run(folder.path(), &good).success();
    assert_eq!(weights(&folder.path().join("whole")), weights(&folder.path().join("runs/small")));
}

#[test]
fn a_run_goes_back_to_an_earlier_checkpoint() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let run_dir = folder.path().join("runs/small");
    let whole = (newest(&run_dir), repeatable(&run_dir), fs::read(run_dir.join("validation.jsonl")).unwrap());
    let resumed = run(folder.path(), &["--resume", "runs/small/checkpoints/step-000002"]).success();
    assert!(resumed.stderr.contains("step 2 of 4"), "{}", resumed.stderr);
    assert!(
        resumed.stderr.contains("set aside") && resumed.stderr.contains("step-000004.aside-1"),
        "{}",
        resumed.stderr
    );
    let again = (newest(&run_dir), repeatable(&run_dir), fs::read(run_dir.join("validation.jsonl")).unwrap());
    assert!(whole == again);
    assert!(run_dir.join("checkpoints/step-000004.aside-1/manifest.json").is_file());
    let error = run(folder.path(), &["--resume", "small.toml"]).error(2);
    assert!(error.contains("small.toml is neither a run's folder nor a checkpoint"), "{error}");
}

/// Another folder: the run that the checkpoint is of stays as it is.
#[test]
fn a_run_branches_off_from_a_checkpoint() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let run_dir = folder.path().join("runs/small");
    let before = (newest(&run_dir), fs::read(run_dir.join("metrics.jsonl")).unwrap());
    let branch = ["--resume", "runs/small/checkpoints/step-000002", "--run-dir", "branch"];
    run(folder.path(), &branch).success();
    assert_same_run(&run_dir, &folder.path().join("branch"));
    assert!(before == (newest(&run_dir), fs::read(run_dir.join("metrics.jsonl")).unwrap()));
    let error = run(folder.path(), &branch).error(2);
    assert!(error.contains("branch already holds a run"), "{error}");

    // A checkpoint that was moved away is one as well, with a configuration beside it.
    fs::rename(run_dir.join("checkpoints/step-000002"), folder.path().join("backup")).unwrap();
    let error = run(folder.path(), &["--resume", "backup"]).error(2);
    assert!(error.contains("--resume needs the run's folder"), "{error}");
    let moved = ["--resume", "backup", "--config", "small.toml", "--run-dir", "moved"];
    run(folder.path(), &moved).success();
    assert_eq!(newest(&folder.path().join("moved")), newest(&run_dir));
}

#[test]
fn a_damaged_checkpoint_that_was_asked_for_is_named() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let model = folder.path().join("runs/small/checkpoints/step-000002/model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() - 1]).unwrap();
    let error = run(folder.path(), &["--resume", "runs/small/checkpoints/step-000002"]).error(1);
    assert!(error.contains("model.safetensors has") && error.contains("was written with"), "{error}");
    assert!(folder.path().join("runs/small/checkpoints/step-000004").is_dir());
}

#[test]
fn changes_that_are_meant_are_allowed_by_name() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--set", "run.steps=2"]).success();
    let sets = ["--resume", "runs/small", "--set", "run.steps=3", "--set", "optimizer.learning_rate=2e-3", "--set"];
    let changed = [&sets[..], &["losses.codebook.beta=0.5"]].concat();
    let error = run(folder.path(), &changed).error(2);
    assert!(error.contains("losses.codebook.beta: unset -> 0.5, optimizer.learning_rate: 0.001 -> 0.002"), "{error}");
    assert!(
        error.ends_with("--allow losses.codebook.beta --allow optimizer.learning_rate goes on all the same"),
        "{error}"
    );
    let error = run(folder.path(), &[&changed[..], &["--allow", "optimizer"]].concat()).error(2);
    assert!(error.contains("losses.codebook.beta") && !error.contains("learning_rate"), "{error}");
    let allowed = ["--allow", "optimizer", "--allow", "losses.codebook.beta", "--allow", "ema"];
    let resumed = run(folder.path(), &[&changed[..], &allowed].concat()).success();
    assert!(resumed.stderr.contains("allowed: optimizer.learning_rate: 0.001 -> 0.002"), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("--allow ema: nothing of that name has changed"), "{}", resumed.stderr);
    let rate = &metrics(&folder.path().join("runs/small"))[2]["learning_rate"];
    assert_eq!(rate, 2e-3);
}

/// A discriminator and an average that a run has only from now on begin now.
#[test]
fn a_loss_can_be_added_to_a_run() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--set", "run.steps=2", "--set", "ema.decay=0"]).success();
    let sets =
        ["losses.adversarial.weight=0.5", "losses.adversarial.start=0", "discriminator.layers=1", "ema.decay=0.9"];
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    let allowed = ["losses", "discriminator", "ema"].into_iter().flat_map(|key| ["--allow", key]);
    let arguments = ["--resume", "runs/small", "--set", "run.steps=4"].into_iter().chain(sets).chain(allowed);
    run(folder.path(), &arguments.collect::<Vec<_>>()).success();
    let files = newest(&folder.path().join("runs/small"));
    assert!(
        files.contains_key("discriminator.safetensors") && files.contains_key("ema.safetensors"),
        "{:?}",
        files.keys()
    );
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_best_checkpoint_is_known_and_kept() {
    let folder = small();
    let sets =
        ["checkpoints.best=l1", "checkpoints.keep_last=1", "checkpoints.every_steps=0", "validation.every_steps=1"];
    // So fast that it gets worse at some point.
    let sets = sets.iter().chain(&["run.steps=8", "optimizer.learning_rate=0.05"]).flat_map(|set| ["--set", *set]);
    let arguments = ["--config", "small.toml", "--json"].into_iter().chain(sets).collect::<Vec<_>>();
    let result: Value = serde_json::from_str(&run(folder.path(), &arguments).success().stdout).unwrap();
    let run_dir = folder.path().join("runs/small");
    let validations = lines(&run_dir.join("validation.jsonl"));
    let steps: Vec<u64> = validations.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (0..=8).collect::<Vec<_>>());
    for key in ["l1", "psnr", "ssim", "codes_used", "perplexity"] {
        assert!(validations.iter().all(|line| line[key].is_f64()), "{key}: {}", validations[0]);
    }
    let l1 = |line: &&Value| line["l1"].as_f64().unwrap();
    let best = validations.iter().min_by(|a, b| l1(a).total_cmp(&l1(b))).unwrap();
    let step = best["step"].as_u64().unwrap();
    assert_eq!((&result["best"]["step"], &result["best"]["value"]), (&best["step"], &best["l1"]));
    let name = format!("step-{step:06}");
    assert_eq!(fs::read_to_string(run_dir.join("checkpoints/best")).unwrap().trim(), name);
    assert!(run_dir.join("checkpoints").join(&name).is_dir());
}

#[test]
fn a_run_that_gets_no_better_ends_early() {
    let folder = small();
    let sets = ["checkpoints.best=psnr", "validation.patience=2", "validation.every_steps=1", "run.steps=50"];
    let sets = sets.iter().chain(&["optimizer.learning_rate=1e-30"]).flat_map(|set| ["--set", *set]);
    let arguments = ["--config", "small.toml", "--json"].into_iter().chain(sets).collect::<Vec<_>>();
    let result: Value = serde_json::from_str(&run(folder.path(), &arguments).success().stdout).unwrap();
    assert_eq!(
        (&result["step"], &result["stopped_early"], &result["interrupted"]),
        (&2.into(), &true.into(), &false.into())
    );
    assert_eq!(result["best"]["step"], 0);
    let error = run(folder.path(), &["--resume", "runs/small"]).error(2);
    assert!(error.contains("ended at step 2, with no better psnr in 2 validations"), "{error}");
    let more = ["--resume", "runs/small", "--set", "validation.patience=3", "--json"];
    let result: Value = serde_json::from_str(&run(folder.path(), &more).success().stdout).unwrap();
    assert_eq!((&result["step"], &result["best"]["worse"]), (&3.into(), &3.into()));
}

#[test]
fn checkpoints_come_by_the_clock_as_well() {
    let folder = small();
    let sets = ["checkpoints.every_steps=0", "checkpoints.every_minutes=1e-9", "checkpoints.keep_last=9"];
    let arguments = ["--config", "small.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set]));
    run(folder.path(), &arguments.collect::<Vec<_>>()).success();
    for step in 1..=4 {
        assert!(folder.path().join(format!("runs/small/checkpoints/step-{step:06}")).is_dir());
    }
}
