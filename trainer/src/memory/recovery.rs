//! What a run does when a step needs more memory than there is, or than `memory.limit` allows: it lowers its memory settings,
//! so that the same step can be taken again. By the exactness contract its gradient is the same.

use serde_json::{Value, json};

use super::{Exhausted, Limit, MemoryError, MemorySettings, would_help};
use crate::config::Config;
use crate::device::panics::{catch, out_of_memory};
use crate::device::{Choice, Selected};
use crate::losses::Phase;
use crate::show::readable;

/// What a run does about memory.
pub struct Recovery {
    limit: Option<Limit>,
    /// Whether settings are lowered; a measurement takes its steps as they are.
    on: bool,
    device: Selected,
    /// Whether another micro-batch would change what is learned.
    fixed_micro: bool,
    /// How many cutouts a sample has, if any.
    cutouts: Option<usize>,
    /// What the user could change.
    help: Vec<String>,
    /// The settings for which a GPU's pools were cleaned, see [`clean_pools_once`](Self::clean_pools_once).
    cleaned_for: Option<MemorySettings>,
    /// What happened in the current step, for its line of `metrics.jsonl`.
    events: Vec<Value>,
}

/// What a step needs more of than there is.
pub enum Shortage {
    /// The device's memory; the message is the device's.
    Device(String),
    /// What the limit allows; the peak is in bytes.
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
                format!("{} exceeds {name}, {}", readable(*peak), readable(limit.bytes))
            }
        }
    }
}

impl Recovery {
    /// `fixed_micro` says whether another micro-batch would change what is learned; `cutouts` is how many cutouts a sample has, if
    /// any.
    pub fn new(
        limit: Option<Limit>,
        config: &Config,
        device: &Selected,
        fixed_micro: bool,
        cutouts: Option<usize>,
    ) -> Self {
        Self {
            limit,
            on: true,
            device: device.clone(),
            fixed_micro,
            cutouts,
            help: would_help(config),
            cleaned_for: None,
            events: Vec::new(),
        }
    }

    /// Lowers no settings, as a measurement needs it.
    pub fn off(self) -> Self {
        Self { on: false, ..self }
    }

