//! Shows how far an evaluation is, and stops it at a signal.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::commands::CommandError;
use crate::commands::signals::on_stop_signals;
use crate::evaluation::evaluate::Watch;
use crate::show::counter::Counter;
use crate::show::terminal::write_line_soon;
use crate::training::INTERRUPTED;

/// Returns a flag that the first signal sets; the second one ends the process.
pub(super) fn stop_at_signals() -> Result<Arc<AtomicBool>, CommandError> {
    let stopped = Arc::new(AtomicBool::new(false));
    let handle = stopped.clone();
    on_stop_signals(move |reason| {
        if handle.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED.into());
        }
        write_line_soon(format!("{reason}: the progress is saved first, Ctrl-C stops at once"));
    })?;
    Ok(stopped)
}

/// Shows a pass, and stops it at a signal.
pub(super) struct Watcher<'a> {
    name: &'a str,
    stopped: &'a AtomicBool,
    counter: OnceCell<Counter>,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(name: &'a str, stopped: &'a AtomicBool) -> Self {
        Self { name, stopped, counter: OnceCell::new() }
    }

    pub(super) fn finish(&self) {
        self.counter.get().inspect(|counter| counter.finish());
    }
}

impl Watch for Watcher<'_> {
    fn begin(&self, done: u64, images: u64) {
        if done > 0 {
            note!("{}: {done} of {images} images are done already", self.name);
        }
        self.counter.get_or_init(|| Counter::new(self.name, done, images));
    }

    fn advance(&self, done: u64) {
        self.counter.get().inspect(|counter| counter.advance(done));
    }

    fn line(&self, text: &str) {
        match self.counter.get() {
            Some(counter) => counter.line(text),
            None => note!("{text}"),
        }
    }

    fn should_stop(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
