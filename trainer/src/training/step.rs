//! One optimizer step.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::Tensor;
use burn_train::Interrupter;
use serde_json::json;

use super::loaders::{Loaders, micro_batches};
use super::{TrainError, Training, every};
use crate::config::{Compute, Recompute};
use crate::device::Choice;
use crate::device::panics::catch_out_of_memory;
use crate::engine::{EffectiveBatch, MicroBatch, StepFailure, StepSettings, effective_batch_gradient};
use crate::losses::phase::Phase;
use crate::losses::{ClipGuidance, Discriminator, Event, LossScales, StepMetrics};
use crate::models::quantizer::CodebookUse;
use crate::optim::{global_norm, norms_by_block, unscale_and_clip};
use crate::precision::Probe;
use crate::show::progress::Shown;

/// Steps between two whose phases are measured on a GPU, which is waited for at each border between them.
const PHASES_EVERY: u64 = 50;

pub(super) enum StepError {
    Interrupted,
    /// It has taken more than it may.
    OverLimit,
    Failed(TrainError),
}

impl<E: Into<TrainError>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
/// What became of an optimizer step.
struct Taken {
    learning_rate: f64,
    /// The one that the step was computed with.
    loss_scale: f64,
    /// Because something was not finite, so that nothing has moved but the loss scale.
    skipped: bool,
}

/// What became of an optimizer step's two updates.
struct Updated {
    generator: Taken,
    /// Only if it learns in that step.
    discriminator: Option<Taken>,
}

