//! `train evaluate`: how well models reconstruct images.

use std::fs;
use std::io::Write;
use std::path::Path;

use checkpoints::{HostTensor, write_npz, write_safetensors};
use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::command::{command, fixture, run, small};
use crate::hub::{by_hub, everything, write_images};
use crate::stand_in_hub::Hub;

/// Evaluates on the CPU, and returns what `--json` prints.
fn evaluate(folder: &Path, arguments: &[&str]) -> Value {
    let arguments = [&["evaluate", "--device", "cpu", "--json"], arguments].concat();
    serde_json::from_str(&run(folder, &arguments).success().stdout).unwrap()
}

const SHIPPED: [&str; 6] = ["--checkpoint", "vqgan-shapes", "--data", "shapes", "--clip", "clip-shapes"];

fn number(of: &Value, key: &str) -> f64 {
    of[key].as_f64().unwrap_or_else(|| panic!("{key}: {of}"))
}

/// Holds two results of one checkpoint to the same figures, up to rounding.
fn assert_same(a: &Value, b: &Value, within: f64) {
    let metrics = ["l1", "psnr", "ssim", "clip", "caption", "right_caption", "cmmd", "codes_used", "perplexity"];
    for key in metrics {
        let [a, b] = [a, b].map(|of| number(of, key));
        assert!((a - b).abs() <= within * a.abs(), "{key}: {a} {b}");
    }
    for list in ["worst", "best"] {
        assert_eq!(a[list].as_array().unwrap().len(), b[list].as_array().unwrap().len());
        assert_eq!(a[list][0]["image"], b[list][0]["image"]);
    }
}

#[test]
fn the_shipped_models_are_evaluated_without_any_file() {
    let folder = tempfile::tempdir().unwrap();
    let few = [&SHIPPED[..], &["--images", "70", "--samples", "3"]].concat();
    let result = evaluate(folder.path(), &few);
    let shipped = &result["checkpoints"][0];
    assert_eq!((&shipped["images"], &shipped["checkpoint"]), (&70.into(), &"vqgan-shapes".into()));
    assert!((13.0..22.0).contains(&number(shipped, "psnr")), "{shipped}");
    assert!((0.1..1.0).contains(&number(shipped, "right_caption")), "{shipped}");
    assert!((0.001..10.0).contains(&number(shipped, "cmmd")), "{shipped}");
    assert!(shipped["lpips"].is_null());
    assert_eq!((&result["protocol"]["images"], &result["protocol"]["resolution"]), (&70.into(), &64.into()));
    for kind in ["worst", "best"] {
        let grid = image::open(folder.path().join(shipped["grids"][kind].as_str().unwrap())).unwrap();
        assert_eq!((grid.width(), grid.height()), (3 * 64 + 4, 2 * 64 + 2));
    }
    let [worst, best] = ["worst", "best"].map(|list| number(&shipped[list][0], "value"));
    assert!(worst < number(shipped, "psnr") && number(shipped, "psnr") < best, "{worst} {best}");
    let written: Value =
        serde_json::from_slice(&fs::read(folder.path().join("evaluation/evaluation.json")).unwrap()).unwrap();
    assert_eq!(written, result);
    assert!(!folder.path().join("evaluation/progress").exists());
    // The micro-batch, and how much of it is in memory, change nothing.
    let micro = evaluate(folder.path(), &[&few[..], &["--micro", "33"]].concat());
    assert_same(shipped, &micro["checkpoints"][0], 1e-5);
}

#[test]
fn several_checkpoints_of_every_kind_have_a_column_each() {
    let folder = small();
    run(folder.path(), &["--config", "small.toml", "--set", "run.steps=1"]).success();
    let images = folder.path().join("images");
    write_images(&images, 5);
    fs::write(images.join("broken.png"), "no image").unwrap();
    let file = fixture("taming/model.ckpt").display().to_string();
    let arguments = ["evaluate", "--device", "cpu", "--data", "images", "--resolution", "64"];
    let checkpoints = ["--checkpoint", "runs/small", "--checkpoint", &file];
    let finished = run(folder.path(), &[&arguments[..], &checkpoints].concat()).success();
    assert!(finished.stderr.contains("broken.png"), "{}", finished.stderr);
    let header = finished.stdout.lines().next().unwrap();
    assert!(header.starts_with("5 images") && header.contains("runs/small") && header.contains(&file), "{header}");
    for grid in ["1-worst.png", "1-best.png", "2-worst.png", "2-best.png"] {
        assert!(folder.path().join("evaluation").join(grid).is_file(), "{grid}");
    }
    // Not every image has a caption, and then CLIP measures the rest.
    fs::write(images.join("0.txt"), "a red circle").unwrap();
    let result = evaluate(folder.path(), &[&arguments[3..], &checkpoints, &["--clip", "clip-shapes"]].concat());
    for checkpoint in result["checkpoints"].as_array().unwrap() {
        assert!(checkpoint["clip"].is_f64() && checkpoint["cmmd"].is_f64() && checkpoint["caption"].is_null());
    }
    fs::write(images.join("broken.txt"), "a broken one").unwrap();
    (1..5).for_each(|index| fs::write(images.join(format!("{index}.txt")), format!("{index} squares")).unwrap());
    let result = evaluate(folder.path(), &[&arguments[3..], &checkpoints, &["--clip", "clip-shapes"]].concat());
    assert!(result["checkpoints"][1]["right_caption"].is_f64(), "{result}");
}

