//! The inside of a process that measures: a few real steps, and the gradient of the first.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::gradient_file::{self, GradientError};
use crate::config::Loaded;
use crate::memory::{Deviation, Gradient, Measurement};
use crate::training::{self, Measured, Options, TrainError};

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The run.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Its gradient.
    #[error(transparent)]
    Gradient(#[from] GradientError),
    /// The run left no line for a step.
    #[error("the steps wrote no metrics to {}", .0.display())]
    NoFigures(PathBuf),
}

/// Takes `steps` steps of the run that `loaded` describes, in the empty `folder`. With `weigh_by_micro_batch` the engine weighs
/// by micro-batch, which is wrong.
///
/// # Errors
/// As for a run, and if the gradient cannot be written or compared.
pub fn measure(
    loaded: &Loaded,
    folder: &Path,
    steps: u64,
    gradient: Gradient,
    weigh_by_micro_batch: bool,
) -> Result<Measurement, MeasureError> {
    let outcome: Rc<RefCell<Result<First, GradientError>>> = Rc::new(RefCell::new(Ok(First::default())));
    let seen = outcome.clone();
    let options = Options { folder: folder.to_owned(), weigh_by_micro_batch, ..Default::default() };
    let measured = training::measure(
        loaded,
        options,
        steps,
        Box::new(move |vqgan, discriminator, batch, figures| {
            let deviation = match &gradient {
                Gradient::Write(path) => gradient_file::write(path, vqgan, discriminator, batch).map(|()| None),
                Gradient::Compare(path) => gradient_file::deviation(path, vqgan, discriminator, batch).map(Some),
                Gradient::Ignore => Ok(None),
            };
            let loss = Some(figures.total).filter(|loss| loss.is_finite());
            *seen.borrow_mut() = deviation.map(|deviation| First { loss, deviation });
        }),
    )?;
    let first = outcome.replace(Ok(First::default()))?;
    measurement(&measured, first, loaded.config.batch.effective)
        .ok_or_else(|| MeasureError::NoFigures(folder.join("metrics.jsonl")))
}

/// What is known of the first step.
#[derive(Debug, Default)]
struct First {
    loss: Option<f64>,
    deviation: Option<Deviation>,
}

fn measurement(Measured { device, lines, page }: &Measured, first: First, effective: usize) -> Option<Measurement> {
    let is_skipped = |line: &&Value| line["skipped"] == true || line["discriminator_skipped"] == true;
    let skipped = lines.iter().filter(is_skipped).count() as u64;
    let lines: Vec<&Value> = lines.iter().filter(|line| line["skipped"] != true).collect();
    let (_, rest) = lines.split_first()?;
    let seconds = rest.iter().map(|line| Some(effective as f64 / line["images_per_second"].as_f64()?));
    let seconds: f64 = seconds.sum::<Option<f64>>()?;
    let counted = if page.is_some() && !rest.is_empty() { rest } else { &lines };
    let peaks = counted.iter().map(|line| line["peak_memory"].as_u64());
    Some(Measurement {
        device: device.clone(),
        peak_memory: peaks.collect::<Option<Vec<_>>>()?.into_iter().max()?,
        page: page.unwrap_or(0),
        memory: by_phase(&lines)?,
        images_per_second: (rest.len() * effective) as f64 / seconds,
        loss: first.loss,
        skipped,
        deviation: first.deviation,
    })
}

/// The largest peak of each phase in any of `lines`.
fn by_phase(lines: &[&Value]) -> Option<Map<String, Value>> {
    let mut most = Map::new();
    for (phase, peak) in lines.iter().filter_map(|line| line["memory"].as_object()).flatten() {
        let peak = peak.as_u64()?;
        let so_far = most.get(phase).and_then(Value::as_u64).unwrap_or(peak);
        most.insert(phase.clone(), so_far.max(peak).into());
    }
    Some(most)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_step_counts_for_memory_but_not_for_speed_and_a_skipped_one_for_neither() {
        let line = |speed: f64, peak: u64, skipped: bool| {
            json!({ "images_per_second": speed, "peak_memory": peak, "skipped": skipped,
                    "memory": { "weights": 1, "backward": peak } })
        };
        let lines = [line(50.0, 5, true), line(0.5, 9, false), line(4.0, 8, false), line(1.0, 7, false)];
        let first = First { loss: Some(1.0), deviation: None };
        let mut measured = Measured { device: "cpu".into(), lines: lines.to_vec(), page: None };
        let of_cpu = measurement(&measured, first, 4).unwrap();
        assert_eq!((of_cpu.peak_memory, of_cpu.loss, of_cpu.skipped), (9, Some(1.0), 1));
        // Eight images in one second and four.
        assert_eq!(of_cpu.images_per_second, 8.0 / 5.0);
        assert_eq!(Value::Object(of_cpu.memory), json!({ "weights": 1, "backward": 9 }));

        // A GPU's pools are cleaned after the first step.
        measured.page = Some(4);
        assert_eq!(measurement(&measured, First::default(), 4).unwrap().peak_memory, 8);
    }
}
