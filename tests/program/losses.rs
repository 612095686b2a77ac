//! Runs with every loss on: what they leave behind, how they are cut, stopped and resumed, and what they refuse.

use std::collections::BTreeMap;
use std::fs;

use checkpoints::{HostTensor, LpipsNetwork, WeightsFile, write_safetensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Finished, fixture, run};
use crate::run::metrics;

/// Every loss, on the small CLIP of the fixtures and on an AlexNet with weights by formula.
const ALL: &str = r#"
[run]
steps = 3
seed = 3
device = "cpu"

[batch]
effective = 4
micro = 3

[memory]
recompute = "blocks"

[model]
architecture = "tiny"
channels = [8, 16]
attention_levels = [1]
mid_attention = true
groups = 4
latent_channels = 8
codes = 32

[data]
source = "shapes"
images = 100
resolution = 32
validation = 0

[losses.pixel]
norm = "mix"

[losses.codebook]
entropy = 0.1

[losses.perceptual]
weight = 0.5
network = "alexnet"
backbone = "alexnet.safetensors"
linear = "linear.safetensors"

[losses.adversarial]
weight = 0.5
lecam = 0.1

[losses.clip_image]
weight = 1

[losses.clip_text]
weight = 0.3

[losses.clip_contrastive]
weight = 0.5
against = ["captions", "originals"]

[losses.clip_direction]
weight = 0.2
from = "photo"
to = "sketch"

[discriminator]
channels = 8
layers = 2

[clip]
pretrained = "CLIP"
cutouts = 2

[optimizer]
learning_rate = 1e-3

[ema]
decay = 0.9

[checkpoints]
every_steps = 1
keep_last = 9
"#;

/// What a step says of each loss.
const FIGURES: [&str; 17] = [
    "loss",
    "pixel",
    "codebook",
    "entropy",
    "perceptual",
    "adversarial",
    "adaptive_weight",
    "clip_image",
    "clip_text",
    "clip_contrastive",
    "clip_direction",
    "logits_real",
    "logits_fake",
    "discriminator",
    "discriminator_grad_norm",
    "discriminator_learning_rate",
    "grad_norm",
];

/// A folder with [`ALL`] in it as `all.toml`, and the weights of its AlexNet.
pub fn all() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let clip = fixture("clip/transformers").display().to_string();
    fs::write(folder.path().join("all.toml"), ALL.replace("CLIP", &clip)).unwrap();
    let [backbone, linear] = alexnet();
    write_safetensors(&folder.path().join("alexnet.safetensors"), &backbone, None).unwrap();
    write_safetensors(&folder.path().join("linear.safetensors"), &linear, None).unwrap();
    folder
}

type Tensors = BTreeMap<String, HostTensor>;

/// AlexNet's convolutions and LPIPS's linear layers, which are never negative.
fn alexnet() -> [Tensors; 2] {
    let wave = |shape: &[usize], scale: f32| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.731).sin() * scale).collect();
        HostTensor::from_f32(shape, &values)
    };
    let network = LpipsNetwork::AlexNet;
    let mut backbone = Tensors::new();
    for (index, shape) in network.convolutions() {
        let inputs = shape[1..].iter().product::<usize>() as f32;
        backbone.insert(format!("features.{index}.weight"), wave(shape, 2.0 / inputs.sqrt()));
        backbone.insert(format!("features.{index}.bias"), wave(&shape[..1], 0.1));
    }
    let positive = |channels: usize| {
        let values: Vec<f32> = (0..channels).map(|i| 0.5 + 0.4 * (i as f32).sin()).collect();
        HostTensor::from_f32([1, channels, 1, 1], &values)
    };
    let layers = network.channels().into_iter().enumerate();
    [backbone, layers.map(|(layer, channels)| (format!("lin{layer}.model.1.weight"), positive(channels))).collect()]
}

fn arguments<'a>(name: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    ["--config", "all.toml", "--run-dir", name].into_iter().chain(sets).collect()
}

