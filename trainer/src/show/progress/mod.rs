//! Shows the progress of a run: bars on a terminal, plain lines elsewhere, both on stderr; on request, a dashboard.

mod bars;
mod dashboard;
mod lines;

use std::cell::Cell;
use std::time::Instant;

use burn_train::Interrupter;
use indicatif::HumanDuration;
use report::keys::Groups;
use serde_json::Value;

use self::bars::Bars;
use self::dashboard::Dashboard;
pub use self::dashboard::{NoTerminal, check_terminal, give_terminal_back, let_go_of_terminal};
use self::lines::Lines;
use crate::show::terminal::{shows_bars, write_line};
use crate::show::{log_file, readable};

/// The values that are shown after a step.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Optimizer steps done.
    pub step: u64,
    /// The weighted sum of the losses; not finite after an overflow.
    pub loss: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// Peak memory of the step, in bytes.
    pub peak_memory: u64,
    /// Device memory in use by the process, in bytes, if the driver reports it.
    pub process_memory: Option<u64>,
    /// Loss scale; 1 in f32.
    pub loss_scale: f64,
    /// The micro-batch, if it differs from the configuration.
    pub micro: Option<usize>,
}

/// A part of a run whose progress is counted in images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The pass for losses that couple samples.
    FirstPass,
    /// The pass that computes the gradients.
    SecondPass,
    Validation,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::FirstPass => "first pass",
            Self::SecondPass => "gradients",
            Self::Validation => "validation",
        }
    }
}

/// The progress of a run.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// Steps done.
    step: u64,
    /// Steps in all.
    steps: u64,
    part: Part,
    /// Images of the part that are done.
    done: u64,
    /// Images of the part.
    of: u64,
}

/// A way to show a run.
trait View {
    /// Some more images are done.
    fn part(&self, position: Position);

    /// A step is done; `text` describes it.
    fn step(&self, position: Position, text: &str);

    /// Shows all metrics of a step or a validation, as in `metrics.jsonl`.
    fn metrics(&self, _metrics: &Value, _of: Part) {}

    /// Writes a line that stays.
    fn line(&self, text: &str);

    /// Shows, from any thread, how many kernels have been compiled for the GPU.
    fn kernels(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        Box::new(|_| ())
    }

    /// No more steps follow.
    fn finish(&self);
}

/// Calls `show` with the number of compiled kernels. Nothing is compiled for a CPU.
fn watch_kernels(show: Box<dyn Fn(u64) + Send + Sync>) {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    crate::device::kernels::watch(show);
    #[cfg(not(any(feature = "cuda", feature = "wgpu")))]
    drop(show);
}

/// The progress of one run.
pub struct Progress {
    view: Box<dyn View>,
    /// Writes steps to the log, if the view is none of lines.
    log: Option<Lines>,
    samples_per_step: u64,
    started: Instant,
    first_step: u64,
    position: Cell<Position>,
    /// Steps since the start that the generator skipped.
    skipped: Cell<u64>,
}

impl Progress {
    /// Shows a run that has done `first_step` of its `steps` steps.
    pub fn new(first_step: u64, steps: u64, samples_per_step: usize) -> Self {
        let samples_per_step = samples_per_step as u64;
        let position = Position { step: first_step, steps, part: Part::SecondPass, done: 0, of: samples_per_step };
        let log = shows_bars().then(|| Lines::new(log_file::add));
        let view: Box<dyn View> = match log {
            Some(_) => Box::new(Bars::new(position)),
            None => Box::new(Lines::new(write_line)),
        };
        watch_kernels(view.kernels());
        Self {
            view,
            log,
            samples_per_step,
            started: Instant::now(),
            first_step,
            position: Cell::new(position),
            skipped: Cell::default(),
        }
    }

    /// Takes the terminal for a dashboard, in which the user can ask the run to stop; see [`check_terminal`]. `losses`
    /// has the tags of the losses' metrics.
    pub fn show_dashboard(&mut self, interrupter: &Interrupter, losses: &'static Groups) {
        self.view.finish();
        self.log = Some(Lines::new(log_file::add));
        self.view = Box::new(Dashboard::open(self.position.get(), interrupter, losses));
        watch_kernels(self.view.kernels());
    }

