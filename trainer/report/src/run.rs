//! Reads a run from its folder, also if files are missing or broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::curve::Curve;
use crate::keys::{self, Groups};

/// A folder without a run.
#[derive(Debug, thiserror::Error)]
#[error("{} holds no run: neither metrics.jsonl nor config.toml is there", .0.display())]
pub struct NoRun(pub PathBuf);

/// The contents of a run's folder. What is broken or missing is skipped and named in `notes`.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The folder's name.
    pub name: String,
    /// Curves of `metrics.jsonl` and `validation.jsonl` by their tags, such as `loss/pixel`.
    pub curves: BTreeMap<String, Curve>,
    /// Sample grids in the order of their steps.
    pub samples: Vec<Sample>,
    /// The configuration: values in TOML by their whole keys.
    pub config: BTreeMap<String, String>,
    /// The number of steps done.
    pub step: u64,
    /// The number of steps in the configuration, if it is known.
    pub steps: Option<u64>,
    /// The time since the last step, if the system knows it.
    pub silent_for: Option<Duration>,
    /// Steps that ran out of memory, and what was done about it, one sentence each.
    pub recovered: Vec<String>,
    /// What is missing or broken, one sentence each.
    pub notes: Vec<String>,
}

/// A sample grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The number of steps done.
    pub step: u64,
    /// The image file.
    pub path: PathBuf,
}

impl Run {
    /// Reads the run in `folder`. `losses` has the tags of the metrics of losses.
    ///
    /// # Errors
    /// The folder has no run. All other problems are in [`notes`](Self::notes).
    pub fn read(folder: &Path, losses: &Groups) -> Result<Self, NoRun> {
        let [metrics, validation, config] =
            ["metrics.jsonl", "validation.jsonl", "config.toml"].map(|name| folder.join(name));
        if !metrics.is_file() && !config.is_file() {
            return Err(NoRun(folder.to_owned()));
        }
        let mut run = Self { name: name_of(folder), ..Self::default() };
        run.read_config(&config);
        match read_log(&metrics, |key| keys::tag(key, losses)) {
            Err(error) => run.notes.push(format!("metrics.jsonl cannot be read: {error}")),
            Ok(log) => {
                run.step = log.last_step;
                run.recovered = log.recovered.iter().map(|(step, text)| format!("step {step}: {text}")).collect();
                run.take(log, "metrics.jsonl");
            }
        }
        // Older runs have none.
        if validation.exists() {
            match read_log(&validation, keys::validation_tag) {
                Err(error) => run.notes.push(format!("validation.jsonl cannot be read: {error}")),
                Ok(log) => run.take(log, "validation.jsonl"),
            }
        }
        let modified = fs::metadata(&metrics).and_then(|metadata| metadata.modified());
        run.silent_for = modified.ok().and_then(|time| time.elapsed().ok());
        match read_samples(&folder.join("samples")) {
            Ok(samples) if samples.is_empty() => run.notes.push("there are no samples".into()),
            Ok(samples) => run.samples = samples,
            Err(error) if error.kind() == io::ErrorKind::NotFound => run.notes.push("there are no samples".into()),
            Err(error) => run.notes.push(format!("the samples cannot be read: {error}")),
        }
        if run.step == 0 {
            run.notes.push("no step is done yet".into());
        }
        Ok(run)
    }

    /// Whether all steps of the configuration are done; `None` if their number is unknown.
    pub fn is_finished(&self) -> Option<bool> {
        self.steps.map(|steps| self.step >= steps)
    }

    fn read_config(&mut self, path: &Path) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.notes.push(format!("config.toml cannot be read: {error}")),
        };
        match text.parse::<toml::Table>() {
            Err(error) => self.notes.push(format!("config.toml: {}", error.message())),
            Ok(table) => {
                self.steps = table.get("run").and_then(|run| run.get("steps")?.as_integer()?.try_into().ok());
                flatten("", &toml::Value::Table(table), &mut self.config);
                // The name in earlier runs, which would show as a difference.
                if let Some(recompute) = self.config.remove("memory.checkpoint") {
                    self.config.insert("memory.recompute".to_owned(), recompute);
                }
            }
        }
    }

    fn take(&mut self, log: Log, name: &str) {
        match (log.torn, log.last_torn) {
            (0, _) => {}
            (1, true) => self.notes.push(format!("the last line of {name} is torn and left out")),
            (torn, _) => self.notes.push(format!("{torn} lines of {name} are torn and left out")),
        }
        if let Some(step) = log.done_again {
            self.notes.push(format!("{name} has step {step} and later ones twice; the later lines count"));
        }
        let skipped = log.skipped();
        for (tag, curve) in log.curves {
            // A skipped step has no gradient norm, and often no loss.
            let lacking = curve
                .steps
                .iter()
                .zip(&curve.values)
                .filter(|(step, value)| value.is_nan() && !skipped.contains(*step));
            let mut lacking = lacking.map(|(step, _)| *step).peekable();
            if let Some(first) = lacking.peek().copied() {
                let missing = lacking.count();
                self.notes.push(format!(
                    "{tag} has no value in {missing} of {} steps, the first is step {first}",
                    curve.steps.len()
                ));
            }
            self.curves.insert(tag, curve);
        }
    }
}

fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

#[derive(Default)]
struct Log {
    curves: BTreeMap<String, Curve>,
    last_step: u64,
    torn: usize,
    last_torn: bool,
    /// The first step that occurs twice.
    done_again: Option<u64>,
    /// Steps and sentences.
    recovered: Vec<(u64, String)>,
}

impl Log {
    /// Steps that the optimizer of the model or of the discriminator skipped.
    fn skipped(&self) -> BTreeSet<u64> {
        let curves = ["optimizer/skipped", "discriminator/skipped"].iter().filter_map(|tag| self.curves.get(*tag));
        let steps = curves.flat_map(|curve| curve.steps.iter().zip(&curve.values));
        steps.filter(|(_, skipped)| **skipped == 1.0).map(|(step, _)| *step).collect()
    }
}

fn read_log(path: &Path, tag: impl Fn(&str) -> String) -> io::Result<Log> {
    let mut file = BufReader::new(File::open(path)?);
    let (mut log, mut line, mut tags) = (Log::default(), Vec::new(), BTreeMap::<String, String>::new());
    while file.read_until(b'\n', &mut line)? > 0 {
        let parsed = serde_json::from_slice::<Value>(&line);
        line.clear();
        let Ok(Value::Object(object)) = parsed else {
            log.torn += 1;
            log.last_torn = true;
            continue;
        };
        log.last_torn = false;
        // A line without a step is a comment.
        let Some(step) = object.get("step").and_then(Value::as_u64) else { continue };
        if log.curves.values().any(|curve| curve.steps.last().is_some_and(|last| *last >= step)) {
            log.curves.values_mut().for_each(|curve| curve.forget_from(step));
            log.recovered.retain(|(at, _)| *at < step);
            log.done_again = Some(log.done_again.map_or(step, |first| first.min(step)));
        }
        log.last_step = step;
        for event in object.get("recovered").and_then(Value::as_array).into_iter().flatten() {
            let text = |key| event.get(key).and_then(Value::as_str).unwrap_or("unknown");
            log.recovered.push((step, format!("{}; {} ({})", text("message"), text("change"), text("phase"))));
        }
        for (key, value) in keys::values(&object) {
            let tag = tags.entry(key).or_insert_with_key(|key| tag(key));
            let known = log.curves.get_mut(tag);
            match known {
                Some(curve) => curve.push(step, value.unwrap_or(f64::NAN)),
                None => {
                    let mut curve = Curve::default();
                    curve.push(step, value.unwrap_or(f64::NAN));
                    log.curves.insert(tag.clone(), curve);
                }
            }
        }
    }
    Ok(log)
}

fn read_samples(folder: &Path) -> io::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix("step-")?.strip_suffix(".png")?.parse().ok());
        samples.extend(step.map(|step| Sample { step, path }));
    }
    samples.sort_by_key(|sample| sample.step);
    Ok(samples)
}

