//! What goes wrong for users, each with one clear line and the right exit code.

use std::fs;
use std::path::Path;

use crate::command::{command, finished, fixture, run, small};

/// Runs the small configuration with these overrides and returns the error's line.
fn error(folder: &Path, code: i32, overrides: &[&str]) -> String {
    let mut arguments = vec!["--config", "small.toml"];
    for set in overrides {
        arguments.extend(["--set", set]);
    }
    run(folder, &arguments).error(code)
}

#[test]
fn a_misspelt_key() {
    let folder = small();
    fs::write(folder.path().join("small.toml"), "[run]\nsteps = 1\n\n[batch]\nmirco = 2\n").unwrap();
    let error = error(folder.path(), 2, &[]);
    assert!(error.starts_with("error: small.toml:5: unknown key `mirco`, did you mean `micro`?"), "{error}");
}

#[test]
fn micro_batch_of_nothing() {
    let folder = small();
    let text = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    fs::write(folder.path().join("small.toml"), text.replace("micro = 3", "micro = 0")).unwrap();
    let error = error(folder.path(), 2, &[]);
    assert_eq!(error, "error: small.toml:9: `batch.micro` is 0, must be at least 1");
}

/// Appends `table` to the small configuration, and returns the line of the file that it begins at.
fn append(folder: &Path, table: &str) -> usize {
    let text = fs::read_to_string(folder.join("small.toml")).unwrap();
    fs::write(folder.join("small.toml"), format!("{text}{table}")).unwrap();
    text.lines().count() + 1
}

#[test]
fn nothing_to_train_for() {
    let folder = small();
    let line = append(folder.path(), "[losses.codebook]\nweight = 0\n[losses.pixel]\nweight = 0\n");
    let error = error(folder.path(), 2, &[]);
    let place = format!("error: small.toml:{}: `losses.pixel.weight` is 0", line + 3);
    assert!(error.starts_with(&place) && error.contains("nothing to train for"), "{error}");
}

#[test]
fn a_decoder_that_no_loss_reaches() {
    let folder = small();
    let line = append(folder.path(), "[losses.pixel]\nweight = 0\n");
    let error = error(folder.path(), 2, &[]);
    let place = format!("error: small.toml:{}: `losses.pixel.weight` is 0", line + 1);
    assert!(error.starts_with(&place) && error.contains("does not reach the decoder"), "{error}");
}

#[test]
fn parameters_that_the_model_does_not_have() {
    let folder = small();
    let text = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    let text = text.replace("[model]\n", "[model]\ntrain = [\"decoder.up\", \"quantise\"]\n");
    fs::write(folder.path().join("small.toml"), text).unwrap();
    let error = error(folder.path(), 2, &[]);
    assert!(error.starts_with("error: small.toml:12: `model.train` is wrong"), "{error}");
    assert!(error.contains("\"quantise\" matches nothing, did you mean \"quantize\"?"), "{error}");
}

#[test]
fn a_loss_of_clip_that_cannot_be() {
    let folder = small();
    let line = append(folder.path(), "[clip]\naffine = 1.5\n[losses.clip_direction]\nweight = 1\nfrom = \"photo\"\n");
    let error = |overrides| error(folder.path(), 2, overrides);
    let place = format!("error: small.toml:{}: `losses.clip_direction.to` is missing", line + 2);
    assert!(error(&[]).starts_with(&place), "{}", error(&[]));
    let same = error(&["losses.clip_direction.to=photo"]);
    let place = "error: --set losses.clip_direction.to=photo: `losses.clip_direction.to` is the same text";
    assert!(same.starts_with(place), "{same}");
    let probability = error(&["losses.clip_direction.to=sketch"]);
    assert_eq!(probability, format!("error: small.toml:{}: `clip.affine` is 1.5, must lie in 0 to 1", line + 1));
}

#[test]
fn a_discriminator_that_leaves_nothing_of_the_images() {
    let folder = small();
    let line =
        append(folder.path(), "[losses.adversarial]\nweight = 0.8\nkind = \"hinj\"\n[discriminator]\nlayers = 3\n");
    let misspelt = error(folder.path(), 2, &[]);
    let place = format!("error: small.toml:{}: unknown value `hinj`, did you mean `hinge`?", line + 2);
    assert!(misspelt.starts_with(&place), "{misspelt}");
    let text = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    fs::write(folder.path().join("small.toml"), text.replace("hinj", "hinge")).unwrap();
    let small = error(folder.path(), 2, &[]);
    let place =
        format!("error: small.toml:{}: `discriminator.layers` is 3, too many for data.resolution = 16", line + 4);
    assert!(small.starts_with(&place) && small.contains("24 or more"), "{small}");
}

