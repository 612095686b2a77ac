//! Checks what the types of a configuration do not.

#[cfg(test)]
mod tests;

use checkpoints::{Architecture, QuantizerKind};
use datasets::SourceSettings;

use super::{
    BatchConfig, Config, DataConfig, LossScaleConfig, LossesConfig, Metric, ModelConfig, OptimizerConfig,
    PrecisionConfig, RunConfig, ScheduleConfig, SweepConfig,
};
use crate::device::Choice;
use crate::losses::{LossKeys, Sees};
use crate::models::ssim;
use crate::optim::{Trainable, check_pattern};
use crate::problem::{Problem, at_least_one, below_one, not_negative, positive, problem, share};

/// Limits far beyond any run. Their product, a number of samples, still fits 64 bits.
pub(super) const MOST_STEPS: u64 = 1 << 40;
pub(super) const MOST_SAMPLES: usize = 1 << 20;

/// More threads than any machine needs to read images.
pub(super) const MOST_WORKERS: usize = 512;

/// Some GiB of images that are read ahead.
pub(super) const MOST_PREFETCHED: usize = 1 << 16;

/// This many indices fit a small machine's memory.
pub(super) const MOST_IMAGES: usize = 100_000_000;

impl Config {
    /// Checks everything that can be checked before a model or a data set is opened.
    ///
    /// # Errors
    /// The first problem, in the order of the file's tables.
    pub fn check(&self) -> Result<(), Problem> {
        let Self { run, batch, precision, model, data, optimizer, schedule, ema, checkpoints, sweep, .. } = self;
        check_run(run)?;
        check_batch(batch)?;
        check_precision(precision)?;
        check_model(model)?;
        check_data(data, &self.source_settings())?;
        self.check_losses()?;
        self.discriminator.check(&self.losses.adversarial, data.resolution)?;
        let LossesConfig { clip_image, clip_text, clip_direction, .. } = &self.losses;
        self.clip.check(clip_image.is_on() || clip_text.is_on() || clip_direction.is_on())?;
        check_optimizer(optimizer, Network::Model)?;
        check_schedule(schedule, run, Network::Model)?;
        check_optimizer(&self.discriminator_optimizer(), Network::Discriminator)?;
        check_schedule(&self.discriminator_schedule(), run, Network::Discriminator)?;
        below_one("ema.decay", ema.decay)?;
        at_least_one("checkpoints.keep_last", checkpoints.keep_last)?;
        not_negative("checkpoints.every_minutes", checkpoints.every_minutes)?;
        check_sweep(sweep)?;
        self.check_best()
    }

    /// Checks `[losses.*]`. The keys of a loss that is off only have to be in their range.
    fn check_losses(&self) -> Result<(), Problem> {
        let tables = self.losses.tables();
        for table in &tables {
            not_negative(table.weight_key(), table.weight().value)?;
        }
        if self.losses.on().next().is_none() {
            return problem("losses.pixel.weight", "is 0, and so is every other loss's: there is nothing to train for");
        }
        let around = self.surroundings();
        tables.iter().try_for_each(|table| table.check(&around))
    }

    /// Returns a line for each loss that is on, and for the discriminator, if it begins only after the last step.
    pub fn losses_that_never_count(&self) -> Vec<String> {
        let steps = self.run.steps;
        let starts = self.losses.on().map(|table| (format!("losses.{}.start", table.name()), table.weight().start));
        let discriminator = self.discriminator.start.filter(|_| self.losses.adversarial.is_on());
        let discriminator = discriminator.map(|start| ("discriminator.start".to_owned(), start));
        let late = starts.chain(discriminator).filter(|(_, start)| *start >= steps);
        late.map(|(key, start)| format!("{key} is {start}, but run.steps is {steps}: it never begins")).collect()
    }

    /// Checks that the run's validations have the metric of `checkpoints.best`.
    fn check_best(&self) -> Result<(), Problem> {
        const KEY: &str = "checkpoints.best";
        let Self { checkpoints, validation, data, losses, .. } = self;
        let best = checkpoints.best;
        if best == Metric::None {
            return match validation.patience {
                0 => Ok(()),
                _ => {
                    problem("validation.patience", "is set, but checkpoints.best does not say which metric it is about")
                }
            };
        }
        if validation.every_steps == 0 || validation.images == 0 || data.validation == 0 {
            let message = "is set, but no validation takes place between the steps: set validation.every_steps, \
                           validation.images and data.validation";
            return problem(KEY, message);
        }
        if best == Metric::Ssim && (data.resolution as usize) < ssim::WINDOW {
            return problem(KEY, format!("is \"ssim\", which needs images of {} pixels or more", ssim::WINDOW));
        }
        if best == Metric::Lpips && !losses.perceptual.has_lpips() {
            return problem(KEY, "is \"lpips\", which needs the loss `perceptual` with the features of LPIPS");
        }
        if best == Metric::Clip && !losses.has(Sees::Clip) && !validation.clip {
            return problem(KEY, "is \"clip\", which needs one of the CLIP losses or validation.clip");
        }
        Ok(())
    }

