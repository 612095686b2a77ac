//! Checkpoints under attack: a crash after every single write, damaged files, full disks.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::run::{BackgroundWriter, Keep};

/// What stops a store at a point: a panic, which like a crash runs none of the code that would tidy up.
struct Crash;

/// Does `work` on a store that crashes at its `at`-th write; false when it has fewer writes than that.
fn crashes(folder: &Path, at: usize, work: impl FnOnce(&RunStore)) -> bool {
    let store = crashing(folder, at);
    crashed(catch_unwind(AssertUnwindSafe(|| work(&store))))
}

/// A store that crashes at its `at`-th write.
fn crashing(folder: &Path, at: usize) -> RunStore {
    let seen = AtomicUsize::new(0);
    RunStore::open(folder).unwrap().with_hook(move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == at {
            resume_unwind(Box::new(Crash));
        }
    })
}

fn crashed(outcome: std::thread::Result<()>) -> bool {
    match outcome {
        Ok(()) => false,
        Err(reason) if reason.is::<Crash>() => true,
        Err(other) => resume_unwind(other),
    }
}

fn fill(text: &str) -> impl FnMut(&Path) -> Result<FileRecords, io::Error> {
    move |folder| {
        fs::write(folder.join("model.safetensors"), text)?;
        fs::create_dir(folder.join("optimizer"))?;
        fs::write(folder.join("optimizer/adam.bin"), text.repeat(3))?;
        Ok(FileRecords::new())
    }
}

fn save(store: &RunStore, step: u64, text: &str) -> PathBuf {
    store.save(step, &mut fill(text)).unwrap()
}

fn model(checkpoint: &Path) -> String {
    fs::read_to_string(checkpoint.join("model.safetensors")).unwrap()
}

fn newest(folder: &Path) -> Checkpoint {
    let found = RunStore::read(folder).newest().unwrap();
    assert!(found.passed_over.is_empty(), "{:?}", found.passed_over);
    found.checkpoint.unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn saves_what_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path().join("runs/a/checkpoints")).unwrap();
    assert!(store.newest().unwrap().checkpoint.is_none());
    let path = save(&store, 100, "abc");
    assert!(path.ends_with("step-000100"));
    let manifest = verify(&path).unwrap();
    assert_eq!(manifest.step, 100);
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["model.safetensors", "optimizer/adam.bin"]);
    let record = &manifest.files["model.safetensors"];
    assert_eq!(record.size, 3);
    assert_eq!(record.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(fs::read_to_string(path.with_file_name(LATEST)).unwrap(), "step-000100\n");
    assert_eq!(newest(&store.folder), Checkpoint { path, step: 100, manifest });
}

#[test]
fn orders_steps_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    for step in [999_999, 1_000_000, 0] {
        save(&store, step, "abc");
    }
    assert_eq!(newest(folder.path()).step, 1_000_000);
    assert_eq!(store.steps().unwrap(), [0, 999_999, 1_000_000]);
}

#[test]
fn a_crash_at_any_write_leaves_a_whole_checkpoint() {
    for at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        save(&RunStore::open(folder.path()).unwrap(), 100, "old");
        let crashed = crashes(folder.path(), at, |store| {
            save(store, 200, "new");
        });
        let found = newest(folder.path());
        assert_eq!(model(&found.path), if found.step == 200 { "new" } else { "old" });
        let latest = fs::read_to_string(folder.path().join(LATEST)).unwrap();
        verify(&folder.path().join(latest.trim())).unwrap();

        save(&RunStore::open(folder.path()).unwrap(), 300, "next");
        assert_eq!(model(&newest(folder.path()).path), "next");
        assert!(!names(folder.path()).iter().any(|name| is_temporary(name)));
        if !crashed {
            assert!(at > 5, "the hook was called only {at} times");
            return;
        }
    }
}

#[test]
fn a_crash_at_any_write_of_a_replacement_leaves_the_old_one_or_the_new_one() {
    for at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        save(&RunStore::open(folder.path()).unwrap(), 100, "old");
        let crashed = crashes(folder.path(), at, |store| {
            save(store, 100, "new");
        });
        let found = newest(folder.path());
        assert_eq!(found.step, 100);
        let kept = model(&found.path);
        assert!(["old", "new"].contains(&kept.as_str()));

        // The next save finishes or undoes the replacement; a crash while it does so is no worse.
        for again in 0.. {
            let crashed = crashes(folder.path(), again, |store| store.clean_up().unwrap());
            assert_eq!(model(&newest(folder.path()).path), kept);
            if !crashed {
                break;
            }
        }
        assert_eq!(names(folder.path()), [LATEST, "step-000100"]);
        if !crashed {
            assert_eq!(kept, "new");
            assert!(at > 8, "the hook was called only {at} times");
            return;
        }
    }
}

