//! Reads a [`Config`] from a file or a built-in one by name, with `--set` overrides. Errors point at the line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{Config, Problem};
use crate::problem::nearest;

/// The configurations that come with the program, by name.
pub const BUILT_IN: [(&str, &str); 5] = [
    ("tiny-cpu.toml", include_str!("../../../configs/tiny-cpu.toml")),
    ("small-gpu.toml", include_str!("../../../configs/small-gpu.toml")),
    ("8gb-gpu.toml", include_str!("../../../configs/8gb-gpu.toml")),
    ("24gb-gpu.toml", include_str!("../../../configs/24gb-gpu.toml")),
    ("sweep-ci.toml", include_str!("../../../configs/sweep-ci.toml")),
];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, folder or built-in name.
    #[error(
        "no configuration `{name}`: there is no such file, none in configs/, and the built-in ones are {}",
        BUILT_IN.map(|(name, _)| name).join(", ")
    )]
    NotFound {
        /// The name that was asked for.
        name: String,
    },
    /// The file is there and cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in the file, or in an override, is wrong.
    #[error("{place}: {message}")]
    Wrong {
        /// Where.
        place: Origin,
        /// What is wrong, what is allowed, and the nearest right word.
        message: String,
    },
}

/// Where a value of a configuration comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// A line of a file, counted from 1.
    Line {
        /// The file, or the built-in configuration's name.
        file: String,
        /// The line.
        line: usize,
    },
    /// A file as a whole: the key is not in it.
    File {
        /// The file.
        file: String,
    },
    /// `--set` on the command line.
    Override(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::File { file } => f.write_str(file),
            Self::Override(text) => write!(f, "--set {text}"),
        }
    }
}

/// One `--set key=value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    key: Vec<String>,
    value: String,
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
        let key: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if key.iter().any(String::is_empty) {
            return Err(format!("`{text}` has no key like batch.micro before its `=`"));
        }
        Ok(Self { key, value: value.trim().to_owned() })
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key.join("."), self.value)
    }
}

impl Override {
    /// `key` is as in `batch.micro`.
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.split('.').map(str::to_owned).collect(), value: value.to_owned() }
    }

    /// The value as TOML, or as a string if it is no TOML.
    fn value(&self) -> toml::Value {
        let parsed = format!("value = {}", self.value).parse::<toml::Table>();
        let parsed = parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
        parsed.unwrap_or_else(|| toml::Value::String(self.value.clone()))
    }

    fn insert(&self, mut table: toml::Table, value: toml::Value) -> Result<toml::Table, String> {
        let (last, path) = self.key.split_last().ok_or("no key")?;
        let mut at = &mut table;
        for name in path {
            let entry = at.entry(name.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            at = entry.as_table_mut().ok_or_else(|| format!("`{name}` is a value and not a table"))?;
        }
        at.insert(last.clone(), value);
        Ok(table)
    }
}

/// A configuration that knows where its values were set.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values, checked.
    pub config: Config,
    file: String,
    text: String,
    overrides: Vec<Override>,
}

/// Keys that were renamed: the table, the old name and the new one.
const RENAMED: [(&str, &str, &str); 2] = [("memory", "checkpoint", "recompute"), ("sweep", "checkpoint", "recompute")];

/// Finds a renamed key in `text`. Returns its place, its old name with the table, and its new name.
fn find_renamed(text: &str) -> Option<(Range<usize>, String, &'static str)> {
    let root = DeTable::parse(text).ok()?;
    RENAMED.iter().find_map(|(table, old, new)| {
        let DeValue::Table(keys) = root.get_ref().get(*table)?.get_ref() else { return None };
        let (key, _) = keys.iter().find(|(key, _)| key.get_ref() == *old)?;
        Some((key.span(), format!("{table}.{old}"), *new))
    })
}

