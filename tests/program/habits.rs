//! What users of command lines are used to: quiet and verbose, colours, a log, errors for programs, completions, manuals.

use std::fs;

use serde_json::Value;

use crate::command::{command, finished, run, small};

#[test]
fn the_log_has_what_stderr_had() {
    let folder = small();
    let log = || fs::read_to_string(folder.path().join("runs/small/log.txt")).unwrap();
    let first = run(folder.path(), &["--config", "small.toml", "--set", "run.steps=2"]).success();
    assert_eq!(log(), first.stderr);
    // Appended to by a run that is resumed, here to its error, and without colours.
    let failing = ["--resume", "runs/small", "--set", "run.steps=4", "--color", "always", "--inject-fault", "3:update"];
    let second = run(folder.path(), &failing);
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(second.stderr.contains("\x1b["), "{}", second.stderr);
    let whole = log();
    assert!(whole.starts_with(&first.stderr) && !whole.contains('\x1b'), "{whole}");
    let plain = console::strip_ansi_codes(&second.stderr).into_owned();
    assert_eq!(whole[first.stderr.len()..], plain);
    assert!(plain.lines().last().is_some_and(|line| line.starts_with("error: ")), "{plain}");
}

#[test]
fn a_quiet_run_says_nothing_and_a_verbose_one_every_step() {
    let folder = small();
    let quiet = run(folder.path(), &["--config", "small.toml", "-q", "--run-dir", "quiet"]).success();
    assert_eq!(quiet.stderr, "");
    assert!(quiet.stdout.contains("checkpoint: "), "{}", quiet.stdout);
    let verbose = run(folder.path(), &["--config", "small.toml", "--verbose", "--run-dir", "verbose"]).success();
    let steps = |text: &str| text.lines().filter(|line| line.starts_with("step ") && line.contains("/4  loss")).count();
    assert_eq!(steps(&verbose.stderr), 4, "{}", verbose.stderr);
    // A log has everything.
    let log = fs::read_to_string(folder.path().join("quiet/log.txt")).unwrap();
    assert!(steps(&log) >= 2 && log.contains("device: cpu"), "{log}");
    assert!(run(folder.path(), &["--config", "none.toml", "-q"]).error(2).contains("none.toml"));
    assert!(run(folder.path(), &["devices", "-q"]).success().stderr.is_empty());
}

#[test]
fn an_error_is_an_object_for_programs() {
    let folder = small();
    fs::write(folder.path().join("wrong.toml"), "[run]\nsteps = 1\n\n[batch]\nmirco = 2\n").unwrap();
    let error = |arguments: &[&str]| {
        let found = run(folder.path(), &[arguments, &["--json"]].concat());
        let value: Value =
            serde_json::from_str(&found.stdout).unwrap_or_else(|error| panic!("{error}: {}", found.stdout));
        assert_eq!(value["exit_code"], found.code);
        (value, found)
    };
    for verb in [&[][..], &["sweep"], &["plan"]] {
        let (value, found) = error(&[verb, &["--config", "wrong.toml"]].concat());
        assert_eq!((&value["file"], &value["line"]), (&"wrong.toml".into(), &5.into()), "{value}");
        assert_eq!(found.error(2), format!("error: {}", value["error"].as_str().unwrap()));
    }
    let (value, _) = error(&["export", "--checkpoint", "nowhere", "--output", "out"]);
    assert!(value["exit_code"] == 1 && value["error"].as_str().unwrap().contains("nowhere") && value["line"].is_null());
    for arguments in [&["sweep"][..], &["--stepz"], &["reconstruct", "--checkpoint"]] {
        let (value, found) = error(arguments);
        assert_eq!(found.code, 2);
        let text = value["error"].as_str().unwrap();
        assert!(!text.is_empty() && !text.contains("Usage") && !text.contains('\n'), "{text}");
    }
}

#[test]
fn shells_complete_and_manuals_are_written() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(folder.path(), &["completions", shell]).success().stdout;
        for word in ["reconstruct", "--compare", "sweep"] {
            assert!(script.contains(word.trim_start_matches("--")), "{shell}: {word}");
        }
    }
    let script = run(folder.path(), &["completions", "bash"]).success().stdout;
    fs::write(folder.path().join("complete.bash"), script).unwrap();
    let checked = std::process::Command::new("bash").args(["-n", "complete.bash"]).current_dir(folder.path()).output();
    assert!(checked.is_ok_and(|output| output.status.success()));
    assert_eq!(run(folder.path(), &["completions", "none"]).code, 2);

    let page = run(folder.path(), &["man"]).success().stdout;
    assert!(page.contains(".TH train 1") && page.contains("\\-\\-config"), "{page}");
    run(folder.path(), &["man", "--output", "man"]).success();
    for name in ["train.1", "train-sweep.1", "train-reconstruct.1"] {
        assert!(fs::read_to_string(folder.path().join("man").join(name)).unwrap().contains(".TH"), "{name}");
    }
}

#[test]
fn colours_are_for_those_who_want_them() {
    let folder = tempfile::tempdir().unwrap();
    let colored = |arguments: &[&str], no_color: bool| {
        let mut command = command(folder.path(), &[&["--config", "none.toml"], arguments].concat());
        if no_color {
            command.env("NO_COLOR", "1");
        }
        finished(command.output().unwrap()).stderr.contains("\x1b[")
    };
    assert!(!colored(&[], false) && !colored(&["--color", "never"], false));
    assert!(colored(&["--color", "always"], false) && colored(&["--color=always"], true));
    // What clap says, too.
    assert!(colored(&["--color=always", "--stepz"], false) && !colored(&["--color=never", "--stepz"], false));
}
