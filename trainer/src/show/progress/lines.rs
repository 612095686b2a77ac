//! Shows a run by plain lines, for a file or a pipe, and for the log in its folder.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Position, View};
use crate::show::counted;
use crate::show::terminal::{Verbosity, verbosity};

/// Time between lines of steps.
const STEP_EVERY: Duration = Duration::from_secs(10);

/// Time between lines within a step, so that a long step does not look dead.
const PART_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Lines {
    /// Where lines go.
    write: fn(&str),
    last: Cell<Option<Instant>>,
    has_said_a_step: Cell<bool>,
}

impl Lines {
    pub(super) fn new(write: fn(&str)) -> Self {
        Self { write, last: Cell::default(), has_said_a_step: Cell::default() }
    }

    fn silent_for(&self, time: Duration) -> bool {
        self.last.get().is_none_or(|last| last.elapsed() >= time)
    }

    fn say(&self, text: &str) {
        self.last.set(Some(Instant::now()));
        (self.write)(text);
    }
}

impl View for Lines {
    fn part(&self, position: Position) {
        let Position { step, steps, part, done, of } = position;
        // The first images start the clock.
        if self.last.get().is_none() {
            self.last.set(Some(Instant::now()));
        } else if self.silent_for(PART_EVERY) {
            self.say(&format!("step {step}/{steps}  {}: {done} of {}", part.name(), counted(of, "image")));
        }
    }

    fn step(&self, position: Position, text: &str) {
        let Position { step, steps, .. } = position;
        let is_first = !self.has_said_a_step.replace(true);
        if is_first || self.silent_for(STEP_EVERY) || step == steps || verbosity() == Verbosity::Verbose {
            self.say(&format!("step {step}/{steps}  {text}"));
        }
    }

    fn line(&self, text: &str) {
        (self.write)(text);
    }

    fn kernels(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        let last = Mutex::new(Instant::now());
        Box::new(move |count| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= PART_EVERY {
                *last = Instant::now();
                note!("kernels: {count} compiled");
            }
        })
    }

    fn finish(&self) {}
}