#[test]
fn a_crash_at_any_point_of_pruning_leaves_the_newest() {
    for at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        (1..=3).for_each(|step| drop(save(&store, step, "abc")));
        let crashed = crashes(folder.path(), at, |store| {
            store.prune(1, None).unwrap();
        });
        assert_eq!(newest(folder.path()).step, 3);
        if !crashed {
            assert_eq!(store.steps().unwrap(), [3]);
            return;
        }
    }
}

#[test]
fn a_failed_write_is_passed_on_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    save(&store, 1, "old");
    let failed = store.save(2, &mut |folder| {
        fs::write(folder.join("model.safetensors"), "half")?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    });
    let line = failed.unwrap_err().to_string();
    let path = folder.path().join("step-000002");
    assert!(line.starts_with(&format!("cannot save checkpoint {}: ", path.display())), "{line}");
    assert_eq!(names(folder.path()), [LATEST, "step-000001"]);
}

#[test]
fn every_kind_of_damage_is_named_and_passed_over() {
    type Damage = fn(&Path) -> io::Result<()>;
    let damages: [(Damage, &str); 9] = [
        (|at| fs::remove_file(at.join("optimizer/adam.bin")), "optimizer/adam.bin is missing from its checkpoint"),
        (
            |at| fs::write(at.join("model.safetensors"), "ab"),
            "model.safetensors has 2 bytes, its checkpoint was written with 3",
        ),
        (|at| fs::write(at.join("model.safetensors"), "abd"), "model.safetensors was changed after"),
        (|at| fs::remove_file(at.join(MANIFEST)), "step-000200 is not a finished checkpoint: it has no manifest.json"),
        (|at| fs::write(at.join(MANIFEST), "{\"format\": 1, \"st"), "manifest.json is damaged: "),
        (|at| fs::write(at.join(MANIFEST), "{\"format\": 1}"), "manifest.json is damaged: missing field"),
        (
            |at| fs::write(at.join(MANIFEST), "{\"format\": 2, \"parts\": []}"),
            "has checkpoint format 2, this version reads format 1",
        ),
        (
            |at| {
                let path = at.join(MANIFEST);
                let text = fs::read_to_string(&path)?.replace("model.safetensors", "../outside");
                fs::write(path, text)
            },
            "it names \"../outside\", which is not inside the checkpoint",
        ),
        (
            |at| {
                fs::remove_dir_all(at)?;
                fs::rename(at.with_file_name("step-000150"), at)
            },
            "step-000200 contains step 150, not the step in its name",
        ),
    ];
    for (damage, expected) in damages {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        save(&store, 100, "abc");
        fs::rename(save(&store, 150, "abc"), folder.path().join("aside")).unwrap();
        let broken = save(&store, 200, "abc");
        fs::rename(folder.path().join("aside"), folder.path().join("step-000150")).unwrap();
        damage(&broken).unwrap();
        let _ = fs::remove_dir_all(folder.path().join("step-000150"));

        let found = store.newest().unwrap();
        assert_eq!(found.checkpoint.unwrap().step, 100);
        let [(path, error)] = &found.passed_over[..] else { panic!("{:?}", found.passed_over) };
        assert_eq!(*path, broken);
        let line = error.to_string();
        assert!(line.contains(expected), "{line}");
        assert!(!line.contains('\n'), "{line}");

        save(&store, 200, "again");
        assert_eq!(model(&newest(folder.path()).path), "again");
    }
}

#[test]
fn prune_keeps_the_last_the_regular_and_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    (1..=10).for_each(|step| drop(save(&store, step * 10, "abc")));
    assert_eq!(store.best(), None);
    store.set_best(30).unwrap();
    assert_eq!(store.best(), Some(folder.path().join("step-000030")));
    assert_eq!(store.prune(2, Some(50)).unwrap().len(), 6);
    assert_eq!(store.steps().unwrap(), [30, 50, 90, 100]);
    assert!(store.prune(2, Some(50)).unwrap().is_empty());
    store.prune(1, Some(0)).unwrap();
    assert_eq!(store.steps().unwrap(), [30, 100]);
}

