//! A step that needs more memory than there is, or than `memory.limit` allows, is taken again with less: the same samples, the
//! same random draws, and by the exactness contract the same gradient.

use burn_train::Interrupter;
use serde_json::{Value, json};

use super::loaders::Loaders;
use super::room::Limit;
use super::step::StepError;
use super::{TrainError, Training};
use crate::config::{ClipConfig, Compute, Config, Recompute};
use crate::device::Choice;
use crate::engine::{EffectiveBatch, Figures};
use crate::losses::ClipGuidance;
use crate::memory::{out_of_memory, readable};
use crate::panics::{catch, catch_out_of_memory};
use crate::plan::half_resolution;
use crate::run_state::{Footprint, depends_on_micro};

/// What a run does about memory.
pub(super) struct Recovery {
    /// What a step keeps within.
    pub(super) limit: Option<Limit>,
    /// Whether steps are taken again; where they are measured, they are what they are.
    on: bool,
    /// What a GPU's pools were cleaned for, see [`Training::clean_pools_once`].
    cleaned_for: Option<Footprint>,
    /// What happened in the step that is on, for its line of `metrics.jsonl`.
    events: Vec<Value>,
}

impl Recovery {
    pub(super) fn new(limit: Option<Limit>, on: bool) -> Self {
        Self { limit, on, cleaned_for: None, events: Vec::new() }
    }

    /// What happened since the last time.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// The limit that `peak` is above.
    pub(super) fn exceeded(&self, peak: u64) -> Option<Limit> {
        self.limit.filter(|limit| self.on && peak > limit.bytes)
    }
}

/// What a step needs more of than there is.
enum Shortage {
    /// In the device's words.
    Device(String),
    /// Bytes that were measured.
    Limit(u64, Limit),
}

impl Shortage {
    fn name(&self) -> &'static str {
        match self {
            Self::Device(_) => "device",
            Self::Limit(..) => "limit",
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Device(message) => format!("out of memory ({message})"),
            Self::Limit(peak, limit) => {
                let name = if limit.configured { "memory.limit" } else { "90 % of what was free at the start" };
                format!("{} is above {name}, {}", readable(*peak), readable(limit.bytes))
            }
        }
    }
}

impl Training {
    /// What a step computes before it changes anything.
    pub(super) fn computed(
        &mut self,
        loaders: &mut Loaders,
        interrupter: &Interrupter,
    ) -> Result<(EffectiveBatch, Figures), StepError> {
        loop {
            if !self.recovery.on && self.pools_are_clean() {
                return self.attempt(loaders, interrupter);
            }
            let shortage = match catch_out_of_memory(|| self.attempt(loaders, interrupter)) {
                Err(message) => Shortage::Device(message),
                Ok(Err(StepError::Failed(TrainError::DeviceFailed { message, step, saved }))) => {
                    match out_of_memory(&message) {
                        Some(line) => Shortage::Device(line.to_owned()),
                        None => return Err(TrainError::DeviceFailed { message, step, saved }.into()),
                    }
                }
                Ok(Err(StepError::OverLimit)) => match self.recovery.exceeded(self.memory.peak_so_far()) {
                    Some(limit) => Shortage::Limit(self.memory.peak_so_far(), limit),
                    None => continue,
                },
                Ok(finished) => return finished,
            };
            self.make_room(&shortage, "and the step is taken again")?;
            *loaders = self.start_loaders();
            self.progress.step_again();
        }
    }

    /// Whether the step may go on, by what it is known to have taken so far.
    pub(super) fn check_limit(&self) -> Result<(), StepError> {
        match self.recovery.exceeded(self.memory.peak_so_far()) {
            Some(_) => Err(StepError::OverLimit),
            None => Ok(()),
        }
    }

    /// Lowers what the next steps take, if the step that has just moved the weights took more than the limit, `peak` bytes; it
    /// cannot be taken again. Returns the end of the run, if nothing is left to lower.
    pub(super) fn keep_to_limit(&mut self, peak: u64) -> Option<TrainError> {
        let limit = self.recovery.exceeded(peak)?;
        self.make_room(&Shortage::Limit(peak, limit), "from the next step on").err()
    }