fn train(folder: &TempDir, name: &str, sets: &[&str]) -> Finished {
    run(folder.path(), &arguments(name, sets)).success()
}

/// The metrics of a run that goes to its end.
fn trained(folder: &TempDir, name: &str, sets: &[&str]) -> Vec<Value> {
    train(folder, name, sets);
    metrics(&folder.path().join(name))
}

/// The line of the error of a run that is refused.
fn refused(folder: &TempDir, code: i32, sets: &[&str]) -> String {
    run(folder.path(), &arguments("refused", sets)).error(code)
}

/// A file of a run's checkpoint.
fn tensors(folder: &TempDir, run: &str, step: u64, file: &str) -> Tensors {
    let path = folder.path().join(format!("{run}/checkpoints/step-{step:06}/{file}.safetensors"));
    let weights = WeightsFile::open(path).unwrap();
    weights.names().map(|name| (name.to_owned(), weights.read(name).unwrap())).collect()
}

fn state(folder: &TempDir, run: &str, step: u64) -> Value {
    let path = folder.path().join(format!("{run}/checkpoints/step-{step:06}/state.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names_that_differ(a: &Tensors, b: &Tensors) -> Vec<String> {
    assert!(a.keys().eq(b.keys()));
    a.iter().filter(|(name, tensor)| b[*name] != **tensor).map(|(name, _)| name.clone()).collect()
}

/// Compares figures of the same steps of two runs, those that are part of both.
fn assert_same_figures(a: &[Value], b: &[Value], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        for name in FIGURES {
            let (x, y) = (a[name].as_f64(), b[name].as_f64());
            assert_eq!(x.is_some(), y.is_some(), "{name}: {a} {b}");
            let (x, y) = (x.unwrap_or_default(), y.unwrap_or_default());
            // The norms of small gradients, and their ratio.
            let tolerance =
                if name == "adaptive_weight" || name.ends_with("norm") { 10.0 * tolerance } else { tolerance };
            assert!((x - y).abs() <= tolerance * x.abs().max(1e-3), "step {}: {name} {x} {y}", a["step"]);
        }
    }
}

#[test]
fn a_run_with_every_loss_leaves_what_it_promises_and_is_of_use() {
    let folder = all();
    train(&folder, "run", &["data.validation=4", "validation.every_steps=3", "validation.samples=3"]);
    for line in metrics(&folder.path().join("run")) {
        for name in FIGURES {
            let value = line[name].as_f64().unwrap_or_else(|| panic!("{name} is not in {line}"));
            assert!(value.is_finite() && value != 0.0, "{name}: {line}");
        }
    }
    let discriminator = |step| tensors(&folder, "run", step, "discriminator");
    assert!(names_that_differ(&discriminator(1), &discriminator(3)).len() == discriminator(3).len());
    let moments = tensors(&folder, "run", 3, "discriminator_optimizer");
    assert_eq!(moments.len(), 3 * discriminator(3).len());
    assert!(moments.keys().all(|name| name.starts_with("main.")), "{:?}", moments.keys());

    // The run's folder is a model, as that of any other run.
    let image = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([x as u8 * 6, y as u8 * 6, 90]));
    image.save(folder.path().join("mine.png")).unwrap();
    run(folder.path(), &["reconstruct", "mine.png", "--checkpoint", "run", "--output", "out"]).success();
    assert_eq!(image::image_dimensions(folder.path().join("out/mine.png")).unwrap(), (32, 32));
    let export = ["export", "--checkpoint", "run", "--format", "diffusers", "--output", "exported", "--json"];
    let exported: Value = serde_json::from_str(&run(folder.path(), &export).success().stdout).unwrap();
    let weights = WeightsFile::open(folder.path().join(exported["weights"].as_str().unwrap())).unwrap();
    assert!(weights.names().all(|name| !name.starts_with("main.")), "the discriminator is no part of the model");
}

