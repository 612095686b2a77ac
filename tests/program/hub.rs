//! Models by the names that users type, from repositories with the files that they really have.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use checkpoints::{HostTensor, LpipsNetwork, write_safetensors};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::command::{command, finished, fixture, run, small};
use crate::run::metrics;
use crate::stand_in_hub::{Hub, OTHER, Repository};

const VQGAN: &str = "boris/vqgan_f16_16384";
const CLIP: &str = "openai/clip-vit-base-patch32";
const VGG16: &str = "timm/vgg16.tv_in1k";
const LPIPS: &str = "chaofengc/IQA-PyTorch-Weights";
const AMUSED: &str = "amused/amused-256";
const LLAMAGEN: &str = "FoundationVision/LlamaGen";

fn read(path: &str) -> Vec<u8> {
    fs::read(fixture(path)).unwrap()
}

/// Files that are served, and the names of those beside them that are not to be fetched.
fn repository<const N: usize>(served: [(&str, Vec<u8>); N], others: &[&str]) -> Repository {
    let mut files: Repository = served.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    files.extend([".gitattributes", "README.md"].into_iter().chain(others.iter().copied()).map(other));
    files
}

fn other(name: &str) -> (String, Vec<u8>) {
    (name.to_owned(), OTHER.to_vec())
}

/// A Lightning checkpoint beside the YAML that taming trained it by.
fn vqgan() -> Repository {
    const CONFIG: &str = "\
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 16384
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 2, 4]
      num_res_blocks: 2
      attn_resolutions: [16]
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
      params:
        disc_conditional: false
        disc_in_channels: 3
        disc_start: 0
        disc_weight: 0.75
        disc_num_layers: 2
        codebook_weight: 1.0
";
    repository([("model.ckpt", read("taming/model.ckpt")), ("config.yaml", CONFIG.into())], &[])
}

