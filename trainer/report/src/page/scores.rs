//! The scores of the first and of the last validation, side by side.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::number::{Unit, shown};
use super::titles::title;
use super::{escape, section};
use crate::run::Run;

/// Metrics of validations in the order of their rows, and which values are better. Other metrics follow.
const ORDER: [(&str, &str); 9] = [
    ("validation/l1", "lower is better"),
    ("validation/psnr", "higher is better"),
    ("validation/ssim", "higher is better"),
    ("validation/lpips", "lower is better"),
    ("validation/clip", "higher is better"),
    ("validation/caption", "higher is better"),
    ("validation/right_caption", "higher is better"),
    ("validation/codes_used", ""),
    ("validation/perplexity", ""),
];

const IMAGES: &str = "validation/images";

/// Steps of a run's first and last validation; the last is `None` if there was only one.
fn ends(run: &Run) -> Option<(u64, Option<u64>)> {
    let steps =
        || run.curves.iter().filter(|(tag, _)| tag.starts_with("validation/")).flat_map(|(_, curve)| &curve.steps);
    let (first, last) = (*steps().min()?, *steps().max()?);
    Some((first, (last > first).then_some(last)))
}

fn value(run: &Run, tag: &str, step: u64) -> Option<f64> {
    run.curves.get(tag)?.points().find(|(at, _)| *at == step).map(|(_, value)| value)
}