fn renamed(old: &str, new: &str) -> String {
    let table = old.split('.').next().unwrap_or_default();
    format!("`{old}` was renamed to `{table}.{new}`")
}

/// Reads `name` (a path, a name in `configs/`, or a built-in one, each with or without `.toml`), applies `overrides` in
/// order and checks the result.
///
/// # Errors
/// One line that points at the place; see [`ConfigError`].
pub fn load(name: &str, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let (file, text) = find(name)?;
    if let Some((span, old, new)) = find_renamed(&text) {
        let place = Origin::Line { file, line: line_of(&text, span.start) };
        return Err(ConfigError::Wrong { place, message: renamed(&old, new) });
    }
    parse(file, text, overrides)
}

/// Like [`load`], for the `config.toml` in a run's folder, where older runs have the old names of renamed keys.
///
/// # Errors
/// As for [`load`].
pub fn load_saved(path: &Path, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let (file, mut text) = find(&path.display().to_string())?;
    while let Some((span, _, new)) = find_renamed(&text) {
        text.replace_range(span, new);
    }
    parse(file, text, overrides)
}

/// Reads the configuration in a checkpoint, where older runs have the old names of renamed keys.
///
/// # Errors
/// If it is no configuration.
pub fn saved_config<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
    let mut config = Value::deserialize(deserializer)?;
    for (table, old, new) in RENAMED {
        let Some(table) = config.get_mut(table).and_then(Value::as_object_mut) else { continue };
        if let Some(value) = table.remove(old) {
            table.insert(new.to_owned(), value);
        }
    }
    Config::deserialize(config).map_err(D::Error::custom)
}

