//! `train devices`: what this program can compute on.

use std::process::ExitCode;

use burn::tensor::DType;
use clap::Args;
use serde_json::json;

use super::{CommandError, Json, print_json, print_line};
use crate::device::{Choice, DeviceError};

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &DevicesArgs) -> Result<ExitCode, CommandError> {
    let mut rows = Vec::new();
    for choice in Choice::all() {
        match choice.open() {
            Ok(selected) => {
                let types = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
                let types: Vec<&str> = types
                    .into_iter()
                    .filter(|(_, dtype)| selected.device.supports_dtype(*dtype))
                    .map(|(name, _)| name)
                    .collect();
                rows.push((choice, selected.description, types));
            }
            Err(error @ DeviceError::NotBuiltIn { .. }) => eprintln!("{choice}: {error}"),
            Err(error) => eprintln!("{error}"),
        }
    }
    if args.json.json {
        let devices: Vec<_> = rows
            .iter()
            .map(|(choice, name, types)| json!({ "device": choice.to_string(), "name": name, "types": types }))
            .collect();
        print_json(&json!({ "devices": devices }));
    } else {
        for (_, name, types) in rows {
            print_line(&format!("{name}; {}", types.join(", ")));
        }
    }
    Ok(ExitCode::SUCCESS)
}
