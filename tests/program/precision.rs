//! Runs in half precision.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoints::{HostTensor, WeightsFile, write_safetensors};
use serde_json::Value;

use tempfile::TempDir;

use crate::command::{fixture, run, small};
use crate::run::metrics;

/// Runs the small configuration into `name` with these overrides, and returns the lines of its metrics.
fn train(folder: &Path, name: &str, sets: &[&str]) -> (Vec<Value>, String) {
    let mut arguments = vec!["--config", "small.toml", "--run-dir", name];
    arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
    let finished = run(folder, &arguments).success();
    (metrics(&folder.join(name)), finished.stderr)
}

fn skipped(line: &Value) -> bool {
    line["skipped"].as_bool().unwrap()
}

/// The trained and the averaged weights and the optimizer's state of a checkpoint.
fn saved(run: &Path, step: usize) -> Vec<Vec<u8>> {
    let folder = run.join(format!("checkpoints/step-{step:06}"));
    ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]
        .map(|name| fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")))
        .into()
}

/// Each halving is a line, none of them moves a weight, and the first scale that does not overflow ends them.
#[test]
fn a_scale_that_is_far_too_high_is_halved_until_it_fits() {
    let folder = small();
    let init = 2_f64.powi(40);
    let high = format!("precision.scaler.init={init}");
    let sets = ["precision.compute=fp16", "precision.max_skips=40", "run.steps=40"];
    let keep = ["checkpoints.every_steps=1", "checkpoints.keep_last=50", "validation.every_steps=0", &high];
    let schedule = ["schedule.kind=cosine", "schedule.warmup=3"];
    let (lines, stderr) = train(folder.path(), "high", &[&sets[..], &keep, &schedule].concat());
    let run_dir = folder.path().join("high");

    let skips = lines.iter().take_while(|line| skipped(line)).count();
    let rest = lines[skips..].iter().filter(|line| skipped(line)).count();
    println!("{skips} skips from 2^40, {rest} later");
    assert!((10..=38).contains(&skips) && rest <= 1, "{skips} {rest}");
    let first = (run_dir.join("checkpoints/step-000001"), saved(&run_dir, 1));
    for (step, line) in lines[..skips].iter().enumerate() {
        assert_eq!(line["loss_scale"].as_f64(), Some(init * 0.5_f64.powi(step as i32)), "{line}");
        assert!(line["grad_norm"].is_null(), "{line}");
        assert_eq!(line["learning_rate"], lines[0]["learning_rate"]);
        assert!(saved(&run_dir, step + 1) == first.1, "step {}: the weights differ from {:?}", step + 1, first.0);
        assert!(stderr.contains(&format!("step {}: skipped: overflow", step + 1)), "{stderr}");
    }
    assert!(saved(&run_dir, skips + 1)[0] != first.1[0]);
    // The warm-up begins with the first step that is taken, and the schedule goes by those alone.
    let taken: Vec<&Value> = lines[skips..].iter().filter(|line| !skipped(line)).collect();
    let rates: Vec<f64> = taken.iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    for (rate, share) in rates.iter().zip([0.25, 0.5, 0.75, 1.0]) {
        assert!((rate / (share * 1e-3) - 1.0).abs() < 1e-9, "{rates:?}");
    }
    assert!(rates[4..].is_sorted_by(|a, b| a > b), "{rates:?}");
    assert!(lines[skips]["grad_norm"].as_f64().unwrap() > 0.0 && lines[skips]["loss"].as_f64().is_some());

    // As many halvings as there are powers of two between the scales, and none from below where these ended.
    let fits = lines[skips]["loss_scale"].as_f64().unwrap();
    assert_eq!(skips as f64, (init / fits).log2());
    // Another batch may need a little less.
    let init = format!("precision.scaler.init={}", fits / 4.0);
    let (from_there, _) = train(folder.path(), "fits", &["precision.compute=fp16", &init]);
    assert!(from_there.iter().all(|line| !skipped(line)), "{from_there:?}");
    // Weights that no skip has moved have a loss as at the beginning.
    let ratio = lines[skips]["loss"].as_f64().unwrap() / from_there[0]["loss"].as_f64().unwrap();
    assert!((0.5..2.0).contains(&ratio), "{ratio}");
}

