//! Logs and shows an optimizer step.

use std::time::Instant;

use serde_json::json;

use super::Training;
use super::error::TrainError;
use super::learned::{Update, Updates};
use super::logs::Logs;
use crate::losses::{ClipGuidance, Discriminator, StepMetrics};
use crate::models::quantizer::CodebookUse;
use crate::precision::Probe;
use crate::show::progress::{Progress, Shown};
use crate::show::reporting::Reporter;

/// Where a run is logged and shown.
pub(super) struct Display {
    pub(super) logs: Logs,
    pub(super) progress: Progress,
    pub(super) reporter: Reporter,
}

impl Training {
    /// Logs and shows a step. `waited` is the seconds since `started` in which it waited for images. `peak` is its peak
    /// memory and `host_buffers` the memory of images that are read ahead, both in bytes. `micro` is its micro-batch.
    pub(super) fn report(
        &mut self,
        metrics: &StepMetrics,
        updates: &Updates,
        (started, waited): (Instant, f64),
        (peak, micro, host_buffers): (u64, usize, usize),
    ) -> Result<(), TrainError> {
        let Updates { generator, discriminator } = updates;
        let seconds = started.elapsed().as_secs_f64();
        let shown = Shown {
            step: self.step,
            loss: metrics.total,
            images_per_second: self.config.batch.effective as f64 / seconds,
            peak_memory: peak,
            process_memory: self.memory.meter.process(),
            loss_scale: generator.loss_scale,
            micro: Some(micro).filter(|micro| self.config.batch.micro.samples() != Some(*micro)),
        };
        let mut line = json!({
            "step": shown.step,
            "loss": shown.loss,
            "learning_rate": generator.learning_rate,
            "grad_norm": metrics.grad_norm,
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
        if !metrics.code_counts.is_empty() {
            let codes = CodebookUse::from_counts(&metrics.code_counts);
            line["codes_used"] = json!(codes.used);
            line["perplexity"] = json!(codes.perplexity);
        }
        for (name, value) in &metrics.values {
            line[*name] = json!(value);
        }
        for (phase, peak) in self.memory.meter.phases() {
            line["memory"][phase.to_string()] = json!(peak);
        }
        let recovered = self.memory.recovery.take_events();
        if !recovered.is_empty() {
            line["recovered"] = recovered.into();
        }
        if let Some(update) = discriminator {
            line["discriminator_grad_norm"] = json!(metrics.discriminator_grad_norm);
            line["discriminator_learning_rate"] = json!(update.learning_rate);
            line["discriminator_loss_scale"] = json!(update.loss_scale);
            line["discriminator_skipped"] = json!(update.skipped);
        }
        self.shown.logs.append(&line)?;
        self.report_skips(updates, metrics);
        self.shown.reporter.step(&line, &self.shown.progress);
        for warning in self.data.training.take_warnings() {
            self.shown.progress.line(&format!("skipped {warning}"));
        }
        if let Some(caption) = self.learned.losses.clip.as_ref().and_then(ClipGuidance::take_truncated) {
            let beginning: String = caption.chars().take(80).collect();
            self.shown
                .progress
                .line(&format!("CLIP does not see the end of captions as long as this one: {beginning}"));
        }
        self.shown.progress.step(shown);
        Ok(())
    }

    fn report_skips(&self, updates: &Updates, metrics: &StepMetrics) {
        let of_discriminator = self.learned.losses.discriminator().map(Discriminator::scaler);
        let networks = [
            ("", Some(&updates.generator), Some(&self.learned.scaler)),
            (" discriminator", updates.discriminator.as_ref(), of_discriminator),
        ];
        for (network, update, scaler) in networks {
            let (Some(Update { skipped: true, loss_scale, .. }), Some(scaler)) = (update, scaler) else { continue };
            let next = match scaler.is_dynamic() {
                true => format!("scale {loss_scale} -> {}", scaler.scale()),
                false => format!("{} in a row", scaler.state().in_a_row),
            };
            self.shown.progress.line(&format!("step {}:{network} skipped: overflow, {next}", self.step));
        }
        if let Some(found) = self.debug.probe.as_ref().and_then(Probe::take) {
            let loss = metrics.total;
            self.shown.progress.line(&format!("step {}, loss {loss}: not finite first after {found}", self.step));
        }
    }
}
