//! What a run leaves when it ends: its scores, its files, and commands for what comes next.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use console::style;
use serde_json::{Value, json};

use crate::config::{Config, DataSource};
use crate::evaluation::Scores;
use crate::show::counted;
use crate::training::Outcome;

/// A run that has ended, with the files that are there.
pub(super) struct FinishedRun<'a> {
    outcome: &'a Outcome,
    /// The images to look at first: originals with reconstructions before and after training, else the newest samples.
    samples: Option<PathBuf>,
    /// The page with its curves.
    report: Option<PathBuf>,
    next: Vec<Next>,
}

/// A command to try next.
struct Next {
    command: String,
    /// What it does.
    about: &'static str,
}

impl<'a> FinishedRun<'a> {
    /// Finds the files of the run of `config` in `folder`.
    pub(super) fn of(outcome: &'a Outcome, config: &Config, folder: &Path) -> Self {
        let samples = outcome.grid.clone().or_else(|| newest_samples(folder));
        let report = Some(folder.join("report.html")).filter(|path| path.is_file());
        Self { outcome, samples, report, next: next(config, folder) }
    }

    pub(super) fn json(&self) -> Value {
        let Outcome { step, interrupted, stopped_early, before, after, best, grid, checkpoint } = self.outcome;
        json!({
            "step": step,
            "interrupted": interrupted,
            "stopped_early": stopped_early,
            "before": before,
            "after": after,
            "best": best,
            "grid": grid,
            "samples": self.samples,
            "report": self.report,
            "checkpoint": checkpoint,
            "next": self.next.iter().map(|next| &next.command).collect::<Vec<_>>(),
        })
    }

    pub(super) fn text(&self) -> String {
        let Outcome { step, interrupted, stopped_early, before, after, best, grid, checkpoint } = self.outcome;
        let mut lines = Vec::new();
        if let (Some(before), Some(after)) = (before, after) {
            lines.push(before_and_after(before, after).trim_end().to_owned());
        }
        if *stopped_early {
            lines.push(format!("ended at step {step}, as it got no better"));
        }
        if let Some(best) = best {
            lines.push(format!("best: step {}, {} {:.4}", best.step, best.metric.name(), best.value));
        }
        if let Some(samples) = &self.samples {
            let what = if grid.is_some() { "originals, before, after" } else { "samples" };
            lines.push(format!("{what}: {}", samples.display()));
        }
        if let Some(report) = &self.report {
            lines.push(format!("report: {}", report.display()));
        }
        lines.push(format!("checkpoint: {}", checkpoint.display()));
        if !interrupted {
            lines.push("to try next:".to_owned());
            let width = self.next.iter().map(|next| next.command.chars().count()).max().unwrap_or_default();
            lines.extend(self.next.iter().map(|Next { command, about }| format!("  {command:<width$}  # {about}")));
        }
        lines.join("\n")
    }
}

fn next(config: &Config, folder: &Path) -> Vec<Next> {
    let run = quoted(folder);
    let images = match (config.data.source, &config.data.path) {
        (DataSource::Folder, Some(path)) => quoted(path),
        _ => "IMAGES".to_owned(),
    };
    let other = other_run(folder).map(|other| format!(" {}", quoted(&other)));
    let about_report = if other.is_some() { "compare it with another run" } else { "write its report again" };
    let micro: Vec<String> =
        [1, 2, 4].into_iter().filter(|micro| *micro <= config.batch.effective).map(|micro| micro.to_string()).collect();
    let (micro, config) = (micro.join(","), quoted(&folder.join("config.toml")));
    [
        (format!("train reconstruct {images} --checkpoint {run} --compare"), "images beside their reconstructions"),
        (format!("train report {run}{}", other.unwrap_or_default()), about_report),
        (format!("train sweep --config {config} --micro {micro}"), "measure memory and speed at other micro-batches"),
    ]
    .map(|(command, about)| Next { command, about })
    .into()
}

/// The newest image of samples of the run in `folder`.
fn newest_samples(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder.join("samples")).ok()?.flatten().map(|entry| entry.path());
    // Their names have the steps with leading zeros.
    let is_grid = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
    files.filter(is_grid).max()
}

