//! `train init`: a configuration for this machine to start from.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{CommandError, Json, print_json, print_line};
use crate::config::{self, Compute, Override};
use crate::data;
use crate::device::{Choice, Selected};
use crate::show::counted;
use crate::training::TrainError;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Configuration to start from: a TOML file, or a built-in name [default: the one for this machine's device]
    #[arg(long, value_name = "NAME-OR-PATH")]
    from: Option<String>,
    /// Folder of images to train on
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File to write; it must not exist yet
    #[arg(long, value_name = "FILE", default_value = "mine.toml")]
    output: PathBuf,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &InitArgs) -> Result<ExitCode, CommandError> {
    let device = Choice::Auto.open()?;
    let base = args.from.clone().unwrap_or_else(|| built_in_for(&device, args.data.is_some()).to_owned());
    let mut overrides = Vec::new();
    if let Some(folder) = &args.data {
        let folder = toml::Value::String(folder.display().to_string()).to_string();
        overrides.extend([Override::new("data.source", "folder"), Override::new("data.path", &folder)]);
    }
    let loaded = config::load(&base, &overrides)?;
    let images = match &args.data {
        Some(_) => Some(data::open(&loaded.config).map_err(TrainError::from)?.images.count),
        None => None,
    };
    let base = extended(loaded.name(), &args.output);
    let text = text(&base, &device, args.data.as_deref().zip(images));
    let io = |source| CommandError::Io { path: args.output.display().to_string(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&args.output).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    let name = args.output.display().to_string();
    config::load(&name, &[])?;
    match args.json.json {
        true => print_json(&json!({ "file": name, "extends": base, "device": device.description, "images": images }))?,
        false => {
            print_line(&format!("wrote {name}, based on {base}"))?;
            print_line(&format!("check it by: train --config {name} --dry-run"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The built-in configuration for a device and its memory, and for one's own images or drawn ones.
fn built_in_for(device: &Selected, has_images: bool) -> &'static str {
    const GIB: u64 = 1 << 30;
    match (device.choice, device.memory().map_or(0, |memory| memory.total)) {
        (Choice::Cpu, _) if has_images => "own-images-cpu.toml",
        (Choice::Cpu, _) => "tiny-cpu.toml",
        // A little less than the round number, since drivers report less.
        (_, total) if total > 23 * GIB => "24gb-gpu.toml",
        (_, total) if total > 7 * GIB => "8gb-gpu.toml",
        _ => "small-gpu.toml",
    }
}

/// How a file at `output` names the configuration that was read from `base`, a file or a built-in name.
fn extended(base: &str, output: &Path) -> String {
    let is_beside = output.parent().is_none_or(|folder| folder.as_os_str().is_empty());
    match Path::new(base).canonicalize() {
        Ok(path) if !is_beside => path.display().to_string(),
        _ => base.to_owned(),
    }
}

fn text(base: &str, device: &Selected, data: Option<(&Path, usize)>) -> String {
    let quoted = |text: String| toml::Value::String(text).to_string();
    let supported: Vec<Compute> = Compute::ALL.into_iter().filter(|compute| device.supports(*compute)).collect();
    let half = supported.iter().find(|compute| **compute != Compute::Fp32 && device.choice != Choice::Cpu);
    let names = supported.iter().map(|compute| compute.name()).collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "# Says only what differs from {base}. `train config --reference` says what every key does.\n\nextends = {}\n\n\
         [run]\ndevice = \"{}\"    # {}; `train devices` lists all\n\n\
         [precision]\ncompute = \"{}\"    # this device has {names}\n",
        quoted(base.to_owned()),
        device.choice,
        device.description,
        half.copied().unwrap_or_default()
    );
    if let Some(memory) = device.memory() {
        let limit = (memory.free as f64 * 0.9) as u64 >> 20;
        text += &format!(
            "\n[memory]\nlimit = \"{limit}MiB\"    # 90 % of the memory that was free when this file was written\n"
        );
    }
    if let Some((folder, images)) = data {
        let folder = quoted(folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).display().to_string());
        text += &format!("\n[data]\nsource = \"folder\"\npath = {folder}    # {}\n", counted(images as u64, "image"));
    }
    text
}