/// A CLIP as transformers publishes it.
fn clip(with_safetensors: bool) -> Repository {
    let tokenizer: Value = serde_json::from_slice(&read("clip/transformers/tokenizer.json")).unwrap();
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| match pair {
        Value::String(pair) => format!("{pair}\n"),
        pair => format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    let preprocessor = json!({
        "crop_size": 32, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 32
    });
    let mut files = repository(
        [
            ("config.json", read("clip/transformers/config.json")),
            ("pytorch_model.bin", read("clip/transformers/pytorch_model.bin")),
            ("tokenizer.json", read("clip/transformers/tokenizer.json")),
            ("vocab.json", tokenizer["model"]["vocab"].to_string().into_bytes()),
            ("merges.txt", format!("#version: 0.2\n{}", merges.collect::<String>()).into_bytes()),
            ("preprocessor_config.json", preprocessor.to_string().into_bytes()),
        ],
        &["flax_model.msgpack", "tf_model.h5", "tokenizer_config.json", "special_tokens_map.json"],
    );
    if with_safetensors {
        files.insert("model.safetensors".to_owned(), read("clip/transformers/model.safetensors"));
    }
    files
}

/// VGG16 under timm's names, with a narrow head.
fn vgg16(folder: &Path) -> Repository {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let fan_in: usize = shape[1..].iter().product();
        let scale = (2.0 / fan_in as f32).sqrt();
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|index| ((index as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
            .map(|value| 1.7 * scale * value)
            .collect();
        tensors.insert(name.clone() + ".weight", HostTensor::from_f32(shape, &values));
        tensors.insert(name + ".bias", HostTensor::from_f32([shape[0]], &vec![0.01; shape[0]]));
    };
    for (number, shape) in LpipsNetwork::Vgg16.convolutions() {
        add(format!("features.{number}"), shape);
    }
    add("pre_logits.fc1".to_owned(), &[8, 512, 7, 7]);
    add("pre_logits.fc2".to_owned(), &[8, 8, 1, 1]);
    add("head.fc".to_owned(), &[1000, 8]);
    let path = folder.join("vgg16.safetensors");
    write_safetensors(&path, &tensors, Some(&BTreeMap::from([("format".to_owned(), "pt".to_owned())]))).unwrap();
    let config = json!({"architecture": "vgg16", "num_classes": 1000, "num_features": 4096, "pretrained_cfg": {"tag": "tv_in1k"}});
    let served = [("model.safetensors", fs::read(path).unwrap()), ("config.json", config.to_string().into_bytes())];
    repository(served, &["pytorch_model.bin"])
}

/// Weights of many metrics; one file is wanted.
fn lpips() -> Repository {
    let others = [
        "AHIQ_vit_p8_epoch33-da3ea303.pth",
        "CLIPIQA+_learned_prompts-603f3273.pth",
        "DBCNN_KonIQ10k-254e8241.pth",
        "DISTS_weights-f5e65c96.pth",
        "LPIPS_v0.0_vgg-18720f55.pth",
        "LPIPS_v0.1_alex-df73285e.pth",
        "LPIPS_v0.1_squeeze-4a5350f2.pth",
        "PieAPP-b0937014.pth",
        "fid_statistics/FFHQ_clean_1024.npz",
        "maniqa_vit_base_patch8_224.zip",
        "niqe_modelparameters.mat",
        "weights-inception-2015-12-05-6726825d.pth",
    ];
    let mut files = repository([("LPIPS_v0.1_vgg-a78928a0.pth", read("losses/LPIPS_v0.1_vgg.pth"))], &others);
    files.extend((0..300).map(|index| other(&format!("musiq_{index:03}_ckpt-{:08x}.pth", index * 7919))));
    files
}

/// A whole pipeline, of which the VQGAN is a part.
fn amused() -> Repository {
    let others = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vqvae/diffusion_pytorch_model.fp16.safetensors",
    ];
    let served = [
        ("vqvae/config.json", read("diffusers/lookup/config.json")),
        ("vqvae/diffusion_pytorch_model.safetensors", read("diffusers/lookup/diffusion_pytorch_model.safetensors")),
    ];
    repository(served, &others)
}

fn llamagen() -> Repository {
    let others = [
        "c2i_3B_384.pt",
        "c2i_B_256.pt",
        "c2i_B_384.pt",
        "c2i_L_256.pt",
        "c2i_L_384.pt",
        "c2i_XL_384.pt",
        "c2i_XXL_384.pt",
        "t2i_XL_stage1_256.pt",
        "t2i_XL_stage2_512.pt",
        "vq_ds8_c2i.pt",
    ];
    repository([("vq_ds16_c2i.pt", read("llamagen/model.pt"))], &others)
}

/// What the built-in configurations have on the Hub.
pub fn everything(folder: &Path) -> [(&'static str, Repository); 4] {
    [(VQGAN, vqgan()), (CLIP, clip(true)), (VGG16, vgg16(folder)), (LPIPS, lpips())]
}

/// With `HF_ENDPOINT` and nothing else that says where things come from.
pub fn by_hub(mut command: Command, hub: &Hub) -> Command {
    command.env("HF_ENDPOINT", &hub.endpoint).env_remove("HF_HUB_OFFLINE");
    command
}

/// Photographs for the purpose of the program: colours that change slowly, and something with edges.
pub fn write_images(folder: &Path, count: u32) {
    fs::create_dir(folder).unwrap();
    for index in 0..count {
        let image = RgbImage::from_fn(320, 280, |x, y| match (x / 40 + y / 40 + index) % 5 {
            0 => Rgb([240, (x / 2) as u8, 30]),
            _ => Rgb([(x * 255 / 320) as u8, (y * 255 / 280) as u8, (index * 30) as u8]),
        });
        image.save(folder.join(format!("{index}.jpg"))).unwrap();
    }
}

/// What the README tells to type, with the user's own folder put in.
fn command_of_the_readme(images: &str) -> Vec<String> {
    let readme = include_str!("../../README.md");
    let line = readme.lines().find(|line| line.starts_with("train --config small-gpu.toml --set data.path="));
    let line = line.unwrap().replace("/path/to/images", images);
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[test]
fn the_headline_runs_on_the_files_that_people_have() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new(everything(folder.path()));
    write_images(&folder.path().join("photos"), 8);
    let headline = command_of_the_readme("photos");
    // As much of it as a CPU does in seconds: all networks, all losses that begin with the first step, and the same files.
    let smaller = ["run.steps=2", "batch.effective=2", "schedule.warmup=0", "data.resolution=64"];
    let smaller = smaller.iter().flat_map(|set| ["--set", *set]).chain(["--device", "cpu"]);
    let arguments: Vec<&str> = headline.iter().map(String::as_str).chain(smaller).collect();
    let trained = by_hub(command(folder.path(), &arguments), &hub).output().unwrap();
    finished(trained).success();
    let fetched = [
        "boris/vqgan_f16_16384/model.ckpt",
        "chaofengc/IQA-PyTorch-Weights/LPIPS_v0.1_vgg-a78928a0.pth",
        "openai/clip-vit-base-patch32/config.json",
        "openai/clip-vit-base-patch32/merges.txt",
        "openai/clip-vit-base-patch32/model.safetensors",
        "openai/clip-vit-base-patch32/preprocessor_config.json",
        "openai/clip-vit-base-patch32/tokenizer.json",
        "openai/clip-vit-base-patch32/vocab.json",
        "timm/vgg16.tv_in1k/model.safetensors",
    ];
    // The small files beside weights may come with them.
    let weights: Vec<String> = hub.fetched().into_iter().filter(|file| !file.ends_with(".yaml")).collect();
    let weights: Vec<&str> =
        weights.iter().map(String::as_str).filter(|file| !file.ends_with("in1k/config.json")).collect();
    assert_eq!(weights, fetched);
    let lines = metrics(&folder.path().join("runs/small-gpu"));
    assert_eq!(lines.len(), 2);
    for key in ["pixel", "codebook", "perceptual", "clip_image", "clip_contrastive"] {
        assert!(lines.iter().all(|line| line[key].as_f64().is_some_and(f64::is_finite)), "{key}: {lines:?}");
    }
    // What is in the cache needs no Hub any more.
    let offline = [
        "--run-dir",
        "again",
        "--set",
        "data.path=photos",
        "--set",
        "run.steps=1",
        "--set",
        "schedule.warmup=0",
        "--set",
        "data.resolution=64",
    ];
    let arguments =
        [&["--config", "small-gpu.toml", "--device", "cpu", "--set", "batch.effective=2"], &offline[..]].concat();
    run(folder.path(), &[&arguments[..], &["--set", "validation.images=0"]].concat()).success();
    assert!(hub.fetched().is_empty());
}

#[test]
fn a_clip_without_safetensors_is_read_from_its_torch_file() {
    let hub = Hub::new([(CLIP, clip(false))]);
    let folder = small();
    let losses = ["--set", "losses.clip_image.weight=1", "--set", "losses.clip_text.weight=1", "--set", "run.steps=1"];
    let arguments = [&["--config", "small.toml"], &losses[..]].concat();
    finished(by_hub(command(folder.path(), &arguments), &hub).output().unwrap()).success();
    let fetched = hub.fetched();
    assert!(fetched.contains(&format!("{CLIP}/pytorch_model.bin")), "{fetched:?}");
    assert!(fetched.iter().all(|file| !file.ends_with(".msgpack") && !file.ends_with(".h5")), "{fetched:?}");
    let line = &metrics(&folder.path().join("runs/small"))[0];
    assert!(line["clip_text"].as_f64().is_some_and(f64::is_finite), "{line}");
}

#[test]
fn of_a_pipeline_only_its_vqgan_is_fetched() {
    let hub = Hub::new([(AMUSED, amused())]);
    let folder = tempfile::tempdir().unwrap();
    let spec = format!("hf://{AMUSED}");
    let arguments = ["export", "--checkpoint", &spec, "--format", "diffusers", "--output", "out"];
    finished(by_hub(command(folder.path(), &arguments), &hub).output().unwrap()).success();
    let expected = ["config.json", "diffusion_pytorch_model.safetensors"].map(|file| format!("{AMUSED}/vqvae/{file}"));
    assert_eq!(hub.fetched(), expected);
}

#[test]
fn a_repository_of_many_models_says_which_there_are() {
    let hub = Hub::new([(LLAMAGEN, llamagen())]);
    let folder = tempfile::tempdir().unwrap();
    let export = |spec: &str, output: &str| {
        let arguments = ["export", "--checkpoint", spec, "--format", "llamagen", "--output", output];
        finished(by_hub(command(folder.path(), &arguments), &hub).output().unwrap())
    };
    let error = export(&format!("hf://{LLAMAGEN}"), "none").error(1);
    for file in ["vq_ds16_c2i.pt", "vq_ds8_c2i.pt"] {
        assert!(error.contains(&format!("hf://{LLAMAGEN}/{file}")), "{error}");
    }
    assert_eq!(hub.fetched(), [""; 0]);
    export(&format!("hf://{LLAMAGEN}/vq_ds16_c2i.pt"), "out").success();
    assert_eq!(hub.fetched(), [format!("{LLAMAGEN}/vq_ds16_c2i.pt")]);
}
