//! `train check`, on the CPU, which agrees with itself but for half precision.

use serde_json::Value;

use crate::command::run;

#[test]
fn a_device_is_held_against_the_cpu_in_every_part() {
    let folder = tempfile::tempdir().unwrap();
    let finished = run(folder.path(), &["check", "--device", "cpu", "--precision", "fp32,bf16", "--json"]).success();
    let checked: Value = serde_json::from_str(&finished.stdout).unwrap();
    let rows = checked["rows"].as_array().unwrap();
    let of = |part: &str| rows.iter().filter(|row| row["part"] == part).collect::<Vec<_>>();
    // All of it but for what has no place on a CPU.
    assert!(of("layers").len() > 50 && of("step").len() == 4 && of("resume").len() == 2 && of("memory").is_empty());
    for row in rows {
        assert_eq!(row["met"], true, "{row}");
        let deviation = row["gradient"].as_f64().or(row["output"].as_f64()).unwrap();
        let exact = row["precision"] == "fp32";
        match row["part"].as_str().unwrap() {
            "layers" => assert_eq!(deviation == 0.0, exact, "{row}"),
            "resume" => assert_eq!(row["message"], "bit for bit", "{row}"),
            _ => assert!(deviation <= if exact { 1e-5 } else { 0.5 }, "{row}"),
        }
    }
}

#[test]
fn a_part_can_be_checked_alone() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["check", "--device", "cpu", "--only", "layers", "--precision", "fp32"];
    let finished = run(folder.path(), &arguments).success();
    assert!(finished.stdout.lines().skip(1).all(|line| line.starts_with("layers")), "{}", finished.stdout);
    let error =
        run(folder.path(), &["check", "--device", "cpu", "--config", "no-such.toml", "--only", "step"]).error(2);
    assert!(error.contains("no-such.toml"), "{error}");
}
