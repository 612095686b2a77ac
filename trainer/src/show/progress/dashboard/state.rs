//! What the dashboard shows, and what keys do.

use ratatui::crossterm::event::KeyCode;

use crate::show::progress::{Position, speed};
use crate::show::readable;

/// A curve keeps at most so many points: more than a terminal has columns.
const MOST_POINTS: usize = 2000;

/// What a key asks of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// To go on.
    GoOn,
    /// To save and stop.
    Stop,
}

/// Whether the user wants to stop the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopping {
    No,
    /// The dialogue is open.
    Asked,
    /// The run saves itself and ends.
    Yes,
}

/// A value over the steps.
#[derive(Debug, Default)]
pub(super) struct Metric {
    pub(super) name: String,
    /// Steps and finite values.
    pub(super) points: Vec<(f64, f64)>,
    /// Every so many values are a point.
    every: usize,
    values: usize,
    /// The newest value, for people.
    pub(super) text: String,
}

impl Metric {
    fn push(&mut self, step: u64, value: Option<f64>) {
        let value = value.filter(|value| value.is_finite());
        self.text = match value {
            Some(bytes) if self.name.starts_with("memory/") => readable(bytes as u64),
            Some(images_per_second) if self.name == "speed/images_per_second" => speed(images_per_second),
            Some(value) => format!("{}", (value * 1e6).round() / 1e6),
            None => "–".to_owned(),
        };
        let Some(value) = value else { return };
        if self.values.is_multiple_of(self.every) {
            self.points.push((step as f64, value));
        }
        self.values += 1;
        if self.points.len() > MOST_POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }
}

/// All that is drawn.
pub(super) struct State {
    pub(super) position: Position,
    /// The newest step, in words.
    pub(super) summary: String,
    /// The losses first, then in the order in which they came.
    pub(super) metrics: Vec<Metric>,
    /// The name of the metric whose curve is drawn.
    selected: String,
    pub(super) stopping: Stopping,
    /// What was said; written to the terminal when the dashboard is gone.
    pub(super) lines: Vec<String>,
    /// Kernels compiled so far.
    pub(super) kernels: u64,
}

impl State {
    pub(super) fn new(position: Position) -> Self {
        Self {
            position,
            summary: String::new(),
            metrics: Vec::new(),
            selected: "loss/total".to_owned(),
            stopping: Stopping::No,
            lines: Vec::new(),
            kernels: 0,
        }
    }

    /// Adds the value of a metric after `step` steps; `None` if it is not finite.
    pub(super) fn push(&mut self, name: &str, step: u64, value: Option<f64>) {
        let index = self.metrics.iter().position(|metric| metric.name == name);
        let index = index.unwrap_or_else(|| {
            let rank = |name: &str| (name != "loss/total", !name.starts_with("loss/"));
            let index = self.metrics.partition_point(|metric| rank(&metric.name) <= rank(name));
            self.metrics.insert(index, Metric { name: name.to_owned(), every: 1, ..Metric::default() });
            index
        });
        self.metrics[index].push(step, value);
    }

    /// Index of the metric whose curve is drawn.
    pub(super) fn selected(&self) -> usize {
        self.metrics.iter().position(|metric| metric.name == self.selected).unwrap_or_default()
    }

    fn select(&mut self, by: isize) {
        let count = self.metrics.len() as isize;
        if count > 0 {
            let index = (self.selected() as isize + by).rem_euclid(count);
            self.selected = self.metrics[index as usize].name.clone();
        }
    }

    /// Does what a key means.
    pub(super) fn answer(&mut self, key: KeyCode) -> Answer {
        match (self.stopping, key) {
            (Stopping::No, KeyCode::Char('q')) => self.stopping = Stopping::Asked,
            (Stopping::Asked, KeyCode::Char('s') | KeyCode::Enter) => {
                self.stopping = Stopping::Yes;
                return Answer::Stop;
            }
            (Stopping::Asked, KeyCode::Char('c' | 'q') | KeyCode::Esc) => self.stopping = Stopping::No,
            (_, KeyCode::Down | KeyCode::Right | KeyCode::Tab) => self.select(1),
            (_, KeyCode::Up | KeyCode::Left | KeyCode::BackTab) => self.select(-1),
            _ => {}
        }
        Answer::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::progress::Part;

    pub(super) fn state() -> State {
        State::new(Position { step: 0, steps: 4, part: Part::SecondPass, done: 0, of: 4 })
    }

    #[test]
    fn a_run_is_stopped_only_after_a_question() {
        let mut state = state();
        assert_eq!(state.answer(KeyCode::Char('s')), Answer::GoOn);
        for (key, stopping) in [('q', Stopping::Asked), ('c', Stopping::No), ('q', Stopping::Asked)] {
            assert_eq!(state.answer(KeyCode::Char(key)), Answer::GoOn);
            assert_eq!(state.stopping, stopping);
        }
        assert_eq!(state.answer(KeyCode::Char('s')), Answer::Stop);
        assert_eq!(state.stopping, Stopping::Yes);
        assert_eq!(state.answer(KeyCode::Char('s')), Answer::GoOn);
    }

    #[test]
    fn losses_come_first_and_keys_go_around() {
        let mut state = state();
        let names = ["validation/psnr", "speed/images_per_second", "loss/pixel", "memory/peak", "loss/total"];
        names.into_iter().for_each(|name| state.push(name, 1, Some(0.25)));
        let sorted: Vec<&str> = state.metrics.iter().map(|metric| &*metric.name).collect();
        assert_eq!(sorted, ["loss/total", "loss/pixel", "validation/psnr", "speed/images_per_second", "memory/peak"]);
        assert_eq!(state.metrics[3].text, "4.0 s/image");
        assert_eq!(state.selected(), 0);
        state.answer(KeyCode::Up);
        assert_eq!(state.selected(), 4);
        state.push("loss/clip", 1, None);
        assert_eq!((state.selected(), state.metrics[2].points.len()), (5, 0));
        state.answer(KeyCode::Tab);
        assert_eq!(state.selected(), 0);
    }

    #[test]
    fn a_long_curve_is_thinned_out_and_keeps_its_ends() {
        let mut state = state();
        (1..=10_000).for_each(|step| state.push("loss/total", step, Some(step as f64)));
        let points = &state.metrics[0].points;
        assert!((MOST_POINTS / 2..=MOST_POINTS).contains(&points.len()), "{}", points.len());
        assert!(points[0].0 == 1.0 && points[points.len() - 1].0 > 9_980.0);
        let gaps: Vec<f64> = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]), "{gaps:?}");
    }
}
