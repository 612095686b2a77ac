//! `memory.limit`, `batch.micro = "auto"`, and devices that run out of memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Finished, command, finished, run, small};
use crate::losses::all;
use crate::run::metrics;

/// [`SMALL`](crate::command::SMALL) at a resolution at which the micro-batch decides on the peak, and with a loss that couples
/// samples. Its steps are small: after large ones of Adam, rounding alone makes images take other codes.
fn folder() -> TempDir {
    let folder = small();
    let path = folder.path().join("small.toml");
    let text = fs::read_to_string(&path).unwrap().replace("resolution = 16", "resolution = 32");
    let text = text.replace("effective = 4", "effective = 8").replace("1e-3", "1e-4");
    let text = text + "[losses.codebook]\nentropy = 0.1\n";
    fs::write(&path, text).unwrap();
    folder
}

fn train(folder: &Path, run_dir: &str, settings: &[&str]) -> Finished {
    let mut arguments = vec!["--config", "small.toml", "--run-dir", run_dir];
    arguments.extend(settings.iter().flat_map(|setting| match setting.starts_with("--") {
        true => vec![*setting],
        false => vec!["--set", *setting],
    }));
    run(folder, &arguments)
}

/// Each step's micro-batch, peak and loss.
fn steps(folder: &Path, run_dir: &str) -> Vec<(u64, u64, f64)> {
    let text = fs::read_to_string(folder.join(run_dir).join("metrics.jsonl")).unwrap();
    let step = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["micro"].as_u64().unwrap(), line["peak_memory"].as_u64().unwrap(), line["loss"].as_f64().unwrap())
    };
    text.lines().map(step).collect()
}

fn micros(folder: &Path, run_dir: &str) -> Vec<u64> {
    steps(folder, run_dir).iter().map(|step| step.0).collect()
}

fn same_losses(folder: &Path, run_dir: &str, other: &str) {
    let [a, b] = [run_dir, other].map(|run_dir| steps(folder, run_dir));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert!((a.2 - b.2).abs() < 1e-5 * a.2.abs(), "{a:?} {b:?}");
    }
}