#[test]
fn a_resolution_that_the_model_cannot_divide() {
    let folder = small();
    let error = error(folder.path(), 2, &["data.resolution=17"]);
    assert!(error.contains("--set data.resolution=17: `data.resolution` is 17, must be a multiple of 2"), "{error}");
    assert!(error.contains("16 or 18"), "{error}");
}

#[test]
fn no_such_configuration() {
    let folder = small();
    let error = run(folder.path(), &["--config", "tiny-gpu"]).error(2);
    assert!(error.contains("no configuration `tiny-gpu`") && error.contains("tiny-cpu.toml"), "{error}");
}

#[test]
fn no_such_device() {
    let folder = small();
    let error = run(folder.path(), &["--config", "small.toml", "--device", "rocm:0"]);
    assert_eq!(error.code, 2);
    assert!(error.stderr.contains("must be auto, cpu, cuda:N"), "{}", error.stderr);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_built_in() {
    let folder = small();
    let error = run(folder.path(), &["--config", "small.toml", "--device", "cuda:0"]).error(2);
    assert!(error.contains("cargo build --release --features cuda"), "{error}");
}

#[test]
fn a_missing_folder_of_images() {
    let folder = small();
    let error = error(folder.path(), 1, &["data.source=folder", "data.path=no/such/place"]);
    assert!(error.contains("no/such/place"), "{error}");
}

#[test]
fn a_folder_without_images() {
    let folder = small();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::write(folder.path().join("empty/readme.txt"), "none").unwrap();
    let error = error(folder.path(), 1, &["data.source=folder", "data.path=empty"]);
    assert!(error.contains("empty"), "{error}");
}

#[test]
fn a_folder_source_without_a_folder() {
    let folder = small();
    let error = error(folder.path(), 2, &["data.source=folder"]);
    assert!(error.contains("`data.path` is missing"), "{error}");
}

/// Writes eight sound images and `bad` broken ones.
fn images(folder: &Path, bad: usize) {
    let images = folder.join("images");
    fs::create_dir(&images).unwrap();
    for index in 0..8_u8 {
        let image = image::RgbImage::from_fn(24, 20, |x, y| image::Rgb([index * 30, x as u8 * 10, y as u8 * 12]));
        image.save(images.join(format!("sound-{index}.jpg"))).unwrap();
    }
    for index in 0..bad {
        let sound = fs::read(images.join("sound-0.jpg")).unwrap();
        fs::write(images.join(format!("broken-{index}.jpg")), &sound[..sound.len() / 2]).unwrap();
    }
}

#[test]
fn a_truncated_image_is_named_once_and_skipped() {
    let folder = small();
    images(folder.path(), 1);
    let sets = ["data.source=folder", "data.path=images", "data.validation=0", "run.steps=12", "data.resolution=8"];
    let arguments = sets.iter().flat_map(|set| ["--set", *set]);
    let arguments: Vec<&str> = ["--config", "small.toml"].into_iter().chain(arguments).collect();
    let finished = run(folder.path(), &arguments).success();
    let named = finished.stderr.lines().filter(|line| line.contains("broken-0.jpg")).count();
    assert_eq!(named, 1, "{}", finished.stderr);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_skipped_a_second_name_does_not_count_and_captions_that_nobody_needs_are_not_read() {
    let folder = small();
    images(folder.path(), 0);
    let images = folder.path().join("images");
    assert!(std::process::Command::new("mkfifo").arg(images.join("pipe.jpg")).status().unwrap().success());
    fs::hard_link(images.join("sound-0.jpg"), images.join("again.jpg")).unwrap();
    fs::write(images.join("metadata.jsonl"), "{").unwrap();
    let sets = ["data.source=folder", "data.path=images", "data.validation=3", "run.steps=12", "data.resolution=8"];
    let arguments = sets.iter().flat_map(|set| ["--set", *set]);
    let arguments: Vec<&str> = ["--config", "small.toml"].into_iter().chain(arguments).collect();
    let stderr = run(folder.path(), &arguments).success().stderr;
    let lines = |text: &str| stderr.lines().filter(|line| line.contains(text)).count();
    assert_eq!([lines("pipe.jpg"), lines("1 more names"), lines("`data.validation` is 3")], [1; 3], "{stderr}");
    let named = run(folder.path(), &["reconstruct", "images/pipe.jpg", "--checkpoint", "runs/small"]).error(1);
    assert!(named.contains("pipe.jpg"), "{named}");
}

#[test]
fn too_many_broken_images_end_the_run() {
    let folder = small();
    images(folder.path(), 6);
    let sets = ["data.source=folder", "data.path=images", "data.validation=0", "data.max_bad=2", "run.steps=40"];
    let error = error(folder.path(), 1, &sets);
    assert!(error.contains("broken-") && error.contains('2'), "{error}");
}

#[test]
fn a_text_file_that_calls_itself_a_checkpoint() {
    let folder = small();
    fs::write(folder.path().join("model.ckpt"), "this is no model\n").unwrap();
    let error = pretrained(folder.path(), "model.ckpt");
    assert!(error.contains("model.ckpt"), "{error}");
}

/// The small configuration without its architecture, with a pretrained model.
fn pretrained(folder: &Path, model: &str) -> String {
    let text = format!("[run]\nsteps = 1\n\n[model]\npretrained = \"{model}\"\n\n[data]\nresolution = 16\n");
    fs::write(folder.join("pretrained.toml"), text).unwrap();
    run(folder, &["--config", "pretrained.toml"]).error(1)
}

#[test]
fn no_such_pretrained_model() {
    let folder = small();
    let error = pretrained(folder.path(), "no-such-model.ckpt");
    assert!(error.contains("no-such-model.ckpt"), "{error}");
    let error = pretrained(folder.path(), "hf://nobody/nothing");
    assert!(error.contains("nobody/nothing"), "{error}");
}

#[test]
fn a_model_that_is_no_vqgan() {
    let folder = small();
    let kinds = fixture("kinds/kinds.safetensors").display().to_string();
    let error = pretrained(folder.path(), &kinds);
    assert!(error.contains("kinds.safetensors"), "{error}");
}

#[test]
fn a_pretrained_model_beside_an_architecture() {
    let folder = small();
    let missing = error(folder.path(), 1, &["model.pretrained=model.ckpt"]);
    assert!(missing.contains("model.ckpt"), "{missing}");
    let beside = error(folder.path(), 2, &["model.pretrained=model.ckpt", "model.codes=64"]);
    assert!(beside.contains("`model.codes` cannot be set beside model.pretrained"), "{beside}");
}

#[test]
fn a_run_folder_that_cannot_be_written() {
    let folder = small();
    fs::write(folder.path().join("file"), "not a folder").unwrap();
    let error = run(folder.path(), &["--config", "small.toml", "--run-dir", "file/run"]).error(1);
    assert!(error.contains("file/run"), "{error}");
}

/// A file system that takes no file over 32 KiB stands in for a full one: the checkpoint does not fit.
#[cfg(unix)]
#[test]
fn a_full_disk() {
    let folder = small();
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
    let mut command = command(folder.path(), &["--config", "small.toml"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", limited, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.current_dir(folder.path());
    let error = finished(shell.output().unwrap()).error(1);
    assert!(error.contains("step-000002") && error.contains("File too large"), "{error}");
    // What came before stays, and the run goes on from nothing once there is room.
    assert!(folder.path().join("runs/small/samples/step-000000.png").is_file());
    finished(command.output().unwrap()).success();
}

#[test]
fn a_run_that_leaves_the_numbers() {
    let folder = small();
    let sets = ["optimizer.learning_rate=1e38", "optimizer.clip_norm=0", "run.steps=20", "precision.max_skips=2"];
    let error = error(folder.path(), 1, &[&sets[..], &["checkpoints.every_steps=0"]].concat());
    let said = "3 steps in a row, up to step 4, were skipped because of values that are not finite";
    assert!(error.contains(said) && error.contains("there is no checkpoint yet"), "{error}");
}

#[test]
fn a_run_folder_that_is_taken() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml"]).success();
    let error = run(folder.path(), &["--config", "small.toml"]).error(2);
    assert!(error.contains("already holds a run") && error.contains("--resume"), "{error}");
}
