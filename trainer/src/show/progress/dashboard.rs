//! burn-train's dashboard in a terminal: curves, metrics, and keys that stop the run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Arc;

use burn_train::Interrupter;
use burn_train::logger::TrainingProgressLogger;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining};
use report::keys::{self, Groups};
use serde_json::Value;

use super::{Part, Position, View};
use crate::show::terminal::{Verbosity, verbosity, write_to_stderr};
use crate::show::{log_file, readable};

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

/// Takes the whole terminal, until it is dropped or finished.
pub(super) struct Dashboard {
    /// `None` once the terminal is given back.
    renderer: RefCell<Option<TuiMetricsRendererWrapper>>,
    known: RefCell<BTreeSet<String>>,
    /// Lines that would overwrite the dashboard; they are written when it is gone.
    lines: RefCell<Vec<String>>,
    /// The scores of the validation before the first step. They are shown below that step's metrics.
    first_scores: RefCell<Vec<(String, Option<f64>)>>,
    has_no_step: Cell<bool>,
    /// Whether steps have two passes.
    is_coupled: Cell<bool>,
    /// What the dashboard shows as current: the split by its name, its step and its number of images.
    current: Cell<Option<(&'static str, u64, u64)>>,
    /// The tags of the metrics of losses.
    losses: &'static Groups,
    /// Ends the process at once.
    exit: Option<fn(i32) -> !>,
}

impl Dashboard {
    pub(super) fn open(
        position: Position,
        interrupter: &Interrupter,
        exit: Option<fn(i32) -> !>,
        losses: &'static Groups,
    ) -> Self {
        signals::remember();
        let_go_where_the_dashboard_fails();
        let first_step = position.step as usize;
        let renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), Some(first_step));
        let dashboard = Self {
            renderer: RefCell::new(Some(renderer)),
            known: RefCell::default(),
            lines: RefCell::default(),
            first_scores: RefCell::default(),
            has_no_step: Cell::new(true),
            is_coupled: Cell::default(),
            current: Cell::default(),
            losses,
            exit,
        };
        let (steps, samples) = (position.steps as usize, position.of as usize);
        // The dashboard uses the words of supervised training, which do not fit here.
        let label = "an epoch is an optimizer step here, an item an image in a pass";
        dashboard.tell(|renderer| renderer.start(steps, first_step + 1, Some(samples), Some(label)));
        // The metric that is registered first is shown until the user chooses another one.
        dashboard.register(&keys::tag("loss", losses));
        signals::let_through();
        dashboard
    }

    /// Calls the renderer. The dashboard ends the process at once by a panic, here and in its thread. By then it has
    /// given the terminal back and has said so.
    fn tell(&self, what: impl FnOnce(&mut TuiMetricsRendererWrapper)) {
        let mut renderer = self.renderer.borrow_mut();
        let Some(renderer) = renderer.as_mut() else { return };
        if let (Err(panic), exit) = (catch_unwind(AssertUnwindSafe(|| what(renderer))), self.exit) {
            exit.map_or_else(|| resume_unwind(panic), |exit| exit(1))
        }
    }

    fn show(&self, name: &str, value: Option<f64>, of: Part) {
        let id = self.register(name);
        let value = value.filter(|value| value.is_finite());
        let text = match value {
            Some(bytes) if name.starts_with("memory/") => readable(bytes as u64),
            Some(images_per_second) if name == "speed/images_per_second" => super::speed(images_per_second),
            Some(value) => format!("{}", (value * 1e6).round() / 1e6),
            None => "–".to_owned(),
        };
        let entry = MetricEntry::new(id, SerializedEntry::new(text.clone(), text));
        let state = MetricState::Numeric(entry, value.map(NumericEntry::Value));
        self.tell(|renderer| match of {
            Part::Validation => renderer.update_valid(state),
            Part::FirstPass | Part::SecondPass => renderer.update_train(state),
        });
    }

    fn register(&self, name: &str) -> MetricId {
        let id = MetricId::new(Arc::new(name.to_owned()));
        if self.known.borrow_mut().insert(name.to_owned()) {
            let attributes = NumericAttributes { unit: None, higher_is_better: false };
            let definition = MetricDefinition {
                metric_id: id.clone(),
                name: Arc::new(name.to_owned()),
                description: None,
                attributes: MetricAttributes::Numeric(attributes),
            };
            self.tell(|renderer| renderer.register_metric(definition));
        }
        id
    }
}

impl View for Dashboard {
    fn part(&self, position: Position) {
        let Position { step, steps, part, mut done, mut of } = position;
        if part == Part::FirstPass {
            self.is_coupled.set(true);
        }
        // Each of two passes counts as half a step, so that the estimate of the time left does not jump back.
        if self.is_coupled.get() && part != Part::Validation {
            done += if part == Part::SecondPass && done > 0 { of } else { 0 };
            of *= 2;
        }
        let split = if part == Part::Validation { "valid" } else { "train" };
        self.tell(|renderer| {
            if self.current.replace(Some((split, step, of))) != Some((split, step, of)) {
                renderer.update_epoch(step.min(steps.saturating_sub(1)) as usize);
                renderer.start_split(split, of as usize);
            }
            renderer.update_split(done as usize);
        });
    }

