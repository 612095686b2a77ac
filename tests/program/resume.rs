//! Runs that go on: after an end, from a broken checkpoint or another one, with another configuration.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command::{copy_folder, run, small};
use crate::run::{assert_same_run, metrics, newest, repeatable, weights};

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

    let again = run(folder.path(), &["--config", "small.toml", "--run-dir", "parts", "--resume"]).success();
    assert!(again.stderr.contains("run.steps") && again.stdout.contains("step-000004"), "{}", again.stderr);
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

/// Other images would be split into training and validation in another way.
#[test]
fn a_run_is_not_resumed_on_other_images() {
    let folder = small();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    let save = |name: &str| image::RgbImage::new(20, 20).save(images.join(name)).unwrap();
    (0..8).for_each(|index| save(&format!("{index}.png")));
    let arguments = ["--config", "small.toml", "--set", "data.source=folder", "--set", "data.path=images"];
    run(folder.path(), &[&arguments[..], &["--set", "run.steps=2"]].concat()).success();
    save("new.png");
    let refused = run(folder.path(), &[&arguments[..], &["--resume"]].concat()).error(2);
    assert!(refused.contains("images: 8 named") && refused.contains("-> 9 named"), "{refused}");
    // The same images elsewhere are the same images.
    fs::remove_file(images.join("new.png")).unwrap();
    fs::rename(&images, folder.path().join("moved")).unwrap();
    run(folder.path(), &[&arguments[..5], &["data.path=moved", "--resume"]].concat()).success();
}

/// Adds a damage to the checkpoint in a folder; the second one is that of a run with another model.
type Damage = fn(&Path, &Path);

fn change(path: &Path, how: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn take_over(name: &str, from: &Path, to: &Path) {
    fs::copy(from.join(name), to.join(name)).unwrap();
}

/// Makes the files in a folder a checkpoint that verifies.
fn seal(checkpoint: &Path) {
    change(&checkpoint.join("manifest.json"), |text| {
        let mut manifest: Value = serde_json::from_slice(text).unwrap();
        for (name, record) in manifest["files"].as_object_mut().unwrap() {
            let bytes = fs::read(checkpoint.join(name)).unwrap();
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            *record = json!({"size": bytes.len(), "sha256": hash});
        }
        *text = serde_json::to_vec(&manifest).unwrap();
    });
}

/// `memory.recompute` was once called `memory.checkpoint`: the two files that a run writes are still read with the old name.
#[test]
fn a_run_with_the_old_name_of_a_key_is_resumed() {
    let folder = small();
    let start = |run_dir| {
        let arguments = ["--config", "small.toml", "--run-dir", run_dir, "--set", "memory.recompute=blocks"];
        run(folder.path(), &[&arguments[..], &["--set", "run.steps=2"]].concat()).success();
    };
    ["old", "new"].into_iter().for_each(start);
    let old = folder.path().join("old");
    let rename = |file: &Path| {
        change(file, |text| {
            let renamed = String::from_utf8(text.clone()).unwrap().replace("recompute", "checkpoint");
            assert_ne!(renamed.as_bytes(), *text, "{}", file.display());
            *text = renamed.into_bytes();
        });
    };
    rename(&old.join("config.toml"));
    let checkpoint = old.join("checkpoints/step-000002");
    rename(&checkpoint.join("state.json"));
    seal(&checkpoint);
    for run_dir in ["old", "new"] {
        run(folder.path(), &["--resume", run_dir, "--set", "run.steps=4"]).success();
    }
    assert_same_run(&old, &folder.path().join("new"));
    // The one that is in force has the new name by now.
    let earlier = "old/config.before-step-000002.toml";
    let error = run(folder.path(), &["--config", earlier, "--run-dir", "again"]).error(2);
    assert!(error.ends_with(": `memory.checkpoint` was renamed to `memory.recompute`"), "{error}");
    assert!(error.starts_with(&format!("error: {earlier}:")), "{error}");
}

#[test]
fn a_broken_checkpoint_is_passed_over_by_name() {
    let damages: [(Damage, &str); 8] = [
        (
            |at, _| {
                change(&at.join("model.safetensors"), |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                });
            },
            "model.safetensors was changed after its checkpoint was written",
        ),
        (|at, _| change(&at.join("ema.safetensors"), |bytes| bytes.truncate(bytes.len() - 1)), "ema.safetensors has "),
        (
            |at, _| fs::remove_file(at.join("optimizer.safetensors")).unwrap(),
            "optimizer.safetensors is missing from its checkpoint",
        ),
        (|at, _| fs::remove_file(at.join("manifest.json")).unwrap(), "step-000004 is not a finished checkpoint"),
        (|at, other| take_over("manifest.json", other, at), " bytes, its checkpoint was written with "),
        // From here on all files are as the manifest says.
        (
            |at, other| {
                take_over("model.safetensors", other, at);
                seal(at);
            },
            "step-000004 is complete, but cannot be resumed: model.safetensors: ",
        ),
        (
            |at, other| {
                take_over("optimizer.safetensors", other, at);
                seal(at);
            },
            "cannot be resumed: optimizer.safetensors: `encoder.",
        ),
        (
            |at, _| {
                change(&at.join("state.json"), |text| {
                    *text = String::from_utf8_lossy(text).replace("\"architecture\"", "\"network\"").into_bytes();
                });
                seal(at);
            },
            "cannot be resumed: state.json: ",
        ),
    ];
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "whole"]).success();
    let wider = ["--set", "model.channels=[8, 24]", "--set", "model.codes=16"];
    run(folder.path(), &[&["--config", "small.toml", "--run-dir", "other"], &wider[..]].concat()).success();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let newest = |run: &str| folder.path().join(run).join("checkpoints/step-000004");
    for (damage, expected) in damages {
        copy_folder(&whole, &broken);
        damage(&newest("broken"), &newest("other"));
        let resumed = run(folder.path(), &["--config", "small.toml", "--run-dir", "broken", "--resume"]).success();
        let passed_over: Vec<&str> = resumed.stderr.lines().filter(|line| line.starts_with("passed over ")).collect();
        let [line] = passed_over[..] else { panic!("{}", resumed.stderr) };
        assert!(line.contains("step-000004") && line.contains(expected), "{expected}: {line}");
        assert!(resumed.stderr.contains("step 2 of 4"), "{}", resumed.stderr);
        assert_same_run(&whole, &broken);
        fs::remove_dir_all(&broken).unwrap();
    }

    // Asked for by name, it is not replaced by another one.
    copy_folder(&whole, &broken);
    fs::remove_file(broken.join("checkpoints/step-000004/ema.safetensors")).unwrap();
    let error = run(folder.path(), &["--resume", "broken/checkpoints/step-000004"]).error(1);
    assert!(error.contains("ema.safetensors is missing from its checkpoint"), "{error}");
}