#[test]
fn models_and_lpips_come_from_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new(everything(folder.path()));
    write_images(&folder.path().join("images"), 3);
    let arguments = ["evaluate", "--checkpoint", "hf://boris/vqgan_f16_16384", "--data", "images", "--lpips", "vgg16"];
    let arguments = [&arguments[..], &["--resolution", "64", "--device", "cpu", "--json"]].concat();
    let finished = crate::command::finished(by_hub(command(folder.path(), &arguments), &hub).output().unwrap());
    let result: Value = serde_json::from_str(&finished.success().stdout).unwrap();
    let evaluated = &result["checkpoints"][0];
    assert!(number(evaluated, "lpips") > 0.0);
    assert_eq!(evaluated["ranked_by"], "lpips");
    assert_eq!(result["protocol"]["lpips"], "0.1 on VGG16");
    // Of 3 images the worst is the last of the best.
    assert_eq!(evaluated["worst"][0], evaluated["best"][2]);
}

#[cfg(unix)]
#[test]
fn what_was_killed_goes_on_where_it_was() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let folder = tempfile::tempdir().unwrap();
    let many = [&SHIPPED[..], &["--images", "400", "--micro", "4", "--device", "cpu", "--json", "--output"]].concat();
    let whole = [&["evaluate"], &many[..], &["whole"]].concat();
    let whole: Value = serde_json::from_str(&run(folder.path(), &whole).success().stdout).unwrap();
    let interrupted = [&["evaluate"], &many[..], &["killed", "--save-every", "0s"]].concat();
    let state = folder.path().join("killed/progress/progress.json");
    let next = || {
        let state: Value = serde_json::from_slice(&fs::read(&state).ok()?).ok()?;
        state["now"][1]["next"].as_u64()
    };
    let mut first = command(folder.path(), &interrupted);
    let mut child = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while next().unwrap_or(0) < 40 && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((40..400).contains(&next().unwrap()), "{:?}", next());
    let resumed = run(folder.path(), &interrupted).success();
    assert!(resumed.stderr.contains("are done already"), "{}", resumed.stderr);
    let resumed: Value = serde_json::from_str(&resumed.stdout).unwrap();
    assert_same(&whole["checkpoints"][0], &resumed["checkpoints"][0], 1e-12);
    assert_eq!(whole["checkpoints"][0]["worst"], resumed["checkpoints"][0]["worst"]);
}

#[test]
fn memory_stays_within_the_limit_or_the_error_says_what_one_image_takes() {
    let folder = tempfile::tempdir().unwrap();
    let limited = |limit: &'static str| {
        let arguments = ["evaluate", "--device", "cpu", "--images", "12", "--limit", limit, "--json"];
        run(folder.path(), &[&arguments[..], &SHIPPED].concat())
    };
    let error = limited("1MiB").error(1);
    assert!(error.contains("--limit is 1.00 MiB"), "{error}");
    limited("1GiB").success();
}

#[test]
fn what_cannot_be_evaluated_is_said_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::create_dir(folder.path().join("images")).unwrap();
    RgbImage::from_pixel(64, 64, Rgb([1, 2, 3])).save(folder.path().join("images/a.png")).unwrap();
    let error = |code: i32, arguments: &[&str]| {
        run(folder.path(), &[&["evaluate", "--device", "cpu", "--checkpoint"], arguments].concat()).error(code)
    };
    let none = error(1, &["runs/none", "--data", "images"]);
    assert!(none.contains("runs/none"), "{none}");
    let odd = error(2, &["vqgan-shapes", "--data", "images", "--resolution", "60"]);
    assert!(odd.contains("multiple of"), "{odd}");
    let nowhere = error(1, &["vqgan-shapes", "--data", "nowhere"]);
    assert!(nowhere.contains("nowhere"), "{nowhere}");
    let empty = error(1, &["vqgan-shapes", "--data", "empty"]);
    assert!(empty.contains("no images"), "{empty}");
    let clip = error(1, &["vqgan-shapes", "--data", "images", "--clip", "no-clip"]);
    assert!(clip.contains("no-clip"), "{clip}");
    let alexnet = error(2, &["vqgan-shapes", "--data", "images", "--lpips", "alexnet"]);
    assert!(alexnet.contains("alexnet"), "{alexnet}");
    fs::write(folder.path().join("images/a.png"), "broken").unwrap();
    let broken = error(1, &["vqgan-shapes", "--data", "images"]);
    assert!(broken.contains("none of the 1 images"), "{broken}");
}