    /// Checks that the configuration fits the model that it names.
    ///
    /// # Errors
    /// If the resolution is no multiple of the model's down-sampling factor, if a key is for another quantizer, or if
    /// `model.train` names nothing in the model or parameters that no loss reaches.
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
        let kind = architecture.quantizer.kind;
        if let Some(key) = self.losses.codebook.without_effect(kind) {
            let why = match kind {
                QuantizerKind::Nearest => "takes the nearest code, and the key is for a Gumbel quantizer",
                QuantizerKind::Gumbel => {
                    "has a Gumbel quantizer, which takes kl_weight and temperature_start, _end and _steps"
                }
            };
            return problem(key, format!("has no effect: this model {why}"));
        }
        self.check_train(architecture)
    }

    /// Checks that losses reach `model.train`. The codebook's loss ends at the latents, so it does not train the
    /// decoder. The other losses pass the codebook straight-through, so they do not train its codes. A Gumbel
    /// quantizer's loss ends at the logits, and the other losses do reach its codes.
    fn check_train(&self, architecture: &Architecture) -> Result<(), Problem> {
        let parameters = architecture.parameters();
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        let trainable = match Trainable::new(&self.model.train, &names) {
            Ok(trainable) => trainable,
            Err(error) => return problem("model.train", format!("is wrong: {error}")),
        };
        let mut trained = names.into_iter().filter(|name| trainable.is_trained(name));
        let is_gumbel = architecture.quantizer.kind == QuantizerKind::Gumbel;
        let beyond = |name: &str| {
            let of_decoder = name.starts_with("decoder.") || name.starts_with("post_quant_conv.");
            of_decoder || is_gumbel && name.starts_with("quantize.embed.")
        };
        if !self.losses.see_images() && trained.clone().any(beyond) {
            let (what, quantize) = match is_gumbel {
                true => ("reaches neither the decoder nor the codes", "quantize.proj"),
                false => ("does not reach the decoder", "quantize"),
            };
            let message = format!(
                "is 0, and of the other losses only the codebook's is on, which {what}: \
                 set another weight, or model.train = [\"encoder\", \"quant_conv\", \"{quantize}\"]"
            );
            return problem("losses.pixel.weight", message);
        }
        if !is_gumbel && self.losses.codebook.weight == 0.0 && trained.all(|name| name.starts_with("quantize.")) {
            let message = "has the codebook alone learn, but losses.codebook.weight is 0, and no other loss reaches it";
            return problem("model.train", message);
        }
        Ok(())
    }
}

fn check_run(run: &RunConfig) -> Result<(), Problem> {
    if !(1..=MOST_STEPS).contains(&run.steps) {
        return problem("run.steps", format!("is {}, must lie in 1 to {MOST_STEPS}", run.steps));
    }
    if run.name.contains(['/', '\\']) || run.name == ".." || run.name == "." {
        return problem("run.name", format!("is \"{}\", must be a folder's name; --run-dir takes a path", run.name));
    }
    if let Err(error) = run.device.parse::<Choice>() {
        return problem("run.device", error.to_string());
    }
    Ok(())
}

fn check_batch(batch: &BatchConfig) -> Result<(), Problem> {
    if !(1..=MOST_SAMPLES).contains(&batch.effective) {
        let message = format!("is {}, must lie in 1 to {MOST_SAMPLES}", batch.effective);
        return problem("batch.effective", message);
    }
    let Some(micro) = batch.micro.samples() else { return Ok(()) };
    at_least_one("batch.micro", micro)?;
    if micro > batch.effective {
        let message = format!("is {micro}, must be at most batch.effective = {}", batch.effective);
        return problem("batch.micro", message);
    }
    Ok(())
}