    /// Some samples of the current step have completed the first pass.
    pub fn first_pass(&self, count: usize) {
        self.advance(Part::FirstPass, count, self.samples_per_step);
    }

    /// Some samples of the current step are done.
    pub fn samples(&self, count: usize) {
        self.advance(Part::SecondPass, count, self.samples_per_step);
    }

    /// Some of `all` validation images are done.
    pub fn validated(&self, count: usize, all: usize) {
        self.advance(Part::Validation, count, all as u64);
    }

    /// The view, and the log.
    fn shown(&self) -> impl Iterator<Item = &dyn View> {
        let view: &dyn View = &*self.view;
        std::iter::once(view).chain(self.log.as_ref().map(|log| log as &dyn View))
    }

    fn advance(&self, part: Part, count: usize, of: u64) {
        let mut position = self.position.get();
        if position.part != part {
            position = Position { part, done: 0, ..position };
        }
        position = Position { done: (position.done + count as u64).min(of), of, ..position };
        self.position.set(position);
        self.shown().for_each(|view| view.part(position));
    }

    /// Shows all metrics of a step: its line of `metrics.jsonl`.
    pub fn metrics(&self, line: &Value) {
        self.skipped.update(|count| count + u64::from(line["skipped"] == true));
        self.view.metrics(line, Part::SecondPass);
    }

    /// Shows all scores of a validation.
    pub fn scores(&self, scores: &Value) {
        self.start_part(Part::SecondPass);
        self.view.metrics(scores, Part::Validation);
    }

    fn start_part(&self, part: Part) {
        self.position.set(Position { part, done: 0, of: self.samples_per_step, ..self.position.get() });
    }

    /// The current step starts again.
    pub fn step_again(&self) {
        self.start_part(Part::SecondPass);
    }

    /// A step is done.
    pub fn step(&mut self, shown: Shown) {
        self.start_part(Part::SecondPass);
        let position = Position { step: shown.step, ..self.position.get() };
        self.position.set(position);
        let done = shown.step.saturating_sub(self.first_step).max(1);
        let left = self.started.elapsed().mul_f64(position.steps.saturating_sub(shown.step) as f64 / done as f64);
        let loss = if shown.loss.is_finite() { format!("{:.4}", shown.loss) } else { "–".to_owned() };
        let process = shown.process_memory.map_or_else(String::new, |bytes| format!(" of {}", readable(bytes)));
        let mut text = format!(
            "loss {loss}  {}  {}{process}  {} left",
            speed(shown.images_per_second),
            readable(shown.peak_memory),
            HumanDuration(left),
        );
        if shown.loss_scale != 1.0 {
            text += &match shown.loss_scale < 1e7 {
                true => format!("  scale {}", shown.loss_scale),
                false => format!("  scale {:.1e}", shown.loss_scale),
            };
        }
        if let Some(micro) = shown.micro {
            text += &format!("  micro {micro}");
        }
        let skipped = self.skipped.get();
        if skipped > 0 {
            text += &format!("  {skipped} skipped");
        }
        self.shown().for_each(|view| view.step(position, &text));
    }

    /// Writes a line that stays, above the bars.
    pub fn line(&self, text: &str) {
        self.view.line(text);
    }

    /// No more steps follow.
    pub fn finish(&self) {
        self.view.finish();
    }
}

/// Images per second, or for less than one the seconds of an image.
fn speed(images_per_second: f64) -> String {
    match images_per_second {
        slow if slow > 0.0 && slow < 1.0 => format!("{:.1} s/image", 1.0 / slow),
        fast => format!("{fast:.1} images/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_device_is_timed_by_the_image() {
        assert_eq!(
            [17.26, 1.0, 0.04, 0.0].map(speed),
            ["17.3 images/s", "1.0 images/s", "25.0 s/image", "0.0 images/s"]
        );
    }
}
