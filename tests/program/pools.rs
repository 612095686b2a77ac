//! Memory on a device that has pools of it: with the device that `TRAINER_TEST_DEVICE` names, which may be a CPU that plays a GPU.

use std::path::Path;

use serde_json::Value;

use crate::command::{Finished, command, finished, small};
use crate::run::metrics;

/// The command with `small.toml` on the device, without all that is not a step. Kernels are tried as little as can be: they are not what
/// this is about.
fn run(folder: &Path, arguments: &[&str]) -> Finished {
    let device = std::env::var("TRAINER_TEST_DEVICE").expect("TRAINER_TEST_DEVICE names a device with pools");
    let device = format!("run.device={device}");
    let settings = [
        device.as_str(),
        "checkpoints.every_steps=0",
        "validation.every_steps=0",
        "data.validation=0",
        // After large steps of Adam rounding alone makes images take other codes.
        "optimizer.learning_rate=1e-4",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let all = [arguments, &["--config", "small.toml"], &settings].concat();
    finished(command(folder, &all).env("CUBECL_AUTOTUNE_LEVEL", "minimal").output().unwrap())
}

/// The micro-batch of each step and what was changed in it.
fn steps(folder: &Path, run_dir: &str) -> Vec<(u64, Vec<String>)> {
    let step = |line: &Value| {
        let events = line["recovered"].as_array().cloned().unwrap_or_default();
        let changes = events.iter().map(|event| event["change"].as_str().unwrap().to_owned());
        (line["micro"].as_u64().unwrap(), changes.collect())
    };
    metrics(&folder.join(run_dir)).iter().map(step).collect()
}

#[test]
#[ignore = "takes a GPU backend and TRAINER_TEST_DEVICE"]
fn what_a_first_step_leaves_in_pools_is_freed_before_anything_is_lowered() {
    let folder = small();
    let folder = folder.path();
    let train = |run_dir: &str, faults: &[&str]| {
        let faults = faults.iter().flat_map(|fault| ["--inject-fault", fault]);
        let arguments = ["--run-dir", run_dir, "--set", "batch.micro=4"];
        run(folder, &arguments.into_iter().chain(faults).collect::<Vec<_>>()).success();
        steps(folder, run_dir)
    };
    assert_eq!(train("plain", &[]), vec![(4, Vec::new()); 4]);

    let changed = train("changed", &["1:backward", "1:backward:error", "3:forward"]);
    let [cleaned, half, quarter] = ["pools cleaned", "batch.micro 4 -> 2", "batch.micro 2 -> 1"].map(str::to_owned);
    // Steps after the first one have clean pools.
    let expected = [(2, vec![cleaned, half]), (2, Vec::new()), (1, vec![quarter]), (1, Vec::new())];
    assert_eq!(changed, expected);

    let loss = |run_dir: &str| -> Vec<f64> {
        metrics(&folder.join(run_dir)).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    for (loss, plain) in loss("changed").iter().zip(loss("plain")) {
        println!("loss {loss}, {plain} without faults");
        assert!((loss - plain).abs() < 1e-5 * plain, "{loss}, {plain}");
    }
}

#[test]
#[ignore = "takes a GPU backend and TRAINER_TEST_DEVICE"]
fn what_a_plan_expects_of_pools_is_what_they_take() {
    let folder = small();
    let rows = |arguments: &[&str]| -> Vec<Value> {
        let config = ["--set", "data.resolution=48", "--set", "batch.effective=8"];
        let settings = ["--precision", "fp32", "--recompute", "none", "--json"];
        let finished = run(folder.path(), &[arguments, &config, &settings].concat()).success();
        let printed: Value = serde_json::from_str(&finished.stdout).unwrap();
        printed["rows"].as_array().unwrap().clone()
    };
    let planned = rows(&["plan"]);
    let expected = planned.iter().find(|row| row["micro"] == 4).unwrap()["peak_memory"].as_f64().unwrap();
    let measured = rows(&["sweep", "--micro", "4"]);
    let measured = measured.iter().find(|row| row["micro"] == 4).unwrap()["peak_memory"].as_f64().unwrap();
    let off = expected / measured - 1.0;
    println!("micro-batch 4: {expected} expected, {measured} measured, {:+.1} %", 100.0 * off);
    assert!(off.abs() < 0.1, "expected {expected}, measured {measured}");
}