    /// Whether there is a limit.
    pub fn has_limit(&self) -> bool {
        self.limit.is_some()
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// The shortage of a step with this peak, if it exceeds the limit.
    pub fn exceeded(&self, peak: u64) -> Option<Shortage> {
        let limit = self.limit.filter(|limit| self.on && peak > limit.bytes)?;
        Some(Shortage::Limit(peak, limit))
    }

    /// Whether a step with these settings can be taken again if it runs out of memory.
    pub fn can_help(&self, settings: MemorySettings) -> bool {
        self.on || !self.pools_are_clean(settings)
    }

    /// What would need less memory: the next settings, and what the user could change.
    pub fn help(&self, settings: MemorySettings) -> String {
        let lower = settings.lowered(self.fixed_micro, self.cutouts).map(|(_, change)| change);
        lower.iter().chain(&self.help).map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Makes a step need less memory: cleans what its first attempt has left in the pools, or lowers `settings`. Nothing of the
    /// failed attempt may still be in use. Returns the settings of the next attempt, and what to say, if anything.
    ///
    /// # Errors
    /// If the device fails, or if nothing is left to lower.
    pub fn recover(
        &mut self,
        settings: MemorySettings,
        shortage: &Shortage,
        phase: Phase,
    ) -> Result<(MemorySettings, Option<String>), MemoryError> {
        let (settings, change) = match self.clean_pools_once(settings)? {
            true => (settings, "pools cleaned".to_owned()),
            false => self.lower(settings, shortage)?,
        };
        let message = shortage.in_words();
        // A measurement says nothing: its last words would be taken for the reason why it failed.
        let said = self.on.then(|| format!("{phase}: {message}; {change}"));
        let (cause, phase) = (shortage.name(), phase.to_string());
        self.events.push(json!({ "cause": cause, "phase": phase, "message": message, "change": change }));
        Ok((settings, said))
    }

    fn lower(
        &mut self,
        settings: MemorySettings,
        shortage: &Shortage,
    ) -> Result<(MemorySettings, String), MemoryError> {
        clear_pools(&self.device)?;
        match (settings.lowered(self.fixed_micro, self.cutouts), shortage) {
            (Some(lowered), _) => Ok(lowered),
            // The user has set no limit, and the device has enough memory.
            (None, Shortage::Limit(_, Limit { configured: false, .. })) => {
                self.limit = None;
                Ok((settings, "nothing is left to lower, so the limit no longer applies".to_owned()))
            }
            (None, _) => Err(MemoryError::Exhausted(Exhausted {
                cause: shortage.in_words(),
                lowered: settings.lowest(self.fixed_micro, self.cutouts),
                help: self.help.join(", "),
            })),
        }
    }

    /// Frees what the first step with these settings, or the first attempt at it, has left in a GPU's pools: memory with which
    /// kernels were tried, and pages that are too small for a later allocation. Later steps need none of it. Returns whether
    /// there was something to clean.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clean_pools_once(&mut self, settings: MemorySettings) -> Result<bool, MemoryError> {
        let dirty = !self.pools_are_clean(settings);
        if dirty {
            clear_pools(&self.device)?;
            self.cleaned_for = Some(settings);
        }
        Ok(dirty)
    }

    fn pools_are_clean(&self, settings: MemorySettings) -> bool {
        self.device.choice == Choice::Cpu || self.cleaned_for == Some(settings)
    }
}

/// Waits for what the device still computes, and frees what its pools have kept.
///
/// # Errors
/// If the device fails, and not because of its memory.
pub fn clear_pools(device: &Selected) -> Result<(), MemoryError> {
    let device = &device.device;
    // An error that is about memory belongs to the step that has failed.
    for result in [catch(|| drop(device.sync())), catch(|| device.memory_cleanup())] {
        match result {
            Err(message) if out_of_memory(&message).is_none() => return Err(MemoryError::Device(message)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recompute;

    fn settings(micro: usize, recompute: Recompute) -> MemorySettings {
        MemorySettings { micro, recompute, cutouts_at_once: 0 }
    }

    fn recovery(limit: Limit) -> Recovery {
        Recovery::new(Some(limit), &Config::default(), &Choice::Cpu.open().unwrap(), false, None)
    }

    #[test]
    fn settings_are_lowered_until_nothing_is_left_and_a_limit_that_nobody_set_is_dropped() {
        let limit = Limit { bytes: 100, configured: true };
        let mut set = recovery(limit);
        assert!(set.exceeded(100).is_none() && set.can_help(settings(2, Recompute::None)));
        let shortage = set.exceeded(101).unwrap();
        let (lower, said) = set.recover(settings(2, Recompute::None), &shortage, Phase::Backward).unwrap();
        assert_eq!(lower, settings(1, Recompute::None));
        assert_eq!(said.unwrap(), "backward: 101 B exceeds memory.limit, 100 B; batch.micro 2 -> 1");
        let events = set.take_events();
        assert_eq!((&events[0]["cause"], &events[0]["phase"]), (&"limit".into(), &"backward".into()));
        assert!(set.take_events().is_empty());
        let lowest = settings(1, Recompute::Blocks);
        let error = set.recover(lowest, &shortage, Phase::Backward).unwrap_err().to_string();
        let words = "; batch.micro is 1, memory.recompute is \"blocks\": nothing is left to lower; ";
        assert!(error.contains(words), "{error}");

        let mut free = recovery(Limit { configured: false, ..limit });
        let shortage = free.exceeded(101).unwrap();
        assert_eq!(free.recover(lowest, &shortage, Phase::Backward).unwrap().0, lowest);
        assert!(!free.has_limit() && free.exceeded(101).is_none());
        assert!(free.recover(lowest, &Shortage::Device("no".into()), Phase::Backward).is_err());
    }

    #[test]
    fn a_measurement_lowers_nothing() {
        let off = recovery(Limit { bytes: 1, configured: true }).off();
        assert!(off.exceeded(2).is_none() && !off.can_help(settings(2, Recompute::None)));
    }
}
