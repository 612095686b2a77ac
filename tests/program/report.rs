//! What a run shows of itself: event files and a page.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::{run, small};

fn event_files(run: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(run.join("tensorboard")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// How often `text` stands in a file.
fn count(path: &Path, text: &str) -> usize {
    fs::read(path).unwrap().windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

#[test]
fn a_run_and_its_resumption_write_an_event_file_each() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--set", "run.steps=2"]).success();
    // What is shown of a run may change.
    run(folder.path(), &["--config", "small.toml", "--resume", "--set", "run.gradient_histograms=2"]).success();
    let files = event_files(&folder.path().join("runs/small"));
    assert_eq!(files.len(), 2);
    // Validated before the first step, at the second and at the fourth.
    for (file, validations) in files.iter().zip([2, 1]) {
        assert_eq!(count(file, "brain.Event:2"), 1);
        assert_eq!(count(file, "loss/pixel"), 2);
        assert_eq!(count(file, "memory/peak"), 2);
        assert_eq!([count(file, "validation/psnr"), count(file, "samples")], [validations; 2]);
    }
    // Nothing at step 10 of 2, and then at step 4.
    assert_eq!([count(&files[0], "gradients/encoder.conv_in"), count(&files[1], "gradients/encoder.conv_in")], [0, 1]);
}

#[test]
fn event_files_can_be_left_out() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--set", "run.tensorboard=false"]).success();
    assert!(!folder.path().join("runs/small/tensorboard").exists());
}

#[test]
fn a_run_ends_with_its_page_and_several_are_shown_side_by_side() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "b<i>", "--set", "run.seed=4"]).success();
    let page = fs::read_to_string(folder.path().join("runs/small/report.html")).unwrap();
    assert!(page.contains("4, finished") && page.contains("data:image/png;base64,"));

    let finished = run(folder.path(), &["report", "runs/small", "b<i>"]).success();
    assert_eq!(finished.stdout, "report.html\n");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("What differs") && page.contains("run.seed"));
    assert!(page.contains("b&lt;i&gt;") && !page.contains("b<i>"));
}

#[test]
fn a_broken_run_is_reported_as_far_as_it_goes() {
    let folder = small();
    let run_dir = folder.path().join("mine");
    run(folder.path(), &["--config", "small.toml", "--run-dir", "mine"]).success();
    let log = run_dir.join("metrics.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, &text[..text.len() - 20]).unwrap();
    fs::remove_dir_all(run_dir.join("samples")).unwrap();
    let finished = run(folder.path(), &["report", "mine", "--json", "--output", "page.html"]).success();
    let result: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(result["output"], "page.html");
    let mine = &result["runs"][0];
    assert_eq!([&mine["step"], &mine["steps"], &mine["finished"]], [&3.into(), &4.into(), &Value::Bool(false)]);
    assert!(mine["last"]["loss/total"].as_f64().unwrap() > 0.0);
    for said in ["the last line of metrics.jsonl is torn", "there are no samples"] {
        assert!(finished.stderr.contains(said), "{}", finished.stderr);
        assert!(fs::read_to_string(folder.path().join("page.html")).unwrap().contains(said));
    }

    fs::create_dir(folder.path().join("empty")).unwrap();
    let error = run(folder.path(), &["report", "mine", "empty"]).error(2);
    assert!(error.contains("empty holds no run"), "{error}");
    let error = run(folder.path(), &["report", "mine", "--output", "nowhere/page.html"]).error(1);
    assert!(error.contains("nowhere/page.html"), "{error}");
}

#[test]
fn a_dashboard_needs_a_terminal() {
    let folder = small();
    let error = run(folder.path(), &["--config", "small.toml", "--tui"]).error(2);
    assert!(error.contains("--tui needs a terminal"), "{error}");
    assert!(!folder.path().join("runs").exists());
}
