//! `train --config NAME --dry-run`: what a run would need, without its first step.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::{CommandError, print_json, print_line};
use crate::config::{Config, Loaded};
use crate::show::readable;
use crate::training::preview::{Preview, Weights, preview};

/// Checks the run of `loaded` in `folder` and prints what it would need.
pub(super) fn run(loaded: &Loaded, folder: &Path, as_json: bool) -> Result<ExitCode, CommandError> {
    let found = preview(loaded, folder)?;
    loaded.config.losses_that_never_count().iter().for_each(|line| note!("{line}"));
    match as_json {
        true => print_json(&json!({ "folder": folder, "needs": found, "config": loaded.config }))?,
        false => print_line(&text(loaded, folder, &found))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(loaded: &Loaded, folder: &Path, found: &Preview) -> String {
    let Config { run, batch, memory, .. } = &loaded.config;
    let Preview { device, images, notes, weights, model, state_memory } = found;
    let mut lines = vec![
        format!("configuration: {}, {} steps; run folder: {}", loaded.name(), run.steps, folder.display()),
        format!("device: {device}"),
        format!("data: {images}"),
    ];
    lines.extend(notes.iter().map(|note| format!("data: {note}")));
    lines.extend(weights.iter().map(described));
    let sizes: Vec<u64> = weights.iter().filter_map(|weights| weights.bytes).collect();
    if weights.iter().any(|weights| weights.download) {
        lines.push(format!("to download: {} in all", readable(sizes.iter().sum())));
    }
    let unknown = "known after the download";
    lines.push(format!("model: {}", model.as_deref().unwrap_or(unknown)));
    let micro = match batch.micro.samples() {
        Some(micro) => format!("{micro} ({} passes)", batch.effective.div_ceil(micro)),
        None => "as many as fit".to_owned(),
    };
    lines.push(format!("batch: effective {}, micro-batch {micro}", batch.effective));
    let limit = memory.limit.map(|limit| format!("; limit {}", readable(limit.0))).unwrap_or_default();
    let state = state_memory.map_or_else(|| unknown.to_owned(), |bytes| format!("{} for the model's", readable(bytes)));
    lines.push(format!(
        "memory: {state} weights, gradients, optimizer state and average{limit}; images and loss networks take more, which \
         train plan --config {} measures",
        loaded.name()
    ));
    lines.push("everything is valid; nothing was downloaded, trained or written".to_owned());
    lines.join("\n")
}

fn described(weights: &Weights) -> String {
    let Weights { key, location, download, bytes } = weights;
    match (download, bytes) {
        (false, _) => format!("{key}: {location}, on this machine"),
        (true, Some(bytes)) => format!("{key}: {location}, to download: {}", readable(*bytes)),
        (true, None) => format!("{key}: {location}, to download"),
    }
}
