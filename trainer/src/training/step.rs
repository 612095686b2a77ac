//! One optimizer step.

use std::time::Instant;

use burn::tensor::Tensor;
use burn_train::Interrupter;
use serde_json::json;

use super::loaders::{Loaders, micro_batches};
use super::{TrainError, Training};
use crate::adversary::Adversary;
use crate::config::Recompute;
use crate::engine::{Checkpoint, EffectiveBatch, Figures, Networks, StepSettings, effective_batch_gradient};
use crate::gradients::{clip_by_global_norm, global_norm};
use crate::losses::ClipGuidance;
use crate::models::quantizer::CodebookUse;
use crate::progress::Shown;

pub(super) enum StepError {
    Interrupted,
    Failed(TrainError),
}

impl<E: Into<TrainError>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
/// Of one optimizer step.
pub(super) struct LearningRates {
    generator: f64,
    /// Only if it learns in that step.
    discriminator: Option<f64>,
}

impl Training {
    fn step_settings(&self) -> StepSettings {
        StepSettings {
            step: self.step,
            effective: self.config.batch.effective,
            checkpoint: match self.config.memory.checkpoint {
                Recompute::None => Checkpoint::None,
                Recompute::Blocks => Checkpoint::Blocks,
            },
            adversarial: self.adversary.as_ref().map(|adversary| adversary.state).unwrap_or_default(),
        }
    }

    /// One optimizer step: gradients of the effective batch, clip, update, average, report.
    pub(super) fn one_step(&mut self, loaders: &mut Loaders, interrupter: &Interrupter) -> Result<(), StepError> {
        let settings = self.step_settings();
        // A loader that has missed steps is of no use any more.
        loaders.first_pass = match (self.losses.are_coupled(&settings), loaders.first_pass.take()) {
            (true, None) => Some(self.start_loader()?),
            (true, first_pass) => first_pass,
            (false, _) => None,
        };
        let (started, waited) = (Instant::now(), loaders.wait_seconds());
        self.memory.start();
        let Loaders { first_pass, second_pass } = loaders;
        let first_pass = first_pass.iter_mut().flat_map(|loader| micro_batches(loader, &self.config, interrupter));
        let discriminator = self.adversary.as_ref().map(Adversary::model);
        let batch = effective_batch_gradient(
            Networks { vqgan: self.model(), discriminator },
            &self.losses,
            settings,
            first_pass,
            micro_batches(second_pass, &self.config, interrupter),
            |samples| self.progress.samples(samples),
        )?;
        let figures = self.read_figures(&batch).map_err(|message| self.device_failed(message))?;
        self.check_finite(&figures)?;
        let learning_rates = self.update(batch, &figures);
        self.step += 1;
        self.report(&figures, learning_rates, started, loaders.wait_seconds() - waited)?;
        Ok(())
    }

    fn read_figures(&self, batch: &EffectiveBatch) -> Result<Figures, String> {
        let zero = || Tensor::zeros([1], &self.device.device);
        let generator = global_norm(self.model(), &batch.generator).unwrap_or_else(zero);
        let discriminator = self.adversary.as_ref().and_then(|adversary| adversary.grad_norm(&batch.discriminator));
        batch.read(generator, discriminator)
    }

    /// Clips, and lets the optimizers take their step. Returns the learning rates of the generator and the discriminator.
    fn update(&mut self, batch: EffectiveBatch, figures: &Figures) -> LearningRates {
        let clip = self.config.optimizer.clip_norm;
        let gradients = match clip > 0.0 {
            true => clip_by_global_norm(self.model(), batch.generator, figures.grad_norm, clip),
            false => batch.generator,
        };
        let learning_rate = self.schedule.at(self.step);
        // Moved through the optimizer and not cloned: each old parameter is freed as soon as its new one is there.
        self.model = self.model.take().map(|model| self.optimizer.step(learning_rate, model, gradients));
        self.ema = self.ema.take().map(|ema| ema.updated(self.model(), self.step));

        let step = self.step;
        let discriminator = self.adversary.as_mut().and_then(|adversary| {
            let norm = figures.discriminator_grad_norm;
            if let Some(norm) = norm {
                adversary.step(step, batch.discriminator, norm, batch.statistics);
            }
            let logits = figures.get("logits_real").zip(figures.get("logits_fake")).map(|(real, fake)| [real, fake]);
            adversary.remember(logits, figures.next_balance);
            norm.map(|_| adversary.learning_rate(step))
        });
        LearningRates { generator: learning_rate, discriminator }
    }

    fn report(
        &mut self,
        figures: &Figures,
        learning_rates: LearningRates,
        started: Instant,
        wait: f64,
    ) -> Result<(), TrainError> {
        let seconds = started.elapsed().as_secs_f64();
        let shown = Shown {
            step: self.step,
            loss: figures.total,
            images_per_second: self.config.batch.effective as f64 / seconds,
            peak_memory: self.memory.peak(),
            loss_scale: 1.0,
        };
        let codes = CodebookUse::from_counts(&figures.code_counts);
        let mut line = json!({
            "step": shown.step,
            "loss": shown.loss,
            "learning_rate": learning_rates.generator,
            "grad_norm": figures.grad_norm,
            "loss_scale": shown.loss_scale,
            "skipped": false,
            "images_per_second": shown.images_per_second,
            "data_wait": wait,
            "peak_memory": shown.peak_memory,
            "micro": self.config.batch.micro,
            "codes_used": codes.used,
            "perplexity": codes.perplexity,
        });
        for (name, value) in &figures.losses {
            line[*name] = json!(value);
        }
        if let Some((norm, rate)) = figures.discriminator_grad_norm.zip(learning_rates.discriminator) {
            line["discriminator_grad_norm"] = json!(norm);
            line["discriminator_learning_rate"] = json!(rate);
        }
        self.log.append(&line)?;
        for warning in self.data.training.take_warnings() {
            self.progress.line(&format!("skipped {warning}"));
        }
        if let Some(caption) = self.losses.clip.as_ref().and_then(ClipGuidance::take_truncated) {
            let beginning: String = caption.chars().take(80).collect();
            self.progress.line(&format!("CLIP does not see the end of captions as long as this one: {beginning}"));
        }
        self.progress.step(shown);
        Ok(())
    }
    fn check_finite(&self, figures: &Figures) -> Result<(), TrainError> {
        let loss = figures.losses.iter().find(|(_, value)| !value.is_finite());
        let what = match loss {
            Some((name, _)) => format!("the loss `{name}`"),
            None if !figures.grad_norm.is_finite() => "the gradient".to_owned(),
            None if figures.discriminator_grad_norm.is_some_and(|norm| !norm.is_finite()) => {
                "the discriminator's gradient".to_owned()
            }
            None => return Ok(()),
        };
        Err(TrainError::NotFinite { what, step: self.step + 1, saved: self.last_saved() })
    }

    fn device_failed(&self, message: String) -> TrainError {
        TrainError::DeviceFailed { step: self.step + 1, message, saved: self.last_saved() }
    }

    fn last_saved(&self) -> String {
        match &self.saved {
            Some((step, _)) => format!("the last checkpoint is that of step {step}"),
            None => "there is no checkpoint yet".to_owned(),
        }
    }
}
