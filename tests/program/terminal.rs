//! Terminals and pipes that go away while a run goes on, and results that cannot be written.
#![cfg(unix)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::command::{command, finished, run, small};
use crate::run::metrics;
use crate::stop::{signal, wait};

const ENDLESS: [&str; 6] =
    ["--config", "small.toml", "--set", "run.steps=100000", "--set", "checkpoints.every_steps=0"];

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

fn has_steps(folder: &Path) -> bool {
    fs::metadata(folder.join("runs/small/metrics.jsonl")).is_ok_and(|metadata| metadata.len() > 0)
}

/// Fails unless the run has ended as one that was asked to stop, with its newest step saved.
fn assert_saved(folder: &Path, child: &mut Child) {
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let step = metrics(&folder.join("runs/small")).len();
    assert!(folder.join(format!("runs/small/checkpoints/step-{step:06}/manifest.json")).is_file());
}

#[test]
fn a_run_goes_on_when_nobody_reads_what_it_says() {
    let folder = small();
    for (name, stderr) in [("closed", Stdio::piped()), ("full", full().into())] {
        let mut command = command(folder.path(), &["--config", "small.toml", "--run-dir", name]);
        let mut child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
        assert!(folder.path().join(name).join("checkpoints/step-000004/manifest.json").is_file(), "{name}");
    }
}

#[test]
fn a_signal_and_the_clock_save_a_run_whose_log_is_closed() {
    for by_clock in [false, true] {
        let folder = small();
        let limit: &[&str] = if by_clock { &["--max-time", "5s"] } else { &[] };
        let mut command = command(folder.path(), &[&ENDLESS[..], limit].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        wait(|| has_steps(folder.path()), &mut child);
        if !by_clock {
            signal(&child, "-TERM");
        }
        assert_saved(folder.path(), &mut child);
    }
}

/// A pager that stopped reading holds the run up where it writes, but not the signal that ends it.
#[test]
fn a_second_signal_ends_a_run_whose_log_takes_nothing_more() {
    let folder = small();
    let arguments = [&ENDLESS[..], &["--set", "data.source=folder", "--set", "data.path=broken"]].concat();
    // So much to say that no pipe has room for it.
    fs::create_dir(folder.path().join("broken")).unwrap();
    let image = image::RgbImage::from_pixel(32, 32, image::Rgb([9, 90, 200]));
    for index in 0..600 {
        let path = folder.path().join(format!("broken/{index}-{}.png", "long".repeat(50)));
        if index % 2 == 0 { fs::write(path, "no image").unwrap() } else { image.save(path).unwrap() }
    }
    let mut command = command(folder.path(), &[&arguments[..], &["--set", "data.max_bad=600"]].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait(|| has_steps(folder.path()), &mut child);
    let mut steps = 0;
    loop {
        sleep(Duration::from_millis(1500));
        let now = fs::read(folder.path().join("runs/small/metrics.jsonl")).unwrap().len();
        if now == steps {
            break;
        }
        steps = now;
    }
    signal(&child, "-INT");
    sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none());
    let asked = Instant::now();
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

/// A terminal: the end that shows it, and the end that programs have.
fn terminal() -> (File, OwnedFd) {
    let shown = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&shown).unwrap();
    unlockpt(&shown).unwrap();
    let name = ptsname(&shown, Vec::new()).unwrap();
    let end = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    rustix::io::ioctl_fionbio(&shown, true).unwrap();
    (File::from(shown), end.into())
}

/// A run of its own session on a terminal, begun by `shell` if that is given.
fn start_on(end: &OwnedFd, folder: &Path, shell: Option<&str>, arguments: &[&str]) -> Child {
    let plain = command(folder, &[&ENDLESS[..], arguments].concat());
    let mut session = Command::new("setsid");
    session.arg("--ctty");
    if let Some(script) = shell {
        session.args(["sh", "-c", script, "sh"]);
    }
    session.arg(plain.get_program()).args(plain.get_args()).current_dir(folder).env("TERM", "xterm");
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => session.env(name, value),
            None => session.env_remove(name),
        };
    }
    let stdio = || Stdio::from(end.try_clone().unwrap());
    session.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap()
}