#[test]
fn prune_never_removes_the_only_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    for step in 1..=5 {
        let path = save(&store, step, "abc");
        if step > 3 {
            fs::write(path.join("model.safetensors"), "abd").unwrap();
        }
    }
    // As after a restart: what this process wrote last is taken to be whole if the sizes are right.
    RunStore::open(folder.path()).unwrap().prune(1, None).unwrap();
    assert_eq!(store.steps().unwrap(), [3, 5]);
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().step, 3);

    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    (1..=2).for_each(|step| drop(save(&store, step, "abc")));
    store.prune(0, None).unwrap();
    assert_eq!(store.steps().unwrap(), [2]);
}

#[test]
fn other_folders_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["step-", "step-1", "step-00100x", "notes", ".hidden"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let store = RunStore::open(folder.path()).unwrap();
    assert!(store.newest().unwrap().checkpoint.is_none());
    save(&store, 1, "abc");
    store.prune(0, None).unwrap();
    assert_eq!(names(folder.path()).len(), 7);
}

#[test]
fn reading_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoints");
    assert!(RunStore::read(&path).newest().unwrap().checkpoint.is_none());
    assert!(!path.exists());
}

#[test]
fn a_place_that_cannot_be_written_is_named_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("runs"), "a file").unwrap();
    let path = folder.path().join("runs/checkpoints");
    let line = RunStore::open(&path).unwrap_err().to_string();
    assert!(line.starts_with(&format!("cannot create {}: ", path.display())) && !line.contains('\n'), "{line}");

    for (kind, expected) in [
        (io::ErrorKind::StorageFull, "free some space"),
        (io::ErrorKind::ReadOnlyFilesystem, "choose a folder that can be written to"),
        (io::ErrorKind::PermissionDenied, "choose a folder that can be written to"),
    ] {
        let line = RunError::io("write", &path)(kind.into()).to_string();
        assert!(line.contains(expected) && line.contains("checkpoints"), "{line}");
    }
}

#[test]
#[cfg(unix)]
fn what_cannot_be_checked_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let none = |()| FileRecords::new();
    let link = |at: &Path| std::os::unix::fs::symlink("/etc/hostname", at.join("link")).map(none);
    let line = store.save(1, &mut { link }).unwrap_err().to_string();
    assert!(line.ends_with("link cannot be part of a checkpoint: it is neither a file nor a folder"), "{line}");
    let manifest = |at: &Path| fs::write(at.join(MANIFEST), "{}").map(none);
    let line = store.save(1, &mut { manifest }).unwrap_err().to_string();
    assert!(line.contains("the name is that of the list of files"), "{line}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_is_known_of_a_file_is_taken_and_what_is_not_is_read() {
    let tensors = [("w".to_owned(), crate::HostTensor::from_f32([100_000], &[0.5; 100_000]))].into();
    let known = |at: &Path| crate::write_safetensors(&at.join("model.safetensors"), &tensors, None).unwrap();
    let write = |at: &Path| {
        fs::write(at.join("state.json"), "{}")?;
        Ok::<_, io::Error>([("model.safetensors".to_owned(), known(at))].into())
    };
    let folder = tempfile::tempdir().unwrap();
    let path = RunStore::open(folder.path()).unwrap().save(1, &mut { write }).unwrap();
    assert_eq!(verify(&path).unwrap().files.len(), 2);
    let cut_off = |at: &Path| {
        let files = write(at)?;
        File::options().write(true).open(at.join("model.safetensors"))?.set_len(7)?;
        Ok::<_, io::Error>(files)
    };
    let line = RunStore::open(folder.path()).unwrap().save(2, &mut { cut_off }).unwrap_err().to_string();
    assert!(line.contains("model.safetensors has 7 bytes"), "{line}");
}

const KEEP: Keep = Keep { last: 2, every: None, best: None };

#[test]
fn the_background_saves_marks_the_best_and_prunes() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BackgroundWriter::new(RunStore::open(folder.path()).unwrap());
    for step in 1..=4 {
        let before = writer.save(step, Keep { best: Some(1), ..KEEP }, move |at| fill("abc")(at)).unwrap();
        assert_eq!(before.map(|saved| saved.step), step.checked_sub(1).filter(|&step| step > 0));
    }
    let saved = writer.wait().unwrap().unwrap();
    assert_eq!((saved.step, saved.path), (4, folder.path().join("step-000004")));
    assert!(saved.took > Duration::ZERO);
    assert_eq!(writer.wait().unwrap(), None);
    assert_eq!(writer.store().steps().unwrap(), [1, 3, 4]);
}