/// What the steps were taken with.
fn micro_of(finished: &Finished) -> u64 {
    let line = finished.stderr.lines().find(|line| line.starts_with("batch: ")).unwrap();
    let (_, micro) = line.split_once("micro-batch ").unwrap();
    micro.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_micro_batch_is_the_largest_that_fits_and_a_resumed_run_keeps_it() {
    let folder = folder();
    let folder = folder.path();
    train(folder, "plain", &["batch.micro=1"]).success();
    train(folder, "one", &["batch.micro=4"]).success();
    let (of_four, of_one) = (steps(folder, "one")[1].1, steps(folder, "plain")[1].1);
    // A limit that four samples are above and two below.
    let limit = of_one + (of_four - of_one) * 3 / 4;
    let setting = format!("memory.limit={limit}B");
    let chosen = train(folder, "auto", &["batch.micro=auto", &setting]).success();
    println!("{}", chosen.stderr);
    assert!(chosen.stderr.contains("batch.micro = \"auto\": measuring"), "{}", chosen.stderr);
    let micro = micro_of(&chosen);
    assert!((2..4).contains(&micro), "{}", chosen.stderr);
    let words = format!(", micro-batch {micro} (auto: ");
    assert!(
        chosen.stderr.contains(&words) && chosen.stderr.contains(" expected, memory.limit is "),
        "{}",
        chosen.stderr
    );
    let of_auto = steps(folder, "auto");
    assert!(of_auto.iter().all(|step| step.0 == micro && step.1 <= limit), "{limit}: {of_auto:?}");
    // Neither the draws nor the gradient have to do with it.
    same_losses(folder, "auto", "plain");

    let resumed = train(folder, "auto", &["--resume", "run.steps=5", "batch.micro=auto", &setting]).success();
    assert!(!resumed.stderr.contains("measuring"), "{}", resumed.stderr);
    assert_eq!(micros(folder, "auto"), [micro; 5]);
    train(folder, "auto", &["--resume", "run.steps=6", "batch.micro=1", &setting]).success();
    assert_eq!(micros(folder, "auto"), [micro, micro, micro, micro, micro, 1]);

    // What was measured once is known, until something changes.
    let again = train(folder, "again", &["batch.micro=auto", &setting, "run.seed=9"]).success();
    assert!(
        !again.stderr.contains("measuring") && again.stderr.contains("auto, as measured before: "),
        "{}",
        again.stderr
    );
    assert_eq!(micro_of(&again), micro);
    let other = format!("memory.limit={}B", limit * 2);
    let other = train(folder, "other", &["batch.micro=auto", &other, "run.steps=1"]).success();
    assert!(other.stderr.contains("measuring"), "{}", other.stderr);
    assert!(micro_of(&other) > micro, "{}", other.stderr);
}

#[test]
fn a_step_that_exceeds_the_limit_is_taken_again_with_half_the_micro_batch() {
    let folder = folder();
    let folder = folder.path();
    train(folder, "plain", &["batch.micro=4"]).success();
    let most = steps(folder, "plain").iter().map(|step| step.1).max().unwrap();
    let setting = format!("memory.limit={}B", most * 3 / 4);
    let lowered = train(folder, "lowered", &["batch.micro=4", &setting]).success();
    let line = lowered.stderr.lines().find(|line| line.contains(" exceeds memory.limit, ")).unwrap();
    println!("{line}");
    assert!(
        line.starts_with("step 1, ") && line.ends_with("; batch.micro 4 -> 2, and the step is taken again"),
        "{line}"
    );
    assert_eq!(micros(folder, "lowered"), [2, 2, 2, 2]);
    assert!(steps(folder, "lowered").iter().all(|step| step.1 <= most * 3 / 4));
    let first = &metrics(&folder.join("lowered"))[0]["recovered"];
    assert_eq!((&first[0]["cause"], &first[0]["change"]), (&"limit".into(), &"batch.micro 4 -> 2".into()), "{first}");
    same_losses(folder, "lowered", "plain");
    let resumed = train(folder, "lowered", &["--resume", "run.steps=5", "batch.micro=4", &setting]).success();
    assert!(
        resumed.stderr.contains("batch: effective 8, micro-batch 2 (as of step 4; 4 passes)"),
        "{}",
        resumed.stderr
    );
    assert_eq!(micros(folder, "lowered"), [2, 2, 2, 2, 2]);

    let error = train(folder, "small", &["batch.micro=2", "memory.limit=1MiB"]).error(1);
    println!("{error}");
    let words = [
        "error: step 1: ",
        " exceeds memory.limit, 1.00 MiB; batch.micro is 1, memory.recompute is \"blocks\": nothing is left to lower; ",
        "what would still help: data.resolution = 16, freezing the encoder (",
        "there is no checkpoint yet",
    ];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

/// The newest checkpoint's tensors, by file.
fn tensors(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let files = fs::read_dir(run.join("checkpoints").join(latest.trim())).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())).collect()
}

/// What else the newest checkpoint carries over, and what it has to be taken with: all but how the run was configured.
fn state(run: &Path) -> Value {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let text = fs::read_to_string(run.join("checkpoints").join(latest.trim()).join("state.json")).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    state["config"].take();
    state
}

const PHASES: [&str; 10] = [
    "weights",
    "first_pass",
    "forward",
    "pixel",
    "perceptual",
    "adversarial",
    "clip",
    "discriminator",
    "backward",
    "optimizer",
];

/// With every loss, in all ways in which a device says it: the run is the one that was configured so from that step on.
#[test]
fn a_step_that_runs_out_of_memory_is_taken_again_with_half_the_micro_batch() {
    let folder = all();
    let folder = folder.path();
    let train = |run_dir: &str, arguments: &[&str]| {
        let all = [
            "--config",
            "all.toml",
            "--run-dir",
            run_dir,
            "--set",
            "batch.effective=8",
            "--set",
            "memory.recompute=none",
        ];
        run(folder, &[&all[..], arguments].concat())
    };
    for (round, micro) in [8, 4, 2].into_iter().enumerate() {
        let configured = format!("batch.micro={micro}");
        let half = format!("batch.micro={}", micro / 2);
        let expected = format!("expected-{micro}");
        train(&expected, &["--set", "run.steps=1", "--set", &configured]).success();
        train(&expected, &["--set", "run.steps=3", "--set", &half, "--resume"]).success();
        let expected_state = state(&folder.join(&expected));
        let expected = tensors(&folder.join(expected));
        assert_eq!(expected.len(), 5, "{:?}", expected.keys());
        for (index, phase) in PHASES.into_iter().enumerate() {
            // Each phase meets each kind once.
            let kind = ["panic", "worker", "error"][(index + round) % 3];
            let fault = format!("2:{phase}:{kind}");
            let run_dir = format!("{micro}-{phase}");
            let run = train(&run_dir, &["--set", &configured, "--inject-fault", &fault]).success();
            let line =
                run.stderr.lines().find(|line| line.starts_with("step 2, ")).unwrap_or_else(|| panic!("{fault}"));
            let words = format!("; batch.micro {micro} -> {}, and the step is taken again", micro / 2);
            assert!(line.contains(": out of memory (out of device memory") && line.ends_with(&words), "{line}");
            let lines = metrics(&folder.join(&run_dir));
            let of_steps: Vec<_> = lines.iter().map(|line| line["micro"].as_u64().unwrap() as usize).collect();
            assert_eq!(of_steps, [micro, micro / 2, micro / 2], "{fault}");
            let recovered: Vec<_> = lines.iter().map(|line| line["recovered"].as_array().map_or(0, Vec::len)).collect();
            assert_eq!(recovered, [0, 1, 0], "{fault}");
            // An error that comes when results are waited for says nothing of where it was.
            let seen_in = if kind == "error" { "optimizer" } else { phase };
            assert_eq!(lines[1]["recovered"][0]["phase"], seen_in, "{fault}");
            assert!(tensors(&folder.join(&run_dir)) == expected, "{fault}: the weights are others");
            assert_eq!(state(&folder.join(&run_dir)), expected_state, "{fault}");
        }
    }
}