/// A scale that cannot move ends the run after as many skips as are allowed, and says where it goes wrong.
#[test]
fn a_fixed_scale_that_overflows_ends_the_run_with_the_place() {
    let folder = small();
    train(folder.path(), "run", &["precision.compute=fp16", "precision.loss_scale=1024", "run.steps=2"]);
    let before = saved(&folder.path().join("run"), 2);
    let arguments = ["--config", "small.toml", "--run-dir", "run", "--resume", "--allow", "precision"];
    let sets = ["precision.compute=fp16", "precision.loss_scale=1e30", "precision.max_skips=3", "run.steps=40"];
    let more: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let error = run(folder.path(), &[&arguments[..], &more].concat()).error(1);
    println!("{error}");
    assert!(error.contains("4 steps in a row, up to step 6, were skipped"), "{error}");
    assert!(error.contains("decoder.conv_out") && error.contains("the loss pixel"), "{error}");
    assert!(saved(&folder.path().join("run"), 2) == before);
    // Nothing is lost: the run goes on with a scale that fits.
    let arguments = ["--config", "small.toml", "--run-dir", "run", "--resume", "--allow", "precision", "--set"];
    let fits = ["precision.loss_scale=1024", "--set", "precision.compute=fp16", "--set", "run.steps=8"];
    run(folder.path(), &[&arguments[..], &fits].concat()).success();
    assert!(!skipped(metrics(&folder.path().join("run")).last().unwrap()));
}

/// The small configuration with a discriminator beside the model, in fp16, after one step, as `before`.
fn with_discriminator() -> TempDir {
    let folder = small();
    let path = folder.path().join("small.toml");
    let text = fs::read_to_string(&path).unwrap().replace("effective = 4", "effective = 8");
    let more = "[losses.adversarial]\nweight = 0.5\nstart = 0\nramp = 0\nadaptive = \"previous-step\"\n\
                [discriminator]\nlayers = 1\nchannels = 8\n\
                [precision]\ncompute = \"fp16\"\n[precision.scaler]\ninit = 1024.0\n";
    fs::write(&path, text.replace("micro = 3", "micro = 8") + more).unwrap();
    train(folder.path(), "before", &["run.steps=1"]);
    folder
}

/// What a run computes for the generator, the discriminator, and the state beside their weights.
struct Halves {
    generator: Vec<Vec<u8>>,
    discriminator: Vec<Vec<u8>>,
    state: Value,
}

fn halves(run: &Path, step: usize) -> Halves {
    let folder = run.join(format!("checkpoints/step-{step:06}"));
    let read = |name: &str| fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    Halves {
        generator: saved(run, step),
        discriminator: ["discriminator.safetensors", "discriminator_optimizer.safetensors"].map(read).into(),
        state: serde_json::from_slice(&read("state.json")).unwrap(),
    }
}

/// Takes the step after `before` with these overrides, and returns its line of the metrics and what it leaves.
fn second_step(folder: &Path, name: &str, sets: &[&str]) -> (Value, Halves) {
    let mut arguments = vec!["--config", "small.toml", "--resume", "before/checkpoints/step-000001"];
    arguments.extend(["--run-dir", name, "--set", "run.steps=2", "--allow", "losses"]);
    arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
    run(folder, &arguments).success();
    let run_dir = folder.join(name);
    (metrics(&run_dir).pop().unwrap(), halves(&run_dir, 2))
}

/// Overflows in the encoder, behind everything that the discriminator and the last layer see.
const GENERATOR_OVERFLOWS: &str = "losses.codebook.weight=1e30";
/// A part of the discriminator's loss that the generator's has not.
const DISCRIMINATOR_OVERFLOWS: &str = "losses.adversarial.lecam=1e30";

