//! What a configuration must hold beyond its types.

use checkpoints::Architecture;

use super::{Config, DataSource, PixelConfig, PixelNormConfig};
use crate::device::Choice;

/// A value that is of the right type and still makes no sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The key, as in `batch.micro`.
    pub key: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Far beyond any run, and small enough that their product still counts samples in 64 bits.
const MOST_STEPS: u64 = 1 << 40;
const MOST_SAMPLES: usize = 1 << 20;

/// As many indices fit a small machine's memory.
const MOST_IMAGES: usize = 100_000_000;

fn problem(key: &'static str, message: impl Into<String>) -> Result<(), Problem> {
    Err(Problem { key, message: message.into() })
}

fn at_least_one(key: &'static str, value: usize) -> Result<(), Problem> {
    if value == 0 { problem(key, "is 0, must be at least 1") } else { Ok(()) }
}

fn not_negative(key: &'static str, value: f64) -> Result<(), Problem> {
    if value >= 0.0 && value.is_finite() { Ok(()) } else { problem(key, format!("is {value}, must be 0 or more")) }
}

fn share(key: &'static str, value: f64) -> Result<(), Problem> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { problem(key, format!("is {value}, must lie in 0 to 1")) }
}

fn below_one(key: &'static str, value: f64) -> Result<(), Problem> {
    if (0.0..1.0).contains(&value) && (value as f32) < 1.0 {
        Ok(())
    } else {
        problem(key, format!("is {value}, must be at least 0 and below 1"))
    }
}

impl Config {
    /// Everything that can be said before a model or a data set is opened.
    ///
    /// # Errors
    /// The first problem, in the order of the file's tables.
    pub fn check(&self) -> Result<(), Problem> {
        let Self { run, batch, model, data, losses, optimizer, schedule, ema, checkpoints, .. } = self;
        if !(1..=MOST_STEPS).contains(&run.steps) {
            return problem("run.steps", format!("is {}, must lie in 1 to {MOST_STEPS}", run.steps));
        }
        if run.name.contains(['/', '\\']) || run.name == ".." || run.name == "." {
            return problem(
                "run.name",
                format!("is \"{}\", must be a folder's name; --run-dir takes a path", run.name),
            );
        }
        if let Err(error) = run.device.parse::<Choice>() {
            return problem("run.device", error.to_string());
        }
        if !(1..=MOST_SAMPLES).contains(&batch.effective) {
            let message = format!("is {}, must lie in 1 to {MOST_SAMPLES}", batch.effective);
            return problem("batch.effective", message);
        }
        at_least_one("batch.micro", batch.micro)?;
        if batch.micro > batch.effective {
            let message = format!("is {}, must be at most batch.effective = {}", batch.micro, batch.effective);
            return problem("batch.micro", message);
        }
        if let (Some(pretrained), Some(key)) = (&model.pretrained, model.architecture_key()) {
            return problem(
                key,
                format!("cannot be set beside model.pretrained = \"{pretrained}\", which has its own"),
            );
        }
        match (data.source, &data.path) {
            (DataSource::Folder, None) => {
                return problem("data.path", "is missing: data.source = \"folder\" needs a folder of images");
            }
            (DataSource::Shapes, Some(path)) => {
                let message = format!(
                    "is {}, but data.source = \"shapes\" reads no files; did you mean \"folder\"?",
                    path.display()
                );
                return problem("data.path", message);
            }
            _ => {}
        }
        if !(1..=MOST_IMAGES).contains(&data.images) {
            return problem("data.images", format!("is {}, must lie in 1 to {MOST_IMAGES}", data.images));
        }
        at_least_one("data.prefetch", data.prefetch)?;
        if !(8..=4096).contains(&data.resolution) {
            return problem("data.resolution", format!("is {}, must lie in 8 to 4096", data.resolution));
        }
        for (key, weight) in
            [("losses.pixel.weight", losses.pixel.weight), ("losses.codebook.weight", losses.codebook.weight)]
        {
            not_negative(key, weight)?;
        }
        share("losses.pixel.mix", losses.pixel.mix)?;
        if losses.pixel.norm != PixelNormConfig::Mix && losses.pixel.mix != PixelConfig::default().mix {
            return problem("losses.pixel.mix", "has no effect: it needs losses.pixel.norm = \"mix\"");
        }
        not_negative("losses.codebook.beta", losses.codebook.beta.unwrap_or(0.0))?;
        not_negative("losses.codebook.entropy", losses.codebook.entropy.unwrap_or(0.0))?;
        if !(optimizer.learning_rate > 0.0 && optimizer.learning_rate.is_finite()) {
            return problem("optimizer.learning_rate", format!("is {}, must be above 0", optimizer.learning_rate));
        }
        for beta in optimizer.betas {
            below_one("optimizer.betas", beta)?;
        }
        let epsilon = optimizer.epsilon as f32;
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return problem("optimizer.epsilon", format!("is {}, must be above 0 in f32", optimizer.epsilon));
        }
        not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
        not_negative("optimizer.clip_norm", optimizer.clip_norm)?;
        share("schedule.last", schedule.last)?;
        if schedule.warmup >= run.steps {
            let message = format!("is {}, must be below run.steps = {}", schedule.warmup, run.steps);
            return problem("schedule.warmup", message);
        }
        below_one("ema.decay", ema.decay)?;
        at_least_one("checkpoints.keep_last", checkpoints.keep_last)
    }

    /// What must fit between the configuration and the model that it names.
    ///
    /// # Errors
    /// If the resolution is not a multiple of the model's down-sampling factor.
    pub fn check_against(&self, architecture: &Architecture) -> Result<(), Problem> {
        let (resolution, factor) = (self.data.resolution as usize, architecture.downsampling());
        if resolution % factor != 0 {
            let lower = (resolution / factor).max(1) * factor;
            return problem(
                "data.resolution",
                format!(
                    "is {resolution}, must be a multiple of {factor}, by which this model divides it; try {lower} or {}",
                    (resolution / factor + 1) * factor
                ),
            );
        }
        Ok(())
    }
}
