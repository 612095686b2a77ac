//! The settings that decide how much memory a step needs, and the order in which they are lowered.

use serde::{Deserialize, Serialize};

use crate::config::{Adaptive, Config, Recompute};

/// The settings that change the memory of a step and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySettings {
    /// Samples on the device at a time.
    pub micro: usize,
    /// What the backward pass recomputes. The name in older checkpoints is `checkpoint`.
    #[serde(alias = "checkpoint")]
    pub recompute: Recompute,
    /// CLIP's cutouts of a sample at a time; 0 for all of them.
    pub cutouts_at_once: usize,
}

impl MemorySettings {
    /// What `config` says, with this micro-batch.
    pub fn of(config: &Config, micro: usize) -> Self {
        Self {
            micro: micro.min(config.batch.effective),
            recompute: config.memory.recompute,
            cutouts_at_once: config.clip.cutouts_at_once,
        }
    }

    /// The next settings that need less memory, and what they change, in words. `fixed_micro` says that the micro-batch has
    /// to stay; `cutouts` is how many cutouts a sample has, if any.
    pub fn lowered(self, fixed_micro: bool, cutouts: Option<usize>) -> Option<(Self, String)> {
        if self.micro > 1 && !fixed_micro {
            let micro = self.micro / 2;
            return Some((Self { micro, ..self }, format!("batch.micro {} -> {micro}", self.micro)));
        }
        if self.recompute == Recompute::None {
            let blocks = Self { recompute: Recompute::Blocks, ..self };
            return Some((blocks, "memory.recompute \"none\" -> \"blocks\"".to_owned()));
        }
        let at_once = cutouts.map(|count| self.cutouts_of(count)).filter(|at_once| *at_once > 1)?;
        let half = at_once / 2;
        Some((Self { cutouts_at_once: half, ..self }, format!("clip.cutouts_at_once {at_once} -> {half}")))
    }

    /// How many of a sample's `count` cutouts are computed at a time.
    fn cutouts_of(self, count: usize) -> usize {
        if self.cutouts_at_once == 0 { count } else { self.cutouts_at_once.min(count) }
    }

    /// Says that all is as low as it can be; see [`lowered`](Self::lowered).
    pub fn lowest(self, fixed_micro: bool, cutouts: Option<usize>) -> String {
        let Self { micro, .. } = self;
        let mut text = match fixed_micro && micro > 1 {
            true => format!("another batch.micro than {micro} would change what is learned"),
            false => format!("batch.micro is {micro}"),
        };
        text += ", memory.recompute is \"blocks\"";
        if cutouts.is_some() {
            text += ", clip.cutouts_at_once is 1";
        }
        text
    }
}

/// Whether what a step computes depends on `batch.micro`; `batch_norm` says whether the discriminator has BatchNorm.
pub fn depends_on_micro(config: &Config, batch_norm: bool) -> bool {
    let adversarial = &config.losses.adversarial;
    adversarial.weight != 0.0 && (batch_norm || adversarial.adaptive == Adaptive::MicroBatch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(mut settings: MemorySettings, fixed_micro: bool, cutouts: Option<usize>) -> Vec<String> {
        let next = || {
            let (lower, change) = settings.lowered(fixed_micro, cutouts)?;
            settings = lower;
            Some(change)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn settings_are_lowered_in_order() {
        let settings = MemorySettings { micro: 5, recompute: Recompute::None, cutouts_at_once: 0 };
        let [halves, blocks] =
            [["batch.micro 5 -> 2", "batch.micro 2 -> 1"], ["memory.recompute \"none\" -> \"blocks\""; 2]];
        let cutouts = ["clip.cutouts_at_once 3 -> 1"];
        assert_eq!(changes(settings, false, Some(3)), [&halves[..], &blocks[..1], &cutouts].concat());
        assert_eq!(changes(settings, true, None), blocks[..1]);
        let few = MemorySettings { micro: 1, recompute: Recompute::Blocks, cutouts_at_once: 8 };
        assert_eq!(changes(few, false, Some(3)), cutouts);
        assert_eq!(changes(few, false, Some(1)), [""; 0]);
    }

    #[test]
    fn a_micro_batch_that_has_to_stay_is_named() {
        let settings = MemorySettings { micro: 2, recompute: Recompute::Blocks, cutouts_at_once: 1 };
        let rest = ", memory.recompute is \"blocks\", clip.cutouts_at_once is 1";
        let begins = "another batch.micro than 2 would change what is learned";
        assert_eq!(settings.lowest(true, Some(4)), format!("{begins}{rest}"));
        assert_eq!(settings.lowest(false, None), "batch.micro is 2, memory.recompute is \"blocks\"");
    }

    #[test]
    fn settings_of_older_checkpoints_are_read() {
        let older = r#"{ "micro": 2, "checkpoint": "blocks", "cutouts_at_once": 3 }"#;
        let settings = MemorySettings { micro: 2, recompute: Recompute::Blocks, cutouts_at_once: 3 };
        assert_eq!(serde_json::from_str::<MemorySettings>(older).unwrap(), settings);
    }
}