    /// Has a step take less, by what its pools have kept of its first attempt or by what it computes at a time; nothing of the one
    /// that is on has been kept. `then` says what follows.
    fn make_room(&mut self, shortage: &Shortage, then: &str) -> Result<(), TrainError> {
        let (step, cause) = (self.step + 1, shortage.in_words());
        let phase = self.memory.phase().to_string();
        let change = match self.clean_pools_once()? {
            true => "pools cleaned".to_owned(),
            false => self.lower(step, &cause, shortage)?,
        };
        // Of a measurement the last words count, which would be taken for its end.
        if self.recovery.on {
            self.progress.line(&format!("step {step}, {phase}: {cause}; {change}, {then}"));
        }
        let message = shortage.in_words();
        self.recovery.events.push(json!({
            "cause": shortage.name(),
            "phase": phase,
            "message": message,
            "change": change,
        }));
        Ok(())
    }

    /// Lowers what a step takes, and returns what was lowered, in words.
    fn lower(&mut self, step: u64, cause: &str, shortage: &Shortage) -> Result<String, TrainError> {
        self.clear_device()?;
        match (self.smaller(), shortage) {
            (Some((footprint, change)), _) => {
                self.set_footprint(footprint);
                Ok(change)
            }
            // Nobody has asked for it, and the device itself is content.
            (None, Shortage::Limit(_, Limit { configured: false, .. })) => {
                self.recovery.limit = None;
                Ok("nothing is left to lower, and the limit is dropped".to_owned())
            }
            (None, _) => Err(TrainError::OutOfMemory {
                step,
                cause: cause.to_owned(),
                lowered: self.lowered(),
                help: would_help(&self.config).join(", "),
                saved: self.last_saved(),
            }),
        }
    }

    /// Frees what a GPU's pools have kept of the first step with a footprint, or of the first attempt at it: what kernels were tried
    /// with, and pages that a larger allocation has made too small. Later steps do without. Returns whether that was still to be
    /// done.
    pub(super) fn clean_pools_once(&mut self) -> Result<bool, TrainError> {
        if self.pools_are_clean() {
            return Ok(false);
        }
        self.clear_device()?;
        self.recovery.cleaned_for = Some(self.footprint);
        Ok(true)
    }

    fn pools_are_clean(&self) -> bool {
        self.device.choice == Choice::Cpu || self.recovery.cleaned_for == Some(self.footprint)
    }