/// Until the run has taken a step; what it shows is read, so that there is room for more.
fn watch(shown: &mut File, folder: &Path, child: &mut Child) -> Vec<u8> {
    let mut seen = Vec::new();
    wait(
        || {
            // Nothing more for now is an error of kind `WouldBlock`.
            let _ = shown.read_to_end(&mut seen);
            has_steps(folder)
        },
        child,
    );
    seen
}

#[test]
fn a_terminal_has_colours_unless_they_are_turned_off() {
    let folder = small();
    for (no_color, is_colored) in [(None, true), (Some("1"), false)] {
        let (mut shown, end) = terminal();
        let mut command = command(folder.path(), &["--config", "none.toml"]);
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(no_color.map(|value| ("NO_COLOR", value)));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::from(end)).spawn().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(2));
        let mut seen = Vec::new();
        // The end of the other side is an error.
        let _ = shown.read_to_end(&mut seen);
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert!(seen.contains("none.toml") && seen.contains("\x1b[31m") == is_colored, "{seen}");
    }
}

#[test]
fn a_terminal_that_hangs_up_saves_the_run() {
    for (arguments, shows) in [(&[][..], &b"gradients"[..]), (&["--tui"], b"\x1b[?1049h")] {
        let folder = small();
        let (mut shown, end) = terminal();
        let mut child = start_on(&end, folder.path(), None, arguments);
        drop(end);
        let seen = watch(&mut shown, folder.path(), &mut child);
        assert!(seen.windows(shows.len()).any(|part| part == shows), "{}", String::from_utf8_lossy(&seen));
        drop(shown);
        assert_saved(folder.path(), &mut child);
    }
}

#[test]
fn a_key_of_the_dashboard_saves_and_stops_the_run() {
    let folder = small();
    let (mut shown, end) = terminal();
    let mut child = start_on(&end, folder.path(), None, &["--tui"]);
    drop(end);
    let mut seen = watch(&mut shown, folder.path(), &mut child);
    for key in [b"q", b"s"] {
        sleep(Duration::from_millis(500));
        let _ = shown.read_to_end(&mut seen);
        shown.write_all(key).unwrap();
    }
    while child.try_wait().unwrap().is_none() {
        // What is shown is read, so that there is room for more.
        let _ = shown.read_to_end(&mut seen);
        sleep(Duration::from_millis(10));
    }
    assert_saved(folder.path(), &mut child);
    let _ = shown.read_to_end(&mut seen);
    let left = seen.windows(8).rposition(|part| part == b"\x1b[?1049l").unwrap();
    assert!(String::from_utf8_lossy(&seen[left..]).contains("train --resume runs/small"));
}

/// As `nohup` has it: the run outlives its terminal, and a signal still saves it.
#[test]
fn a_run_that_ignores_hang_ups_goes_on() {
    let folder = small();
    let (mut shown, end) = terminal();
    let mut child = start_on(&end, folder.path(), Some("trap '' HUP; exec \"$@\""), &[]);
    drop(end);
    watch(&mut shown, folder.path(), &mut child);
    drop(shown);
    let log = folder.path().join("runs/small/metrics.jsonl");
    let before = fs::metadata(&log).unwrap().len();
    wait(|| fs::metadata(&log).unwrap().len() > 2 * before, &mut child);
    signal(&child, "-TERM");
    assert_saved(folder.path(), &mut child);
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let folder = small();
    for json in [&[][..], &["--json"]] {
        let run_dir = format!("run{}", json.len());
        let arguments = [&["--config", "small.toml", "--run-dir", &run_dir], json].concat();
        let unwritten = finished(command(folder.path(), &arguments).stdout(full()).output().unwrap());
        assert!(unwritten.error(1).contains("stdout"));
        assert!(folder.path().join(run_dir).join("checkpoints/step-000004").is_dir());
    }
    let unwritten = finished(command(folder.path(), &["devices"]).stdout(full()).output().unwrap());
    assert!(unwritten.error(1).contains("stdout"));
    // A reader that has seen enough is none.
    let mut child = command(folder.path(), &["devices"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    run(folder.path(), &["devices"]).success();
}
