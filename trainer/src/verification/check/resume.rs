//! Compares a run that was resumed from a checkpoint with the same run that never stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use checkpoints::WeightsFile;

use super::step::{Setting, write_config};
use super::{CheckError, Deviations, Part, Row, deviation};
use crate::config::Compute;
use crate::device::Selected;

const STEPS: u64 = 4;
const STOPPED: u64 = 2;

/// What the weights may deviate by: where kernels are chosen by what they were measured to take, two processes may choose
/// different ones.
const LIMIT: f64 = 1e-3;

/// The files of a checkpoint that are compared.
const FILES: [&str; 3] = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];

/// Trains a few steps of `setting` on `device`, resumes from a checkpoint in the middle, and compares the two ends.
///
/// # Errors
/// If processes or files cannot be had.
pub fn check(device: &Selected, precision: Compute, setting: &Setting) -> Result<Row, CheckError> {
    let started = Instant::now();
    let io = |what| move |source| CheckError::Io { what, source };
    let folder = tempfile::tempdir_in(setting.networks.folder()).map_err(io("make a folder"))?;
    let config = write_config(setting, device, folder.path(), |config| {
        config.run.steps = STEPS;
        config.checkpoints.every_steps = STOPPED;
        config.checkpoints.keep_last = usize::MAX >> 1;
        config.precision.compute = precision;
        config.validation.images = 0;
    })?;
    let (straight, resumed) = (folder.path().join("straight"), folder.path().join("resumed"));
    let checkpoint = |run: &Path, step: u64| run.join(format!("checkpoints/step-{step:06}"));
    let run = |more: &[&Path], run_dir: &Path| -> Result<Result<(), String>, CheckError> {
        let mut command = Command::new(std::env::current_exe().map_err(io("find this program"))?);
        command.arg("--config").arg(&config).arg("--run-dir").arg(run_dir);
        if let [from] = more {
            command.arg("--resume").arg(from);
        }
        let output = command.stdin(Stdio::null()).output().map_err(io("start a run"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing").to_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(last) })
    };
    let result = match run(&[], &straight)? {
        Ok(()) => run(&[&checkpoint(&straight, STOPPED)], &resumed)?,
        error => error,
    };
    let found = result.and_then(|()| compare(&checkpoint(&resumed, STEPS), &checkpoint(&straight, STEPS)));
    let name = format!("{STEPS} steps, stopped after {STOPPED}");
    let mut row = Row::new(Part::Resume, name, precision, found, LIMIT, started);
    if row.output == Some(0.0) {
        row.message = Some("bit for bit".to_owned());
    }
    Ok(row)
}

/// The largest deviation of a file of two checkpoints.
fn compare(a: &Path, b: &Path) -> Result<Deviations, String> {
    let mut worst: f64 = 0.0;
    for file in FILES {
        let [a, b] = [a, b].map(|folder| read(&folder.join(file)));
        let (a, b) = (a?, b?);
        if a.keys().ne(b.keys()) {
            return Err(format!("{file} has other tensors"));
        }
        let all = |tensors: &BTreeMap<String, Vec<f32>>| tensors.values().flatten().copied().collect::<Vec<_>>();
        let deviation = deviation(&all(&a), &all(&b));
        worst = if deviation.is_nan() { deviation } else { worst.max(deviation) };
    }
    Ok(Deviations { output: Some(worst), gradient: None })
}

fn read(path: &Path) -> Result<BTreeMap<String, Vec<f32>>, String> {
    let file = WeightsFile::open(path).map_err(|error| error.to_string())?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let tensor = |name: String| {
        let values = file.read(&name).map_err(|error| error.to_string())?.to_f32();
        Ok((name, values))
    };
    names.into_iter().map(tensor).collect()
}
