//! Draws the dashboard.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Clear, Dataset, Gauge, GraphType, Paragraph, Wrap};

use super::state::{State, Stopping};
use crate::show::counted;
use crate::show::progress::{Part, Position};

pub(super) fn draw(state: &State, frame: &mut Frame) {
    let [top, progress, keys] =
        Layout::vertical([Constraint::Min(6), Constraint::Length(6), Constraint::Length(1)]).areas(frame.area());
    let [names, curve] = Layout::horizontal([Constraint::Percentage(38), Constraint::Percentage(62)]).areas(top);
    draw_metrics(state, frame, names);
    draw_curve(state, frame, curve);
    draw_progress(state, frame, progress);
    frame.render_widget(Line::from(" q save and stop   ↑ ↓ another curve").dim(), keys);
    if state.stopping != Stopping::No {
        draw_dialogue(state.stopping, frame);
    }
}

/// A line for each metric, scrolled so that the selected one is seen.
fn draw_metrics(state: &State, frame: &mut Frame, area: Rect) {
    let selected = state.selected();
    let rows = usize::from(area.height.saturating_sub(2)).max(1);
    let width = usize::from(area.width.saturating_sub(2));
    let line = |(index, metric): (usize, &super::state::Metric)| {
        let name = width.saturating_sub(metric.text.chars().count() + 1);
        let line = Line::from(format!("{:<name$} {}", metric.name.chars().take(name).collect::<String>(), metric.text));
        if index == selected { line.reversed() } else { line }
    };
    let first = (selected + 1).saturating_sub(rows);
    let lines: Vec<Line> = state.metrics.iter().enumerate().skip(first).take(rows).map(line).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Metrics")), area);
}

fn draw_curve(state: &State, frame: &mut Frame, area: Rect) {
    let Some(metric) = state.metrics.get(state.selected()) else {
        frame.render_widget(Paragraph::new("the first step comes").block(Block::bordered()), area);
        return;
    };
    let block = Block::bordered().title(format!("{} by step", metric.name));
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low < high { [low, high] } else { [low - 0.5, low + 0.5] }
    };
    if metric.points.is_empty() {
        frame.render_widget(Paragraph::new("no finite value yet").block(block), area);
        return;
    }
    let x = bounds(&mut metric.points.iter().map(|point| point.0));
    let y = bounds(&mut metric.points.iter().map(|point| point.1));
    let labels = |ends: [f64; 2], digits: usize| ends.map(|end| Span::from(format!("{end:.digits$}")));
    let data = Dataset::default().data(&metric.points).marker(Marker::Braille).graph_type(GraphType::Line);
    let chart = Chart::new(vec![data.style(Style::new().fg(Color::Cyan))])
        .block(block)
        .x_axis(Axis::default().bounds(x).labels(labels(x, 0)))
        .y_axis(Axis::default().bounds(y).labels(labels(y, if y[1] - y[0] < 10.0 { 4 } else { 1 })));
    frame.render_widget(chart, area);
}

/// A bar for the run, one for the part of a step, and the newest step in words.
fn draw_progress(state: &State, frame: &mut Frame, area: Rect) {
    let block = Block::bordered().title("Progress");
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let [run, part, summary, said] = Layout::vertical([Constraint::Length(1); 4]).areas(inside);
    let Position { step, steps, part: of_part, done, of } = state.position;
    let share = |done: f64, of: u64| if of == 0 { 0.0 } else { (done / of as f64).clamp(0.0, 1.0) };
    // A first pass or a validation takes time, but does not advance the run.
    let part_done = if of_part == Part::SecondPass { share(done as f64, of) } else { 0.0 };
    let bars = [
        (run, share(step as f64 + part_done, steps), format!("run: step {step} of {steps}"), Color::Green),
        (part, share(done as f64, of), format!("{}: {done} of {}", of_part.name(), counted(of, "image")), Color::Blue),
    ];
    for (area, ratio, label, color) in bars {
        let gauge = Gauge::default().ratio(ratio).label(label).gauge_style(Style::new().fg(color));
        frame.render_widget(gauge, area);
    }
    let kernels =
        if state.kernels > 0 { format!("  {} compiled", counted(state.kernels, "kernel")) } else { String::new() };
    frame.render_widget(Line::from(format!("{}{kernels}", state.summary)), summary);
    frame.render_widget(Line::from(state.lines.last().map_or("", String::as_str)).dim(), said);
}

fn draw_dialogue(stopping: Stopping, frame: &mut Frame) {
    let text = match stopping {
        Stopping::Yes => "The run is saved, then it ends.\n\nCtrl-C ends it at once.",
        _ => "s  save the run and stop; it can be resumed\nc  cancel: go on with the training",
    };
    let area = frame.area().centered(Constraint::Max(48), Constraint::Max(6));
    let block = Block::bordered().title("Stop the run?");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }).block(block), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::*;

    fn screen(state: &State, [width, height]: [u16; 2]) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(state, frame)).unwrap();
        terminal.backend().to_string()
    }

    fn state() -> State {
        let mut state = State::new(Position { step: 2, steps: 4, part: Part::FirstPass, done: 3, of: 8 });
        for step in 1..=2 {
            state.push("loss/total", step, Some(1.5 / step as f64));
            state.push("speed/images_per_second", step, Some(0.04));
        }
        state.summary = "loss 0.7500  25.0 s/image".to_owned();
        state
    }

    #[test]
    fn bars_say_what_they_count_at_every_width() {
        for size in [[120, 40], [80, 24], [48, 16]] {
            let shown = screen(&state(), size);
            for part in
                ["run: step 2 of 4", "first pass: 3 of 8 images", "loss/total", "0.75", "25.0 s/image", "q save"]
            {
                assert!(shown.contains(part), "{size:?}: {part}\n{shown}");
            }
        }
        // Too small for anything is no reason to end.
        screen(&state(), [5, 2]);
        screen(&State::new(state().position), [80, 24]);
    }

    #[test]
    fn the_dialogue_says_that_the_run_is_saved() {
        let mut state = state();
        assert!(!screen(&state, [80, 24]).contains("save the run"));
        state.answer(KeyCode::Char('q'));
        for size in [[80, 24], [48, 16]] {
            let shown = screen(&state, size);
            assert!(shown.contains("s  save the run and stop"), "{shown}");
        }
        state.answer(KeyCode::Char('s'));
        assert!(screen(&state, [80, 24]).contains("The run is saved"));
    }

    #[test]
    fn a_metric_that_is_selected_is_seen() {
        let mut state = state();
        (0..40).for_each(|number| state.push(&format!("memory/{number}"), 1, Some(1024.0)));
        assert!(!screen(&state, [80, 24]).contains("memory/39"));
        state.answer(KeyCode::Up);
        let shown = screen(&state, [80, 24]);
        assert!(shown.contains("memory/39") && shown.contains("memory/39 by step"), "{shown}");
    }
}
