//! `--max-time`: saves and ends the run before the time limit of its job.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::stop::{Reason, Stop};

/// Number of newest steps. The next step is expected to take as long as the longest of them.
const STEPS: usize = 16;

/// Assumed speed of the disk until a save has been measured, in bytes per second: that of a slow network file system.
const UNMEASURED: f64 = 50e6;

/// Time kept free after the last save, for the end of the process and for the unexpected.
const MARGIN: Duration = Duration::from_secs(1);

/// Longest time between two looks at the clock.
const TICK: Duration = Duration::from_millis(200);

/// The time by which a run must end.
#[derive(Debug)]
pub struct Deadline {
    end: Instant,
    /// Time reserved for the last save, in milliseconds; 0 while there is nothing to save.
    reserve: Arc<AtomicU64>,
    steps: VecDeque<Duration>,
    longest_save: Duration,
}

impl Deadline {
    /// The run must be saved at `started + limit`. Between steps the run asks [`allows_a_step`](Self::allows_a_step).
    /// If a step, a validation or the start takes too long, a thread of this deadline asks `stop`.
    pub fn new(started: Instant, limit: Duration, stop: &Stop) -> Self {
        let end = started + limit;
        let reserve = Arc::new(AtomicU64::new(0));
        let (stop, kept) = (stop.clone(), reserve.clone());
        // The thread ends with the process.
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

    /// Reserves time for the first save, of a checkpoint of about `bytes` bytes.
    pub(super) fn expect_checkpoint(&mut self, bytes: u64) {
        self.reserve_time_for(Duration::from_secs_f64(bytes as f64 / UNMEASURED));
    }

    pub(super) fn step_took(&mut self, took: Duration) {
        self.steps.truncate(STEPS - 1);
        self.steps.push_front(took);
    }

    /// Reserves time for the longest save so far. `took` is the time from the start of a save until it was safe.
    pub(super) fn save_took(&mut self, took: Duration) {
        self.longest_save = self.longest_save.max(took);
        self.reserve_time_for(self.longest_save);
    }

    /// Whether there is time for one more step and the save after it.
    pub(super) fn allows_a_step(&self) -> bool {
        let reserve = Duration::from_millis(self.reserve.load(Ordering::Relaxed));
        let step = self.steps.iter().max().copied().unwrap_or_default();
        Instant::now() + step + reserve < self.end
    }

    /// Reserves twice the time of a save: the previous save may still be running, and has to end first.
    fn reserve_time_for(&self, save: Duration) {
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
        // The compile time of a first step is forgotten.
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