#[test]
fn what_is_lowered_is_lowered_in_order_and_then_the_run_ends_with_what_was_done() {
    let folder = all();
    let folder = folder.path();
    let arguments = ["--config", "all.toml", "--set", "memory.recompute=none", "--set", "batch.micro=3"];
    let faults = |count: usize| vec![["--inject-fault", "2:backward"]; count].concat();
    let lowered = run(folder, &[&arguments[..], &faults(3), &["--run-dir", "lowered"]].concat()).success();
    let changes: Vec<String> = metrics(&folder.join("lowered"))[1]["recovered"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["change"].as_str().unwrap().to_owned())
        .collect();
    let expected = ["batch.micro 3 -> 1", "memory.recompute \"none\" -> \"blocks\"", "clip.cutouts_at_once 2 -> 1"];
    assert_eq!(changes, expected, "{}", lowered.stderr);
    // All of it stays when the run goes on, and is what a run is that was configured like that.
    let more = ["--run-dir", "lowered", "--set", "run.steps=4", "--resume"];
    let resumed = run(folder, &[&arguments[..], &more].concat()).success();
    assert!(resumed.stderr.contains("micro-batch 1 (as of step 3; 4 passes), blocks recomputed"), "{}", resumed.stderr);
    let configured = ["--set", "batch.micro=1", "--set", "memory.recompute=blocks", "--set", "clip.cutouts_at_once=1"];
    let reference = ["--config", "all.toml", "--run-dir", "reference"];
    run(folder, &[&arguments[..], &["--run-dir", "reference", "--set", "run.steps=1"]].concat()).success();
    run(folder, &[&reference[..], &configured, &["--set", "run.steps=4", "--resume"]].concat()).success();
    assert!(tensors(&folder.join("lowered")) == tensors(&folder.join("reference")), "the weights are others");

    let often = ["--run-dir", "ends", "--set", "checkpoints.every_steps=100"];
    let error = run(folder, &[&arguments[..], &faults(4), &often].concat()).error(1);
    println!("{error}");
    let words = [
        "error: step 2: out of memory (",
        "; batch.micro is 1, memory.recompute is \"blocks\", clip.cutouts_at_once is 1: nothing is left to lower; ",
        "what would still help: freezing the encoder (",
        "), precision.compute = \"bf16\", a smaller CLIP (clip.pretrained), no average of the weights (ema.decay = 0); ",
        "the last checkpoint is that of step 1",
    ];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    run(folder, &[&arguments[..], &["--run-dir", "ends", "--resume"]].concat()).success();
    assert_eq!(metrics(&folder.join("ends")).len(), 3);
}

/// Where another micro-batch would be another run, the other ways are taken.
#[test]
fn a_micro_batch_that_counts_stays() {
    let folder = all();
    let folder = folder.path();
    let arguments = ["--config", "all.toml", "--set", "memory.recompute=none", "--set", "discriminator.norm=batch"];
    let run = run(folder, &[&arguments[..], &["--run-dir", "run", "--inject-fault", "1:forward"]].concat()).success();
    assert!(run.stderr.contains("; memory.recompute \"none\" -> \"blocks\", and"), "{}", run.stderr);
    assert_eq!(micros(folder, "run"), [3, 3, 3]);
}

