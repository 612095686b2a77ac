//! Runs that are asked to stop: by a signal, and by the clock.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Finished, command, finished, run, small};
use crate::run::{assert_same_run, metrics};

const ENDLESS: [&str; 6] =
    ["--config", "small.toml", "--set", "run.steps=100000", "--set", "checkpoints.every_steps=0"];

fn start(folder: &Path, arguments: &[&str]) -> Child {
    command(folder, arguments).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Sends a signal, named as `kill` names it.
pub fn signal(child: &Child, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn ended(child: Child) -> Finished {
    finished(child.wait_with_output().unwrap())
}

/// Waits until `done`; fails the test if the run ends before.
pub fn wait(mut done: impl FnMut() -> bool, child: &mut Child) {
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn has_text(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

#[test]
fn an_interrupted_run_saves_and_says_how_to_resume() {
    for name in ["-INT", "-TERM"] {
        let folder = small();
        let mut child = start(folder.path(), &ENDLESS);
        wait(|| has_text(&folder.path().join("runs/small/metrics.jsonl")), &mut child);
        signal(&child, name);
        let stopped = ended(child);
        assert_eq!(stopped.code, 130, "{}", stopped.stderr);
        assert!(stopped.stderr.contains("--resume"), "{}", stopped.stderr);
        let step = metrics(&folder.path().join("runs/small")).len();
        assert!(folder.path().join(format!("runs/small/checkpoints/step-{step:06}")).is_dir());
    }
}

/// The second signal does not wait for the save that the first one asked for, and what was saved before is whole.
#[test]
fn a_second_signal_ends_the_run_at_once() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    for name in ["-INT", "-TERM"] {
        let run_dir = name.trim_start_matches('-');
        // A save that goes no further, with the model written and the manifest not.
        let arguments = ["--config", "small.toml", "--run-dir", run_dir, "--inject-fault", "4:save-4:hang"];
        let mut child = start(folder.path(), &arguments);
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut wait_for = |text: &str| assert!(said.any(|line| line.contains(text)), "nothing was said of: {text}");
        wait_for("injected after: ema.safetensors");
        signal(&child, name);
        wait_for("saving the run first; Ctrl-C stops at once");
        assert!(child.try_wait().unwrap().is_none());
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let checkpoints = folder.path().join(run_dir).join("checkpoints");
        assert!(checkpoints.join("step-000002").is_dir() && !checkpoints.join("step-000004").exists());

        let resumed = run(folder.path(), &["--resume", "--config", "small.toml", "--run-dir", run_dir]).success();
        assert!(
            resumed.stderr.contains("step 2 of 4") && !resumed.stderr.contains("passed over"),
            "{}",
            resumed.stderr
        );
        assert_same_run(&folder.path().join("whole"), &folder.path().join(run_dir));
        assert!(
            fs::read_dir(checkpoints).unwrap().all(|entry| !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains(".tmp-"))
        );
    }
}

/// With downloads going on there is nothing to save, and nothing is left behind.
#[test]
fn a_run_that_has_not_begun_stops_at_once() {
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = small();
    let text = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    let model = text.find("[model]").unwrap()..text.find("[data]").unwrap();
    let text = text.replace(&text[model], "[model]\npretrained = \"hf://owner/name\"\n");
    fs::write(folder.path().join("small.toml"), text).unwrap();
    let mut waiting = command(folder.path(), &["--config", "small.toml"]);
    waiting.env("HF_ENDPOINT", format!("http://{}", hub.local_addr().unwrap())).env_remove("HF_HUB_OFFLINE");
    let child = waiting.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It is asked, and never answers.
    let _connection = hub.accept().unwrap();
    signal(&child, "-INT");
    let asked = Instant::now();
    let stopped = ended(child);
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("the run has not begun, so there is nothing to save"), "{}", stopped.stderr);
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn the_first_validation_is_stopped_and_made_up_for() {
    let folder = small();
    let sets = ["--set", "data.images=40000", "--set", "data.validation=10000", "--set", "validation.images=10000"];
    let mut child = start(folder.path(), &[&["--config", "small.toml"], &sets[..]].concat());
    let run_dir = folder.path().join("runs/small");
    wait(|| run_dir.join("config.toml").exists(), &mut child);
    signal(&child, "-INT");
    let stopped = ended(child);
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    assert!(run_dir.join("checkpoints/step-000000").is_dir() && !has_text(&run_dir.join("validation.jsonl")));
    // Which images are looked at is part of the run; for the test fewer will do.
    let fewer = ["--resume", "runs/small", "--set", "validation.images=4", "--allow", "validation.images", "--json"];
    let resumed = run(folder.path(), &fewer).success();
    let result: serde_json::Value = serde_json::from_str(&resumed.stdout).unwrap();
    assert_eq!((&result["step"], &result["before"]["images"]), (&4.into(), &4.into()));
}

/// The last save ends before the limit does.
#[test]
fn a_run_is_over_before_its_time_is() {
    let folder = small();
    let started = Instant::now();
    let stopped = run(folder.path(), &[&ENDLESS[..], &["--max-time", "8s"]].concat());
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("--max-time is nearly over"), "{}", stopped.stderr);
    let step = metrics(&folder.path().join("runs/small")).len();
    assert!(folder.path().join(format!("runs/small/checkpoints/step-{step:06}/manifest.json")).is_file());
    let wrong = run(folder.path(), &["--config", "small.toml", "--max-time", "5x"]);
    assert_eq!(wrong.code, 2);
}

#[test]
fn a_second_process_learns_who_has_the_run() {
    let folder = small();
    let mut child = start(folder.path(), &ENDLESS);
    wait(|| has_text(&folder.path().join("runs/small/metrics.jsonl")), &mut child);
    for resume in [&[][..], &["--resume"]] {
        let error = run(folder.path(), &[&["--config", "small.toml"], resume].concat()).error(1);
        assert!(error.contains(&format!("runs/small is in use by process {}", child.id())), "{error}");
    }
    signal(&child, "-TERM");
    assert_eq!(ended(child).code, 130);
}

/// What the writer in the background cannot save, the user hears of, and what was saved before stays.
#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let folder = small();
    let arguments = ["--config", "small.toml", "--set", "run.steps=100000", "--set", "checkpoints.every_steps=1"];
    let mut child = start(folder.path(), &arguments);
    let checkpoints = folder.path().join("runs/small/checkpoints");
    wait(|| checkpoints.join("step-000002").exists(), &mut child);
    fs::rename(&checkpoints, folder.path().join("aside")).unwrap();
    fs::write(&checkpoints, "not a folder").unwrap();
    let error = ended(child).error(1);
    assert!(error.contains("cannot ") && error.contains("runs/small/checkpoints"), "{error}");
    fs::remove_file(&checkpoints).unwrap();
    fs::rename(folder.path().join("aside"), &checkpoints).unwrap();
    let resumed = run(folder.path(), &["--resume", "runs/small", "--set", "run.steps=4", "--json"]);
    assert!([0, 2].contains(&resumed.code), "{}", resumed.stderr);
}

#[test]
fn a_run_that_cannot_start_leaves_no_folder() {
    let folder = small();
    let start = |sets: &[&str], code| {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let error =
            run(folder.path(), &["--config", "small.toml"].into_iter().chain(sets).collect::<Vec<_>>()).error(code);
        assert!(!folder.path().join("runs").exists(), "{error}");
        error
    };
    start(&["data.source=folder", "data.path=nowhere"], 1);
    start(&["losses.perceptual.weight=1", "losses.perceptual.backbone=nowhere.pth"], 1);
    // Found out by the first validation and by the first step.
    fs::create_dir(folder.path().join("broken")).unwrap();
    (0..20).for_each(|index| fs::write(folder.path().join(format!("broken/{index}.png")), "no image").unwrap());
    let broken = ["data.source=folder", "data.path=broken"];
    start(&broken, 1);
    start(&[&broken[..], &["data.validation=0"]].concat(), 1);
    // A folder that was there stays.
    fs::create_dir(folder.path().join("mine")).unwrap();
    fs::write(folder.path().join("mine/note"), "").unwrap();
    let arguments =
        ["--config", "small.toml", "--run-dir", "mine", "--set", "data.source=folder", "--set", "data.path=no"];
    run(folder.path(), &arguments).error(1);
    assert!(folder.path().join("mine/note").exists());
}
