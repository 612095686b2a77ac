//! How a run is asked to stop: by a signal, or by the clock.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use burn_train::Interrupter;

use crate::memory::Stopped;
use crate::show::progress::give_terminal_back;
use crate::show::terminal::write_line_soon;

/// Exit code of a run that was asked to stop.
pub const INTERRUPTED: u8 = 130;

/// What asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// SIGINT or SIGTERM.
    Signal,
    /// SIGHUP: the terminal is gone.
    Hangup,
    /// The end of `--max-time`.
    MaxTime,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "stopping",
            Self::Hangup => "the terminal has hung up",
            Self::MaxTime => "--max-time is nearly over",
        })
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has been made yet, so nothing is lost.
    #[default]
    Starting,
    /// Nothing has been made, but a process of ours is at work.
    Measuring,
    /// There is a run, which has to be saved first.
    Running,
    /// It has been asked already, for this reason.
    Asked(Reason),
}

/// Ends the process with an exit code; the program's, since a library does not end it.
pub type Exit = fn(i32) -> !;

/// A handle by which a run is asked to stop.
#[derive(Clone, Default)]
pub struct Stop {
    /// `None` where nobody asks.
    exit: Option<Exit>,
    interrupter: Interrupter,
    /// For processes that measure while nothing has been made yet.
    stopped: Stopped,
    phase: Arc<Mutex<Phase>>,
}

impl Stop {
    /// For a program that ends with `exit` where there is nothing to save.
    pub fn new(exit: Exit) -> Self {
        Self { exit: Some(exit), ..Self::default() }
    }

    /// How the process is ended at once.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    fn end(&self) {
        if let Some(exit) = self.exit {
            exit(INTERRUPTED.into());
        }
    }

    /// Asks the run to save and stop. A run that has not begun, with downloads going on or images being listed, ends the
    /// process at once, and so does a second SIGINT or SIGTERM. A SIGHUP does not, since one hang-up can come as several.
    pub fn ask(&self, reason: Reason) {
        // What is asked is done before anything is said: the terminal may be gone.
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        match *phase {
            Phase::Starting => {
                say_nothing_is_lost(reason);
                // Still locked: no folder is made meanwhile.
                self.end();
            }
            // Whoever waits for the process that measures ends it, and then this one.
            Phase::Measuring => {
                self.stopped.store(true, Ordering::SeqCst);
                drop(phase);
                say_nothing_is_lost(reason);
            }
            Phase::Running => {
                *phase = Phase::Asked(reason);
                self.interrupter.stop(None);
                drop(phase);
                write_line_soon(format!("{reason}: the run is saved first, Ctrl-C stops at once"));
            }
            Phase::Asked(Reason::Hangup) => *phase = Phase::Asked(reason),
            Phase::Asked(_) if reason == Reason::Signal => {
                give_terminal_back();
                self.end();
            }
            Phase::Asked(_) => {}
        }
    }

    /// Runs `measure`, which measures in another process and ends it when the flag is set. If the run was asked to stop meanwhile,
    /// this process ends afterwards.
    pub(super) fn while_measuring<T>(&self, measure: impl FnOnce(&Stopped) -> T) -> T {
        let set_phase = |phase| *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        set_phase(Phase::Measuring);
        let result = measure(&self.stopped);
        set_phase(Phase::Starting);
        if self.stopped.load(Ordering::SeqCst) {
            self.end();
        }
        result
    }

    /// From now on there is something to save.
    pub(super) fn run_begins(&self) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Phase::Running;
    }

    /// Whether the run has been asked to stop.
    pub fn is_asked(&self) -> bool {
        self.interrupter.should_stop()
    }

    /// What the passes over a batch look at between two micro-batches.
    pub(super) fn interrupter(&self) -> &Interrupter {
        &self.interrupter
    }
}

fn say_nothing_is_lost(reason: Reason) {
    write_line_soon(format!("{reason}: the run has not begun, so there is nothing to save"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_asks_a_running_run_once() {
        let stop = Stop::default();
        stop.run_begins();
        assert!(!stop.is_asked());
        stop.ask(Reason::MaxTime);
        assert!(stop.is_asked() && stop.interrupter().should_stop());
        // Were this a signal, the test would end here.
        stop.ask(Reason::MaxTime);
    }
}