#[test]
fn other_failures_are_not_taken_for_want_of_memory() {
    let folder = small();
    let folder = folder.path();
    let fails = |fault: &str| {
        let arguments = ["--config", "small.toml", "--run-dir", &fault.replace(':', "-"), "--inject-fault", fault];
        run(folder, &arguments).error(1)
    };
    let error = fails("3:backward:other-error");
    let expected = "error: the device failed at step 3: an illegal address was accessed (injected); the last checkpoint is \
                    that of step 2";
    assert_eq!(error, expected);
    let error = fails("3:backward:other-panic");
    assert!(error.contains("this should not happen") && error.contains("an illegal address"), "{error}");
    let error = fails("4:update:other-error");
    assert!(error.starts_with("error: the device failed at step 4: an illegal address was accessed"), "{error}");
    let wrong = run(folder, &["--config", "small.toml", "--inject-fault", "soon"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("is not STEP:PLACE"), "{}", wrong.stderr);
}

/// What cannot be taken again with less ends with what would help, and with what is worth keeping saved.
#[test]
fn want_of_memory_outside_of_what_can_be_taken_again_ends_with_a_line() {
    let folder = small();
    let folder = folder.path();
    let message = "out of memory (out of device memory allocating 1234 bytes (injected)); what would help: ";
    let ways = "freezing the encoder (model.train = [\"post_quant_conv\", \"decoder\"]), precision.compute = \"bf16\", \
                no average of the weights (ema.decay = 0); ";
    let fails = |fault: &str| {
        let run_dir = fault.replace(':', "-");
        (run(folder, &["--config", "small.toml", "--run-dir", &run_dir, "--inject-fault", fault]).error(1), run_dir)
    };
    for kind in ["panic", "worker", "error"] {
        // Weights of which some have moved are no weights to go on from.
        let (error, run_dir) = fails(&format!("4:update:{kind}"));
        let begins = format!("error: step 4, update: {message}batch.micro 3 -> 1, data.resolution = 8, {ways}");
        assert_eq!(error, begins + "the last checkpoint is that of step 2");
        assert!(!folder.join(run_dir).join("checkpoints/step-000003").exists());

        let (error, run_dir) = fails(&format!("0:start:{kind}"));
        let begins = format!("error: before the first step: {message}data.resolution = 8, {ways}");
        assert_eq!(error, begins + "nothing has been changed");
        assert!(!folder.join(run_dir).exists());
    }
    let looked = ["--config", "small.toml", "--run-dir", "looked", "--inject-fault", "2:validation:worker"];
    let looked = run(folder, &looked).success();
    let line = "step 2, validation: out of memory (out of device memory allocating 1234 bytes (injected)); one image at a \
                time\n";
    assert!(looked.stderr.contains(line), "{}", looked.stderr);
    let validations = |run: &str| fs::read_to_string(folder.join(run).join("validation.jsonl")).unwrap();
    assert_eq!(validations("looked").lines().count(), 3);

    let twice =
        ["--inject-fault", "3:validation", "--inject-fault", "3:validation", "--set", "validation.every_steps=3"];
    let error = run(folder, &[&["--config", "small.toml", "--run-dir", "twice"][..], &twice].concat()).error(1);
    let begins = format!("error: step 3, validation: {message}batch.micro 3 -> 1, data.resolution = 8, {ways}");
    assert_eq!(error, begins + "the last checkpoint is that of step 3");
}

/// Each would start another, without end.
#[test]
fn a_process_that_is_measured_measures_nothing() {
    let folder = folder();
    let folder = folder.path();
    let text = fs::read_to_string(folder.join("small.toml")).unwrap();
    fs::write(folder.join("auto.toml"), text.replace("micro = 3", "micro = \"auto\"")).unwrap();
    let inside =
        |arguments: &[&str]| finished(command(folder, arguments).env("VQGAN_TRAINER_MEASURING", "1").output().unwrap());
    let row = |config| ["measure", "--config", config, "--run-dir", "row", "--steps", "1"];
    let refused = inside(&row("auto.toml")).error(1);
    assert!(refused.ends_with("`batch.micro` is \"auto\": what is measured needs a number"), "{refused}");
    let refused = inside(&["--config", "auto.toml", "--run-dir", "run"]).error(1);
    assert!(refused.contains("a process that is measured does not measure"), "{refused}");
    let mut limited = under_limit(folder, 2_000_000, &row("small.toml"));
    let measured = finished(limited.env("VQGAN_TRAINER_MEASURING", "1").output().unwrap()).success();
    assert!(!measured.stderr.contains("trying a step"), "{}", measured.stderr);
}

/// The program with `arguments`, which may not have more than so many KiB of address space.
fn under_limit(folder: &Path, kibibytes: u64, arguments: &[&str]) -> Command {
    let program = command(folder, &[]);
    let mut shell = Command::new("sh");
    let text = format!("ulimit -v {kibibytes} && exec \"$0\" \"$@\"");
    shell.args(["-c", &text]).arg(program.get_program()).args(arguments).current_dir(folder);
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    // Each thread reserves addresses that it never uses.
    shell.env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "2");
    shell
}

