//! Reads a [`Config`] from a file or a built-in one by name, with `--set` overrides. Errors point at the line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use configs::BUILT_IN;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::extends::{Source, merge};
use super::hints::meant;
use super::layers::Layers;
use super::{Config, Override, Problem};
use crate::problem::nearest;

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
    /// No such built-in name.
    #[error(
        "no built-in configuration `{name}`{} (allowed: {})",
        nearest(name, &BUILT_IN.map(|(name, _)| name)).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default(),
        BUILT_IN.map(|(name, _)| name).join(", ")
    )]
    NotBuiltIn {
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
    /// An option of the command line, such as `--set batch.micro=2`.
    Override(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::File { file } => f.write_str(file),
            Self::Override(text) => f.write_str(text),
        }
    }
}

/// A configuration that knows where its values were set.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values, checked.
    pub config: Config,
    notes: Vec<String>,
    /// The file, and those that it extends, each before its base.
    sources: Vec<Source>,
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

/// What to say of `key`, if it was renamed.
pub(super) fn renamed_to(key: &[String]) -> Option<String> {
    let (table, old, new) = RENAMED.iter().find(|(table, old, _)| key == [*table, *old])?;
    Some(renamed(&format!("{table}.{old}"), new))
}

/// Reads `name` (a path, a name in `configs/`, or a built-in one, each with or without `.toml`) and the configurations
/// that it extends, applies `overrides` in order and checks the result.
///
/// # Errors
/// One line that points at the place; see [`ConfigError`].
pub fn load(name: &str, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    parse(Source::find(name)?, overrides)
}

/// Like [`load`], for the `config.toml` in a run's folder, where older runs have the old names of renamed keys.
///
/// # Errors
/// As for [`load`].
pub fn load_saved(path: &Path, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let mut source = Source::find(&path.display().to_string())?;
    while let Some((span, _, new)) = find_renamed(&source.text) {
        source.text.replace_range(span, new);
    }
    parse(source, overrides)
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

fn parse(source: Source, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let mut layers = vec![table(&source)?];
    let mut sources = vec![source];
    while let Some(base) = sources.last().map(Source::base).transpose()?.flatten() {
        base.check_not_in(&sources)?;
        layers.push(table(&base)?);
        sources.push(base);
    }
    let mut merged = toml::Table::new();
    layers.into_iter().rev().for_each(|layer| merge(&mut merged, layer));
    // Each layer has the right types, so that nothing is wrong with them together.
    let mut config = Config::deserialize(merged.clone()).map_err(|error| at_span(&sources[0], &error))?;
    for set in overrides {
        let wrong = |message| ConfigError::Wrong { place: Origin::Override(set.to_string()), message };
        (merged, config) = set.apply(&merged).map_err(wrong)?;
    }
    let notes = Layers { sources: &sources, overrides }.settle(&mut config);
    if config.run.name.is_empty() {
        let stem = Path::new(&sources[0].name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        config.run.name = stem.unwrap_or_else(|| "run".into());
    }
    config.expand_home();
    let loaded = Loaded { config, notes, sources, overrides: overrides.to_vec() };
    loaded.config.check().map_err(|problem| loaded.locate(problem))?;
    Ok(loaded)
}

/// Reads the keys of one file, each of them known and of the right type, without `extends`.
fn table(source: &Source) -> Result<toml::Table, ConfigError> {
    if let Some((span, old, new)) = find_renamed(&source.text) {
        return Err(ConfigError::Wrong { place: source.place(span.start), message: renamed(&old, new) });
    }
    let wrong = |error| at_span(source, &error);
    Config::deserialize(toml::Deserializer::parse(&source.text).map_err(wrong)?).map_err(wrong)?;
    let mut table: toml::Table = source.text.parse().map_err(wrong)?;
    table.remove("extends");
    Ok(table)
}

pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

fn at_span(source: &Source, error: &toml::de::Error) -> ConfigError {
    let place = match error.span() {
        Some(span) => source.place(span.start),
        None => Origin::File { file: source.name.clone() },
    };
    ConfigError::Wrong { place, message: explain(error.message()) }
}

/// Rewrites serde's message about an unknown name, and adds the nearest known name.
pub(super) fn explain(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some((noun, wrong, allowed)) = allowed(&message) else { return message };
    let names: Vec<&str> = allowed.iter().map(String::as_str).collect();
    let hint = if noun == "key" { meant(&wrong, &names) } else { nearest(&wrong, &names).map(str::to_owned) };
    let hint = hint.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
    format!("unknown {noun} `{wrong}`{hint} (allowed: {})", names.join(", "))
}

/// Reads serde's message about an unknown name: what it should be, the name, and the known names in their order.
pub(super) fn allowed(message: &str) -> Option<(&'static str, String, Vec<String>)> {
    [("unknown field `", "key"), ("unknown variant `", "value")].into_iter().find_map(|(sentence, noun)| {
        let (wrong, expected) = message.strip_prefix(sentence)?.split_once('`')?;
        let names = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some((noun, wrong.to_owned(), names))
    })
}

impl Loaded {
    /// Whether the configuration was read from `path`.
    pub fn is_from(&self, path: &Path) -> bool {
        self.sources[0].is_from(path)
    }

    /// The file, or the built-in configuration's name.
    pub fn name(&self) -> &str {
        &self.sources[0].name
    }

    /// What the user should know of keys that exclude each other, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds the place of the wrong value to `problem`: the last one that set it, or else the last one that set a value
    /// of the same table.
    pub fn locate(&self, problem: Problem) -> ConfigError {
        let line = |key: &str| self.sources.iter().find_map(|source| Some(source.place(source.key(key)?)));
        let tables = std::iter::successors(Some(problem.key), |key| key.rsplit_once('.').map(|(table, _)| table));
        let place = match self.overrides.iter().rev().find(|set| set.covers(problem.key)) {
            Some(set) => Origin::Override(set.to_string()),
            None => tables.filter_map(line).next().unwrap_or_else(|| Origin::File { file: self.name().to_owned() }),
        };
        ConfigError::Wrong { place, message: format!("`{}` {}", problem.key, problem.message) }
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
    fn a_key_that_has_its_default_points_at_its_table() {
        let error = load_text("\n[data]\nsource = \"folder\"\n", &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:2: `data.path` is missing"), "{error}");
    }
}
