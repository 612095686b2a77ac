//! The charts of a page in their groups.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::chart::Chart;
use super::number::{Unit, shown};
use super::titles::title;
use super::{escape, memory, section};
use crate::curve::Curve;
use crate::run::Run;

/// The largest number of charts on one page.
pub(super) const MOST: usize = 120;

/// Groups of curves and their titles, in the order on the page, and whether they are shown at once. Other groups follow.
const GROUPS: [(&str, &str, bool); 8] = [
    ("loss", "Losses", true),
    ("validation", "Validation", true),
    ("memory", "Memory", true),
    ("speed", "Speed", false),
    ("optimizer", "Optimizer", false),
    ("discriminator", "Discriminator", false),
    ("codebook", "Codebook", false),
    ("batch", "Batch", false),
];

/// Metrics that tell what was measured on, not how well.
const NO_SCORES: [&str; 1] = ["validation/images"];

/// Charts in their groups, and a list of the metrics that never change, which need no chart.
pub(super) fn html(runs: &[(String, &Run)]) -> (String, String) {
    let tags: BTreeSet<&str> = runs.iter().flat_map(|(_, run)| run.curves.keys().map(String::as_str)).collect();
    let group_of = |tag: &str| tag.split_once('/').map_or("other", |(group, _)| group).to_owned();
    let groups: BTreeSet<String> = tags.iter().map(|tag| group_of(tag)).collect();
    let known = GROUPS.map(|(group, title, open)| (group.to_owned(), title.to_owned(), open));
    let is_known = |group: &String| GROUPS.iter().any(|(known, ..)| known == group);
    let others = groups.iter().filter(|group| !is_known(group)).map(|group| (group.clone(), capitalized(group), false));
    let (mut html, mut constant, mut left_out, mut count) = (String::new(), String::new(), Vec::new(), 0);
    for (group, title, open) in known.into_iter().chain(others) {
        let (mut shown_at_once, mut on_demand) = (String::new(), Vec::new());
        if group == "memory" {
            (shown_at_once, on_demand) = memory::charts(runs);
            count += on_demand.len() + 1;
        }
        // The total loss comes before its parts.
        let mut of_group: Vec<&str> = tags.iter().copied().filter(|tag| group_of(tag) == group).collect();
        of_group.sort_by_key(|tag| (*tag != "loss/total", *tag));
        for tag in of_group.into_iter().filter(|tag| !NO_SCORES.contains(tag)) {
            match the_only_value(&curves_of(runs, tag)) {
                Some(value) => {
                    let (tag, value) = (escape(tag), shown(value, Unit::of(tag)));
                    let _ = write!(constant, "<tr><th scope=\"row\">{tag}</th><td>{value}</td></tr>");
                }
                // Its charts are there already.
                None if group == "memory" => {}
                None if count >= MOST => left_out.push(tag),
                None => {
                    let chart = chart(runs, tag).unwrap_or_default();
                    count += usize::from(!chart.is_empty());
                    match open {
                        true => shown_at_once += &chart,
                        false => on_demand.extend(Some(chart).filter(|chart| !chart.is_empty())),
                    }
                }
            }
        }
        html += &group_html(&escape(&title), &shown_at_once, &on_demand);
    }
    if let [first, ..] = left_out[..] {
        let text =
            format!("{} more curves are in metrics.jsonl and not on this page, the first is {first}", left_out.len());
        html += &format!(r#"<p class="note">{}</p>"#, escape(&text));
    }
    let constant = match constant.as_str() {
        "" => String::new(),
        rows => section("Constant throughout", &format!(r#"<table class="settings"><tbody>{rows}</tbody></table>"#)),
    };
    (html, constant)
}

fn group_html(title: &str, shown_at_once: &str, on_demand: &[String]) -> String {
    let grid = |charts: &str| match charts {
        "" => String::new(),
        charts => format!(r#"<div class="charts">{charts}</div>"#),
    };
    let closed = |summary: &str| match on_demand {
        [] => String::new(),
        charts => format!("<details><summary>{summary}</summary>{}</details>", grid(&charts.concat())),
    };
    let count = match on_demand.len() {
        1 => "1 chart".to_owned(),
        count => format!("{count} charts"),
    };
    match shown_at_once {
        "" => match on_demand {
            [] => String::new(),
            _ => format!(
                "<section>{}</section>",
                closed(&format!(r#"<h2>{title}</h2> <span class="note">{count}</span>"#))
            ),
        },
        charts => section(title, &format!("{}{}", grid(charts), closed(&format!("more: {count}")))),
    }
}

fn capitalized(group: &str) -> String {
    let mut letters = group.replace('_', " ").chars().collect::<Vec<_>>();
    if let Some(first) = letters.first_mut() {
        first.make_ascii_uppercase();
    }
    letters.into_iter().collect()
}

fn curves_of<'a>(runs: &'a [(String, &Run)], tag: &str) -> Vec<(usize, &'a str, Curve)> {
    let of_run = |(number, (name, run)): (usize, &'a (String, &Run))| {
        let curve = run.curves.get(tag)?;
        let curve = if tag.ends_with("/skipped") { curve.running_sum() } else { curve.clone() };
        Some((number, name.as_str(), curve))
    };
    runs.iter().enumerate().filter_map(of_run).collect()
}

/// The only value of all `curves`, if there is just one. A metric with a single step may still change, so it has none.
fn the_only_value(curves: &[(usize, &str, Curve)]) -> Option<f64> {
    let least = curves.iter().filter_map(|(_, _, curve)| curve.range()).map(|range| range.0).reduce(f64::min)?;
    let greatest = curves.iter().filter_map(|(_, _, curve)| curve.range()).map(|range| range.1).reduce(f64::max)?;
    let taken_once = curves.iter().all(|(_, _, curve)| curve.steps.len() <= 1);
    (least == greatest && !taken_once).then_some(least)
}

/// The chart of a metric that changes; `None` for others.
pub(super) fn chart(runs: &[(String, &Run)], tag: &str) -> Option<String> {
    let curves = curves_of(runs, tag);
    if the_only_value(&curves).is_some() {
        return None;
    }
    let (group, name) = tag.split_once('/').unwrap_or(("other", tag));
    let even = ["learning_rate", "loss_scale", "skipped", "micro"];
    let chart = Chart {
        title: title(tag),
        unit: Unit::of(tag),
        smooth: !matches!(group, "validation" | "memory") && !even.contains(&name),
        dots: group == "validation",
        curves,
    };
    Some(chart.html()).filter(|html| !html.is_empty())
}
