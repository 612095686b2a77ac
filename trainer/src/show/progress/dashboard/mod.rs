//! The dashboard: a run on the whole terminal, with curves, metrics, and a key that saves it and stops.

mod draw;
mod state;
mod terminal;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use burn_train::Interrupter;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use report::keys::{self, Groups};
use serde_json::Value;

use self::state::{Answer, State};
pub use self::terminal::{give_terminal_back, let_go_of_terminal};
use super::{Part, Position, View};
use crate::show::log_file;
use crate::show::terminal::{Verbosity, verbosity, write_to_stderr};

/// A dashboard was asked for where there is no terminal.
#[derive(Debug, thiserror::Error)]
#[error("--tui needs a terminal: standard input and output must be one")]
pub struct NoTerminal;

/// Checks that there is a terminal that a dashboard can take.
///
/// # Errors
/// If there is none.
pub fn check_terminal() -> Result<(), NoTerminal> {
    match std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        true => Ok(()),
        false => Err(NoTerminal),
    }
}

/// Time between two drawings.
const REFRESH: Duration = Duration::from_millis(100);

/// How long to wait for the last drawing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes the whole terminal, until it is dropped or finished.
pub(super) struct Dashboard {
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
    /// Draws and reads keys. `None` once the terminal is given back.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The tags of the metrics of losses.
    losses: &'static Groups,
}

impl Dashboard {
    pub(super) fn open(position: Position, interrupter: &Interrupter, losses: &'static Groups) -> Self {
        let state = Arc::new(Mutex::new(State::new(position)));
        let ends = Arc::new(AtomicBool::new(false));
        let show = {
            let (state, ends, interrupter) = (state.clone(), ends.clone(), interrupter.clone());
            move || show(&state, &ends, &interrupter)
        };
        let thread = thread::Builder::new().name("dashboard".to_owned()).spawn(show).ok();
        Self { state, ends, thread: Mutex::new(thread), losses }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws `state` and reads keys until `ends` says so. A terminal that is gone ends it, and not the run.
fn show(state: &Mutex<State>, ends: &AtomicBool, interrupter: &Interrupter) {
    let Ok(mut terminal) = terminal::take() else { return };
    let goes_on = || !ends.load(Ordering::SeqCst) && !terminal::is_gone();
    while goes_on() {
        if terminal.draw(|frame| draw::draw(&lock(state), frame)).is_err() {
            return;
        }
        match event::poll(REFRESH) {
            Ok(false) => {}
            Ok(true) if goes_on() => match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    if lock(state).answer(key.code) == Answer::Stop {
                        interrupter.stop(None);
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            },
            Ok(true) | Err(_) => return,
        }
    }
}

impl View for Dashboard {
    fn part(&self, position: Position) {
        self.state().position = position;
    }

    fn step(&self, position: Position, text: &str) {
        let mut state = self.state();
        state.position = position;
        text.clone_into(&mut state.summary);
    }

    fn metrics(&self, metrics: &Value, of: Part) {
        let Some(values) = metrics.as_object() else { return };
        let name = |key: &str| match of {
            Part::Validation => keys::validation_tag(key),
            Part::FirstPass | Part::SecondPass => keys::tag(key, self.losses),
        };
        let mut state = self.state();
        let step = metrics["step"].as_u64().unwrap_or(state.position.step);
        keys::values(values).into_iter().for_each(|(key, value)| state.push(&name(&key), step, value));
    }

    fn line(&self, text: &str) {
        log_file::add(text);
        self.state().lines.push(text.to_owned());
    }

    fn kernels(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        let state = self.state.clone();
        Box::new(move |count| lock(&state).kernels = count)
    }

    fn finish(&self) {
        self.ends.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that reads a terminal that is gone may never end.
            let asked = Instant::now();
            while !thread.is_finished() && asked.elapsed() < PATIENCE && !terminal::is_gone() {
                thread::sleep(REFRESH / 10);
            }
            give_terminal_back();
        }
        let lines = std::mem::take(&mut self.state().lines);
        lines.iter().filter(|_| verbosity() != Verbosity::Quiet).for_each(|line| write_to_stderr(line));
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.finish();
    }
}