/// The run beside the one in `folder` that was trained last.
fn other_run(folder: &Path) -> Option<PathBuf> {
    let around = folder.parent().filter(|around| !around.as_os_str().is_empty())?;
    let runs = fs::read_dir(around).ok()?.flatten().map(|entry| entry.path()).filter(|path| path != folder);
    let trained = |run: PathBuf| {
        let steps = fs::metadata(run.join("metrics.jsonl")).ok().filter(|steps| steps.len() > 0)?;
        Some((steps.modified().unwrap_or(SystemTime::UNIX_EPOCH), run))
    };
    runs.filter_map(trained).max().map(|(_, run)| run)
}

/// A path as it is typed in a shell.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "-_./~".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Formats a table of the scores before and after training.
fn before_and_after(before: &Scores, after: &Scores) -> String {
    let title = format!("validation, {}", counted(after.images as u64, "image"));
    let mut table = format!("{title:<28}{:>10}{:>10}\n", "before", "after");
    let mut row = |name: &str, a: f64, b: f64, digits: usize, change: String| {
        let is_better = if change.ends_with('%') || name == "LPIPS" { b < a } else { b > a };
        let change = match change.is_empty() || a == b {
            true => change,
            false if is_better => style(change).green().to_string(),
            false => style(change).red().to_string(),
        };
        table += &format!("{name:<28}{a:>10.digits$}{b:>10.digits$}  {change}");
        table.truncate(table.trim_end().len());
        table.push('\n');
    };
    let percent = format!("{:+.0} %", 100.0 * (after.l1 - before.l1) / before.l1);
    row("mean absolute error", before.l1, after.l1, 4, percent);
    row("PSNR (dB)", before.psnr, after.psnr, 2, format!("{:+.2}", after.psnr - before.psnr));
    for (name, a, b) in [
        ("SSIM", before.ssim, after.ssim),
        ("LPIPS", before.lpips, after.lpips),
        ("CLIP similarity to original", before.clip, after.clip),
        ("CLIP similarity to caption", before.caption, after.caption),
    ] {
        if let Some((a, b)) = a.zip(b) {
            row(name, a, b, 4, format!("{:+.4}", b - a));
        }
    }
    if let Some((a, b)) = before.right_caption.zip(after.right_caption) {
        let name = format!("right caption of {} (%)", after.images.min(64));
        row(&name, 100.0 * a, 100.0 * b, 1, format!("{:+.1}", 100.0 * (b - a)));
    }
    row("codes used (%)", 100.0 * before.codes_used, 100.0 * after.codes_used, 1, String::new());
    row("perplexity of the codes", before.perplexity, after.perplexity, 1, String::new());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_a_shell_needs_it() {
        for (path, typed) in [("runs/a-1.b", "runs/a-1.b"), ("my runs/a", "'my runs/a'"), ("it's", "'it'\\''s'")] {
            assert_eq!(quoted(Path::new(path)), typed);
        }
    }

    #[test]
    fn the_table_says_how_much_better_it_got() {
        let scores = |l1, psnr, lpips, codes_used, perplexity| Scores {
            images: 4,
            l1,
            psnr,
            ssim: None,
            lpips: Some(lpips),
            clip: None,
            caption: None,
            right_caption: Some(codes_used / 2.0),
            codes_used,
            perplexity,
        };
        let before = scores(0.5, 10.0, 0.75, 0.01, 1.5);
        let after = scores(0.125, 22.5, 0.25, 0.5, 30.0);
        let table = console::strip_ansi_codes(&before_and_after(&before, &after)).into_owned();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "mean absolute error             0.5000    0.1250  -75 %");
        assert_eq!(lines[3], "LPIPS                           0.7500    0.2500  -0.5000");
        assert_eq!(lines[4], "right caption of 4 (%)             0.5      25.0  +24.5");
        assert_eq!(lines[6], "perplexity of the codes            1.5      30.0");
    }

    #[test]
    fn another_run_is_compared_with_the_one_that_was_trained_last() {
        let root = tempfile::tempdir().unwrap();
        let run = |name: &str| root.path().join(name);
        for (name, steps) in [("a", "{}\n"), ("mine", "{}\n"), ("empty", "")] {
            fs::create_dir(run(name)).unwrap();
            fs::write(run(name).join("metrics.jsonl"), steps).unwrap();
        }
        fs::create_dir(run("none")).unwrap();
        assert_eq!(other_run(&run("mine")), Some(run("a")));
        fs::remove_dir_all(run("a")).unwrap();
        assert_eq!(other_run(&run("mine")), None);
        assert_eq!(other_run(Path::new("alone")), None);
    }
}