/// InceptionV3 as torch-fidelity and pytorch-fid load it, with random weights.
fn write_inception(path: &Path) {
    let names = fs::read(fixture("inception/names.json")).unwrap();
    let names: std::collections::BTreeMap<String, Vec<usize>> = serde_json::from_slice(&names).unwrap();
    let mut random = 0x9e37_79b9_u32;
    let mut below_one = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let fan_in = shape.iter().skip(1).product::<usize>() as f32;
        let (scale, shift) = match name.rsplit('.').next().unwrap() {
            "weight" if shape.len() > 1 => ((6.0 / fan_in).sqrt(), 0.0),
            "weight" | "running_var" => (0.2, 1.0),
            _ => (0.1, 0.0),
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| shift + scale * below_one()).collect();
        (name, HostTensor::from_f32(shape, &values).to_f16())
    };
    write_safetensors(path, &names.into_iter().map(tensor).collect(), None).unwrap();
}

#[test]
fn rfid_and_inception_score_come_with_the_network_of_fid() {
    let folder = tempfile::tempdir().unwrap();
    write_inception(&folder.path().join("inception.safetensors"));
    let by_inception = |more: &[&str]| {
        let arguments = ["--checkpoint", "vqgan-shapes", "--data", "shapes", "--images", "4", "--samples", "0"];
        evaluate(folder.path(), &[&arguments[..], &["--inception", "inception.safetensors"], more].concat())
    };
    let result = by_inception(&["--checkpoint", &fixture("llamagen/model.pt").display().to_string()]);
    let [first, second] = [0, 1].map(|index| &result["checkpoints"][index]);
    assert!(number(first, "rfid") > 0.0 && number(second, "rfid") > 0.0);
    assert!(number(&first["inception_score"], "mean") >= 1.0);
    // The second checkpoint is compared with the statistics that were taken in the first one's pass.
    let alone = by_inception(&["--reference", "evaluation/reference.npz", "--output", "alone"]);
    let [rfid, again] = [first, &alone["checkpoints"][0]].map(|of| number(of, "rfid"));
    assert!((rfid - again).abs() < 1e-6 * rfid, "{rfid} {again}");
    assert!(!folder.path().join("alone/reference.npz").exists());
    let resized = by_inception(&["--fid", "pytorch-fid", "--output", "other"]);
    assert!((number(&resized["checkpoints"][0], "rfid") - rfid).abs() > 1e-4 * rfid);

    let refused = |more: &[&str], code: i32| {
        let arguments =
            ["evaluate", "--device", "cpu", "--checkpoint", "vqgan-shapes", "--data", "shapes", "--images", "4"];
        run(folder.path(), &[&arguments[..], more].concat()).error(code)
    };
    let other = [0.5; 9];
    write_npz(&folder.path().join("other.npz"), &[("mu", &[3], &other[..3]), ("sigma", &[3, 3], &other)]).unwrap();
    let error = refused(&["--inception", "inception.safetensors", "--reference", "other.npz"], 1);
    assert!(error.contains("`mu`") && error.contains("2048"), "{error}");
    let error = refused(&["--inception", &fixture("llamagen/model.pt").display().to_string()], 1);
    assert!(error.contains("--inception") && error.contains("InceptionV3"), "{error}");
}

#[test]
fn images_of_an_adm_batch_are_a_reference_too() {
    let folder = tempfile::tempdir().unwrap();
    write_inception(&folder.path().join("inception.safetensors"));
    let mut archive = zip::ZipWriter::new(fs::File::create(folder.path().join("batch.npz")).unwrap());
    archive.start_file("arr_0.npy", zip::write::SimpleFileOptions::default()).unwrap();
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 32, 32, 3), }\n";
    archive.write_all(b"\x93NUMPY\x01\x00").unwrap();
    archive.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    archive.write_all(header.as_bytes()).unwrap();
    let pixels: Vec<u8> = (0..5 * 32 * 32 * 3).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    archive.write_all(&pixels).unwrap();
    archive.finish().unwrap();
    let arguments = ["--checkpoint", "vqgan-shapes", "--data", "shapes", "--images", "3", "--published"];
    let inception = ["--inception", "inception.safetensors", "--reference", "batch.npz"];
    let result = evaluate(folder.path(), &[&arguments[..], &inception].concat());
    assert!(number(&result["checkpoints"][0], "rfid") > 0.0);
    assert!(result["protocol"]["rfid"].as_str().unwrap().contains("batch.npz"));
    assert_eq!(result["published"][0]["rfid"], 7.94);
}