    fn step(&self, position: Position, _text: &str) {
        // Shows the next step, unless there is none.
        if position.step < position.steps {
            self.part(position);
        }
    }

    fn metrics(&self, metrics: &Value, of: Part) {
        if metrics["skipped"] == true {
            self.tell(|renderer| renderer.log_event_training("Skipped".to_owned()));
        }
        let Some(metrics) = metrics.as_object() else { return };
        let name =
            |key: &str| if of == Part::Validation { keys::validation_tag(key) } else { keys::tag(key, self.losses) };
        let mut named: Vec<_> = keys::values(metrics).into_iter().map(|(key, value)| (name(&key), value)).collect();
        // The losses come first, since the terminal may have no space for more.
        named.sort_by_key(|(name, _)| (name != "loss/total", !name.starts_with("loss/")));
        if of == Part::Validation && self.has_no_step.get() {
            *self.first_scores.borrow_mut() = named;
            return;
        }
        self.has_no_step.set(false);
        named.into_iter().for_each(|(name, value)| self.show(&name, value, of));
        self.first_scores.take().into_iter().for_each(|(name, value)| self.show(&name, value, Part::Validation));
    }

    fn line(&self, text: &str) {
        match self.renderer.borrow().is_some() && std::io::stderr().is_terminal() {
            true => {
                log_file::add(text);
                self.lines.borrow_mut().push(text.to_owned());
            }
            false => note!("{text}"),
        }
    }

    fn finish(&self) {
        let renderer = self.renderer.borrow_mut().take();
        match signals::is_gone() {
            // To drop it is to wait for its thread, which reads the terminal that is gone without end.
            true => std::mem::forget(renderer),
            // Drops the renderer before it writes: that gives the terminal back.
            false => drop(renderer),
        }
        signals::forget();
        let lines = self.lines.borrow_mut().split_off(0);
        lines.iter().filter(|_| verbosity() != Verbosity::Quiet).for_each(|line| write_to_stderr(line));
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The dashboard's thread panics if the terminal is gone, and once more where it says so on stderr, which ends the process.
fn let_go_where_the_dashboard_fails() {
    let others = take_hook();
    set_hook(Box::new(move |panic| match std::thread::current().name() {
        Some("train-renderer") => let_go_of_terminal(),
        _ => others(panic),
    }));
}

/// Gives the terminal back if a dashboard has it, for a process that ends at once.
pub fn give_terminal_back() {
    signals::restore();
}

/// Writes to a terminal that is gone no more, if a dashboard has it. The dashboard's thread would end the process where it
/// cannot write.
pub fn let_go_of_terminal() {
    signals::let_go();
}

#[cfg(unix)]
mod signals {
    use std::fs::OpenOptions;
    use std::io::{IsTerminal, Write};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, PoisonError};
    use std::thread::sleep;
    use std::time::Duration;

    use rustix::stdio::{dup2_stderr, dup2_stdout};
    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

    /// The terminal's settings from before a dashboard took it, while the dashboard has it, and whether stderr is a terminal too.
    static BEFORE: Mutex<Option<(Termios, bool)>> = Mutex::new(None);

    /// Whether the terminal that a dashboard has is gone.
    static GONE: AtomicBool = AtomicBool::new(false);

    /// Turns the mouse off, restores the screen, and shows the cursor.
    const LEAVE: &[u8] = b"\x1b[?1006l\x1b[?1015l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?1049l\x1b[?25h";

    pub(super) fn remember() {
        let settings = tcgetattr(std::io::stdin()).ok();
        let before = settings.map(|settings| (settings, std::io::stderr().is_terminal()));
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = before;
    }

    pub(super) fn forget() {
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn restore() {
        let Some((before, _)) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // The process ends here, so errors cannot be reported.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
        let _ = std::io::stdout().write_all(LEAVE);
        let _ = std::io::stdout().flush();
    }

    pub(super) fn let_go() {
        let Some((_, stderr_too)) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        GONE.store(true, Ordering::SeqCst);
        let Ok(nowhere) = OpenOptions::new().write(true).open("/dev/null") else { return };
        let _ = dup2_stdout(&nowhere);
        if stderr_too {
            let _ = dup2_stderr(&nowhere);
        }
    }

    pub(super) fn is_gone() -> bool {
        GONE.load(Ordering::SeqCst)
    }

    /// Turns signals back on. A terminal that a dashboard reads key by key sends none for Ctrl-C and Ctrl-\, but Ctrl-C
    /// must always ask the run to save and stop. The dashboard's thread takes a moment to begin.
    pub(super) fn let_through() {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let Ok(mut settings) = tcgetattr(std::io::stdin()) else { return };
            if !settings.local_modes.contains(LocalModes::ICANON) {
                settings.local_modes |= LocalModes::ISIG;
                // Without it, `q` still stops the run.
                let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &settings);
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(not(unix))]
mod signals {
    pub(super) fn remember() {}

    pub(super) fn forget() {}

    pub(super) fn restore() {}

    pub(super) fn let_go() {}

    pub(super) fn is_gone() -> bool {
        false
    }

    pub(super) fn let_through() {}
}
