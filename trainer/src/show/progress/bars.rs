//! Draws two bars: the run, and below it the current part of a step.

use std::fmt::Write;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::{Part, Position, View};
use crate::show::counted;
use crate::show::terminal::{Verbosity, draw_target, verbosity, write_to_stderr};

pub(super) struct Bars {
    both: MultiProgress,
    run: ProgressBar,
    part: ProgressBar,
}

impl Bars {
    pub(super) fn new(position: Position) -> Self {
        let both = MultiProgress::with_draw_target(draw_target());
        let bar = |template: &str| {
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let of = |state: &ProgressState, to: &mut dyn Write| {
                // Text that cannot be formatted is left out.
                let _ = to.write_str(&counted(state.len().unwrap_or_default(), "image"));
            };
            both.add(ProgressBar::no_length().with_style(style.with_key("of", of).progress_chars("━╸─")))
        };
        // The metrics have a separate line: a line that wraps cannot be drawn over.
        let run = bar("{prefix:>14} {wide_bar:.cyan} {percent:>3} %\n               {wide_msg}");
        let part = bar("{prefix:>14} {wide_bar:.dim} {pos}/{of}{msg}");
        let bars = Self { both, run, part };
        bars.run.set_length(position.steps * position.of);
        bars.part(position);
        bars
    }
}

impl View for Bars {
    fn part(&self, position: Position) {
        let Position { step, steps, part, done, of } = position;
        self.run.set_prefix(format!("step {step}/{steps}"));
        // A first pass or a validation takes time, but does not advance the run.
        if part == Part::SecondPass {
            self.run.set_position(step * of + done);
        }
        self.part.set_length(of);
        self.part.set_prefix(part.name());
        self.part.set_position(done);
    }

    fn step(&self, position: Position, text: &str) {
        if verbosity() == Verbosity::Verbose {
            let Position { step, steps, .. } = position;
            self.both.suspend(|| write_to_stderr(&format!("step {step}/{steps}  {text}")));
        }
        self.run.set_message(text.to_owned());
        self.part.set_message("");
        self.part(position);
    }

    fn kernels(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        let part = self.part.clone();
        Box::new(move |count| part.set_message(format!("  {count} kernels compiled")))
    }

    fn line(&self, text: &str) {
        self.both.suspend(|| note!("{text}"));
    }

    fn finish(&self) {
        self.part.finish_and_clear();
        self.run.finish_and_clear();
    }
}
