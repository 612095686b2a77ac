//! `train sweep`: its figures, its files, its bars, and rows that end badly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Finished, command, finished, run, small};
use crate::losses::all;

/// [`SMALL`](crate::command::SMALL) with everything on that couples samples.
const COUPLED: &str = "
[losses.codebook]
entropy = 0.1
[losses.adversarial]
weight = 0.5
[discriminator]
channels = 8
layers = 1
";

fn folder() -> TempDir {
    let folder = small();
    let path = folder.path().join("small.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap() + COUPLED).unwrap();
    folder
}

fn sweep(folder: &Path, arguments: &[&str]) -> Finished {
    let all: Vec<&str> = ["sweep", "--config", "small.toml", "--steps", "2"].iter().chain(arguments).copied().collect();
    run(folder, &all)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rows(finished: &Finished) -> Vec<Value> {
    let sweep: Value = serde_json::from_str(&finished.stdout).unwrap();
    sweep["rows"].as_array().unwrap().clone()
}

#[test]
fn every_batch_split_has_its_row_and_the_same_gradient() {
    let folder = folder();
    let summary = folder.path().join("job-summary.md");
    fs::write(&summary, "before\n").unwrap();
    let mut command = command(
        folder.path(),
        &[
            "sweep",
            "--config",
            "small.toml",
            "--steps",
            "2",
            "--micro",
            "4,3,1",
            "--recompute",
            "none,blocks",
            "--json",
            "--output",
            "out/ci",
            "--max-deviation",
            "1e-5",
            "--max-memory",
            "1GiB",
            "--min-images-per-second",
            "0.01",
        ],
    );
    let finished = finished(command.env("GITHUB_STEP_SUMMARY", &summary).output().unwrap()).success();
    let all = rows(&finished);
    let (between, rows) = all.split_last().unwrap();
    assert_eq!((&between["recompute"], &between["against"]), (&"none".into(), &"blocks".into()));
    assert!(between["deviation"].as_f64().unwrap() <= 1e-5 && between["peak_memory"].is_null(), "{between}");
    let cuts: Vec<_> =
        rows.iter().map(|row| (row["recompute"].as_str().unwrap(), row["micro"].as_u64().unwrap())).collect();
    assert_eq!(cuts, [("none", 4), ("none", 3), ("none", 1), ("blocks", 4), ("blocks", 3), ("blocks", 1)]);
    for row in rows {
        assert_eq!((&row["status"], &row["effective"], &row["resolution"]), (&"ok".into(), &4.into(), &16.into()));
        let deviation = row["deviation"].as_f64().unwrap();
        assert!(deviation <= 1e-5, "{row}");
        // Another cut rounds otherwise: a gradient compared with itself would be no comparison.
        assert!(deviation > 0.0 || row["micro"] == 1, "{row}");
        for figure in ["deviation_generator", "deviation_discriminator", "loss", "images_per_second", "seconds"] {
            assert!(row[figure].as_f64().is_some_and(|value| value >= 0.0), "{figure}: {row}");
        }
        let memory = row["memory"].as_object().unwrap();
        let phases: Vec<&str> = memory.keys().map(String::as_str).collect();
        assert_eq!(
            phases,
            ["adversarial", "backward", "discriminator", "first_pass", "forward", "optimizer", "pixel", "weights"]
        );
        let most = memory.values().filter_map(Value::as_u64).max();
        assert_eq!(most, row["peak_memory"].as_u64(), "{row}");
        assert!((row["loss"].as_f64().unwrap() - rows[0]["loss"].as_f64().unwrap()).abs() < 1e-5, "{row}");
    }
    // More images at a time take more memory, and recomputing takes less of it.
    let peak = |index: usize| rows[index]["peak_memory"].as_u64().unwrap();
    assert!(peak(0) > peak(2) && peak(1) > peak(2) && peak(3) < peak(0), "{rows:?}");

    let out = folder.path().join("out/ci");
    let written: Value = serde_json::from_str(&read(&out.join("sweep.json"))).unwrap();
    assert_eq!(written["rows"], Value::Array(all));
    let bars = written["bars"].as_array().unwrap();
    assert_eq!(bars.len(), 19);
    assert!(bars.iter().all(|bar| bar["met"] == true), "{bars:?}");
    let junit = read(&out.join("junit.xml"));
    assert!(junit.contains("tests=\"7\" skipped=\"0\" failures=\"0\" errors=\"0\""), "{junit}");
    let markdown = read(&out.join("summary.md"));
    assert!(markdown.contains("All 19 bars are met."), "{markdown}");
    assert_eq!(read(&summary), format!("before\n{markdown}"));
}

/// The gradient is compared without its loss scale, and a scale that overflows f16 in any case is made smaller for it.
#[test]
fn half_precision_is_measured_against_f32() {
    let folder = small();
    let arguments = ["--micro", "3", "--precision", "fp32,bf16,fp16", "--json", "--set", "precision.scaler.init=1e12"];
    // Images that are large enough for what half precision spares to be more than its copies of the weights.
    let arguments = [&arguments[..], &["--set", "precision.scaler.backoff_factor=0.01", "--resolution", "64"]].concat();
    let finished = sweep(folder.path(), &arguments).success();
    let rows = rows(&finished);
    let of = |figure: &str| rows.iter().map(|row| row[figure].as_f64().unwrap()).collect::<Vec<_>>();
    let (deviations, losses, peaks) = (of("deviation"), of("loss"), of("peak_memory"));
    println!("{deviations:?} {losses:?} {peaks:?}");
    assert!(deviations[0] < 1e-5 && deviations[1..].iter().all(|value| (1e-4..0.9).contains(value)), "{deviations:?}");
    assert!(losses.iter().all(|loss| (loss / losses[0] - 1.0).abs() < 0.05), "{losses:?}");
    assert!(peaks[1] < peaks[0] && peaks[2] < peaks[0], "{peaks:?}");
    assert!(rows[0]["skipped"] == 0 && rows[1]["skipped"] == 0 && rows[2]["skipped"].as_u64().unwrap() > 0, "{rows:?}");
    // One in which every step overflows has no figures.
    let fixed = ["--micro", "3", "--precision", "fp16", "--set", "precision.loss_scale=1e12"];
    let finished_badly = sweep(folder.path(), &[&fixed[..], &["--set", "precision.max_skips=2"]].concat());
    assert_eq!(finished_badly.code, 1, "{}", finished_badly.stderr);
    assert!(finished_badly.stderr.contains("failed: "), "{}", finished_badly.stderr);
    println!("{}", finished_badly.stderr);
    let references: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(references["references"].as_array().unwrap().len(), 1);
    assert_eq!(references["references"][0]["precision"], "fp32");
}

/// Settings that depend on the micro-batch by their nature are told from those that do not.
#[test]
fn a_gradient_that_depends_on_the_batch_split_fails_the_bar() {
    let folder = folder();
    for setting in ["losses.adversarial.adaptive=micro-batch", "discriminator.norm=batch"] {
        let arguments = ["--micro", "1,3", "--max-deviation", "1e-5", "--set", setting, "--output", "out"];
        let finished = sweep(folder.path(), &arguments);
        assert_eq!(finished.code, 3, "{}", finished.stderr);
        let unmet: Vec<&str> = finished.stderr.lines().filter(|line| line.starts_with("bar not met: ")).collect();
        assert_eq!(unmet.len(), 1, "{}", finished.stderr);
        assert!(
            unmet[0].starts_with("bar not met: micro 3 of 4, fp32, 16 px, recompute none: deviation "),
            "{unmet:?}"
        );
        let junit = read(&folder.path().join("out/junit.xml"));
        assert!(junit.contains("failures=\"1\""), "{junit}");
        assert!(
            finished.stdout.lines().count() == 3 && finished.stdout.contains("micro  effective"),
            "{}",
            finished.stdout
        );
    }
}

/// An engine that lets micro-batches count alike is right wherever they are of one size, and only there.
#[test]
fn a_wrong_engine_fails_the_bar() {
    let folder = small();
    let arguments = ["--effective", "8", "--micro", "1,2,3,4", "--max-deviation", "1e-5", "--json"];
    sweep(folder.path(), &arguments).success();
    let wrong = sweep(folder.path(), &[&arguments[..], &["--weigh-by-micro-batch"]].concat());
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);
    let unmet: Vec<&str> = wrong.stderr.lines().filter(|line| line.starts_with("bar not met: ")).collect();
    assert_eq!(unmet.len(), 1, "{}", wrong.stderr);
    assert!(unmet[0].starts_with("bar not met: micro 3 of 8, fp32, 16 px, recompute none: deviation "), "{unmet:?}");
    for help in [&["--help"][..], &["sweep", "--help"]] {
        assert!(!run(folder.path(), help).success().stdout.contains("weigh-by"), "{help:?}");
    }
}

/// The promise, as a user holds a configuration to it.
#[test]
fn with_every_loss_on_every_batch_split_has_the_same_gradient() {
    let folder = all();
    let arguments = ["sweep", "--config", "all.toml", "--steps", "2", "--micro", "1,2,3,4", "--json"];
    let arguments = [&arguments[..], &["--recompute", "none,blocks", "--max-deviation", "1e-5"]].concat();
    let rows = rows(&run(folder.path(), &arguments).success());
    let (between, rows) = rows.split_last().unwrap();
    assert!(between["against"] == "blocks" && between["deviation"].as_f64().unwrap() <= 1e-5, "{between}");
    assert_eq!(rows.len(), 8);
    for row in rows {
        let deviation = row["deviation"].as_f64().unwrap();
        println!("micro {} recompute {}: {deviation:e}", row["micro"], row["recompute"]);
        assert!(deviation <= 1e-5 && (deviation > 0.0 || row["micro"] == 1), "{row}");
        for phase in ["pixel", "perceptual", "adversarial", "clip", "discriminator", "first_pass"] {
            assert!(row["memory"][phase].is_u64(), "{phase}: {row}");
        }
    }
}

#[test]
fn a_baseline_is_held_to() {
    let folder = folder();
    sweep(folder.path(), &["--micro", "1,2", "--output", "base"]).success();
    let base = folder.path().join("base/sweep.json");
    let against = |name: &str, arguments: &[&str]| {
        let all = [&["--baseline", name, "--tolerance", "memory=5%,speed=95%"], arguments].concat();
        sweep(folder.path(), &all)
    };
    let same = against("base/sweep.json", &["--micro", "1,3"]).success();
    assert!(same.stderr.contains("not in the baseline: micro 3 of 4"), "{}", same.stderr);
    assert!(same.stderr.contains("only in the baseline: micro 2 of 4"), "{}", same.stderr);

    let mut better: Value = serde_json::from_str(&read(&base)).unwrap();
    for row in better["rows"].as_array_mut().unwrap() {
        row["peak_memory"] = (row["peak_memory"].as_u64().unwrap() / 2).into();
    }
    fs::write(folder.path().join("better.json"), better.to_string()).unwrap();
    let worse = against("better.json", &["--micro", "1"]);
    assert_eq!(worse.code, 3, "{}", worse.stderr);
    assert!(worse.stderr.contains("above the baseline's") && worse.stderr.contains("+ 5 %"), "{}", worse.stderr);

    let error = against("none.json", &["--micro", "1"]).error(2);
    assert!(error.starts_with("error: --baseline none.json: "), "{error}");
}

/// The attention over a million places asks for four terabytes, which no machine lends.
#[test]
fn a_row_that_ends_badly_is_a_row_and_not_the_end() {
    let folder = small();
    let arguments = ["--micro", "1", "--resolution", "2048,15,16", "--set", "model.channels=[4,4]", "--json"];
    let arguments =
        [&arguments[..], &["--set", "data.images=8", "--set", "data.validation=0", "--output", "out"]].concat();
    let mixed = sweep(folder.path(), &arguments).success();
    let rows = rows(&mixed);
    let statuses: Vec<&str> = rows.iter().map(|row| row["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["out-of-memory", "failed", "ok"], "{}", mixed.stderr);
    assert!(rows[0]["message"].as_str().unwrap().starts_with("memory allocation of "), "{}", rows[0]);
    assert!(rows[1]["message"].as_str().unwrap().contains("16 to 4096 pixels, not 15"), "{}", rows[1]);
    assert!(rows[0]["peak_memory"].is_null() && rows[2]["deviation"].is_number(), "{rows:?}");
    let junit = read(&folder.path().join("out/junit.xml"));
    assert!(junit.contains("skipped=\"2\" errors=\"0\" failures=\"0\""), "{junit}");

    let barred = sweep(folder.path(), &["--micro", "1", "--resolution", "15,16", "--max-memory", "1GiB"]);
    assert_eq!(barred.code, 3, "{}", barred.stderr);
    assert!(
        barred.stderr.contains("bar not met: micro 1 of 4, fp32, 15 px, recompute none: failed: "),
        "{}",
        barred.stderr
    );
    assert_eq!(sweep(folder.path(), &["--resolution", "15"]).code, 1);
}

#[test]
fn a_row_that_takes_too_long_is_given_up() {
    let folder = small();
    let arguments = ["--timeout", "1", "--effective", "100000", "--micro", "1", "--json"];
    let finished = sweep(folder.path(), &arguments);
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    let rows = rows(&finished);
    assert_eq!((&rows[0]["status"], &rows[0]["message"]), (&"timed-out".into(), &"not done after 1 s".into()));
}

/// Nothing is fetched for a sweep unless it is asked for: the tests have no network.
#[test]
fn networks_on_the_hub_get_random_weights() {
    let folder = small();
    let arguments = [
        "--micro",
        "2",
        "--set",
        "losses.perceptual.weight=1",
        "--set",
        "losses.perceptual.backbone=hf://someone/vgg16",
    ];
    let arguments = [&arguments[..], &["--resolution", "32", "--json"]].concat();
    let finished = sweep(folder.path(), &arguments).success();
    let sweep_json: Value = serde_json::from_str(&finished.stdout).unwrap();
    let random = ["losses.perceptual.backbone", "losses.perceptual.linear"];
    assert_eq!(sweep_json["random_weights"], serde_json::json!(random));
    assert!(sweep_json["rows"][0]["memory"]["perceptual"].is_u64(), "{sweep_json}");
    let fetching = sweep(folder.path(), &[&arguments[..], &["--pretrained"]].concat());
    assert_eq!(fetching.code, 1, "{}", fetching.stderr);
    assert!(fetching.stderr.contains("failed: `losses.perceptual.backbone`"), "{}", fetching.stderr);
}

#[test]
fn the_old_name_of_an_option_is_refused_by_the_new_one() {
    let folder = small();
    for verb in ["sweep", "plan"] {
        for values in [&["none,blocks"][..], &[]] {
            let arguments = [&[verb, "--config", "small.toml", "--checkpoint"], values].concat();
            let refused = run(folder.path(), &arguments);
            assert!(refused.code == 2 && refused.stderr.contains("--recompute"), "{}", refused.stderr);
        }
        let help = run(folder.path(), &[verb, "--help"]).success().stdout;
        assert!(help.contains("--recompute") && !help.contains("--checkpoint"), "{help}");
    }
}

#[test]
fn what_cannot_be_swept_is_said() {
    let folder = small();
    for (arguments, words) in [
        (vec!["--micro", "8"], "no row is left: every micro-batch exceeds the effective batch"),
        (vec!["--micro", "0"], "--set sweep.micro=[0]: `sweep.micro` is 0, must be at least 1"),
        (vec!["--precision", "fp33"], "unknown value `fp33`, did you mean `fp32`?"),
        (vec!["--max-memory", "lots"], "must be a size such as \"4GiB\""),
        (vec!["--resolution", "4"], "`data.resolution` is 4, must lie in 8 to 4096"),
        (
            vec!["--set", "model.architecture=tiny", "--set", "model.pretrained=hf://someone/something"],
            "cannot be set beside",
        ),
    ] {
        let error = sweep(folder.path(), &arguments).error(2);
        assert!(error.contains(words), "{error}");
    }
    let left_out = sweep(folder.path(), &["--micro", "1,8", "--json"]).success();
    assert_eq!(rows(&left_out).len(), 1);
    assert!(left_out.stderr.contains("skipped, since its micro-batch"), "{}", left_out.stderr);
}

#[test]
fn a_plan_says_what_larger_micro_batches_take() {
    let folder = folder();
    let plan = |arguments: &[&str]| {
        let all = [
            &["plan", "--config", "small.toml", "--set", "data.resolution=32", "--set", "batch.effective=8"],
            arguments,
        ];
        run(folder.path(), &all.concat())
    };
    let finished = plan(&["--precision", "fp32,bf16", "--json"]).success();
    let json: Value = serde_json::from_str(&finished.stdout).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let of = |precision: &str, recompute: &str| {
        let is_of = |row: &&Value| row["precision"] == precision && row["recompute"] == recompute;
        rows.iter().filter(is_of).collect::<Vec<_>>()
    };
    let none = of("fp32", "none");
    let [half, full] = [of("bf16", "none")[3], none[3]].map(|row| row["peak_memory"].as_u64().unwrap());
    assert!(half < full && of("fp16", "none").is_empty(), "{half}, {full}");
    assert_eq!(none.iter().map(|row| row["micro"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 4, 8]);
    assert_eq!(none.iter().map(|row| row["measured"] == true).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!((&none[0]["speed"], &none[0]["fits"]), (&1.0.into(), &Value::Null));
    let toml = "[batch]\nmicro = 2\n[precision]\ncompute = \"bf16\"\n[memory]\nrecompute = \"blocks\"\n";
    assert_eq!(of("bf16", "blocks")[1]["toml"], toml);
    assert!(json["device_notes"][0].as_str().unwrap().starts_with("Measured on the CPU, "), "{}", json["device_notes"]);

    let limit = none[1]["peak_memory"].as_u64().unwrap() + 200_000;
    let only = ["--steps", "2", "--precision", "fp32", "--recompute", "none"];
    let table = plan(&[&only[..], &["--limit", &format!("{limit}B")]].concat()).success();
    assert!(table.stdout.contains("fastest that fits:\n  [batch]\n  micro = "), "{}", table.stdout);
    assert!(table.stdout.contains("Measured on the CPU"), "{}", table.stdout);
    let nothing = plan(&[&only[..], &["--limit", "1MiB"]].concat());
    assert_eq!(nothing.code, 3, "{}", nothing.stdout);
    assert!(nothing.stdout.contains("nothing fits 1.00 MiB; the least is "), "{}", nothing.stdout);
}

#[test]
fn what_a_plan_expects_of_a_micro_batch_is_what_it_takes() {
    let folder = folder();
    let of_rows = |resolution: &str, arguments: &[&str]| {
        let all = [arguments, &["--recompute", "none,blocks", "--precision", "fp32,bf16", "--json"]].concat();
        let rows = rows(&run(folder.path(), &all).success());
        let rows = rows.into_iter().filter(|row| row["micro"] == 4);
        let peak = |row: Value| {
            let cut = format!("{resolution} px, {}, recompute {}", row["precision"], row["recompute"]);
            (cut, row["peak_memory"].as_f64().unwrap())
        };
        rows.map(peak).collect::<BTreeMap<_, _>>()
    };
    for resolution in ["32", "64"] {
        let setting = format!("data.resolution={resolution}");
        let config = ["--config", "small.toml", "--set", &setting, "--set", "batch.effective=8"];
        let expected = of_rows(resolution, &[&["plan"][..], &config].concat());
        let measured = of_rows(resolution, &[&["sweep", "--micro", "4", "--steps", "2"][..], &config].concat());
        assert_eq!((expected.len(), measured.len()), (4, 4));
        for (cut, peak) in measured {
            let off = expected[&cut] / peak - 1.0;
            println!("{cut}: {peak} measured, {:+.1} %", 100.0 * off);
            assert!(off.abs() < 0.1, "{cut}: expected {}, measured {peak}", expected[&cut]);
        }
    }
}
