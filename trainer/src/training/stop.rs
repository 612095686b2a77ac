//! Asks a run to stop, on a signal or by the clock.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use burn_train::Interrupter;

use crate::memory::Stopped;
use crate::show::progress::{give_terminal_back, let_go_of_terminal};
use crate::show::terminal::write_line_soon;

/// Exit code of a run that was asked to stop.
pub const INTERRUPTED: u8 = 130;

/// Why a run is asked to stop.
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
            Self::Hangup => "the terminal was closed",
            Self::MaxTime => "--max-time is nearly over",
        })
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has been created yet, so nothing is lost.
    #[default]
    Starting,
    /// Nothing has been created, but a child process is measuring.
    Measuring,
    /// A run exists and has to be saved first.
    Running,
    /// The run was asked already, for this reason.
    Asked(Reason),
}

/// Ends the process with an exit code. The program passes it in, since a library does not end the process.
pub type Exit = fn(i32) -> !;

/// A handle that asks a run to stop.
#[derive(Clone, Default)]
pub struct Stop {
    /// `None` if the process must not be ended from here.
    exit: Option<Exit>,
    interrupter: Interrupter,
    /// Stops child processes that measure before the run begins.
    stopped: Stopped,
    phase: Arc<Mutex<Phase>>,
}

impl Stop {
    /// Creates the handle of a program that ends with `exit` if there is nothing to save.
    pub fn new(exit: Exit) -> Self {
        Self { exit: Some(exit), ..Self::default() }
    }

    fn end(&self) {
        if let Some(exit) = self.exit {
            exit(INTERRUPTED.into());
        }
    }

    /// Asks the run to save and stop. Ends the process at once if the run has not begun (it downloads or lists images),
    /// or at a second SIGINT or SIGTERM. A second SIGHUP does not, since one hang-up can send several.
    pub fn ask(&self, reason: Reason) {
        if reason == Reason::Hangup {
            let_go_of_terminal();
        }
        // Acts before it prints: the terminal may be gone.
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        match *phase {
            Phase::Starting => {
                say_nothing_is_lost(reason);
                // The lock is still held, so that no folder is created meanwhile.
                self.end();
            }
            // The thread that waits for the measuring process ends it, and then this process.
            Phase::Measuring => {
                self.stopped.store(true, Ordering::SeqCst);
                drop(phase);
                say_nothing_is_lost(reason);
            }
            Phase::Running => {
                *phase = Phase::Asked(reason);
                self.interrupter.stop(None);
                drop(phase);
                write_line_soon(format!("{reason}: saving the run first; Ctrl-C stops at once"));
            }
            Phase::Asked(Reason::Hangup) => *phase = Phase::Asked(reason),
            Phase::Asked(_) if reason == Reason::Signal => {
                give_terminal_back();
                self.end();
            }
            Phase::Asked(_) => {}
        }
    }

    /// Runs `measure`, which measures in a child process and ends it when the flag is set. If the run was asked to stop
    /// meanwhile, this process ends afterwards.
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

    /// Marks the run as begun: from now on there is something to save.
    pub(super) fn run_begins(&self) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Phase::Running;
    }

    /// Whether the run has been asked to stop.
    pub fn is_asked(&self) -> bool {
        self.interrupter.should_stop()
    }

    /// The flag that the passes over a batch check between two micro-batches.
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
        // Unlike a second signal, this does not end the process.
        stop.ask(Reason::MaxTime);
    }
}