/// A table with a row for each metric and three columns for each run; empty without validations.
pub(super) fn html(runs: &[(String, &Run)]) -> String {
    let validated: Vec<_> =
        runs.iter().enumerate().filter_map(|(number, (name, run))| Some((number, name, *run, ends(run)?))).collect();
    if validated.is_empty() {
        return String::new();
    }
    let (mut names, mut columns) = (String::new(), String::new());
    for (number, name, _, (first, last)) in &validated {
        let _ = write!(
            names,
            r#"<th scope="colgroup" colspan="3" class="colour-{number} run-{number}"><span class="swatch"></span>{}</th>"#,
            escape(name)
        );
        let after = last.map_or("after".to_owned(), |last| format!("step {last}"));
        for text in [format!("step {first}"), after, "change".to_owned()] {
            let _ = write!(columns, r#"<th scope="col" class="run-{number}">{text}</th>"#);
        }
    }
    let names = match runs.len() {
        1 => String::new(),
        _ => format!("<tr><th></th>{names}</tr>"),
    };
    let mut rows = String::new();
    for (tag, better) in metrics(runs) {
        let note = if better.is_empty() { String::new() } else { format!(r#" <span class="note">{better}</span>"#) };
        let _ = write!(rows, r#"<tr><th scope="row">{}{note}</th>"#, escape(&title(tag)));
        for (number, _, run, (first, last)) in &validated {
            let (first, last) = (value(run, tag, *first), last.and_then(|last| value(run, tag, last)));
            let text = |value: Option<f64>| value.map_or("–".to_owned(), |value| shown(value, Unit::of(tag)));
            let change = first.zip(last).map_or(String::new(), |(first, last)| change(tag, first, last));
            for text in [text(first), text(last), change] {
                let _ = write!(rows, r#"<td class="run-{number}">{text}</td>"#);
            }
        }
        rows += "</tr>";
    }
    let counts: BTreeSet<u64> = validated
        .iter()
        .filter_map(|(_, _, run, _)| run.curves.get(IMAGES)?.last())
        .map(|count| count as u64)
        .collect();
    let counts = counts.iter().map(u64::to_string).collect::<Vec<_>>().join(" or ");
    let note = if counts.is_empty() { String::new() } else { format!(r#"<p class="note">{counts} images</p>"#) };
    let table = format!(
        r#"<table class="scores"><thead>{names}<tr><th></th>{columns}</tr></thead><tbody>{rows}</tbody></table>"#
    );
    let title = "Before and after";
    section(title, &format!(r#"<div class="wide" tabindex="0" role="group" aria-label="{title}">{table}</div>{note}"#))
}

fn metrics<'a>(runs: &[(String, &'a Run)]) -> Vec<(&'a str, &'static str)> {
    let tags = runs.iter().flat_map(|(_, run)| run.curves.keys().map(String::as_str));
    let tags: BTreeSet<&str> = tags.filter(|tag| tag.starts_with("validation/") && *tag != IMAGES).collect();
    let place = |tag: &str| ORDER.iter().position(|(known, _)| *known == tag).unwrap_or(ORDER.len());
    let mut tags: Vec<&str> = tags.into_iter().collect();
    tags.sort_by_key(|tag| place(tag));
    tags.into_iter().map(|tag| (tag, ORDER.get(place(tag)).map_or("", |(_, better)| *better))).collect()
}

/// The change with its sign, in three digits: in percent for errors, which have no scale of their own, and else the difference.
fn change(tag: &str, first: f64, last: f64) -> String {
    let rounded = |value: f64| format!("{value:.2e}").parse().unwrap_or(value);
    let (text, unit) = match tag {
        "validation/l1" | "validation/lpips" if first != 0.0 => {
            (shown(rounded((last - first) / first), Unit::Share), "")
        }
        _ => match Unit::of(tag) {
            Unit::Share => (shown(rounded(100.0 * (last - first)), Unit::Number), " points"),
            unit => (shown(rounded(last - first), unit), ""),
        },
    };
    let sign = if text.starts_with('-') || last == first { "" } else { "+" };
    format!("{sign}{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::Curve;

    fn run(curves: &[(&str, &[f64])]) -> Run {
        let curve =
            |values: &[f64]| Curve { steps: (0..).step_by(50).take(values.len()).collect(), values: values.to_vec() };
        let curves = curves.iter().map(|(name, values)| (format!("validation/{name}"), curve(values)));
        Run { curves: curves.collect(), ..Run::default() }
    }

    #[test]
    fn the_first_and_the_last_validation_are_compared() {
        let run = run(&[
            ("images", &[64.0, 64.0, 64.0]),
            ("psnr", &[15.0, 19.0, 17.5]),
            ("l1", &[0.234567, 0.3, 0.2]),
            ("right_caption", &[0.25, 0.5, 0.5]),
            ("new", &[f64::NAN, 1.0, 2.0]),
        ]);
        let html = html(&[("a".into(), &run)]);
        assert!(html.contains("step 0</th>") && html.contains("step 100</th>") && html.contains("64 images"), "{html}");
        let cells = |title: &str| {
            let row = html.split_once(&format!(">{title}")).unwrap().1.split_once("</tr>").unwrap().0;
            row.split("<td").skip(1).map(|cell| cell.split(['>', '<']).nth(1).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(cells("mean absolute error"), ["0.2346", "0.2", "-14.7 %"]);
        assert_eq!(cells("PSNR (dB)"), ["15", "17.5", "+2.5"]);
        assert_eq!(cells("right caption first"), ["25 %", "50 %", "+25 points"]);
        assert_eq!(cells("validation: new"), ["–", "2", ""]);
        assert!(
            html.find("mean absolute error") < html.find("PSNR") && html.find("PSNR") < html.find("validation: new")
        );
        assert!(!html.contains("validation: images"));
    }

    #[test]
    fn a_run_without_a_second_validation_has_no_change() {
        let (short, none) = (run(&[("l1", &[0.25])]), Run::default());
        let text =
            html(&[("short".into(), &short), ("none".into(), &none), ("whole".into(), &run(&[("l1", &[0.5, 0.25])]))]);
        assert!(text.contains("short</th>") && text.contains("whole</th>") && !text.contains("none</th>"), "{text}");
        assert!(
            text.contains(r#"<td class="run-0">0.25</td><td class="run-0">–</td><td class="run-0"></td>"#),
            "{text}"
        );
        assert!(text.contains(r#"<td class="run-2">-50 %</td>"#), "{text}");
        assert_eq!(html(&[("none".into(), &none)]), "");
    }
}
