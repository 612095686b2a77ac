//! `train devices`: lists the devices that this program can compute on.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{CommandError, Json, print_json, print_line};
use crate::config::Compute;
use crate::device::{Choice, DeviceError, DeviceMemory};
use crate::show::readable;

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
                let types = Compute::ALL.into_iter().filter(|compute| selected.supports(*compute));
                let types: Vec<&str> = types.map(Compute::name).collect();
                let memory = selected.memory();
                rows.push((choice, selected.description, types, memory));
            }
            Err(error @ DeviceError::NotBuiltIn { .. }) => note!("{choice}: {error}"),
            Err(error) => note!("{error}"),
        }
    }
    if args.json.json {
        let device = |(choice, name, types, memory): &(Choice, String, Vec<&str>, Option<DeviceMemory>)| json!({ "device": choice.to_string(), "name": name, "precisions": types, "memory": memory });
        print_json(&json!({ "devices": rows.iter().map(device).collect::<Vec<_>>() }))?;
    } else {
        for (_, name, types, memory) in rows {
            let memory =
                memory.map(|DeviceMemory { free, total }| format!("; {} of {} free", readable(free), readable(total)));
            print_line(&format!("{name}; {}{}", types.join(", "), memory.unwrap_or_default()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
