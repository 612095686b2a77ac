//! Shows how far a pass over images is: a bar on a terminal, a line now and then elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::terminal::draw_target;

/// Time between lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(30);

/// The progress of one pass, on stderr.
pub struct Counter {
    name: String,
    bar: ProgressBar,
    has_bar: bool,
    started: Instant,
    /// Images that were done before this process started.
    first: u64,
    last_line: Cell<Instant>,
}

impl Counter {
    /// Shows a pass of `name`, which has done `first` of its `images`.
    pub fn new(name: &str, first: u64, images: u64) -> Self {
        let template = "{prefix} {wide_bar} {pos}/{len} images  {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(images), draw_target())
            .with_style(style.progress_chars("━╸─"))
            .with_prefix(name.to_owned())
            .with_position(first);
        bar.reset_eta();
        let now = Instant::now();
        let has_bar = std::io::stderr().is_terminal();
        Self { name: name.to_owned(), bar, has_bar, started: now, first, last_line: Cell::new(now) }
    }

    /// `done` images are done.
    pub fn advance(&self, done: u64) {
        self.bar.set_position(done);
        if self.has_bar || self.last_line.get().elapsed() < EVERY {
            return;
        }
        self.last_line.set(Instant::now());
        let of = self.bar.length().unwrap_or(done);
        let each = self.started.elapsed().as_secs_f64() / done.saturating_sub(self.first).max(1) as f64;
        let left = Duration::from_secs_f64(each * of.saturating_sub(done) as f64);
        note!("{}: {done} of {of} images, {} left", self.name, HumanDuration(left));
    }

    /// Writes a line that stays.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| note!("{text}"));
    }

    /// The pass is over.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