fn flatten(path: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, into);
            }
        }
        value => {
            into.insert(path.to_owned(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Run {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Run::read(folder.path(), &[]).unwrap()
    }

    #[test]
    fn a_whole_run_has_no_notes() {
        let run = read(&[
            ("config.toml", "[run]\nsteps = 2\n[memory]\ncheckpoint = \"blocks\"\n[losses.pixel]\nnorm = \"l1\"\n"),
            ("metrics.jsonl", "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.25,\"skipped\":true}\n"),
            ("validation.jsonl", "{\"step\":0,\"psnr\":10}\n{\"step\":2,\"psnr\":11.5}\n"),
            ("samples/step-000002.png", ""),
            ("samples/step-000000.png", ""),
            ("samples/notes.txt", ""),
        ]);
        assert_eq!(run.notes, [""; 0]);
        assert_eq!((run.step, run.steps, run.is_finished()), (2, Some(2), Some(true)));
        assert_eq!(run.curves["loss/total"], Curve { steps: vec![1, 2], values: vec![0.5, 0.25] });
        assert_eq!(run.curves["optimizer/skipped"].values, [1.0]);
        assert_eq!(run.curves["validation/psnr"].steps, [0, 2]);
        assert_eq!(run.samples.iter().map(|sample| sample.step).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(run.config["losses.pixel.norm"], "\"l1\"");
        assert_eq!(run.config["memory.recompute"], "\"blocks\"", "as runs of earlier versions call it");
    }

    #[test]
    fn what_is_broken_is_said_and_the_rest_is_there() {
        let run = read(&[
            ("config.toml", "[run\n"),
            (
                "metrics.jsonl",
                "{\"step\":1,\"loss\":1}\n{\"step\":2,\"lo\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"loss\":3}\n{\"st",
            ),
            ("validation.jsonl", "\0\0\0"),
        ]);
        let [config, metrics, missing, validation, samples] = &run.notes[..] else { panic!("{:?}", run.notes) };
        assert!(config.starts_with("config.toml: "), "{config}");
        assert_eq!(metrics, "2 lines of metrics.jsonl are torn and left out");
        assert_eq!(missing, "loss/total has no value in 1 of 3 steps, the first is step 2");
        assert_eq!(validation, "the last line of validation.jsonl is torn and left out");
        assert_eq!(samples, "there are no samples");
        assert_eq!((run.step, run.is_finished()), (3, None));
        assert!(run.curves["loss/total"].values[1].is_nan());
    }

    #[test]
    fn steps_that_were_done_again_count_once() {
        let run =
            read(&[("metrics.jsonl", "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":2}\n{\"step\":2,\"loss\":3}\n")]);
        assert_eq!(run.curves["loss/total"], Curve { steps: vec![1, 2], values: vec![1.0, 3.0] });
        assert!(run.notes.iter().any(|note| note.contains("step 2")), "{:?}", run.notes);
    }

    #[test]
    fn what_a_skipped_step_lacks_is_not_missing() {
        let run = read(&[(
            "metrics.jsonl",
            "{\"step\":1,\"loss\":null,\"skipped\":true}\n{\"step\":2,\"loss\":2,\"discriminator_grad_norm\":null,\"discriminator_skipped\":true}\n\
             {\"step\":3,\"loss\":null,\"skipped\":false}\n",
        )]);
        let missing: Vec<&String> = run.notes.iter().filter(|note| note.contains("has no value")).collect();
        assert_eq!(missing, ["loss/total has no value in 1 of 3 steps, the first is step 3"]);
    }

    /// A GPU is asked for them in few steps.
    #[test]
    fn phases_of_memory_that_only_some_steps_have_are_not_missing() {
        let run = read(&[(
            "metrics.jsonl",
            "{\"step\":1,\"peak_memory\":9,\"memory\":{\"forward\":7}}\n{\"step\":2,\"peak_memory\":9}\n\
             {\"step\":3,\"peak_memory\":9,\"memory\":{\"forward\":8}}\n",
        )]);
        assert!(!run.notes.iter().any(|note| note.contains("memory")), "{:?}", run.notes);
        assert_eq!(
            (&run.curves["memory/forward"].steps, &run.curves["memory/forward"].values),
            (&vec![1, 3], &vec![7.0, 8.0])
        );
        assert_eq!(run.curves["memory/peak"].steps, [1, 2, 3]);
    }

    #[test]
    fn steps_that_were_taken_again_with_less_memory_are_told() {
        let event = |step, change| {
            format!(
                "{{\"step\":{step},\"loss\":1,\"recovered\":[{{\"cause\":\"limit\",\"phase\":\"forward\",\
                 \"message\":\"45 MiB is above\",\"change\":\"{change}\"}}]}}\n"
            )
        };
        let log = [event(1, "batch.micro 8 -> 4"), event(2, "a"), event(2, "b")].concat();
        let run = read(&[("metrics.jsonl", &log)]);
        let told = ["step 1: 45 MiB is above; batch.micro 8 -> 4 (forward)", "step 2: 45 MiB is above; b (forward)"];
        assert_eq!(run.recovered, told);
        assert!(crate::page(&[run]).contains("batch.micro 8 -&gt; 4"));
    }

    #[test]
    fn a_folder_without_a_run_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Run::read(folder.path(), &[]).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }
}
