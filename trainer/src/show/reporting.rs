//! Shows a run in its folder: TensorBoard's event files while it trains, and a page when it ends.
//!
//! A run does not end because it cannot be shown. What cannot be written is reported once and not tried again.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use checkpoints::run::atomic_write;
use image::ImageReader;
use report::keys::{self, Groups};
use report::tensorboard::{EventFile, Histogram, Value as Shown, WriteError};
use serde::Serialize;
use serde_json::Value;

use crate::show::progress::Progress;

/// The folder of the event files in a run's folder.
const TENSORBOARD: &str = "tensorboard";

/// Shows one run.
pub struct Reporter {
    folder: PathBuf,
    events: Option<EventFile>,
    /// The group and name of each loss's metrics.
    losses: &'static Groups,
}

impl Reporter {
    /// Creates the reporter of a run that has done `step` steps. `tensorboard` says whether to write event files.
    ///
    /// # Errors
    /// If the event file cannot be begun.
    pub fn start(folder: &Path, step: u64, tensorboard: bool, losses: &'static Groups) -> Result<Self, WriteError> {
        // A new run replaces step 0 too, in case the folder has files of a run that never reached its first checkpoint.
        let first = if step == 0 { 0 } else { step + 1 };
        let events = tensorboard.then(|| EventFile::create(&folder.join(TENSORBOARD), first)).transpose()?;
        Ok(Self { folder: folder.to_owned(), events, losses })
    }

    /// Shows a line of `metrics.jsonl`.
    pub fn step(&mut self, line: &Value, progress: &Progress) {
        progress.metrics(line);
        let step = line["step"].as_u64().unwrap_or_default();
        let losses = self.losses;
        self.scalars(step, line, |key| keys::tag(key, losses), progress);
    }

    /// Shows the scores of a validation after `step` steps, by their names.
    pub fn validation(&mut self, step: u64, scores: &impl Serialize, progress: &Progress) {
        let scores = serde_json::to_value(scores).unwrap_or_default();
        progress.scores(&scores);
        self.scalars(step, &scores, keys::validation_tag, progress);
    }

    /// Shows a grid of samples, as a PNG.
    pub fn samples(&mut self, step: u64, png: &[u8], progress: &Progress) {
        let size = ImageReader::new(Cursor::new(png)).with_guessed_format().map(ImageReader::into_dimensions);
        if let Ok(Ok((width, height))) = size {
            let image = Shown::Image { width, height, encoded: png.to_vec() };
            self.write(step, &[("samples".to_owned(), image)], progress);
        }
    }

    /// Shows the norms of the parameters' gradients in `step`, by block.
    pub fn gradient_norms(&mut self, step: u64, norms: &BTreeMap<String, Vec<f64>>, progress: &Progress) {
        let histogram = |(block, norms): (&String, &Vec<f64>)| {
            Some((format!("gradients/{block}"), Shown::Histogram(Histogram::of(norms)?)))
        };
        let histograms: Vec<_> = norms.iter().filter_map(histogram).collect();
        self.write(step, &histograms, progress);
    }

    /// Writes `report.html`.
    pub fn finish(&self, progress: &Progress) {
        let path = self.folder.join("report.html");
        let written = report::Run::read(&self.folder, self.losses)
            .map_err(|error| error.to_string())
            .and_then(|run| atomic_write(&path, report::page(&[run]).as_bytes()).map_err(|error| error.to_string()));
        if let Err(error) = written {
            progress.line(&format!("no report: {error}"));
        }
    }

    fn scalars(&mut self, step: u64, line: &Value, tag: impl Fn(&str) -> String, progress: &Progress) {
        let Some(line) = line.as_object() else { return };
        let scalars: Vec<_> =
            keys::numbers(line).into_iter().map(|(key, number)| (tag(&key), Shown::Scalar(number))).collect();
        self.write(step, &scalars, progress);
    }

    fn write(&mut self, step: u64, values: &[(String, Shown)], progress: &Progress) {
        let Some(events) = &mut self.events else { return };
        if let Err(error) = events.write(step, values) {
            self.events = None;
            progress.line(&format!("TensorBoard gets no more values: {error}"));
        }
    }
}
