//! The configurations of the runs: what differs, what that means for a comparison, and every key.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{escape, section};
use crate::run::Run;

/// Keys by which the same name stands for other numbers, and what must not be compared where they differ.
const COMPARABLE: [(&[&str], &str); 4] = [
    (
        &["data.source", "data.path", "data.images", "data.resolution"],
        "The runs learn from different images and are validated on different ones: their losses and scores cannot be compared.",
    ),
    (
        &["run.seed", "data.validation", "validation.images"],
        "The runs are validated on different images: small differences of their scores mean nothing.",
    ),
    (&["clip.pretrained"], "The runs are judged by different CLIPs: losses and scores by CLIP cannot be compared."),
    (
        &[
            "losses.perceptual.features",
            "losses.perceptual.network",
            "losses.perceptual.backbone",
            "losses.perceptual.linear",
        ],
        "The runs have different perceptual losses, which cannot be compared.",
    ),
];

/// Why runs cannot be compared, one sentence each. Runs without a configuration are left out.
pub(super) fn not_comparable(runs: &[(String, &Run)]) -> Vec<String> {
    let runs: Vec<&Run> = runs.iter().map(|(_, run)| *run).filter(|run| !run.config.is_empty()).collect();
    let warning = |(keys, meaning): &(&[&str], &str)| {
        let differing: Vec<&str> = keys.iter().copied().filter(|key| differs(&runs, key)).collect();
        (!differing.is_empty()).then(|| format!("{meaning} What differs: {}.", differing.join(", ")))
    };
    COMPARABLE.iter().filter_map(warning).collect()
}

fn differs(runs: &[&Run], key: &str) -> bool {
    let mut values = runs.iter().map(|run| run.config.get(key));
    let first = values.next();
    values.any(|value| Some(value) != first)
}

/// The keys in which the configurations differ.
pub(super) fn differences(runs: &[(String, &Run)]) -> String {
    let only_runs: Vec<&Run> = runs.iter().map(|(_, run)| *run).collect();
    let rows = rows(runs, keys(runs).into_iter().filter(|key| differs(&only_runs, key)));
    match (runs.len(), rows.as_str()) {
        (1, _) | (_, "") => String::new(),
        (_, rows) => section("What differs", &table(runs, rows)),
    }
}

/// All keys of the configurations.
pub(super) fn every_key(runs: &[(String, &Run)]) -> String {
    match rows(runs, keys(runs).into_iter()).as_str() {
        "" => String::new(),
        rows => {
            section("Configuration", &format!("<details><summary>every key</summary>{}</details>", table(runs, rows)))
        }
    }
}

fn keys<'a>(runs: &'a [(String, &Run)]) -> BTreeSet<&'a str> {
    runs.iter().flat_map(|(_, run)| run.config.keys().map(String::as_str)).collect()
}

fn table(runs: &[(String, &Run)], rows: &str) -> String {
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
mod tests {
    use super::*;

    #[test]
    fn runs_on_different_images_carry_a_warning() {
        let run = |settings: &[(&str, &str)]| Run {
            config: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Run::default()
        };
        let warnings = |a: &[(&str, &str)], b: &[(&str, &str)]| {
            let (a, b) = (run(a), run(b));
            not_comparable(&[("a".into(), &a), ("b".into(), &b), ("broken".into(), &Run::default())])
        };
        let path = |path| [("data.path", path), ("data.workers", "2"), ("run.seed", "0")];
        assert_eq!(warnings(&path("x"), &path("x")), [""; 0]);
        let [images] = &warnings(&path("x"), &path("y"))[..] else { panic!() };
        assert!(images.ends_with("What differs: data.path."), "{images}");
        let found =
            warnings(&[("run.seed", "0"), ("clip.pretrained", "a")], &[("run.seed", "1"), ("clip.pretrained", "b")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(warnings(&[("data.workers", "1")], &[("data.workers", "8")]), [""; 0]);
    }
}
