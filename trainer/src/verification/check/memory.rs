//! A run for which the device has too little memory: it has to lower its memory settings.

use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::step::{Setting, write_config};
use super::{CheckError, Deviations, Part, Row};
use crate::config::{Bytes, Micro, Recompute};
use crate::device::Selected;
use crate::show::readable;

/// More than any device has: the run has to find out by itself that there is less.
const NO_LIMIT: u64 = 1 << 50;

/// Occupies the memory of `device` but for `leave` bytes. Then takes two steps of `setting` with the whole effective batch at a
/// time and without recomputation, which needs more than that. `None` where memory cannot be occupied.
///
/// # Errors
/// If processes or files cannot be had.
pub fn check(device: &Selected, leave: u64, setting: &Setting) -> Result<Option<Row>, CheckError> {
    let io = |what| move |source| CheckError::Io { what, source };
    let started = Instant::now();
    let Some(ballast) = device.ballast(leave) else { return Ok(None) };
    let folder = tempfile::tempdir_in(setting.networks.folder()).map_err(io("make a folder"))?;
    let config = write_config(setting, device, folder.path(), |config| {
        config.run.steps = 2;
        config.batch.micro = Micro::Samples(config.batch.effective);
        config.memory.limit = Some(Bytes(NO_LIMIT));
        config.memory.recompute = Recompute::None;
        config.checkpoints.every_steps = 0;
        config.validation.images = 0;
    })?;
    let precision = setting.loaded.config.precision.compute;
    let run_dir = folder.path().join("run");
    let result = match &ballast {
        Err(message) => Err(message.clone()),
        Ok(_) => {
            let mut command = Command::new(std::env::current_exe().map_err(io("find this program"))?);
            command.arg("--config").arg(&config).arg("--run-dir").arg(&run_dir);
            let output = command.stdin(Stdio::null()).output().map_err(io("start a run"))?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.success() {
                true => Ok(Deviations::default()),
                false => Err(said.lines().last().unwrap_or("it said nothing").to_owned()),
            }
        }
    };
    drop(ballast);
    let lines = std::fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap_or_default();
    let lines: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let recovered = lines.iter().filter_map(|line| line["recovered"].as_array()).flatten();
    let changes: Vec<&str> = recovered.filter_map(|event| event["change"].as_str()).collect();
    let name = format!("{} at once in {}", setting.loaded.config.batch.effective, readable(leave));
    let mut row = Row::new(Part::Memory, name, precision, result, 0.0, started);
    if row.met {
        row.met = !changes.is_empty();
        let words = if changes.is_empty() { "it had enough".to_owned() } else { changes.join(", ") };
        row.message = Some(words);
    }
    Ok(Some(row))
}
