//! `--max-time`: the run is saved and over before a job's limit ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::stop::{Reason, Stop};

/// The longest of so many newest steps is what the next one is expected to take.
const STEPS: usize = 16;

/// What a disk is taken to write until a save has been measured, in bytes a second: that of a slow network file system.
const UNMEASURED: f64 = 50e6;

/// For what comes after the last save: the end of the process, and what was not foreseen.
const MARGIN: Duration = Duration::from_secs(1);

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(200);

/// When a run has to be over.
#[derive(Debug)]
pub struct Deadline {
    end: Instant,
    /// What is kept for the last save, in milliseconds; nothing while there is nothing to save.
    reserve: Arc<AtomicU64>,
    steps: VecDeque<Duration>,
    longest_save: Duration,
}

impl Deadline {
    /// `limit` after `started`, by when everything has to be saved. In between steps the run asks
    /// [`allows_a_step`](Self::allows_a_step); should a step, a validation or the start take longer than there is time, `stop`
    /// is asked from here.
    pub fn new(started: Instant, limit: Duration, stop: &Stop) -> Self {
        let end = started + limit;
        let reserve = Arc::new(AtomicU64::new(0));
        let (stop, kept) = (stop.clone(), reserve.clone());
        // It goes with the process.
        thread::spawn(move || {
            while !stop.is_asked() {
                let latest = Duration::from_millis(kept.load(Ordering::Relaxed));
                let left = end.saturating_duration_since(Instant::now()).saturating_sub(latest);
                if left.is_zero() {
                    return stop.ask(Reason::MaxTime);
                }
                thread::sleep(left.min(TICK));
            }
        });
        Self { end, reserve, steps: VecDeque::new(), longest_save: Duration::ZERO }
    }

    /// The run begins: a checkpoint of it has about so many bytes.
    pub(super) fn expect_checkpoint(&mut self, bytes: u64) {
        self.keep(Duration::from_secs_f64(bytes as f64 / UNMEASURED));
    }

    pub(super) fn step_took(&mut self, took: Duration) {
        self.steps.truncate(STEPS - 1);
        self.steps.push_front(took);
    }

    /// A checkpoint has become safe, so long after it was begun.
    pub(super) fn save_took(&mut self, took: Duration) {
        self.longest_save = self.longest_save.max(took);
        self.keep(self.longest_save);
    }

    /// Whether there is time for one more step and the save after it.
    pub(super) fn allows_a_step(&self) -> bool {
        let reserve = Duration::from_millis(self.reserve.load(Ordering::Relaxed));
        let step = self.steps.iter().max().copied().unwrap_or_default();
        Instant::now() + step + reserve < self.end
    }

    /// Twice: the save before may be going on, and has to end first.
    fn keep(&self, save: Duration) {
        let reserve = save * 2 + MARGIN;
        self.reserve.store(reserve.as_millis() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(seconds: u64) -> (Deadline, Stop) {
        let stop = Stop::default();
        stop.run_begins();
        (Deadline::new(Instant::now(), Duration::from_secs(seconds), &stop), stop)
    }

    #[test]
    fn there_has_to_be_time_for_the_longest_step_and_its_save() {
        let (mut deadline, stop) = deadline(1000);
        assert!(deadline.allows_a_step());
        deadline.step_took(Duration::from_secs(600));
        deadline.save_took(Duration::from_secs(150));
        assert!(deadline.allows_a_step());
        deadline.save_took(Duration::from_secs(200));
        assert!(!deadline.allows_a_step());
        deadline.save_took(Duration::from_secs(10));
        assert!(!deadline.allows_a_step(), "the longest save counts");
        // What a first step takes to compile is forgotten.
        (0..STEPS).for_each(|_| deadline.step_took(Duration::from_secs(10)));
        assert!(deadline.allows_a_step());
        assert!(!stop.is_asked());
    }

    #[test]
    fn a_save_that_was_not_measured_is_taken_to_be_slow() {
        let (mut deadline, _stop) = deadline(60);
        deadline.expect_checkpoint(1_200_000_000);
        assert!(deadline.allows_a_step());
        deadline.expect_checkpoint(1_500_000_000);
        assert!(!deadline.allows_a_step());
    }

    #[test]
    fn the_clock_asks_where_no_step_ends_in_time() {
        let (deadline, stop) = deadline(1);
        while !stop.is_asked() {
            assert!(Instant::now() < deadline.end + Duration::from_secs(30));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(Instant::now() >= deadline.end);
    }
}
