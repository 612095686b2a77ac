//! Makes and evaluates `vqgan-shapes`, the small VQGAN that this program ships: trained from random weights on drawn shapes
//! of few forms and colours on plain backgrounds.
//!
//! ```sh
//! cargo run --release --example vqgan_shapes -- train
//! cargo run --release --example vqgan_shapes -- evaluate
//! ```
//! `train` is the run of `vqgan-shapes.toml` and then `export`, which writes the averaged weights in f16.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use checkpoints::write_safetensors;
use clap::{Parser, Subcommand};
use datasets::{DataSource, SourceSettings, ValidationSet};
use trainer::config;
use trainer::evaluation::{Extent, Judges, validate};
use trainer::models::VqGan;
use trainer::training::pretrained::pretrained;
use trainer::training::{Options, Stop, train};

/// Whatever goes wrong ends the program.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/vqgan_shapes/vqgan-shapes.toml");

/// Images are of another seed than those that the model was trained on.
const SEED: u64 = 1_000_003;
const IMAGES: usize = 1024;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Trains the model and exports it.
    Train {
        /// The folder of the run.
        #[arg(long, default_value = "runs/vqgan-shapes")]
        run: PathBuf,
        /// The folder that the model is written to.
        #[arg(long, default_value = "runs/vqgan-shapes/model")]
        output: PathBuf,
    },
    /// Exports the newest checkpoint of a run.
    Export {
        /// The folder of the run.
        #[arg(long, default_value = "runs/vqgan-shapes")]
        run: PathBuf,
        /// The folder that the model is written to.
        #[arg(long, default_value = "runs/vqgan-shapes/model")]
        output: PathBuf,
    },
    /// Measures a model on plain shapes that it was not trained on.
    Evaluate {
        /// What `model.pretrained` accepts.
        #[arg(long, default_value = "vqgan-shapes")]
        model: String,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Train { run, output } => {
            let options = Options { folder: run.clone(), ..Options::default() };
            train(&config::load(CONFIG, &[])?, options, &Stop::new(std::process::exit))?;
            export(&run, &output)
        }
        Verb::Export { run, output } => export(&run, &output),
        Verb::Evaluate { model } => evaluate(&model),
    }
}

fn export(run: &Path, output: &Path) -> Result<()> {
    let model = pretrained(&run.display().to_string())?;
    fs::create_dir_all(output)?;
    let weights: BTreeMap<_, _> = model.weights.iter().map(|(name, host)| (name.clone(), host.to_f16())).collect();
    write_safetensors(&output.join("model.safetensors"), &weights, None)?;
    fs::write(output.join("architecture.json"), serde_json::to_string_pretty(&model.architecture)? + "\n")?;
    println!("written to {}", output.display());
    Ok(())
}

fn evaluate(model: &str) -> Result<()> {
    let model = pretrained(model)?;
    let network = VqGan::new(&model.architecture, &model.weights, &Device::flex(), DType::F32)?;
    let resolution = model.resolution.unwrap_or(64);
    let settings = SourceSettings { path: None, images: IMAGES, resolution, seed: SEED, needs_captions: false };
    let source = DataSource::PlainShapes.open(&settings)?;
    let set = Arc::new(ValidationSet::new(source, (0..IMAGES).collect(), resolution, 0)?);
    let extent = Extent { images: IMAGES, micro: 16, samples: 0 };
    let validated = validate(&network, Judges::default(), &set, extent, || false, |_| (), |_| ())?;
    let scores = validated.ok_or("the validation was stopped")?.scores;
    println!("{} plain shapes that were not trained on", scores.images);
    println!("PSNR (dB)       {:6.2}", scores.psnr);
    println!("SSIM            {:6.4}", scores.ssim.unwrap_or(f64::NAN));
    println!("codes used (%)  {:6.1}", 100.0 * scores.codes_used);
    Ok(())
}
