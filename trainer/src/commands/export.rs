//! `train export`: writes a trained model in a form that other programs load.

use std::path::PathBuf;
use std::process::ExitCode;

use checkpoints::{Family, export_vqgan};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;
use strum::VariantArray;

use super::{CommandError, Json, print_json, print_line};
use crate::training::pretrained::pretrained;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A run's folder, a checkpoint, or a pretrained model as in model.pretrained
    #[arg(long, value_name = "RUN-OR-MODEL")]
    checkpoint: String,
    /// Whose names and files to write [default: those of the pretrained model]
    #[arg(long, value_parser = family())]
    format: Option<Family>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    json: Json,
}

fn family() -> impl TypedValueParser<Value = Family> {
    let names = Family::VARIANTS.iter().map(|family| -> &'static str { family.into() });
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Family>())
}

pub(super) fn run(args: &ExportArgs) -> Result<ExitCode, CommandError> {
    let mut initial = pretrained(&args.checkpoint)?;
    if let Some(resolution) = initial.resolution {
        initial.architecture.diffusers.insert("sample_size".to_owned(), resolution.into());
    }
    let family = args.format.unwrap_or(initial.architecture.family);
    let export = export_vqgan(&initial.weights, &initial.architecture, family)?;
    let weights = export.write(&args.output)?;
    note!("exported {}", initial.description);
    match args.json.json {
        true => print_json(&json!({ "weights": weights, "format": family.to_string() })),
        false => print_line(&weights.display().to_string()),
    }?;
    Ok(ExitCode::SUCCESS)
}
