//! What a user sees of a run while it goes on: a bar on a terminal, plain lines elsewhere. All of it on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::memory::readable;

/// Without a terminal, a line is written this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is shown after a step.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Optimizer steps done.
    pub step: u64,
    /// The weighted sum of the losses.
    pub loss: f64,
    /// Training pictures per second.
    pub images_per_second: f64,
    /// Bytes.
    pub peak_memory: u64,
    /// Loss scale; 1 in f32.
    pub loss_scale: f64,
}

/// The progress of one run.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    samples_per_step: u64,
    started: Instant,
    first_step: u64,
    last_line: Option<Instant>,
}

impl Progress {
    /// For a run that has done `first_step` of its `steps` steps.
    pub fn new(first_step: u64, steps: u64, samples_per_step: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:>12} {wide_bar} {msg}");
            let bar = ProgressBar::new(steps * samples_per_step as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
            bar.set_prefix(format!("step {first_step}/{steps}"));
            bar.set_position(first_step * samples_per_step as u64);
            bar
        });
        Self {
            bar,
            steps,
            samples_per_step: samples_per_step as u64,
            started: Instant::now(),
            first_step,
            last_line: None,
        }
    }

    /// Some samples of the current step are done.
    pub fn samples(&self, count: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(count as u64);
        }
    }

    /// A step is done.
    pub fn step(&mut self, shown: Shown) {
        let done = shown.step.saturating_sub(self.first_step).max(1);
        let left = self.started.elapsed().mul_f64((self.steps - shown.step) as f64 / done as f64);
        let text = format!(
            "loss {:.4}  {:.1} images/s  {}  scale {}  {} left",
            shown.loss,
            shown.images_per_second,
            readable(shown.peak_memory),
            shown.loss_scale,
            HumanDuration(left),
        );
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("step {}/{}", shown.step, self.steps));
            bar.set_position(shown.step * self.samples_per_step);
            bar.set_message(text);
        } else if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) || shown.step == self.steps {
            self.last_line = Some(Instant::now());
            eprintln!("step {}/{}  {text}", shown.step, self.steps);
        }
    }

    /// A line that stays, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// No more steps follow.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
