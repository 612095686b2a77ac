//! Writes one self-contained page about one or several runs. All curves are drawn here as SVG, so the page works
//! without a script. It loads nothing: its own security policy forbids requests and other scripts.

mod chart;
mod images;
mod number;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use self::chart::Chart;
use self::number::{Unit, shown};
use crate::curve::Curve;
use crate::run::Run;

/// The largest number of runs on one page: more colours cannot be told apart.
pub const MOST_RUNS: usize = 8;

/// The largest number of recovered steps that are listed for each run.
const MOST_RECOVERED: usize = 20;

/// The largest number of charts on one page.
const MOST_CHARTS: usize = 120;

const TEMPLATE: &str = include_str!("template.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Groups of curves and their titles, in the order on the page. Other groups follow.
const GROUPS: [(&str, &str); 8] = [
    ("loss", "Losses"),
    ("validation", "Validation"),
    ("discriminator", "Discriminator"),
    ("optimizer", "Optimizer"),
    ("codebook", "Codebook"),
    ("speed", "Speed"),
    ("memory", "Memory"),
    ("batch", "Batch"),
];

/// The page of the first [`MOST_RUNS`] of `runs`. Its size is limited, however long the runs are.
pub fn page(runs: &[Run]) -> String {
    let runs = &runs[..runs.len().min(MOST_RUNS)];
    let runs: Vec<(String, &Run)> = names(runs).into_iter().zip(runs).collect();
    let (samples, mut notes) = images::html(&runs);
    let mut recovered = Vec::new();
    for (name, run) in &runs {
        let kept = &run.recovered[..run.recovered.len().min(MOST_RECOVERED)];
        recovered.extend(kept.iter().map(|text| format!("{name}, {text}")));
        if run.recovered.len() > kept.len() {
            recovered.push(format!("{name}: and {} more", run.recovered.len() - kept.len()));
        }
        notes.extend(run.notes.iter().map(|note| format!("{name}: {note}")));
    }
    let title = runs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let policy = format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    let (charts, constant) = charts(&runs);
    let parts = [
        ("policy", policy),
        ("title", escape(&title)),
        ("style", STYLE.to_owned()),
        ("summary", summary(&runs)),
        ("notes", list_of("Missing or broken", &notes)),
        ("recovered", list_of("Too little memory", &recovered)),
        ("differences", differences(&runs)),
        ("charts", charts),
        ("constant", constant),
        ("samples", section("Samples", &samples)),
        ("configuration", configuration(&runs)),
        ("script", SCRIPT.to_owned()),
    ];
    fill(TEMPLATE, &parts)
}

/// Replaces each `{{name}}` in the template. Braces in the replacements stay as they are.
fn fill(template: &str, parts: &[(&str, String)]) -> String {
    let mut page = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page += before;
        page += parts.iter().find(|(part, _)| *part == name).map_or("", |(_, text)| text);
        rest = after;
    }
    page + rest
}

/// The hash by which a security policy allows a script or a style.
fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

/// Escapes `text` for an element or an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // HTML allows NUL in no form.
            '\0' => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}

/// The names of the runs, with a number if several are equal.
fn names(runs: &[Run]) -> Vec<String> {
    let is_alone = |run: &Run| runs.iter().filter(|other| other.name == run.name).count() == 1;
    let numbered = |(index, run): (usize, &Run)| match is_alone(run) {
        true => run.name.clone(),
        false => format!("{} ({})", run.name, index + 1),
    };
    runs.iter().enumerate().map(numbered).collect()
}

fn section(title: &str, content: &str) -> String {
    match content {
        "" => String::new(),
        content => format!("<section><h2>{title}</h2>{content}</section>"),
    }
}