/// The run goes on while a checkpoint is written, and is told of it only when it is safe.
#[test]
fn what_is_being_written_is_not_called_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BackgroundWriter::new(RunStore::open(folder.path()).unwrap());
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let begun = writer.save(1, KEEP, move |at| {
        wait.recv().unwrap();
        fill("abc")(at)
    });
    assert_eq!(begun.unwrap(), None);
    for _ in 0..50 {
        assert_eq!(writer.poll().unwrap(), None);
    }
    assert!(writer.store().newest().unwrap().checkpoint.is_none());
    go.send(()).unwrap();
    let saved = loop {
        if let Some(saved) = writer.poll().unwrap() {
            break saved;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(newest(folder.path()).path, saved.path);
}

#[test]
fn what_is_being_written_is_finished_when_the_writer_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BackgroundWriter::new(RunStore::open(folder.path()).unwrap());
    let slow = |at: &Path| {
        std::thread::sleep(Duration::from_millis(50));
        fill("abc")(at)
    };
    writer.save(1, KEEP, slow).unwrap();
    drop(writer);
    assert_eq!(newest(folder.path()).step, 1);
}

#[test]
fn an_error_of_the_background_comes_with_the_next_call() {
    let full = |_: &Path| Err(io::Error::from(io::ErrorKind::StorageFull));
    for next in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        save(&RunStore::open(folder.path()).unwrap(), 1, "old");
        let mut writer = BackgroundWriter::new(RunStore::open(folder.path()).unwrap());
        writer.save(2, KEEP, full).unwrap();
        let error = match next {
            0 => writer.wait().unwrap_err(),
            1 => writer.save(3, KEEP, |at| fill("abc")(at)).unwrap_err(),
            _ => loop {
                match writer.poll() {
                    Ok(saved) => assert_eq!(saved, None),
                    Err(error) => break error,
                }
            },
        };
        let path = folder.path().join("step-000002");
        assert!(error.to_string().starts_with(&format!("cannot save checkpoint {}: ", path.display())), "{error}");
        assert_eq!(names(folder.path()), [LATEST, "step-000001"]);
    }
}

#[test]
fn a_crash_at_any_write_of_the_background_leaves_a_whole_checkpoint() {
    for at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        (1..=2).for_each(|step| drop(save(&RunStore::open(folder.path()).unwrap(), step, "old")));
        let mut writer = BackgroundWriter::new(crashing(folder.path(), at));
        writer.save(3, Keep { last: 1, every: None, best: Some(1) }, |at| fill("new")(at)).unwrap();
        let mut reported = None;
        let crashed = crashed(catch_unwind(AssertUnwindSafe(|| reported = writer.wait().unwrap())));
        let found = newest(folder.path());
        assert_eq!(model(&found.path), if found.step == 3 { "new" } else { "old" });
        assert!(reported.is_none_or(|saved| saved.step == found.step));

        save(&RunStore::open(folder.path()).unwrap(), 4, "next");
        assert_eq!(model(&newest(folder.path()).path), "next");
        if !crashed {
            assert!(at > 8, "the hook was called only {at} times");
            assert_eq!(RunStore::read(folder.path()).steps().unwrap(), [1, 3, 4]);
            return;
        }
    }
}

#[test]
fn what_comes_after_a_step_is_set_aside_and_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    for text in ["first", "second"] {
        (1..=4).for_each(|step| drop(save(&store, step, text)));
        let aside = store.set_aside(2).unwrap();
        assert_eq!(aside.iter().map(|path| model(path)).collect::<Vec<_>>(), [text, text]);
        assert_eq!(newest(folder.path()).step, 2);
        assert_eq!(fs::read_to_string(folder.path().join(LATEST)).unwrap(), "step-000002\n");
    }
    assert!(store.set_aside(2).unwrap().is_empty());
    store.prune(1, None).unwrap();
    save(&store, 3, "third");
    let left = ["step-000003.aside-1", "step-000003.aside-2", "step-000004.aside-1", "step-000004.aside-2"];
    assert!(left.iter().all(|name| names(folder.path()).contains(&(*name).to_owned())), "{:?}", names(folder.path()));
}