/// The program's own memory is limited by the system, which for a process that must not allocate is the end.
#[cfg(target_os = "linux")]
#[test]
fn a_process_that_may_not_allocate_more_finds_what_fits_or_ends_with_a_line() {
    let folder = folder();
    let folder = folder.path();
    let text = fs::read_to_string(folder.join("small.toml")).unwrap();
    let text = text.replace("resolution = 32", "resolution = 64").replace("micro = 3", "micro = 8");
    fs::write(folder.join("small.toml"), text.replace("steps = 4", "steps = 1")).unwrap();
    for (mebibytes, fits) in [(400, true), (340, true), (90, false)] {
        let run_dir = format!("run-{mebibytes}");
        let arguments = ["--config", "small.toml", "--run-dir", &run_dir];
        let finished = finished(under_limit(folder, mebibytes << 10, &arguments).output().unwrap());
        println!("{mebibytes} MiB: {} {}", finished.code, finished.stderr);
        if fits {
            // How far it has to go is up to the system's allocator.
            let finished = finished.success();
            assert!(micro_of(&finished) < 8, "{}", finished.stderr);
            assert!(finished.stderr.contains("; batch.micro 8 -> 4\n"), "{}", finished.stderr);
        } else {
            let error = finished.error(1);
            let words =
                ["that ulimit -v allows; batch.micro is 1, ", "what would still help: ", "nothing has been made"];
            assert!(words.iter().all(|words| error.contains(words)), "{error}");
            assert!(!folder.join(run_dir).exists());
        }
    }

    // A process that nobody tries before ends by a line as well, and not by a signal.
    let row = ["measure", "--config", "small.toml", "--run-dir", "row", "--steps", "1"];
    let finished = finished(under_limit(folder, 150 << 10, &row).output().unwrap());
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    let says_so = |line: &str| line.starts_with("memory allocation of ") && line.ends_with(" bytes failed");
    assert!(finished.stderr.lines().any(says_so), "{}", finished.stderr);
}

#[test]
fn a_limit_that_nothing_fits_names_what_would() {
    let folder = folder();
    let folder = folder.path();
    train(folder, "plain", &["batch.micro=1"]).success();
    let limit = steps(folder, "plain")[1].1 * 3 / 4;
    let setting = format!("memory.limit={limit}B");
    let error = train(folder, "auto", &["batch.micro=auto", &setting]).error(2);
    println!("{error}");
    let words = [
        "`memory.limit` is ",
        ", and a single sample at a time takes ",
        "what would fit: memory.recompute = \"blocks\" (",
        "data.resolution = 16 (",
    ];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    // It is as good as its word.
    train(folder, "fits", &["batch.micro=auto", &setting, "memory.recompute=blocks"]).success();
    assert!(steps(folder, "fits").iter().all(|step| step.1 <= limit));

    let error = train(folder, "auto", &["batch.micro=auto", "memory.limit=1MiB"]).error(2);
    assert!(error.contains("`memory.limit` is 1.00 MiB, and ") && error.contains("it would not fit"), "{error}");
    assert!(!folder.join("auto").exists());
}

#[test]
fn a_bad_value_has_a_line() {
    let folder = small();
    let path = folder.path().join("small.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (line, with, words) in [
        (
            "micro = \"autp\"",
            "",
            "small.toml:9: invalid value: string \"autp\", expected \"auto\" or a number of samples",
        ),
        ("micro = -1", "", "small.toml:9: invalid value: integer `-1`, expected \"auto\" or a number of samples"),
        ("micro = 3", "[memory]\nlimit = \"lots\"\n", "the value is \"lots\", must be a size such as \"4GiB\""),
        ("micro = 3", "[memory]\nlimit = 4\n", "expected a size such as \"4GiB\""),
    ] {
        fs::write(&path, text.replace("micro = 3", line) + with).unwrap();
        let error = run(folder.path(), &["--config", "small.toml"]).error(2);
        assert!(error.contains(words), "{error}");
    }
}