fn check_precision(precision: &PrecisionConfig) -> Result<(), Problem> {
    let PrecisionConfig { loss_scale, max_skips, scaler, .. } = precision;
    if let Some(LossScaleConfig::Fixed(scale)) = loss_scale {
        positive("precision.loss_scale", *scale)?;
    }
    if *max_skips == 0 {
        return problem("precision.max_skips", "is 0, must be at least 1");
    }
    positive("precision.scaler.init", scaler.init)?;
    positive("precision.scaler.min", scaler.min)?;
    if scaler.min > scaler.init {
        let message = format!("is {}, must be at most precision.scaler.init = {}", scaler.min, scaler.init);
        return problem("precision.scaler.min", message);
    }
    if !(scaler.growth_factor > 1.0 && scaler.growth_factor.is_finite()) {
        return problem("precision.scaler.growth_factor", format!("is {}, must be above 1", scaler.growth_factor));
    }
    if !(scaler.backoff_factor > 0.0 && scaler.backoff_factor < 1.0) {
        let message = format!("is {}, must lie between 0 and 1", scaler.backoff_factor);
        return problem("precision.scaler.backoff_factor", message);
    }
    if scaler.growth_interval == 0 {
        return problem("precision.scaler.growth_interval", "is 0, must be at least 1");
    }
    Ok(())
}

fn check_model(model: &ModelConfig) -> Result<(), Problem> {
    if model.train.is_empty() {
        return problem("model.train", "is empty, so nothing would learn; [\"*\"] is the whole model");
    }
    for pattern in &model.train {
        if let Err(error) = check_pattern(pattern) {
            return problem("model.train", format!("is wrong: {error}"));
        }
    }
    if let (Some(pretrained), Some(key)) = (&model.pretrained, model.architecture_key()) {
        return problem(key, format!("cannot be set beside model.pretrained = \"{pretrained}\", which has its own"));
    }
    Ok(())
}

fn check_data(data: &DataConfig, settings: &SourceSettings) -> Result<(), Problem> {
    data.source.check(settings).map_err(|error| Problem { key: error.key, message: error.message })?;
    if !(1..=MOST_IMAGES).contains(&data.images) {
        return problem("data.images", format!("is {}, must lie in 1 to {MOST_IMAGES}", data.images));
    }
    at_least_one("data.prefetch", data.prefetch)?;
    for (key, value, most) in
        [("data.workers", data.workers, MOST_WORKERS), ("data.prefetch", data.prefetch, MOST_PREFETCHED)]
    {
        if value > most {
            return problem(key, format!("is {value}, must be at most {most}"));
        }
    }
    if !(8..=4096).contains(&data.resolution) {
        return problem("data.resolution", format!("is {}, must lie in 8 to 4096", data.resolution));
    }
    Ok(())
}

/// Checks `[sweep]`, but not the settings of its rows: these are checked row by row.
fn check_sweep(sweep: &SweepConfig) -> Result<(), Problem> {
    for (key, values) in [("sweep.micro", &sweep.micro), ("sweep.effective", &sweep.effective)] {
        values.iter().try_for_each(|&value| at_least_one(key, value))?;
    }
    if sweep.steps < 2 {
        return problem("sweep.steps", format!("is {}, must be at least 2: the first one warms up", sweep.steps));
    }
    at_least_one("sweep.timeout", usize::try_from(sweep.timeout).unwrap_or(usize::MAX))?;
    match sweep.min_images_per_second {
        Some(least) => not_negative("sweep.min_images_per_second", least),
        None => Ok(()),
    }
}

/// The network of an optimizer or a schedule.
#[derive(Clone, Copy)]
enum Network {
    Model,
    Discriminator,
}

impl Network {
    /// Returns the discriminator's `key`, or the model's key of the same name.
    fn key(self, key: &'static str) -> &'static str {
        match self {
            Self::Model => key.strip_prefix("discriminator.").unwrap_or(key),
            Self::Discriminator => key,
        }
    }
}

fn check_optimizer(optimizer: &OptimizerConfig, of: Network) -> Result<(), Problem> {
    positive(of.key("discriminator.optimizer.learning_rate"), optimizer.learning_rate)?;
    for beta in optimizer.betas {
        below_one(of.key("discriminator.optimizer.betas"), beta)?;
    }
    let epsilon = optimizer.epsilon as f32;
    if !(epsilon > 0.0 && epsilon.is_finite()) {
        let message = format!("is {}, must be above 0 in f32", optimizer.epsilon);
        return problem(of.key("discriminator.optimizer.epsilon"), message);
    }
    not_negative(of.key("discriminator.optimizer.weight_decay"), optimizer.weight_decay)?;
    not_negative(of.key("discriminator.optimizer.clip_norm"), optimizer.clip_norm)
}

fn check_schedule(schedule: &ScheduleConfig, run: &RunConfig, of: Network) -> Result<(), Problem> {
    share(of.key("discriminator.schedule.last"), schedule.last.unwrap_or(0.0))?;
    if schedule.warmup >= run.steps {
        let message = format!("is {}, must be below run.steps = {}", schedule.warmup, run.steps);
        return problem(of.key("discriminator.schedule.warmup"), message);
    }
    Ok(())
}
