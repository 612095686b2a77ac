//! Writes one self-contained page about one or several runs. All curves are drawn here as SVG, so the page works
//! without a script. It loads nothing: its own security policy forbids requests and other scripts.

mod axes;
mod chart;
mod charts;
mod configurations;
mod images;
mod memory;
mod number;
mod scores;
mod titles;

use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use self::number::{Unit, shown};
use crate::curve::Curve;
use crate::run::Run;

/// The largest number of runs on one page: more colours cannot be told apart.
pub const MOST_RUNS: usize = 8;

/// The largest number of recovered steps that are listed for each run.
const MOST_RECOVERED: usize = 20;

const TEMPLATE: &str = include_str!("template.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

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
    let (charts, constant) = charts::html(&runs);
    let parts = [
        ("policy", policy),
        ("title", escape(&title)),
        ("style", STYLE.to_owned()),
        ("summary", summary(&runs)),
        ("notes", list_of("Missing or broken", &notes)),
        ("not_comparable", list_of("Not comparable", &configurations::not_comparable(&runs))),
        ("scores", scores::html(&runs)),
        ("recovered", list_of("Too little memory", &recovered)),
        ("differences", configurations::differences(&runs)),
        ("charts", charts),
        ("constant", constant),
        ("samples", section("Samples", &samples)),
        ("configuration", configurations::every_key(&runs)),
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

#[cfg(test)]
mod tests;