/// But for times and memory.
fn comparable(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        for name in ["images_per_second", "data_wait", "host_buffers", "peak_memory", "memory"] {
            assert!(line.as_object_mut().unwrap().remove(name).is_some(), "{name}");
        }
    }
    lines
}

#[test]
fn a_resumed_run_with_every_loss_is_the_same_run() {
    let folder = all();
    let sets = ["losses.adversarial.lecam=0.5", "losses.adversarial.adaptive=previous-step", "run.steps=4"];
    let whole = trained(&folder, "whole", &sets);
    trained(&folder, "parts", &[&sets[..2], &["run.steps=2"]].concat());
    let resumed = run(folder.path(), &[&arguments("parts", &sets)[..], &["--resume"]].concat()).success();
    assert!(resumed.stderr.contains("step 2 of 4"), "{}", resumed.stderr);

    assert_eq!(comparable(whole), comparable(metrics(&folder.path().join("parts"))));
    for file in ["model", "ema", "optimizer", "discriminator", "discriminator_optimizer"] {
        let [whole, parts] = ["whole", "parts"].map(|run| tensors(&folder, run, 4, file));
        assert_eq!(names_that_differ(&whole, &parts), [""; 0], "{file}");
    }
    let [whole, parts] = ["whole", "parts"].map(|run| state(&folder, run, 4)["adversarial"].clone());
    assert!(whole["balance"].is_f64() && whole["lecam"]["real"] != 0.0, "{whole}");
    assert_eq!(whole, parts);
}