    /// Waits for what is over, and frees what is still in the pools of it, in pieces of its sizes.
    pub(super) fn clear_device(&self) -> Result<(), TrainError> {
        let device = &self.device.device;
        // Errors of what was still under way belong to what is over.
        for result in [catch(|| drop(device.sync())), catch(|| device.memory_cleanup())] {
            match result {
                Err(message) if out_of_memory(&message).is_none() => return Err(self.device_failed(message)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// The end of the run by what the device said, in the words for too little memory if that is what it is. `sound` is whether
    /// the weights are those of a whole step.
    pub(super) fn failed(&self, place: &str, message: String, sound: bool) -> TrainError {
        let Some(line) = out_of_memory(&message) else { return self.device_failed(message) };
        let lower = self.smaller().map(|(_, change)| change);
        TrainError::OutOfMemoryIn {
            place: place.to_owned(),
            message: line.to_owned(),
            help: lower.into_iter().chain(would_help(&self.config)).collect::<Vec<_>>().join(", "),
            saved: self.last_saved(),
            sound,
        }
    }

    pub(super) fn set_footprint(&mut self, footprint: Footprint) {
        self.footprint = footprint;
        if let Some(clip) = &mut self.losses.clip {
            clip.views.at_once = footprint.cutouts_at_once;
        }
    }

    /// The next thing that takes less memory and changes nothing else, with what it changes.
    fn smaller(&self) -> Option<(Footprint, String)> {
        let now = self.footprint;
        if now.micro > 1 && !self.is_bound_to_micro() {
            let micro = now.micro / 2;
            return Some((Footprint { micro, ..now }, format!("batch.micro {} -> {micro}", now.micro)));
        }
        if now.checkpoint == Recompute::None {
            let blocks = Footprint { checkpoint: Recompute::Blocks, ..now };
            return Some((blocks, "memory.checkpoint \"none\" -> \"blocks\"".to_owned()));
        }
        let at_once = self.cutouts_at_once().filter(|at_once| *at_once > 1)?;
        let half = at_once / 2;
        Some((Footprint { cutouts_at_once: half, ..now }, format!("clip.cutouts_at_once {at_once} -> {half}")))
    }

    /// Whether another micro-batch would change what is learned.
    fn is_bound_to_micro(&self) -> bool {
        depends_on_micro(&self.config, self.adversary.as_ref().is_some_and(|adversary| adversary.has_batch_norm()))
    }

    /// Of a sample, if there are cutouts.
    fn cutouts_at_once(&self) -> Option<usize> {
        let views = &self.losses.clip.as_ref().filter(|clip| clip.needs_cutouts())?.views;
        let count = views.cutouts.settings().count;
        Some(if views.at_once == 0 { count } else { views.at_once.min(count) })
    }

    /// All that could be lowered, as it is now.
    fn lowered(&self) -> String {
        let Footprint { micro, .. } = self.footprint;
        let mut text = match self.is_bound_to_micro() && micro > 1 {
            true => format!("another batch.micro than {micro} would change what is learned"),
            false => format!("batch.micro is {micro}"),
        };
        text += ", memory.checkpoint is \"blocks\"";
        if self.cutouts_at_once().is_some() {
            text += ", clip.cutouts_at_once is 1";
        }
        text
    }
}

/// The end of a run that has not begun.
pub(super) fn nothing_left(config: &Config, footprint: Footprint, cause: String) -> TrainError {
    let lowered = format!("batch.micro is {}, memory.checkpoint is \"blocks\"", footprint.micro);
    let saved = "nothing has been made".to_owned();
    TrainError::OutOfMemory { step: 1, cause, lowered, help: would_help(config).join(", "), saved }
}

/// The end of a run by what the device said before its first step, with `step` steps done, most likely that there is too little
/// memory for what there has to be by then.
pub(super) fn cannot_begin(config: &Config, step: u64, message: String) -> TrainError {
    let (place, saved) = ("before the first step".to_owned(), "nothing has been changed".to_owned());
    match out_of_memory(&message).map(str::to_owned) {
        Some(message) => {
            TrainError::OutOfMemoryIn { place, message, help: would_help(config).join(", "), saved, sound: true }
        }
        None => TrainError::DeviceFailed { step: step + 1, message, saved },
    }
}

/// What takes less memory and is the user's to decide, since it changes what is learned or what is kept of it.
fn would_help(config: &Config) -> Vec<String> {
    let mut ways = Vec::new();
    if let Some(half) = half_resolution(config) {
        ways.push(format!("data.resolution = {half}"));
    }
    if config.model.train.iter().any(|pattern| pattern == "*") {
        ways.push("freezing the encoder (model.train = [\"post_quant_conv\", \"decoder\"])".to_owned());
    }
    if config.precision.compute == Compute::Fp32 {
        ways.push("precision.compute = \"bf16\"".to_owned());
    }
    if ClipConfig::is_needed(&config.losses) {
        ways.push("a smaller CLIP (clip.pretrained)".to_owned());
    }
    if config.ema.decay > 0.0 {
        ways.push("no average of the weights (ema.decay = 0)".to_owned());
    }
    if ways.is_empty() {
        ways.push("a smaller model".to_owned());
    }
    ways
}

impl ClipGuidance {
    /// Whether any loss of the run sees cutouts.
    fn needs_cutouts(&self) -> bool {
        self.views.cutouts.settings().count > 0
            && (self.image.is_some() || self.text.is_some() || self.direction.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_is_what_is_not_on_yet() {
        let mut config = Config::default();
        assert_eq!(
            would_help(&config),
            [
                "data.resolution = 128",
                "freezing the encoder (model.train = [\"post_quant_conv\", \"decoder\"])",
                "precision.compute = \"bf16\"",
                "no average of the weights (ema.decay = 0)",
            ]
        );
        config.precision.compute = Compute::Fp16;
        config.model.train = vec!["decoder".to_owned()];
        config.losses.clip_image.weight = 1.0;
        config.ema.decay = 0.0;
        assert_eq!(would_help(&config), ["data.resolution = 128", "a smaller CLIP (clip.pretrained)"]);
    }
}
