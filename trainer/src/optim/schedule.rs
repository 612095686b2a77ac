//! The learning rate as a function of the optimizer step alone: a resumed run needs no state for it.

use super::config::{OptimizerConfig, ScheduleConfig, ScheduleKind};

/// A schedule for a run of known length.
#[derive(Debug, Clone)]
pub struct LrSchedule {
    highest: f64,
    kind: ScheduleKind,
    warmup: u64,
    /// Share of the highest rate in the last step; `None` reaches 0 in the step after it.
    last: Option<f64>,
    first: u64,
    steps: u64,
}

impl LrSchedule {
    /// Creates the schedule for `steps` optimizer steps.
    pub fn new(schedule: &ScheduleConfig, optimizer: &OptimizerConfig, steps: u64) -> Self {
        Self {
            highest: optimizer.learning_rate,
            kind: schedule.kind,
            warmup: schedule.warmup,
            last: schedule.last,
            first: 0,
            steps,
        }
    }

    /// The same schedule for a network that is trained from optimizer step `first` on: it warms up from there, and the
    /// last step of the run has the last rate.
    #[must_use]
    pub fn starting_at(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Returns the learning rate of an optimizer step, counted from 0. The warm-up is linear and ends at the highest
    /// rate. The last step of a run has the last rate, or without one the rate just before 0.
    pub fn at(&self, step: u64) -> f64 {
        let since = step.saturating_sub(self.first);
        if since < self.warmup {
            return self.highest * (since + 1) as f64 / (self.warmup + 1) as f64;
        }
        let end = if self.last.is_some() { self.steps - 1 } else { self.steps };
        let length = end.saturating_sub(self.first.saturating_add(self.warmup)).max(1);
        let last = self.last.unwrap_or(0.0);
        let progress = ((since - self.warmup) as f64 / length as f64).min(1.0);
        let share = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - progress * (1.0 - last),
            ScheduleKind::Cosine => last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.highest * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: u64, last: impl Into<Option<f64>>) -> LrSchedule {
        let last = last.into();
        let optimizer = OptimizerConfig { learning_rate: 1.0, ..Default::default() };
        LrSchedule::new(&ScheduleConfig { kind, warmup, last }, &optimizer, 11)
    }

    #[test]
    fn warm_up_ends_at_the_highest_rate() {
        let schedule = schedule(ScheduleKind::Constant, 3, 0.0);
        let rates: Vec<f64> = (0..5).map(|step| schedule.at(step)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn one_that_starts_late_warms_up_then_and_ends_with_the_run() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let late = schedule(kind, 3, 0.2).starting_at(3);
            let rates: Vec<f64> = (3..7).map(|step| late.at(step)).collect();
            assert_eq!(rates, [0.25, 0.5, 0.75, 1.0], "{kind:?}");
            assert!((late.at(8) - 0.6).abs() < 1e-12, "{kind:?}");
            assert!((late.at(10) - 0.2).abs() < 1e-12, "{kind:?}");
        }
        // A start after the end, and a warm-up that lasts longer than the run.
        assert_eq!(schedule(ScheduleKind::Linear, 0, 0.2).starting_at(99).at(99), 1.0);
        assert_eq!(schedule(ScheduleKind::Linear, 3, 0.2).starting_at(9).at(10), 0.5);
    }

    #[test]
    fn no_step_is_without_effect_unless_that_is_written() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let unset = schedule(kind, 3, None);
            let rates: Vec<f64> = (0..11).map(|step| unset.at(step)).collect();
            assert!(rates.iter().all(|rate| *rate > 0.0) && rates[3] == 1.0, "{kind:?}: {rates:?}");
            assert!(rates[10] < rates[9] && unset.at(11).abs() < 1e-12, "{kind:?}: {rates:?}");
            assert!(unset.starting_at(4).at(10) > 0.0, "{kind:?}");
            assert!(schedule(kind, 3, 0.0).at(10).abs() < 1e-12, "{kind:?}");
        }
    }

    #[test]
    fn the_last_step_has_the_last_rate_and_the_middle_is_between() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let schedule = schedule(kind, 0, 0.2);
            assert_eq!(schedule.at(0), 1.0);
            assert!((schedule.at(5) - 0.6).abs() < 1e-12, "{kind:?}");
            assert!((schedule.at(10) - 0.2).abs() < 1e-12 && (schedule.at(99) - 0.2).abs() < 1e-12, "{kind:?}");
        }
    }
}