/// The norm of the difference of two models over that of what training has changed.
fn deviation(a: &Tensors, b: &Tensors, start: &Tensors) -> f64 {
    let square = |a: &Tensors, b: &Tensors| -> f64 {
        let of = |(name, a): (&String, &HostTensor)| -> f64 {
            let pairs = a.to_f32().into_iter().zip(b[name].to_f32());
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        a.iter().map(of).sum()
    };
    (square(a, b) / square(a, start)).sqrt()
}

#[test]
fn the_split_of_batch_and_cutouts_does_not_change_a_run_with_every_loss() {
    let folder = all();
    // At Adam's usual epsilon it makes as large a step of a gradient that is only rounding as of any other.
    let common = ["batch.effective=6", "optimizer.epsilon=1e-4"];
    let cut = |name: &str, sets: &[&str]| trained(&folder, name, &[&common, sets].concat());
    let whole = cut("whole", &["batch.micro=6", "clip.cutouts_at_once=0"]);
    let start = tensors(&folder, "whole", 1, "model");
    for (micro, at_once, recompute) in [(6, 1, "blocks"), (4, 1, "blocks"), (1, 0, "blocks"), (6, 0, "none")] {
        let name = format!("{micro}-{at_once}-{recompute}");
        let sets = [
            format!("batch.micro={micro}"),
            format!("clip.cutouts_at_once={at_once}"),
            format!("memory.recompute={recompute}"),
        ];
        let lines = cut(&name, &sets.each_ref().map(String::as_str));
        assert_same_figures(&whole, &lines, 1e-4);
        for file in ["model", "discriminator"] {
            let [a, b] = ["whole", &name].map(|run| tensors(&folder, run, 3, file));
            let start = if file == "model" { &start } else { &tensors(&folder, "whole", 1, file) };
            let deviation = deviation(&a, &b, start);
            println!("{name}: {file} {deviation:.1e}");
            let limit = if recompute == "none" { 1e-2 } else { 1e-3 };
            assert!(deviation < limit, "{name}: {file} {deviation}");
        }
    }
}

#[test]
fn losses_that_start_later_start_then() {
    let folder = all();
    // With seed 3 LPIPS of two cuts parts by 2e-5 in the third step, which the adaptive weight multiplies.
    let late = ["run.seed=5", "losses.adversarial.start=2", "losses.clip_contrastive.start=2", "run.steps=4"];
    let late = |name: &str, sets: &[&str]| trained(&folder, name, &[&late, sets].concat());
    let lines = late("late", &["losses.codebook.entropy=0"]);
    let names = ["adversarial", "adaptive_weight", "logits_real", "logits_fake", "discriminator", "clip_contrastive"];
    for name in names.into_iter().chain(["discriminator_grad_norm", "discriminator_learning_rate"]) {
        let has: Vec<bool> = lines.iter().map(|line| line[name].is_number()).collect();
        assert_eq!(has, [false, false, true, true], "{name}");
    }
    let discriminator = |step| tensors(&folder, "late", step, "discriminator");
    assert_eq!(discriminator(1), discriminator(2), "it has not learnt yet");
    assert_ne!(discriminator(2), discriminator(3));

    assert_same_figures(&lines, &late("cut", &["losses.codebook.entropy=0", "batch.micro=2"]), 1e-4);
    // An entropy too small to be felt has the first pass go over every step's samples, so that it is never out of step.
    let mut coupled = late("coupled", &["losses.codebook.entropy=1e-30"]);
    for line in &mut coupled {
        assert!(line.as_object_mut().unwrap().remove("entropy").is_some());
    }
    assert_same_figures(&lines, &coupled, 1e-6);
}

#[test]
fn what_is_frozen_stays_as_it_is_under_every_loss() {
    let folder = all();
    train(&folder, "decoder", &["model.train=[\"decoder\"]"]);
    for file in ["model", "ema"] {
        let [first, last] = [1, 3].map(|step| tensors(&folder, "decoder", step, file));
        let changed = names_that_differ(&first, &last);
        assert!(changed.iter().all(|name| name.starts_with("decoder.")), "{file}: {changed:?}");
        let decoder = first.keys().filter(|name| name.starts_with("decoder.")).count();
        assert_eq!(changed.len(), decoder, "{file}: {changed:?}");
        assert!(first.keys().any(|name| name == "quantize.embedding.weight"), "{:?}", first.keys());
    }
    let moments = tensors(&folder, "decoder", 3, "optimizer");
    assert!(moments.keys().all(|name| name.starts_with("decoder.")), "{:?}", moments.keys());
    assert!(moments.contains_key("decoder.conv_out.weight.moment_1"));
}

#[test]
fn a_codebook_or_a_layer_learns_alone() {
    let folder = all();
    for (run, pattern, learns) in [
        ("codebook", "model.train=[\"quantize\"]", &["quantize.embedding.weight"][..]),
        ("last", "model.train=[\"decoder.conv_out\"]", &["decoder.conv_out.bias", "decoder.conv_out.weight"]),
        ("first", "model.train=[\"encoder.conv_in\"]", &["encoder.conv_in.bias", "encoder.conv_in.weight"]),
        ("between", "model.train=[\"post_quant_conv\"]", &["post_quant_conv.bias", "post_quant_conv.weight"]),
    ] {
        train(&folder, run, &[pattern]);
        assert_eq!(names_that_differ(&tensors(&folder, run, 1, "model"), &tensors(&folder, run, 3, "model")), learns);
    }
}

/// Those that a run has for its losses. In half precision they say nearly the same of the same images.
#[test]
fn validations_measure_with_the_networks_of_losses() {
    let folder = all();
    let sets = ["data.validation=4", "run.steps=2", "validation.every_steps=1", "checkpoints.best=lpips"];
    let scores = |name: &str, precision: &str| -> Vec<[f64; 3]> {
        train(&folder, name, &[&sets[..], &[precision]].concat());
        let lines = fs::read_to_string(folder.path().join(name).join("validation.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| ["lpips", "clip", "ssim"].map(|key| line[key].as_f64().unwrap())).collect()
    };
    let (whole, half) = (scores("whole", "precision.frozen=fp32"), scores("half", "precision.frozen=fp16"));
    assert_eq!((whole.len(), half.len()), (3, 3));
    assert!(whole.iter().all(|[lpips, clip, _]| *lpips > 0.0 && (-1.0..1.0).contains(clip)), "{whole:?}");
    // Nothing is reconstructed twice alike while the model learns.
    assert!(whole[0] != whole[1] && whole[1] != whole[2], "{whole:?}");
    for (whole, half) in whole[0].iter().zip(half[0]) {
        assert!((whole - half).abs() <= 0.01 * whole.abs() + 1e-3, "{whole} {half}");
    }
    // With all in half precision, other codes are chosen here and there.
    assert_eq!(scores("all", "precision.compute=fp16").len(), 3);
    let best = fs::read_to_string(folder.path().join("whole/checkpoints/best")).unwrap();
    let least = (0..3).min_by(|a, b| whole[*a][0].total_cmp(&whole[*b][0])).unwrap();
    assert_eq!(best.trim(), format!("step-{least:06}"));
}

#[test]
fn an_image_without_the_caption_that_a_loss_needs_is_named() {
    let folder = all();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    for name in ["a", "b"] {
        image::RgbImage::new(40, 40).save(images.join(format!("{name}.png"))).unwrap();
    }
    fs::write(images.join("a.txt"), "a cat\n").unwrap();
    let source = ["data.source=folder", "data.path=images", "batch.effective=2", "batch.micro=1"];
    let error = refused(&folder, 1, &source);
    assert!(error.contains("images/b.png has no caption, which losses.clip_text needs"), "{error}");
    let prompts = [&source[..], &["losses.clip_text.prompts=[\"a cat\"]"]].concat();
    let error = refused(&folder, 1, &prompts);
    assert!(error.contains("images/b.png has no caption, which losses.clip_contrastive needs"), "{error}");
    train(&folder, "run", &[&prompts[..], &["losses.clip_contrastive.against=[\"originals\"]"]].concat());
}

#[test]
fn no_such_clip() {
    let folder = all();
    let error = refused(&folder, 1, &["clip.pretrained=no/such/clip"]);
    assert_eq!(error, "error: `clip.pretrained`: there is no no/such/clip");
}

#[test]
fn a_clip_that_contradicts_itself() {
    let folder = all();
    let (source, copy) = (fixture("clip/transformers"), folder.path().join("clip"));
    fs::create_dir(&copy).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(source.join(file), copy.join(file)).unwrap();
    }
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    fs::write(copy.join("config.json"), config.replace("\"image_size\": 32", "\"image_size\": 64")).unwrap();
    let error = refused(&folder, 1, &["clip.pretrained=clip"]);
    assert!(
        error.starts_with("error: `clip.pretrained`: ") && error.contains("image_size 64 / patch_size 8 gives 8x8"),
        "{error}"
    );

    fs::write(copy.join("config.json"), config).unwrap();
    fs::remove_file(copy.join("tokenizer.json")).unwrap();
    let error = refused(&folder, 2, &["clip.pretrained=clip"]);
    assert!(error.starts_with("error: `clip.tokenizer` is not set"), "{error}");
    // Nothing is read by a loss that sees no text.
    let without_texts = ["text", "direction", "contrastive"].map(|loss| format!("losses.clip_{loss}.weight=0"));
    train(&folder, "run", &[&["clip.pretrained=clip"], &without_texts.each_ref().map(String::as_str)[..]].concat());
}

#[test]
fn a_malformed_prompt_is_pointed_at() {
    let folder = all();
    let text = fs::read_to_string(folder.path().join("all.toml")).unwrap();
    let text = text.replace("[losses.clip_text]\n", "[losses.clip_text]\nprompts = [\"a cat\", \"a photo:0.5x\"]\n");
    fs::write(folder.path().join("all.toml"), &text).unwrap();
    let line = text.lines().position(|line| line.starts_with("prompts")).unwrap() + 1;
    let error = refused(&folder, 2, &[]);
    let place = format!("error: all.toml:{line}: `losses.clip_text.prompts` is wrong: prompt `a photo:0.5x`: ");
    assert!(error.starts_with(&place) && error.contains("the weight `0.5x` is not a finite number"), "{error}");
    let error = refused(&folder, 2, &["losses.clip_text.prompts=[\"a cat:0\"]"]);
    assert!(
        error.starts_with("error: --set losses.clip_text.prompts=") && error.contains("has the weight 0"),
        "{error}"
    );
    assert!(!folder.path().join("refused").exists());
}

#[test]
fn a_prompt_that_clip_cannot_read_to_its_end() {
    let folder = all();
    let long = format!("losses.clip_text.prompts=[\"{}\", \"a cat:-0.5\"]", "a photo ".repeat(50).trim());
    let finished = train(&folder, "run", &[&long, "losses.clip_contrastive.against=[\"originals\"]"]);
    let said = finished.stderr.lines().filter(|line| line.contains("longer than the 16 tokens of CLIP")).count();
    assert_eq!(said, 1, "{}", finished.stderr);
}

#[test]
fn captions_that_clip_cannot_read_to_their_end() {
    let folder = all();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    for name in ["a", "b", "c", "d"] {
        image::RgbImage::new(40, 40).save(images.join(format!("{name}.png"))).unwrap();
        fs::write(images.join(format!("{name}.txt")), format!("{name} {}\n", "photo ".repeat(50))).unwrap();
    }
    let finished = train(&folder, "run", &["data.source=folder", "data.path=images"]);
    let said = finished.stderr.lines().filter(|line| line.contains("CLIP does not see the end of captions"));
    let said: Vec<&str> = said.collect();
    assert!(said.len() == 1 && said[0].contains(" photo photo"), "{}", finished.stderr);
}

#[test]
fn nothing_to_train_for_of_all_there_is() {
    let folder = all();
    let losses = ["pixel", "codebook", "perceptual", "adversarial"];
    let losses = losses.into_iter().chain(["clip_image", "clip_text", "clip_contrastive", "clip_direction"]);
    let mut sets: Vec<String> = losses.map(|loss| format!("losses.{loss}.weight=0")).collect();
    sets.push("losses.adversarial.lecam=0".into());
    let error = refused(&folder, 2, &sets.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("`losses.pixel.weight` is 0") && error.contains("nothing to train for"), "{error}");
}

#[test]
fn a_backbone_that_lacks_a_tensor() {
    let folder = all();
    let [mut backbone, _] = alexnet();
    backbone.remove("features.8.bias").unwrap();
    write_safetensors(&folder.path().join("alexnet.safetensors"), &backbone, None).unwrap();
    let error = refused(&folder, 1, &[]);
    assert!(error.starts_with("error: `losses.perceptual.backbone`: "), "{error}");
    assert!(error.contains("alexnet.safetensors") && error.contains("features.8.bias"), "{error}");

    let error = refused(&folder, 1, &["losses.perceptual.backbone=linear.safetensors"]);
    assert!(error.contains("linear.safetensors") && error.contains("no convolutions of AlexNet"), "{error}");
}

/// Nothing but the file of linear layers is at fault, so nothing but its key is named.
#[test]
fn linear_layers_that_are_none() {
    let folder = all();
    let error = refused(&folder, 1, &["losses.perceptual.linear=alexnet.safetensors"]);
    assert!(error.contains("alexnet.safetensors") && error.contains("no linear layers"), "{error}");
    let missing = refused(&folder, 1, &["losses.perceptual.linear=nowhere.pth"]);
    assert_eq!(missing, "error: `losses.perceptual.linear`: there is no nowhere.pth");
}

/// The reference follows from the list of losses.
#[test]
fn keys_of_losses_are_documented_by_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run(folder.path(), &["config", "--reference", "losses.charbonnier", "--json"]).success().stdout;
    let json: Value = serde_json::from_str(&printed).unwrap();
    let keys: Vec<&str> = json["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["weight", "start", "ramp", "epsilon"].map(|key| format!("losses.charbonnier.{key}")));
    assert_eq!(json["keys"][3]["default"], 1e-3);
    let error = run(folder.path(), &["config", "--reference", "losses.charbonier"]).error(2);
    assert!(error.contains("`losses.charbonnier`"), "{error}");
}