#[test]
fn a_step_that_one_network_skips_is_the_others_all_the_same() {
    let folder = with_discriminator();
    let folder = folder.path();
    let before = halves(&folder.join("before"), 1);
    let (line, both) = second_step(folder, "both", &[]);
    assert!(!skipped(&line) && line["discriminator_skipped"] == false, "{line}");
    assert!(both.generator != before.generator && both.discriminator != before.discriminator);

    let (line, one) = second_step(folder, "generator", &[GENERATOR_OVERFLOWS]);
    assert!(skipped(&line) && line["discriminator_skipped"] == false, "{line}");
    assert!(one.generator == before.generator, "a skipped step has moved the generator");
    assert!(one.discriminator == both.discriminator, "the discriminator's step is another one");
    assert_eq!(
        (&one.state["loss_scale"]["scale"], &one.state["discriminator_loss_scale"]["scale"]),
        (&512.0.into(), &1024.0.into())
    );

    let (line, one) = second_step(folder, "discriminator", &[DISCRIMINATOR_OVERFLOWS]);
    assert!(!skipped(&line) && line["discriminator_skipped"] == true, "{line}");
    assert!(one.discriminator == before.discriminator, "a skipped step has moved the discriminator");
    assert!(one.generator == both.generator, "the generator's step is another one");
    assert_eq!(
        (&one.state["loss_scale"]["scale"], &one.state["discriminator_loss_scale"]["scale"]),
        (&1024.0.into(), &512.0.into())
    );
    assert_eq!(one.state["adversarial"]["lecam"], before.state["adversarial"]["lecam"]);
}

/// An overflow makes the adaptive weight of its step useless, whichever micro-batch it is in.
#[test]
fn a_skipped_step_keeps_the_adaptive_weight_for_every_batch_split() {
    let folder = with_discriminator();
    let folder = folder.path();
    let before = halves(&folder.join("before"), 1).state;
    let balance = &before["adversarial"]["balance"];
    assert!(balance.as_f64().is_some_and(|balance| balance > 0.0), "{before}");
    let (_, taken) = second_step(folder, "taken", &[]);
    assert_ne!(&taken.state["adversarial"]["balance"], balance);
    for micro in ["8", "3", "1"] {
        let (line, after) = second_step(folder, micro, &[GENERATOR_OVERFLOWS, &format!("batch.micro={micro}")]);
        assert!(skipped(&line), "{line}");
        assert_eq!(&after.state["adversarial"]["balance"], balance, "micro-batch {micro}");
    }
}

/// One decision of each optimizer for the effective batch, of which no cut makes another one.
#[test]
fn the_same_steps_are_skipped_for_every_batch_split() {
    let folder = with_discriminator();
    let init = format!("precision.scaler.init={}", 2_f64.powi(40));
    let decisions = |micro: usize| {
        let micro = format!("batch.micro={micro}");
        let sets = ["run.steps=28", "precision.max_skips=40", "validation.every_steps=0", &init, &micro];
        let (lines, _) = train(folder.path(), &micro, &sets);
        let last = lines.iter().rev().find(|line| !skipped(line)).unwrap();
        println!("{micro}: loss {}, norm of the gradient {}", last["loss"], last["grad_norm"]);
        lines.iter().map(|line| [skipped(line), line["discriminator_skipped"] == true]).collect::<Vec<_>>()
    };
    let whole = decisions(8);
    let skips = whole.iter().filter(|[generator, _]| *generator).count();
    println!("skipped of 28: {skips}");
    assert!((10..28).contains(&skips), "{skips}");
    for micro in [3, 1] {
        assert_eq!(decisions(micro), whole, "micro-batch {micro}");
    }
}

#[test]
fn debug_numerics_names_the_place_of_each_step() {
    let folder = small();
    let sets = ["--set", "precision.compute=fp16", "--set", "precision.loss_scale=1e30", "--set", "run.steps=2"];
    let finished = run(folder.path(), &[&["--config", "small.toml", "--debug-numerics"], &sets[..]].concat()).success();
    for step in [1, 2] {
        let line = finished.stderr.lines().find(|line| line.contains(&format!("step {step}, loss")));
        let line = line.unwrap_or_else(|| panic!("no line for step {step}: {}", finished.stderr));
        assert!(line.contains("not finite first after") && line.contains("backward"), "{line}");
    }
    // And nothing where there is nothing.
    let sets = ["--set", "precision.compute=bf16", "--run-dir", "fine"];
    let fine = run(folder.path(), &[&["--config", "small.toml", "--debug-numerics"], &sets[..]].concat()).success();
    assert!(!fine.stderr.contains("not finite"), "{}", fine.stderr);
    assert!(metrics(&folder.path().join("fine")).iter().all(|line| !skipped(line)));
}