impl Training {
    fn step_settings(&self) -> StepSettings<'_> {
        StepSettings {
            step: self.step,
            effective: self.config.batch.effective,
            recompute: match self.memory_settings.recompute {
                // A graph of its own for each block, so that the first of them can be told from the others.
                Recompute::None if self.probe.is_none() => Recompute::None,
                Recompute::None | Recompute::Blocks => Recompute::Blocks,
            },
            compute: self.compute(),
            loss_scales: LossScales {
                generator: self.scaler.scale(),
                discriminator: self.losses.discriminator().map_or(1.0, |discriminator| discriminator.scaler().scale()),
            },
            probe: self.probe.as_ref(),
            weigh_by_micro_batch: self.weigh_by_micro_batch.then_some(self.memory_settings.micro),
        }
    }

    /// One optimizer step: gradients of the effective batch, unscale, clip, update, average, report.
    pub(super) fn one_step(&mut self, loaders: &mut Loaders, interrupter: &Interrupter) -> Result<(), StepError> {
        let first_gradient = self.first_gradient.take();
        let (started, waited) = (Instant::now(), loaders.wait_seconds());
        let (batch, figures) = self.computed(loaders, interrupter)?;
        let settings = self.step_settings();
        if let Some(see) = first_gradient {
            self.memory.apart(|| self.show_gradient(see, settings, &batch, &figures, interrupter))?;
        }
        let loss_scales = settings.loss_scales;
        let norms =
            self.gradient_norms(&batch, loss_scales.generator).map_err(|message| self.device_failed(message))?;
        // Whatever fails from here on leaves weights behind of which some have moved and others not.
        let updated = catch_out_of_memory(|| {
            self.faults.meet(self.step + 1, "update");
            self.update(batch, &figures)
        });
        let updated = updated.and_then(|updated| self.faults.wait().map(|()| updated));
        let failed = |message| self.failed(&format!("step {}, update", self.step + 1), message, false);
        let updated = updated.map_err(failed)?;
        if self.device.choice != Choice::Cpu {
            // What fails in the update must not come up in the next step, as something that can be taken again.
            self.device.device.sync().map_err(|error| failed(error.to_string()))?;
        }
        let given_up = self.too_many_skips(loss_scales, interrupter)?;
        let peak = self.memory.peak();
        let micro = self.memory_settings.micro;
        let within = self.recovery.exceeded(peak).is_none();
        let over_limit = self.keep_to_limit(peak);
        self.step += 1;
        // Loaders that were started anew count from zero.
        let waited = (loaders.wait_seconds() - waited).max(0.0);
        self.report(&figures, &updated, (started, waited), (peak, micro, loaders.bytes_waiting()))?;
        self.reporter.gradient_norms(self.step, &norms, &self.progress);
        if let Some(error) = given_up.or(over_limit) {
            return Err(error.into());
        }
        if within {
            let as_measured = self.memory_settings.recompute == self.config.memory.recompute;
            if let Some(choice) = self.unconfirmed.take().filter(|_| as_measured) {
                choice.keep(self.memory_settings.micro);
            }
            self.clean_pools_once()?;
        }
        Ok(())
    }

    /// What a step computes before it changes anything.
    pub(super) fn attempt(
        &self,
        loaders: &mut Loaders,
        interrupter: &Interrupter,
    ) -> Result<(EffectiveBatch, StepMetrics), StepError> {
        let settings = self.step_settings();
        // A loader that has missed steps is of no use any more.
        loaders.first_pass = match (self.losses.couple_samples(settings.step), loaders.first_pass.take()) {
            (true, None) => Some(self.start_loader()),
            (true, first_pass) => first_pass,
            (false, _) => None,
        };
        self.memory.start(self.step == self.first_step || every(PHASES_EVERY, self.step + 1));
        self.faults.meet(self.step + 1, &Phase::Weights.to_string());
        let proceed = || match interrupter.should_stop() {
            true => Err(StepError::Interrupted),
            false => self.check_limit(),
        };
        let batch = self.gradients(settings, loaders, &proceed)?;
        self.observe(Event::Phase(Phase::Optimizer));
        let figures = self.faults.wait().and_then(|()| self.read_figures(&batch));
        let figures = figures.map_err(|message| self.device_failed(message))?;
        self.memory.peak();
        self.check_limit()?;
        Ok((batch, figures))
    }

    fn gradients(
        &self,
        settings: StepSettings,
        loaders: &mut Loaders,
        proceed: &dyn Fn() -> Result<(), StepError>,
    ) -> Result<EffectiveBatch, StepError> {
        let Loaders { first_pass, second_pass } = loaders;
        let cut = (self.config.batch.effective, self.memory_settings.micro);
        let say = |line: &str| self.progress.line(line);
        let first_pass = first_pass.iter_mut().flat_map(|loader| micro_batches(loader, cut, proceed, &say));
        let first_pass =
            first_pass.inspect(|batch| self.progress.first_pass(batch.as_ref().map_or(0, MicroBatch::samples)));
        let second_pass = micro_batches(second_pass, cut, proceed, &say);
        let observe = |event| self.observe(event);
        let batch = effective_batch_gradient(self.model(), &self.losses, settings, first_pass, second_pass, observe);
        batch.map_err(|failure| match failure {
            StepFailure::Batch(error) => error,
            StepFailure::Loss(error) => error.into(),
        })
    }

    /// The gradients of the step that is on, once more.
    pub(super) fn gradients_again(
        &self,
        settings: StepSettings,
        interrupter: &Interrupter,
    ) -> Result<EffectiveBatch, StepError> {
        let coupled = self.losses.couple_samples(settings.step);
        let first_pass = if coupled { Some(self.start_loader()) } else { None };
        let mut loaders = Loaders { first_pass, second_pass: self.start_loader() };
        let proceed = || if interrupter.should_stop() { Err(StepError::Interrupted) } else { Ok(()) };
        self.gradients(settings, &mut loaders, &proceed)
    }

    fn observe(&self, event: Event) {
        match event {
            Event::Phase(phase) => {
                self.memory.enter(phase);
                // Losses in the first pass are part of it.
                self.faults.meet(self.step + 1, &self.memory.phase().to_string());
            }
            Event::Samples(count) => self.progress.samples(count),
        }
    }

    pub(super) fn read_figures(&self, batch: &EffectiveBatch) -> Result<StepMetrics, String> {
        let zero = || Tensor::zeros([1], &self.device.device);
        let generator = global_norm(self.model(), &batch.generator).unwrap_or_else(zero);
        let discriminator = self.losses.discriminator().and_then(|own| own.grad_norm(&batch.discriminator));
        batch.read(generator, discriminator)
    }

    /// The norms of the parameters' gradients by block, without the loss scale, where they are to be shown.
    fn gradient_norms(&self, batch: &EffectiveBatch, loss_scale: f64) -> Result<BTreeMap<String, Vec<f64>>, String> {
        let run = &self.config.run;
        if !run.tensorboard || !every(run.gradient_histograms, self.step + 1) {
            return Ok(BTreeMap::new());
        }
        let mut norms = norms_by_block(self.model(), &batch.generator)?;
        norms.values_mut().flatten().for_each(|norm| *norm /= loss_scale);
        Ok(norms)
    }

    /// Takes the loss scale out, clips, and lets the optimizers take their step; one whose gradient is not finite leaves it
    /// out. The schedules count the steps that were taken.
    fn update(&mut self, batch: EffectiveBatch, figures: &StepMetrics) -> Updated {
        let EffectiveBatch { generator, discriminator, statistics, .. } = batch;
        let (loss_scale, taken) = (self.scaler.scale(), self.scaler.taken(self.step));
        let learning_rate = self.schedule.at(taken);
        let finite = figures.grad_norm.is_finite() && figures.total.is_finite();
        if finite {
            let clip = self.config.optimizer.clip_norm;
            let gradients = unscale_and_clip(self.model(), generator, loss_scale, figures.grad_norm, clip);
            // Moved through the optimizer and not cloned: each old parameter is freed as soon as its new one is there.
            self.model = self.model.take().map(|model| self.optimizer.step(learning_rate, model, gradients));
            self.ema = self.ema.take().map(|ema| ema.updated(self.model(), taken));
        }
        self.scaler.update(finite);

        let step = self.step;
        let discriminator = self.losses.discriminator_mut().and_then(|own| {
            own.remember(figures.next_adaptive_weight.filter(|_| finite));
            let norm = figures.discriminator_grad_norm?;
            let (learning_rate, loss_scale) = (own.learning_rate(step), own.scaler().scale());
            let logits = figures.get("logits_real").zip(figures.get("logits_fake")).map(|(real, fake)| [real, fake]);
            let finite = own.step(step, discriminator, norm, logits, statistics);
            Some(Taken { learning_rate, loss_scale, skipped: !finite })
        });
        Updated { generator: Taken { learning_rate, loss_scale, skipped: !finite }, discriminator }
    }

    /// The end of the run, if more steps in a row were skipped than it may skip. `loss_scales` are those of the step, which
    /// is computed once more, and looked at, to find out where it goes wrong.
    fn too_many_skips(
        &mut self,
        loss_scales: LossScales,
        interrupter: &Interrupter,
    ) -> Result<Option<TrainError>, StepError> {
        let skips = self.skips_in_a_row();
        if skips <= self.config.precision.max_skips {
            return Ok(None);
        }
        let probe = self.probe.take().unwrap_or_else(|| Probe::new(self.model()));
        let found = match probe.take() {
            Some(found) => Some(found),
            None => {
                let settings = StepSettings {
                    loss_scales,
                    recompute: Recompute::Blocks,
                    probe: Some(&probe),
                    ..self.step_settings()
                };
                self.gradients_again(settings, interrupter)?;
                probe.take()
            }
        };
        let place = found.map_or_else(|| "a sum over the effective batch".to_owned(), |found| found.to_string());
        let saved = self.last_saved();
        Ok(Some(TrainError::NotFinite { skips, place, step: self.step + 1, advice: self.advice(), saved }))
    }

    /// Steps up to the newest one that were skipped, by the generator or the discriminator.
    pub(super) fn skips_in_a_row(&self) -> u64 {
        let of_discriminator = self.losses.discriminator().map_or(0, |own| own.scaler().state().in_a_row);
        self.scaler.state().in_a_row.max(of_discriminator)
    }

    /// What helps most likely against values that are not finite.
    fn advice(&self) -> &'static str {
        match self.config.precision.compute {
            Compute::Fp16 if self.device.supports(Compute::Bf16) => {
                "precision.compute = \"bf16\" has the range of fp32, and a lower optimizer.learning_rate often helps"
            }
            Compute::Fp16 => "precision.compute = \"fp32\" or a lower optimizer.learning_rate often helps",
            Compute::Fp32 | Compute::Bf16 => "a lower optimizer.learning_rate often helps",
        }
    }

    /// `peak` is the step's of memory and `host_buffers` what pictures that wait for the next ones take, in bytes, and `micro` its
    /// micro-batch; `waited` is the seconds since `started` in which it waited for pictures.
    fn report(
        &mut self,
        figures: &StepMetrics,
        updated: &Updated,
        (started, waited): (Instant, f64),
        (peak, micro, host_buffers): (u64, usize, usize),
    ) -> Result<(), TrainError> {
        let Updated { generator, discriminator } = updated;
        let seconds = started.elapsed().as_secs_f64();
        let shown = Shown {
            step: self.step,
            loss: figures.total,
            images_per_second: self.config.batch.effective as f64 / seconds,
            peak_memory: peak,
            process_memory: self.memory.process(),
            loss_scale: generator.loss_scale,
            micro: Some(micro).filter(|micro| self.config.batch.micro.samples() != Some(*micro)),
        };
        let mut line = json!({
            "step": shown.step,
            "loss": shown.loss,
            "learning_rate": generator.learning_rate,
            "grad_norm": figures.grad_norm,
            "loss_scale": generator.loss_scale,
            "skipped": generator.skipped,
            "images_per_second": shown.images_per_second,
            "data_wait": waited,
            "peak_memory": shown.peak_memory,
            "micro": micro,
            "host_buffers": host_buffers,
        });
        if let Some(bytes) = shown.process_memory {
            line["process_memory"] = json!(bytes);
        }
        if !figures.code_counts.is_empty() {
            let codes = CodebookUse::from_counts(&figures.code_counts);
            line["codes_used"] = json!(codes.used);
            line["perplexity"] = json!(codes.perplexity);
        }
        for (name, value) in &figures.values {
            line[*name] = json!(value);
        }
        for (phase, peak) in self.memory.phases() {
            line["memory"][phase.to_string()] = json!(peak);
        }
        let recovered = self.recovery.take_events();
        if !recovered.is_empty() {
            line["recovered"] = recovered.into();
        }
        if let Some(taken) = discriminator {
            line["discriminator_grad_norm"] = json!(figures.discriminator_grad_norm);
            line["discriminator_learning_rate"] = json!(taken.learning_rate);
            line["discriminator_loss_scale"] = json!(taken.loss_scale);
            line["discriminator_skipped"] = json!(taken.skipped);
        }
        self.logs.append(&line)?;
        self.say_skips(updated, figures);
        self.reporter.step(&line, &self.progress);
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

    /// A skipped step is no secret.
    fn say_skips(&self, updated: &Updated, figures: &StepMetrics) {
        let of_discriminator = self.losses.discriminator().map(Discriminator::scaler);
        let networks = [
            ("", Some(&updated.generator), Some(&self.scaler)),
            (" discriminator", updated.discriminator.as_ref(), of_discriminator),
        ];
        for (network, taken, scaler) in networks {
            let (Some(Taken { skipped: true, loss_scale, .. }), Some(scaler)) = (taken, scaler) else { continue };
            let next = match scaler.is_dynamic() {
                true => format!("scale {loss_scale} -> {}", scaler.scale()),
                false => format!("{} in a row", scaler.state().in_a_row),
            };
            self.progress.line(&format!("step {}:{network} skipped: overflow, {next}", self.step));
        }
        if let Some(found) = self.probe.as_ref().and_then(Probe::take) {
            let loss = figures.total;
            self.progress.line(&format!("step {}, loss {loss}: not finite first after {found}", self.step));
        }
    }

    pub(super) fn device_failed(&self, message: String) -> TrainError {
        TrainError::DeviceFailed { step: self.step + 1, message, saved: self.last_saved() }
    }

    pub(super) fn last_saved(&self) -> String {
        match &self.saved {
            Some((step, _)) => format!("the last checkpoint is that of step {step}"),
            None => "there is no checkpoint yet".to_owned(),
        }
    }
}