fn parse(file: String, text: String, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let mut config = Config::deserialize(toml::Deserializer::parse(&text).map_err(|e| at_span(&file, &text, &e))?)
        .map_err(|e| at_span(&file, &text, &e))?;
    let mut table: toml::Table = text.parse().map_err(|e| at_span(&file, &text, &e))?;
    for set in overrides {
        let wrong = |message| ConfigError::Wrong { place: Origin::Override(set.to_string()), message };
        (table, config) = apply(set, table).map_err(wrong)?;
    }
    if config.run.name.is_empty() {
        let stem = Path::new(&file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        config.run.name = stem.unwrap_or_else(|| "run".into());
    }
    config.expand_home();
    let loaded = Loaded { config, file, text, overrides: overrides.to_vec() };
    loaded.config.check().map_err(|problem| loaded.locate(problem))?;
    Ok(loaded)
}

/// Applies an override. Tries its value as a string second: a number may be meant as a string (`run.name=7`).
fn apply(set: &Override, table: toml::Table) -> Result<(toml::Table, Config), String> {
    if let Some((table, old, new)) = RENAMED.iter().find(|(table, old, _)| set.key == [*table, *old]) {
        return Err(renamed(&format!("{table}.{old}"), new));
    }
    let attempt = |value: toml::Value| {
        let table = set.insert(table.clone(), value)?;
        let config = Config::deserialize(table.clone()).map_err(|e| explain(e.message()))?;
        Ok::<_, String>((table, config))
    };
    attempt(set.value()).or_else(|error| attempt(toml::Value::String(set.value.clone())).map_err(|_| error))
}

fn find(name: &str) -> Result<(String, String), ConfigError> {
    let with_ending = |name: &str| if name.ends_with(".toml") { name.to_owned() } else { format!("{name}.toml") };
    let in_configs = Path::new("configs").join(with_ending(name));
    for path in [PathBuf::from(name), PathBuf::from(with_ending(name)), in_configs] {
        if path.is_file() {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
            return Ok((path.display().to_string(), text));
        }
    }
    let built_in = BUILT_IN.iter().find(|(built_in, _)| *built_in == with_ending(name));
    let (file, text) = built_in.ok_or_else(|| ConfigError::NotFound { name: name.to_owned() })?;
    Ok(((*file).to_owned(), (*text).to_owned()))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

fn at_span(file: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let file = file.to_owned();
    let place = match error.span() {
        Some(span) => Origin::Line { file, line: line_of(text, span.start) },
        None => Origin::File { file },
    };
    ConfigError::Wrong { place, message: explain(error.message()) }
}

/// Rewrites serde's message about an unknown name, and adds the nearest known name.
pub(super) fn explain(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    for (sentence, noun) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some(rest) = message.strip_prefix(sentence) else { continue };
        let Some((wrong, expected)) = rest.split_once('`') else { continue };
        let allowed: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let hint = nearest(wrong, &allowed).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
        return format!("unknown {noun} `{wrong}`{hint} (allowed: {})", allowed.join(", "));
    }
    message
}

impl Loaded {
    /// Whether the configuration was read from `path`.
    pub fn is_from(&self, path: &Path) -> bool {
        let canonical = |path: &Path| path.canonicalize().ok();
        canonical(path).is_some_and(|path| canonical(Path::new(&self.file)) == Some(path))
    }

    /// The file, or the built-in configuration's name.
    pub fn name(&self) -> &str {
        &self.file
    }

    /// Adds the place of the wrong value to `problem`.
    pub fn locate(&self, problem: Problem) -> ConfigError {
        let key: Vec<&str> = problem.key.split('.').collect();
        let set = self.overrides.iter().rev().find(|set| set.key == key);
        let place = match (set, self.line(&key)) {
            (Some(set), _) => Origin::Override(set.to_string()),
            (None, Some(line)) => Origin::Line { file: self.file.clone(), line },
            (None, None) => Origin::File { file: self.file.clone() },
        };
        ConfigError::Wrong { place, message: format!("`{}` {}", problem.key, problem.message) }
    }

    /// Finds the line of `key`, or of its table if the key has its default.
    fn line(&self, key: &[&str]) -> Option<usize> {
        let (last, path) = key.split_last()?;
        let root = DeTable::parse(&self.text).ok()?;
        let find = |table: &DeTable, part: &str| {
            let (name, _) = table.iter().find(|(name, _)| name.get_ref() == part)?;
            Some(line_of(&self.text, name.span().start))
        };
        let (mut table, mut line): (&DeTable, _) = (root.get_ref(), None);
        for name in path {
            line = find(table, name);
            table = match table.get(*name)?.get_ref() {
                DeValue::Table(table) => table,
                _ => return None,
            };
        }
        find(table, last).or(line)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Recompute;

    pub(in crate::config) fn load_text(text: &str, sets: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, text).map_err(|e| e.to_string())?;
        let sets: Vec<Override> = sets.iter().map(|set| set.parse()).collect::<Result<_, _>>()?;
        let error = |e: ConfigError| e.to_string().replace(&path.display().to_string(), "mine.toml");
        load(&path.display().to_string(), &sets).map(|loaded| loaded.config).map_err(error)
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_nearest_word() {
        let error = load_text("[run]\nsteps = 3\n\n[batch]\nefective = 4\n", &[]).unwrap_err();
        assert_eq!(error, "mine.toml:5: unknown key `efective`, did you mean `effective`? (allowed: effective, micro)");
    }

    #[test]
    fn a_misspelt_table_or_value_is_named_too() {
        let error = load_text("[bach]\nmicro = 4\n", &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:1: unknown key `bach`, did you mean `batch`?"), "{error}");
        let error = load_text("[data]\nsource = \"foldr\"\n", &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:2: unknown value `foldr`, did you mean `folder`?"), "{error}");
    }

    #[test]
    fn a_senseless_value_points_at_its_line() {
        let error = load_text("[batch]\n# none\nmicro = 0\n", &[]).unwrap_err();
        assert_eq!(error, "mine.toml:3: `batch.micro` is 0, must be at least 1");
    }

    #[test]
    fn a_wrong_type_points_at_its_line() {
        let error = load_text("[batch]\nmicro = \"four\"\n", &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:2: ") && error.contains("four"), "{error}");
    }

    #[test]
    fn overrides_win_and_errors_in_them_say_so() {
        let config = load_text("[batch]\nmicro = 4\n", &["batch.micro=2", "run.name=7", "data.flip=false"]).unwrap();
        assert_eq!((config.batch.micro.samples(), config.run.name.as_str(), config.data.flip), (Some(2), "7", false));
        let error = load_text("[batch]\nmicro = 4\n", &["batch.micro=0"]).unwrap_err();
        assert_eq!(error, "--set batch.micro=0: `batch.micro` is 0, must be at least 1");
        let error = load_text("", &["batch.mikro=1"]).unwrap_err();
        assert!(error.starts_with("--set batch.mikro=1: unknown key `mikro`, did you mean `micro`?"), "{error}");
    }

    #[test]
    fn a_renamed_key_is_refused_by_its_new_name_but_read_in_what_a_run_has_written() {
        let text = "[run]\nsteps = 3\n[sweep]\ncheckpoint = [\"none\"]\n[memory]\n# none\ncheckpoint = \"blocks\"\n";
        let error = load_text(text, &[]).unwrap_err();
        assert_eq!(error, "mine.toml:7: `memory.checkpoint` was renamed to `memory.recompute`");
        let error = load_text("sweep.checkpoint = []", &[]).unwrap_err();
        assert_eq!(error, "mine.toml:1: `sweep.checkpoint` was renamed to `sweep.recompute`");
        let set = "memory.checkpoint=blocks";
        let error = load_text("", &[set]).unwrap_err();
        assert_eq!(error, format!("--set {set}: `memory.checkpoint` was renamed to `memory.recompute`"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        for text in [text.to_owned(), text.replace("checkpoint", "recompute")] {
            std::fs::write(&path, text).unwrap();
            let loaded = load_saved(&path, &["batch.micro=1".parse().unwrap()]).unwrap();
            assert_eq!(loaded.config.memory.recompute, Recompute::Blocks);
            assert_eq!(loaded.config.sweep.recompute, [Recompute::None]);
            assert!(loaded.is_from(&path));
        }
        let error = load_text("[memory]\nrecomputee = \"none\"\n", &[]).unwrap_err();
        let expected = "unknown key `recomputee`, did you mean `recompute`? (allowed: recompute, limit)";
        assert_eq!(error, format!("mine.toml:2: {expected}"));
    }

    #[test]
    fn a_tilde_is_the_users_folder_in_every_path() {
        let home = std::env::home_dir().unwrap();
        let sets = ["data.source=folder", "data.path=~/images", "sweep.baseline=~/sweep.json"];
        let config = load_text("", &sets).unwrap();
        assert_eq!(config.data.path, Some(home.join("images")));
        assert_eq!(config.sweep.baseline, Some(home.join("sweep.json")));
        // A folder may be called `~`.
        let config = load_text("[data]\nsource = \"folder\"\npath = \"a/~/b\"\n", &[]).unwrap();
        assert_eq!(config.data.path, Some("a/~/b".into()));
    }

    #[test]
    fn the_built_in_configurations_are_sound_and_survive_being_written() {
        for (name, text) in BUILT_IN {
            let config = load_text(text, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
            let written = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<Config>(&written).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn the_readmes_configuration_is_sound() {
        let readme = include_str!("../../../README.md");
        let blocks = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```"));
        let blocks: Vec<&str> = blocks.map(|(block, _)| block).collect();
        assert_eq!(blocks.len(), 1);
        let config = load_text(blocks[0], &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.losses.clip_direction.to.as_deref(), Some("sketch"));
    }

    #[test]
    fn a_key_that_has_its_default_points_at_its_table() {
        let error = load_text("\n[data]\nsource = \"folder\"\n", &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:2: `data.path` is missing"), "{error}");
    }
}