#[test]
fn bad_precisions() {
    let folder = small();
    let error = |set: &str| run(folder.path(), &["--config", "small.toml", "--set", set]).error(2);
    for (set, said) in [
        ("precision.compute=fp61", "did you mean `fp16`?"),
        ("precision.loss_scale=high", "\"dynamic\" or a number"),
        ("precision.loss_scale=0", "`precision.loss_scale` is 0"),
        ("precision.scaler.init=-1", "`precision.scaler.init` is -1"),
        ("precision.scaler.growth_factor=0.5", "`precision.scaler.growth_factor` is 0.5"),
        ("precision.scaler.backoff_factor=1", "`precision.scaler.backoff_factor` is 1"),
        ("precision.scaler.growth_interval=0", "`precision.scaler.growth_interval` is 0"),
        ("precision.scalar.init=1", "did you mean `scaler`?"),
    ] {
        let error = error(set);
        assert!(error.contains(said), "{set}: {error}");
    }
}

/// A model with values that f16 only just holds is trained in it, but not without a word about what is better.
#[test]
fn values_near_the_end_of_f16_are_said_at_the_start() {
    const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
    let folder = small();
    let (usual, large) = (fixture("diffusers/attention"), folder.path().join("large"));
    fs::create_dir(&large).unwrap();
    fs::copy(usual.join("config.json"), large.join("config.json")).unwrap();
    let weights = WeightsFile::open(usual.join(WEIGHTS)).unwrap();
    let mut tensors: BTreeMap<String, HostTensor> =
        weights.names().map(|name| (name.to_owned(), weights.read(name).unwrap())).collect();
    let bias = tensors.get_mut("decoder.conv_in.bias").unwrap();
    *bias = HostTensor::from_f32(&bias.shape, &vec![30_000.0; bias.len()]);
    write_safetensors(&large.join(WEIGHTS), &tensors, None).unwrap();

    for (model, compute, said) in
        [(&large, "fp16", true), (&large, "bf16", false), (&large, "fp32", false), (&usual, "fp16", false)]
    {
        let config = format!(
            "[run]\nsteps = 1\ndevice = \"cpu\"\n[batch]\neffective = 2\nmicro = 1\n[model]\npretrained = \"{}\"\n\
             [data]\nresolution = 16\nimages = 20\nvalidation = 2\n[precision]\ncompute = \"{compute}\"\n",
            model.display()
        );
        fs::write(folder.path().join("model.toml"), config).unwrap();
        let name = if said { "said" } else { compute };
        let stderr = run(folder.path(), &["--config", "model.toml", "--run-dir", name]).success().stderr;
        assert_eq!(
            stderr.contains("fp16 ends at 65504: precision.compute = \"bf16\" is better here"),
            said,
            "{stderr}"
        );
    }
}

/// What a step takes for each further image, of a model that has no attention and next to no weights.
#[test]
fn half_precision_takes_two_fifths_off_the_activations() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[run]\ndevice = \"cpu\"\n[batch]\neffective = 4\nmicro = 2\n\
                  [model]\narchitecture = \"tiny\"\nchannels = [32, 64]\nres_blocks = 2\n\
                  [data]\nsource = \"shapes\"\nimages = 50\nresolution = 64\nvalidation = 0\nworkers = 0\n[ema]\ndecay = 0\n";
    fs::write(folder.path().join("model.toml"), config).unwrap();
    let arguments = ["sweep", "--config", "model.toml", "--steps", "2", "--micro", "2,4", "--recompute", "none"];
    let arguments = [&arguments[..], &["--precision", "fp32,bf16,fp16", "--json"]].concat();
    let sweep: Value = serde_json::from_str(&run(folder.path(), &arguments).success().stdout).unwrap();
    let rows = sweep["rows"].as_array().unwrap();
    let peak = |precision: &str, micro: u64| {
        let row = rows.iter().find(|row| row["precision"] == precision && row["micro"] == micro);
        row.unwrap()["peak_memory"].as_f64().unwrap()
    };
    let per_image = |precision| (peak(precision, 4) - peak(precision, 2)) / 2.0;
    for precision in ["bf16", "fp16"] {
        let share = per_image(precision) / per_image("fp32");
        println!("{precision}: {:.1} % less", 100.0 * (1.0 - share));
        assert!(share <= 0.6, "{precision}: {share}");
    }
}

