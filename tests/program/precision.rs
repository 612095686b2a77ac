//! Runs in half precision.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoints::{HostTensor, WeightsFile, write_safetensors};
use serde_json::Value;

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
    let (lines, stderr) = train(folder.path(), "high", &[&sets[..], &keep].concat());
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
    assert_eq!(lines[skips]["learning_rate"], lines[0]["learning_rate"]);
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
