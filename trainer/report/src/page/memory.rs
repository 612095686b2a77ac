//! Charts of memory: the peak of each phase of a step, one behind the other.

use std::fmt::Write;

use super::axes::Axes;
use super::chart::{BUCKETS, Figure, read_points};
use super::charts::chart;
use super::escape;
use super::number::{Unit, shown};
use super::titles::title;
use crate::curve::Curve;
use crate::run::Run;

/// Measurements that are not of a phase.
const NOT_PHASES: [&str; 3] = ["memory/peak", "memory/process", "memory/host_buffers"];

/// The phases of a run with their curves, the largest first.
fn phases(run: &Run) -> Vec<(&str, &Curve)> {
    let of_memory = run.curves.iter().filter(|(tag, _)| !NOT_PHASES.contains(&tag.as_str()));
    let mut phases: Vec<_> = of_memory
        .filter_map(|(tag, curve)| Some((tag.strip_prefix("memory/")?, curve, curve.median()?)))
        .filter(|(name, ..)| !name.starts_with("peak_"))
        .collect();
    phases.sort_by(|a, b| b.2.total_cmp(&a.2));
    phases.into_iter().map(|(name, curve, _)| (name, curve)).collect()
}

/// The charts of a run or of several: what is shown at once, and what is shown on demand.
pub(super) fn charts(runs: &[(String, &Run)]) -> (String, Vec<String>) {
    let stacks: Vec<String> = runs
        .iter()
        .enumerate()
        .map(|(number, (name, run))| match runs.len() {
            1 => stack("peak memory by phase of a step", "", run),
            _ => stack(&format!("peak memory by phase, {name}"), &format!(" run-{number}"), run),
        })
        .filter(|chart| !chart.is_empty())
        .collect();
    let [peak, process, host_buffers] = NOT_PHASES.map(|tag| chart(runs, tag).unwrap_or_default());
    let others = [process, host_buffers].into_iter().filter(|chart| !chart.is_empty());
    match (runs.len(), stacks.concat()) {
        // The curve of the peak is on it.
        (1, first) if !first.is_empty() => (first, others.collect()),
        _ => (peak, stacks.into_iter().chain(others).collect()),
    }
}

/// An area for each phase, from zero to its peak, and the curve of the step's peak.
fn stack(title_: &str, class: &str, run: &Run) -> String {
    let phases = phases(run);
    let peak = run.curves.get("memory/peak");
    let curves = || phases.iter().map(|(_, curve)| *curve);
    let Some(axes) = Axes::around(curves().chain(peak), Unit::Bytes).filter(|_| !phases.is_empty()) else {
        return String::new();
    };
    let (mut drawn, mut data, mut last) = (String::new(), Vec::new(), "last".to_owned());
    let mut words = format!("{title_}, one area for each phase.");
    axes.draw(&mut drawn);
    let mut tell = |class: &str, name: &str, curve: &Curve| {
        if let Some(value) = curve.last() {
            let (name, value) = (escape(name), shown(value, Unit::Bytes));
            let _ = write!(last, r#" <span class="{class}">{name} {value}</span>"#);
            let _ = write!(words, " {name}: {value}.");
        }
        data.push(read_points(class, &format!("{name} "), curve, None));
    };
    for (number, (name, curve)) in phases.iter().enumerate() {
        // Those in front are seen most, so they get colours of their own.
        let class = format!("colour-{}", (phases.len() - 1 - number) % 8);
        let _ = write!(drawn, r#"<path class="area {class}" d="{}"/>"#, axes.area(&curve.decimated(BUCKETS)));
        tell(&class, &name.replace('_', " "), curve);
    }
    if let Some(peak) = peak {
        let _ = write!(drawn, r#"<path class="line" d="{}"/>"#, axes.path(&peak.decimated(BUCKETS)));
        tell("", &title("memory/peak"), peak);
    }
    let class = format!(" stack{class}");
    let note = "each colour reaches from zero to the peak of its phase";
    Figure { class: &class, title: title_, note, unit: Unit::Bytes, words: &words, drawn: &drawn, data, last: &last }
        .html(&axes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(phases: &[(&str, f64)]) -> Run {
        let curve = |value: f64| Curve { steps: vec![1, 2, 3], values: vec![value, value + 1.0, value] };
        let curves = phases.iter().map(|(name, value)| (format!("memory/{name}"), curve(*value)));
        Run { curves: curves.collect(), ..Run::default() }
    }

    #[test]
    fn the_largest_phase_is_behind_the_others_and_all_start_at_zero() {
        let run = run(&[("forward", 5e8), ("weights", 1e8), ("clip", 9e8), ("peak", 9e8), ("host_buffers", 1e6)]);
        assert_eq!(phases(&run).iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["clip", "forward", "weights"]);
        let (first, others) = charts(&[("a".into(), &run)]);
        let areas: Vec<&str> =
            first.split("class=\"area ").skip(1).map(|part| part.split('"').nth(2).unwrap()).collect();
        assert_eq!(areas.len(), 3);
        let top = |area: &str| area.split('L').nth(1).unwrap().split(' ').nth(1).unwrap().parse::<f64>().unwrap();
        assert!(top(areas[0]) < top(areas[1]) && top(areas[1]) < top(areas[2]), "{areas:?}");
        // The lower axis is zero.
        let heights: Vec<f64> = areas.iter().map(|area| super::super::axes::BOTTOM - top(area)).collect();
        assert!(
            (heights[1] / heights[0] - 5.0 / 9.0).abs() < 0.01 && (heights[2] / heights[0] - 1.0 / 9.0).abs() < 0.01
        );
        assert_eq!((others.len(), first.matches("<figure").count()), (1, 1));
    }

    #[test]
    fn several_runs_share_a_chart_of_their_peaks() {
        let runs =
            [("a".to_owned(), &run(&[("forward", 5e8), ("peak", 6e8)])), ("b".to_owned(), &run(&[("peak", 7e8)]))];
        let (first, others) = charts(&runs);
        assert!(first.contains("run-0") && first.contains("run-1") && !first.contains("area"));
        assert_eq!(others.len(), 1);
        assert!(others[0].contains("peak memory by phase, a") && others[0].contains("chart stack run-0"));
    }

    /// As on a GPU that was not asked for the phases.
    #[test]
    fn without_phases_there_is_the_peak() {
        let (first, others) = charts(&[("a".into(), &run(&[("peak", 1e9), ("process", 2e9)]))]);
        assert!(first.contains("peak memory of a step") && others.len() == 1 && others[0].contains("process"));
        assert_eq!(charts(&[("a".into(), &Run::default())]), (String::new(), Vec::new()));
    }
}
