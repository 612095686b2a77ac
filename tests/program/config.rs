//! `train config`, and configurations that extend others.

use std::fs;

use serde_json::Value;

use crate::command::{run, small};

#[test]
fn built_in_configurations_are_listed_and_printed() {
    let folder = tempfile::tempdir().unwrap();
    let listed = run(folder.path(), &["config", "--list"]).success().stdout;
    let json: Value =
        serde_json::from_str(&run(folder.path(), &["config", "--list", "--json"]).success().stdout).unwrap();
    let all = json["configurations"].as_array().unwrap();
    assert_eq!(all.len(), listed.lines().count());
    for (line, configuration) in listed.lines().zip(all) {
        let (name, about) = (configuration["name"].as_str().unwrap(), configuration["about"].as_str().unwrap());
        assert!(line.starts_with(name) && line.ends_with(about) && about.len() > 20, "{line}");
        let text = run(folder.path(), &["config", name]).success().stdout;
        assert!(text.starts_with("#:schema ./schema.json\n# "), "{text}");
        let again = run(folder.path(), &["config", name.trim_end_matches(".toml"), "--json"]).success().stdout;
        let again: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again["text"].as_str().unwrap().trim_end(), text.trim_end());
    }
    let error = run(folder.path(), &["config", "smal-gpu"]).error(2);
    assert!(error.contains("did you mean `small-gpu.toml`?"), "{error}");
    assert_eq!(run(folder.path(), &["config"]).code, 2);
}

#[test]
fn keys_of_every_table_are_documented_by_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let reference = |arguments: &[&str]| {
        let arguments = [&["config", "--json", "--reference"], arguments].concat();
        serde_json::from_str::<Value>(&run(folder.path(), &arguments).success().stdout).unwrap()
    };
    let all = reference(&[]);
    let all = all["keys"].as_array().unwrap();
    assert!(all.len() > 100, "{}", all.len());
    let json = reference(&["discriminator.schedule"]);
    let keys: Vec<&str> = json["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["kind", "warmup", "last"].map(|key| format!("discriminator.schedule.{key}")));
    let layers = &reference(&["discriminator.layers"])["keys"][0];
    assert_eq!((&layers["default"], &layers["range"]), (&3.into(), &"1 to 10".into()));
    let printed = run(folder.path(), &["config", "--reference", "losses.adversarial.kind"]).success().stdout;
    assert!(printed.contains("\"non-saturating\"") && printed.contains("default \"hinge\""), "{printed}");
    let error = run(folder.path(), &["config", "--reference", "discriminator.layer"]).error(2);
    assert!(error.contains("`discriminator.layers`"), "{error}");
}

#[test]
fn the_folder_of_a_run_has_the_whole_configuration_that_it_extends() {
    let folder = small();
    let text = "extends = \"small.toml\"\n[run]\nsteps = 1\n[batch]\nmicro = 2\n";
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/mine.toml"), text.replace("small", "../small")).unwrap();
    run(folder.path(), &["--config", "sub/mine.toml"]).success();
    let written: toml::Table =
        fs::read_to_string(folder.path().join("runs/mine/config.toml")).unwrap().parse().unwrap();
    let of = |table: &str, key: &str| written[table][key].as_integer().unwrap();
    assert_eq!(
        (of("run", "steps"), of("batch", "micro"), of("batch", "effective"), of("model", "codes")),
        (1, 2, 4, 32)
    );
    assert!(!written.contains_key("extends"));
    // It needs its base no longer.
    fs::remove_file(folder.path().join("small.toml")).unwrap();
    run(folder.path(), &["--resume", "runs/mine", "--set", "run.steps=2"]).success();
    let error = run(folder.path(), &["--config", "sub/mine.toml"]).error(2);
    assert!(error.starts_with("error: sub/mine.toml:1: `extends` is \"../small.toml\""), "{error}");
}

#[test]
fn a_smoke_test_of_one_step_fits_every_configuration() {
    let folder = small();
    let long = "extends = \"small.toml\"\n[schedule]\nwarmup = 3\n[losses.clip_text]\nweight = 1\n[data]\nsource = \"folder\"\n\
                path = \"images\"\n";
    fs::write(folder.path().join("long.toml"), long).unwrap();
    let sets = ["run.steps=1", "batch.effective=2", "data.source=shapes"].map(|set| ["--set", set]).concat();
    let arguments = [&["--config", "long.toml", "--unset", "losses.clip_text"], &sets[..]].concat();
    let finished = run(folder.path(), &arguments).success();
    for key in ["schedule.warmup is 0", "batch.micro is 2", "data.path is ignored"] {
        assert_eq!(finished.stderr.lines().filter(|line| line.starts_with(key)).count(), 1, "{}", finished.stderr);
    }
    let written: toml::Table =
        fs::read_to_string(folder.path().join("runs/long/config.toml")).unwrap().parse().unwrap();
    assert_eq!(written["schedule"]["warmup"].as_integer(), Some(0));
    assert!(written["data"].get("path").is_none());
    // What the folder has needs no notes.
    let resumed = run(folder.path(), &["--resume", "runs/long", "--set", "run.steps=2"]).success();
    assert!(!resumed.stderr.contains("is ignored"), "{}", resumed.stderr);
}

#[test]
fn habits_of_other_trainers_are_answered() {
    let folder = small();
    for (arguments, answer) in [
        (&["train", "--config", "small.toml"][..], "`train --config small.toml`"),
        (&["train"], "`train --config NAME`"),
        (&["small-gpu", "--device", "cpu"], "`train --config small-gpu --device cpu`"),
        (&["mine.toml"], "`train --config mine.toml`"),
        (&["exprot", "--checkpoint", "x"], "`train export`"),
        (&["--config", "small.toml", "--seed", "3"], "--set run.seed=3"),
        (&["--config", "small.toml", "--steps=10"], "--set run.steps=10"),
        (&["--config", "small.toml", "--lr", "1e-4"], "--set optimizer.learning_rate=1e-4"),
        (&["--config", "small.toml", "--learning-rate", "1e-4"], "--set optimizer.learning_rate=1e-4"),
        (&["--config", "small.toml", "--batch-size", "8"], "--set batch.effective=8"),
        (&["--config", "small.toml", "--data", "photos"], "--set data.source=folder --set data.path=photos"),
        (&["--config", "small.toml", "--set", "lr=1e-4"], "`optimizer.learning_rate`"),
        (&["--config", "small.toml", "--set", "batch.size=8"], "`batch.effective`"),
        (&["--config", "small.toml", "--set", "batch.accumulation=8"], "`batch.effective`"),
        (&["--config", "small.toml", "--unset", "model.trian"], "`model.train`"),
    ] {
        let finished = run(folder.path(), arguments);
        assert_eq!(finished.code, 2, "{arguments:?}");
        assert!(finished.stderr.contains(answer), "{arguments:?}: {}", finished.stderr);
    }
    assert!(!folder.path().join("runs").exists());
}