/// The validation error after `from-scratch-cpu.toml` with these overrides.
fn tiny(folder: &Path, name: &str, arguments: &[&str], sets: &[&str]) -> f64 {
    let all = [&["--config", "from-scratch-cpu.toml", "--run-dir", name, "--json"], arguments].concat();
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    let all: Vec<&str> = all.into_iter().chain(sets).collect();
    let result: Value = serde_json::from_str(&run(folder, &all).success().stdout).unwrap();
    let error = result["after"]["l1"].as_f64().unwrap();
    println!("{name}: {error:.4}");
    error
}

/// From random weights a rounding leads elsewhere, so the 200 steps that are compared go on from the same checkpoint.
#[test]
#[ignore = "takes many minutes: cargo test --release -p vqgan-trainer --test program -- --ignored ends_where --nocapture"]
fn training_in_half_precision_ends_where_it_does_in_fp32() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let long = ["run.steps=400", "checkpoints.every_steps=200", "checkpoints.keep_last=2"];
    let reference = tiny(folder, "fp32", &[], &long);
    for compute in ["bf16", "fp16"] {
        let set = format!("precision.compute={compute}");
        let resume = ["--resume", "fp32/checkpoints/step-000200", "--allow", "precision"];
        let error = tiny(folder, compute, &resume, &["run.steps=400", &set]);
        assert!((error / reference - 1.0).abs() < 0.03, "{compute}: {error} against {reference}");
    }
    // What the loss scale is for: with losses this small it is the difference between learning and not.
    let small = ["losses.pixel.weight=1e-4", "losses.codebook.weight=1e-4", "optimizer.epsilon=1e-12", "run.steps=200"];
    let wide = tiny(folder, "small-fp32", &[], &small);
    let scaled = tiny(folder, "small-fp16", &[], &[&small[..], &["precision.compute=fp16"]].concat());
    let unscaled = ["precision.compute=fp16", "precision.loss_scale=1"];
    let unscaled = tiny(folder, "small-fp16-unscaled", &[], &[&small[..], &unscaled].concat());
    assert!((scaled / wide - 1.0).abs() < 0.3, "{scaled} against {wide}");
    assert!(unscaled > 1.5 * wide, "{unscaled} against {wide}");
}

#[test]
fn devices_are_listed_with_their_memory_and_precisions() {
    let folder = tempfile::tempdir().unwrap();
    let table = run(folder.path(), &["devices"]).success();
    let cpu = table.stdout.lines().find(|line| line.starts_with("cpu, ")).unwrap();
    assert!(cpu.contains(" thread") && cpu.contains("; fp32, bf16, fp16; ") && cpu.ends_with(" free"), "{cpu}");
    let json: Value = serde_json::from_str(&run(folder.path(), &["devices", "--json"]).success().stdout).unwrap();
    let devices = json["devices"].as_array().unwrap();
    assert_eq!(devices.len(), table.stdout.lines().count(), "{json}");
    let cpu = devices.iter().find(|device| device["device"] == "cpu").unwrap();
    assert_eq!(cpu["precisions"], serde_json::json!(["fp32", "bf16", "fp16"]));
    assert!(cpu["name"].as_str().unwrap().starts_with("cpu, "), "{cpu}");
    let [free, total] = ["free", "total"].map(|key| cpu["memory"][key].as_u64().unwrap());
    assert!(0 < free && free <= total, "{cpu}");
    // What is not built in says how to build it.
    for (feature, built_in) in [("cuda", cfg!(feature = "cuda")), ("wgpu", cfg!(feature = "wgpu"))] {
        let words = format!("{feature}:0: this program was built without {feature}; build it with ");
        assert_eq!(table.stderr.contains(&words), !built_in, "{}", table.stderr);
    }
}
