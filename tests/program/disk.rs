//! Runs on disks that are full or cannot be written to. Real ones, so that root has to mount them.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Finished, copy_folder, run, small};
use crate::run::{assert_same_run, newest};

/// A disk of its own, in memory.
struct Disk(PathBuf);

impl Disk {
    fn new(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir(&at).unwrap();
        let disk = Self(at);
        disk.mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]);
        disk
    }

    fn change(&self, options: &str) {
        self.mount(&["-o", &format!("remount,{options}")]);
    }

    fn mount(&self, arguments: &[&str]) {
        let mounted = Command::new("mount").args(arguments).arg(&self.0).output().unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Bytes that a folder takes on a disk that gives out pages.
fn size(folder: &Path) -> u64 {
    const PAGE: u64 = 4096;
    let size_of = |entry: fs::DirEntry| match entry.path() {
        path if path.is_dir() => size(&path),
        path => fs::metadata(path).unwrap().len().next_multiple_of(PAGE),
    };
    fs::read_dir(folder).unwrap().map(|entry| size_of(entry.unwrap())).sum()
}

/// However little space is left, the run says what could not be written, and goes on from its checkpoint when there is space.
#[test]
#[ignore = "needs root: cargo test --release -p vqgan-trainer --test program -- --ignored disk --nocapture"]
fn a_full_disk_costs_no_more_than_the_steps_since_the_last_checkpoint() {
    let folder = small();
    let resume = |run_dir: &str| run(folder.path(), &["--config", "small.toml", "--run-dir", run_dir, "--resume"]);
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "half", "--set", "run.steps=2"]).success();
    let (whole, half) = (folder.path().join("whole"), folder.path().join("half"));
    let checkpoint = size(&half.join("checkpoints/step-000002"));

    let disk = Disk::new(folder.path().join("disk"), 1 << 30);
    let run_dir = disk.0.join("run");
    let mut failed = 0;
    for left in [0, 4 << 10, 8 << 10, 16 << 10, 32 << 10, checkpoint / 2, checkpoint + (32 << 10)] {
        copy_folder(&half, &run_dir);
        let ballast = disk.0.join("ballast");
        disk.change(&format!("size={}", size(&half) + left + (64 << 10)));
        // Folders take pages as well: what is left is found out by filling it.
        let _ = fs::write(&ballast, vec![0; 1 << 20]);
        let filled = fs::metadata(&ballast).unwrap().len();
        fs::File::options().write(true).open(&ballast).unwrap().set_len(filled.saturating_sub(left)).unwrap();
        let ended = resume("disk/run");
        println!("{left} bytes left: exit code {}\n{}", ended.code, last_lines(&ended));
        let was_full = ended.code != 0;
        if was_full {
            let error = ended.error(1);
            assert!(error.contains("disk/run") && error.contains("No space left on device"), "{error}");
            assert!(
                error.ends_with("; free some space, or keep fewer checkpoints ([checkpoints] keep_last)"),
                "{error}"
            );
            failed += 1;
        }
        fs::remove_file(&ballast).unwrap();
        disk.change("size=1g");
        if was_full {
            let resumed = resume("disk/run").success();
            assert!(!resumed.stderr.contains("passed over"), "{}", resumed.stderr);
        }
        assert_same_run(&whole, &run_dir);
        fs::remove_dir_all(&run_dir).unwrap();
    }
    assert!(failed >= 4, "{failed}");
}

/// What was said once the run went on.
fn last_lines(ended: &Finished) -> String {
    let said = ended.stderr.lines().skip_while(|line| !line.starts_with("batch: "));
    said.map(|line| format!("    {line}\n")).collect()
}

/// A folder that cannot be written to is said to be one before anything is computed, and can be branched off from.
#[test]
#[ignore = "needs root: cargo test --release -p vqgan-trainer --test program -- --ignored disk --nocapture"]
fn a_run_on_a_disk_that_is_only_read_goes_on_elsewhere() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    let disk = Disk::new(folder.path().join("disk"), 1 << 30);
    run(folder.path(), &["--config", "small.toml", "--run-dir", "disk/run", "--set", "run.steps=2"]).success();
    let before = newest(&disk.0.join("run"));
    disk.change("ro");
    for arguments in [["--run-dir", "disk/run", "--resume"].as_slice(), &["--run-dir", "disk/new"]] {
        let error = run(folder.path(), &[&["--config", "small.toml"], arguments].concat()).error(1);
        println!("{error}");
        assert!(error.contains("Read-only file system") && error.contains("disk"), "{error}");
        assert!(error.ends_with("choose a folder that can be written to"), "{error}");
    }
    let error = run(folder.path(), &["report", "disk/run"]).error(1);
    println!("{error}");
    assert!(error.contains("disk/run/report.html") && error.contains("Read-only file system"), "{error}");
    run(folder.path(), &["report", "disk/run", "--output", "page.html"]).success();

    let branch = ["--config", "small.toml", "--resume", "disk/run/checkpoints/step-000002", "--run-dir", "branch"];
    run(folder.path(), &branch).success();
    assert_same_run(&folder.path().join("whole"), &folder.path().join("branch"));
    run(folder.path(), &["--config", "small.toml", "--resume", "disk/run", "--run-dir", "another"]).success();
    assert_same_run(&folder.path().join("whole"), &folder.path().join("another"));
    assert_eq!(before, newest(&disk.0.join("run")));
}
