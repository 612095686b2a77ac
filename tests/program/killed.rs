//! Runs that are killed, at any moment and in the midst of a save, and go on.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::{Finished, command, copy_folder, finished, run, small};
use crate::run::{assert_same_run, metrics};

/// The signal of `kill -9`.
const SIGKILL: Option<i32> = Some(9);

/// A loss scale that is too high at first and grows again, and thus is lowered in the midst of the run.
const FP16: &str = "[precision]\ncompute = \"fp16\"\n[precision.scaler]\ninit = 16777216.0\ngrowth_interval = 3\n";

/// Numbers below 1, the same ones in each test.
struct Random(u64);

impl Random {
    fn below_one(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / f64::from(1 << 24)
    }
}

/// Steps in a run's log, whole or not.
fn steps(run: &Path) -> usize {
    let log = fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    log.iter().filter(|byte| **byte == b'\n').count()
}

fn has_checkpoint(run: &Path) -> bool {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}

/// Kills a run of `steps` steps `rounds` times, each time at another moment, and lets it go on.
fn killed_and_resumed(rounds: usize, steps_in_all: usize, precision: &str) {
    let folder = small();
    let text = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    let text = text
        .replace("steps = 4", &format!("steps = {steps_in_all}"))
        .replace("every_steps = 2\nsamples", "every_steps = 3\nsamples");
    let text = text.replace("[checkpoints]\n", "[checkpoints]\nbest = \"psnr\"\nkeep_every = 10\n");
    let discriminator = "[losses.adversarial]\nweight = 0.5\nstart = 4\nlecam = 0.01\nadaptive = \"previous-step\"\n\
                         [discriminator]\nstart = 2\nlayers = 1\nchannels = 8\n[schedule]\nwarmup = 5\n";
    fs::write(folder.path().join("small.toml"), text + discriminator + precision).unwrap();
    let started = Instant::now();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    let step = started.elapsed() / steps_in_all as u32;

    let killed = folder.path().join("killed");
    let go_on = || {
        let resume: &[&str] = if has_checkpoint(&killed) { &["--resume"] } else { &[] };
        let mut command =
            command(folder.path(), &[&["--config", "small.toml", "--run-dir", "killed"], resume].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // A kill after the last checkpoint, but before the end of the process, leaves a run that is through.
    let check_end = |ended: Finished| {
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_same_run(&folder.path().join("whole"), &killed);
    };
    let (mut random, mut kills) = (Random(0x9e37_79b9), 0);
    for _ in 0..rounds {
        // So many steps more than ever before, none at times, and then at any moment of the next two.
        let done = steps(&killed) + (6.0 * random.below_one()) as usize;
        let mut child = go_on();
        while steps(&killed) < done && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(step.mul_f64(2.0 * random.below_one()));
        let (status, ended) = end(child);
        if status == SIGKILL {
            kills += 1;
        } else {
            check_end(ended);
            // From the beginning again, so that there is something to kill.
            fs::remove_dir_all(&killed).unwrap();
        }
    }
    println!("{kills} of {rounds} rounds were kills");
    assert!(2 * kills > rounds, "only {kills} of {rounds} rounds were kills");
    check_end(finished(go_on().wait_with_output().unwrap()));
    if precision == FP16 {
        let skipped = metrics(&killed).iter().filter(|line| line["skipped"] == true).count();
        assert!((2..20).contains(&skipped), "{skipped}");
    }
}

/// Kills a process, if it still is one; returns the signal that ended it, and what it said.
fn end(mut child: Child) -> (Option<i32>, Finished) {
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    (output.status.signal(), finished(output))
}

/// `kill -9` costs the steps since the last checkpoint and nothing else.
#[test]
fn a_killed_run_is_the_same_run() {
    killed_and_resumed(10, 40, "");
}

/// Random weights follow from the seed, and are no files that go away with the process.
#[test]
fn a_killed_run_with_random_weights_is_the_same_run() {
    let folder = small();
    let sets = ["losses.perceptual.weight=1", "data.resolution=32", "clip.pretrained=random:tiny", "clip.cutouts=2"];
    let sets = sets.into_iter().chain(["losses.perceptual.network=alexnet"]);
    let sets = sets.into_iter().chain(["losses.clip_text.weight=1", "losses.perceptual.backbone=hf://someone/vgg16"]);
    let sets: Vec<&str> = sets.flat_map(|set| ["--set", set]).collect();
    let start = |run_dir: &'static str| {
        let named = ["--config", "small.toml", "--random-weights", "--run-dir", run_dir];
        command(folder.path(), &[&named[..], &sets].concat())
    };
    finished(start("whole").output().unwrap()).success();
    let killed = folder.path().join("killed");
    let mut child = start("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !has_checkpoint(&killed) && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    assert_eq!(end(child).0, SIGKILL);
    run(folder.path(), &["--resume", "killed"]).success();
    assert_same_run(&folder.path().join("whole"), &killed);

    let temporary = std::env::temp_dir().display().to_string();
    for file in ["config.toml", "report.html", "checkpoints/step-000004/state.json"] {
        let text = fs::read_to_string(killed.join(file)).unwrap();
        let named = text.replace(&folder.path().display().to_string(), "");
        assert!(!named.contains(&temporary), "{file} names a temporary file");
    }
    let scores = fs::read_to_string(killed.join("validation.jsonl")).unwrap();
    assert!(scores.contains("psnr") && !scores.contains("lpips") && !scores.contains("clip"), "{scores}");
}

#[test]
fn a_killed_run_in_half_precision_is_the_same_run() {
    killed_and_resumed(3, 15, FP16);
}

#[test]
#[ignore = "takes minutes: cargo test --release -p vqgan-trainer --test program -- --ignored hundred --nocapture"]
fn a_run_that_is_killed_a_hundred_times_is_the_same_run() {
    killed_and_resumed(100, 40, "");
    killed_and_resumed(100, 40, FP16);
}

/// Between any two of the things that a save writes, renames and removes.
#[test]
fn a_run_that_is_killed_in_the_midst_of_a_save_is_the_same_run() {
    let folder = small();
    let sets = [
        "run.steps=3",
        "checkpoints.every_steps=1",
        "checkpoints.keep_last=1",
        "checkpoints.best=l1",
        "validation.every_steps=1",
        "losses.adversarial.weight=0.5",
        "losses.adversarial.start=0",
        "discriminator.layers=1",
        "discriminator.channels=8",
    ];
    let config: Vec<&str> =
        ["--config", "small.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect();
    let train = |arguments: &[&str]| command(folder.path(), &[&config, arguments].concat()).output().unwrap();
    let (whole, before, killed) =
        (folder.path().join("whole"), folder.path().join("before"), folder.path().join("killed"));
    finished(train(&["--run-dir", "whole"])).success();
    finished(train(&["--run-dir", "before", "--set", "run.steps=1"])).success();

    let mut written = BTreeSet::new();
    for count in 1.. {
        copy_folder(&before, &killed);
        let output = train(&["--run-dir", "killed", "--resume", "--inject-fault", &format!("2:save-{count}:kill")]);
        let signal = output.status.signal();
        let said = finished(output);
        if signal.is_none() {
            said.success();
            break;
        }
        assert_eq!(signal, SIGKILL, "{}", said.stderr);
        let last = said.stderr.lines().find_map(|line| line.strip_prefix("injected after: ")).unwrap().to_owned();
        let resumed = finished(train(&["--run-dir", "killed", "--resume"])).success();
        assert!(!resumed.stderr.contains("passed over"), "{last}: {}", resumed.stderr);
        // What has its name is whole.
        let renamed = written.contains("manifest written");
        let from = if renamed { "step 2 of 3" } else { "step 1 of 3" };
        assert!(resumed.stderr.contains(from), "{last}: {}", resumed.stderr);
        assert_same_run(&whole, &killed);
        fs::remove_dir_all(&killed).unwrap();
        written.insert(last);
    }
    let expected = [
        "folder made",
        "state.json",
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "discriminator.safetensors",
        "discriminator_optimizer.safetensors",
        "files written",
        "entry sealed",
        "manifest begun",
        "manifest written",
        "renamed",
        "latest begun",
        "latest written",
        "best begun",
        "best written",
        "removed",
    ];
    assert_eq!(written, expected.map(str::to_owned).into(), "{written:?}");
}