fn list_of(title: &str, items: &[String]) -> String {
    let mut list = String::new();
    for item in items {
        let _ = write!(list, "<li>{}</li>", escape(item));
    }
    match items {
        [] => String::new(),
        _ => format!(r#"<section class="notes"><h2>{title}</h2><ul>{list}</ul></section>"#),
    }
}

/// A column of the summary: its title, and the value of a run.
type Column = (&'static str, fn(&Run) -> Option<String>);

/// A table with a row for each run.
fn summary(runs: &[(String, &Run)]) -> String {
    let columns: [Column; 8] = [
        ("steps", |run| Some(state(run))),
        ("loss, averaged", |run| Some(shown(last_average(run.curves.get("loss/total")?)?, Unit::Number))),
        ("validation error", |run| Some(shown(run.curves.get("validation/l1")?.last()?, Unit::Number))),
        ("PSNR", |run| Some(format!("{:.2} dB", run.curves.get("validation/psnr")?.last()?))),
        ("codes used", |run| {
            let codes = run.curves.get("validation/codes_used").or_else(|| run.curves.get("codebook/codes_used"))?;
            Some(shown(codes.last()?, Unit::Share))
        }),
        ("images/s", |run| Some(shown(run.curves.get("speed/images_per_second")?.median()?, Unit::Number))),
        ("peak memory", |run| Some(shown(run.curves.get("memory/peak")?.range()?.1, Unit::Bytes))),
        ("skipped", |run| {
            let skipped = run.curves.get("optimizer/skipped")?.running_sum();
            Some(shown(skipped.last()?, Unit::Steps))
        }),
    ];
    let columns: Vec<Column> =
        columns.into_iter().filter(|(_, value)| runs.iter().any(|(_, run)| value(run).is_some())).collect();
    let mut table = r#"<thead><tr><th scope="col">run</th>"#.to_owned();
    for (title, _) in &columns {
        let _ = write!(table, r#"<th scope="col">{title}</th>"#);
    }
    table += "</tr></thead><tbody>";
    for (number, (name, run)) in runs.iter().enumerate() {
        let choice = match runs.len() {
            1 => escape(name),
            _ => format!(
                r#"<label><input type="checkbox" id="show-{number}" checked><span class="swatch"></span>{}</label>"#,
                escape(name)
            ),
        };
        let _ = write!(table, r#"<tr><th scope="row" class="colour-{number}">{choice}</th>"#);
        for (title, value) in &columns {
            let value = value(run).unwrap_or_else(|| "–".into());
            let _ = write!(table, r#"<td data-title="{title}">{}</td>"#, escape(&value));
        }
        table += "</tr>";
    }
    format!(r#"<table class="summary">{table}</tbody></table>"#)
}

/// How far a run is. The files do not show whether it is still going on, only the time since its last step.
fn state(run: &Run) -> String {
    let step = run.step;
    match (run.steps, run.is_finished()) {
        (Some(_), Some(true)) => format!("{step}, finished"),
        (Some(steps), _) => match run.silent_for.filter(|_| step > 0) {
            Some(silence) => format!("{step} of {steps}, the last one {} before this page", ago(silence)),
            None => format!("{step} of {steps}"),
        },
        _ => format!("{step}"),
    }
}

fn ago(time: Duration) -> String {
    let (count, unit) = match time.as_secs() {
        seconds @ ..120 => (seconds, "s"),
        seconds @ 120..7_200 => (seconds / 60, "min"),
        seconds @ 7_200..172_800 => (seconds / 3_600, "h"),
        seconds => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

/// The mean of the last steps: a single batch says little.
fn last_average(curve: &Curve) -> Option<f64> {
    const STEPS: usize = 20;
    let last: Vec<f64> = curve.points().rev().take(STEPS).map(|(_, value)| value).collect();
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}

/// Charts in their groups, and a list of the metrics that never change, which need no chart.
fn charts(runs: &[(String, &Run)]) -> (String, String) {
    let tags: BTreeSet<&str> = runs.iter().flat_map(|(_, run)| run.curves.keys().map(String::as_str)).collect();
    let group_of = |tag: &str| tag.split_once('/').map_or("other", |(group, _)| group).to_owned();
    let groups: BTreeSet<String> = tags.iter().map(|tag| group_of(tag)).collect();
    let known = GROUPS.iter().map(|(group, title)| ((*group).to_owned(), (*title).to_owned()));
    let is_known = |group: &String| GROUPS.iter().any(|(known, _)| known == group);
    let others = groups.iter().filter(|group| !is_known(group)).map(|group| (group.clone(), titled(group)));
    let (mut html, mut constant, mut left_out, mut count) = (String::new(), String::new(), Vec::new(), 0);
    for (group, title) in known.chain(others) {
        let mut figures = String::new();
        // The total loss comes before its parts.
        let mut of_group: Vec<&str> = tags.iter().copied().filter(|tag| group_of(tag) == group).collect();
        of_group.sort_by_key(|tag| (*tag != "loss/total", *tag));
        for tag in of_group {
            let curves = curves_of(runs, tag);
            if let Some(value) = the_only_value(&curves) {
                let _ = write!(
                    constant,
                    "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
                    escape(tag),
                    shown(value, Unit::of(tag))
                );
            } else if count >= MOST_CHARTS {
                left_out.push(tag.to_owned());
            } else {
                figures += &chart(tag, curves).html();
                count += 1;
            }
        }
        if !figures.is_empty() {
            html += &section(&escape(&title), &format!(r#"<div class="charts">{figures}</div>"#));
        }
    }
    if !left_out.is_empty() {
        let text = format!(
            "{} more curves are in metrics.jsonl and not on this page, the first is {}",
            left_out.len(),
            left_out[0]
        );
        html += &format!(r#"<p class="note">{}</p>"#, escape(&text));
    }
    let constant = match constant.as_str() {
        "" => String::new(),
        rows => section("Constant throughout", &format!(r#"<table class="settings"><tbody>{rows}</tbody></table>"#)),
    };
    (html, constant)
}

fn titled(group: &str) -> String {
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

fn chart<'a>(tag: &'a str, curves: Vec<(usize, &'a str, Curve)>) -> Chart<'a> {
    let (group, name) = tag.split_once('/').unwrap_or(("other", tag));
    let title = match tag {
        "loss/total" => "weighted sum of the losses",
        "optimizer/skipped" | "discriminator/skipped" => "skipped steps so far",
        "speed/images_per_second" => "images per second",
        "speed/data_wait" => "wait for images",
        "memory/peak" => "peak memory",
        "memory/process" => "the process's memory, by the driver",
        "validation/l1" => "mean absolute error",
        "validation/psnr" => "PSNR (dB)",
        "validation/ssim" => "SSIM",
        "validation/lpips" => "LPIPS",
        "validation/clip" => "CLIP similarity to the original",
        "validation/caption" => "CLIP similarity to the caption",
        "validation/right_caption" => "right caption first",
        "optimizer/grad_norm" | "discriminator/grad_norm" => "norm of the gradient, before clipping",
        _ => name,
    };
    let even = ["learning_rate", "loss_scale", "skipped", "micro"];
    Chart {
        title: title.replace('_', " "),
        unit: Unit::of(tag),
        smooth: !matches!(group, "validation" | "memory") && !even.contains(&name),
        dots: group == "validation",
        curves,
    }
}

/// The keys in which the configurations differ.
fn differences(runs: &[(String, &Run)]) -> String {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|(_, run)| run.config.keys()).collect();
    let differs = |key: &&String| {
        let mut values = runs.iter().map(|(_, run)| run.config.get(*key));
        let first = values.next();
        values.any(|value| Some(value) != first)
    };
    let rows = rows(runs, keys.into_iter().filter(differs).map(String::as_str));
    match (runs.len(), rows.as_str()) {
        (1, _) | (_, "") => String::new(),
        (_, rows) => section("What differs", &settings(runs, rows)),
    }
}

/// All keys of the configurations.
fn configuration(runs: &[(String, &Run)]) -> String {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|(_, run)| run.config.keys()).collect();
    match rows(runs, keys.into_iter().map(String::as_str)).as_str() {
        "" => String::new(),
        rows => section(
            "Configuration",
            &format!("<details><summary>every key</summary>{}</details>", settings(runs, rows)),
        ),
    }
}

fn settings(runs: &[(String, &Run)], rows: &str) -> String {
    let mut head = String::new();
    for (number, (name, _)) in runs.iter().enumerate() {
        let _ = write!(
            head,
            r#"<th scope="col" class="colour-{number}"><span class="swatch"></span>{}</th>"#,
            escape(name)
        );
    }
    format!(
        r#"<div class="wide" tabindex="0" role="group" aria-label="settings"><table class="settings"><thead><tr><th scope="col">key</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"#
    )
}

fn rows<'a>(runs: &[(String, &Run)], keys: impl Iterator<Item = &'a str>) -> String {
    let mut rows = String::new();
    for key in keys {
        let _ = write!(rows, r#"<tr><th scope="row">{}</th>"#, escape(key));
        for (_, run) in runs {
            let value = run.config.get(key).map_or("–", String::as_str);
            let _ = write!(rows, "<td>{}</td>", escape(value));
        }
        rows += "</tr>";
    }
    rows
}

#[cfg(test)]
mod tests;
