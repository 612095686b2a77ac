//! Makes and evaluates `clip-shapes`, the small CLIP that this program ships: trained from random weights on the images
//! that the program draws, and their captions.
//!
//! ```sh
//! cargo run --release --example clip_shapes -- train
//! cargo run --release --example clip_shapes -- evaluate
//! ```
#![allow(clippy::print_stdout)]

mod data;
mod evaluate;
mod files;
mod network;
mod step;
mod train;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Whatever goes wrong ends the program.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Trains the model, or goes on where a training in the same folder has stopped.
    Train(train::Settings),
    /// Measures the model on images and captions that it has not seen.
    Evaluate {
        /// The folder of the model.
        #[arg(long, default_value = "checkpoints/clip-shapes")]
        model: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Train(settings) => train::train(&settings),
        Verb::Evaluate { model } => evaluate::evaluate(&model),
    }
}