/// A whole checkpoint of another run is not taken for one of this run, and nothing of it or of the others is lost.
#[test]
fn a_checkpoint_of_another_run_is_told_by_its_configuration() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    run(folder.path(), &["--config", "small.toml", "--run-dir", "other", "--set", "model.channels=[8, 24]"]).success();
    let newest = folder.path().join("runs/small/checkpoints/step-000004");
    fs::remove_dir_all(&newest).unwrap();
    fs::rename(folder.path().join("other/checkpoints/step-000004"), &newest).unwrap();
    let error = run(folder.path(), &["--config", "small.toml", "--resume"]).error(2);
    assert!(error.contains("model.channels: [8, 24] -> [8, 16]"), "{error}");
    let good = ["--config", "small.toml", "--resume", "runs/small/checkpoints/step-000002"];
    let resumed = run(folder.path(), &good).success();
    assert!(resumed.stderr.contains("step-000004.aside-1"), "{}", resumed.stderr);
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
        error.ends_with("to resume anyway, add --allow losses.codebook.beta --allow optimizer.learning_rate"),
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
    let again = run(folder.path(), &["--resume", "runs/small", "--json"]).success();
    assert!(again.stderr.contains("validation.patience"), "{}", again.stderr);
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&again["step"], &again["stopped_early"], &again["best"]), (&2.into(), &true.into(), &result["best"]));
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

/// The rate jumps up again where a schedule that was over is made longer, and the user is told by how much.
#[test]
fn more_steps_say_what_becomes_of_the_schedule() {
    let folder = small();
    let train = |more: &[&str]| {
        let arguments = [&["--config", "small.toml", "--set", "schedule.kind=cosine"], more].concat();
        run(folder.path(), &arguments).success().stderr
    };
    train(&[]);
    let said = train(&["--resume", "--set", "run.steps=8"]);
    let rates: Vec<f64> =
        metrics(&folder.path().join("runs/small")).iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    assert!(rates.iter().all(|rate| *rate > 0.0) && rates[4] > 2.0 * rates[3], "{rates:?}");
    let line = said.lines().find(|line| line.starts_with("run.steps is 8 and was 4"));
    assert!(line.is_some_and(|line| line.contains(&format!("{:.2e}", rates[4]))), "{said}");
    // With as many steps as before there is nothing to say.
    assert!(!train(&["--resume", "--set", "run.steps=8"]).contains("was 8"));
}

#[test]
fn the_folder_has_the_configuration_that_is_in_force() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let read = |name: &str| {
        let text = fs::read_to_string(folder.path().join("runs/small").join(name)).unwrap();
        let table: toml::Table = text.parse().unwrap();
        (table["run"]["steps"].as_integer().unwrap(), table["optimizer"]["learning_rate"].as_float().unwrap())
    };
    let changed =
        ["--set", "run.steps=6", "--set", "optimizer.learning_rate=2e-3", "--allow", "optimizer.learning_rate"];
    run(folder.path(), &[&["--resume", "runs/small"], &changed[..]].concat()).success();
    assert_eq!((read("config.toml"), read("config.before-step-000004.toml")), ((6, 2e-3), (4, 1e-3)));
    // What was allowed once is not asked for again.
    run(folder.path(), &["--resume", "runs/small", "--set", "run.steps=7"]).success();
    assert_eq!((read("config.toml"), read("config.before-step-000006.toml")), ((7, 2e-3), (6, 2e-3)));
    run(folder.path(), &["--resume", "runs/small"]).success();
    let kept = fs::read_dir(folder.path().join("runs/small")).unwrap().filter_map(Result::ok);
    assert_eq!(kept.filter(|entry| entry.file_name().display().to_string().starts_with("config.")).count(), 3);
}
