//! `extends`: a configuration that says only how it differs from another one.

use std::path::{Path, PathBuf};

use checkpoints::hub::expand_home;
use toml::de::{DeTable, DeValue};

use super::read::{BUILT_IN, ConfigError, Origin, line_of};

/// A configuration file, or a built-in configuration.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The file's path as the user wrote it, or the built-in configuration's name.
    pub(super) name: String,
    /// Its text.
    pub(super) text: String,
    /// The file; `None` for a built-in configuration.
    path: Option<PathBuf>,
}

impl Source {
    /// Finds `name`: a path, a name in `configs/`, or a built-in one, each with or without `.toml`.
    pub(super) fn find(name: &str) -> Result<Self, ConfigError> {
        let in_configs = Path::new("configs").join(with_ending(name));
        for path in [PathBuf::from(name), PathBuf::from(with_ending(name)), in_configs] {
            if path.is_file() {
                return Self::read(path);
            }
        }
        Self::built_in(name).ok_or_else(|| ConfigError::NotFound { name: name.to_owned() })
    }

    fn read(path: PathBuf) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self { name: path.display().to_string(), text, path: Some(path) }),
            Err(source) => Err(ConfigError::Unreadable { path, source }),
        }
    }

    /// The built-in configuration `name`, with or without `.toml`.
    pub(super) fn built_in(name: &str) -> Option<Self> {
        let (name, text) = BUILT_IN.iter().find(|(built_in, _)| *built_in == with_ending(name))?;
        Some(Self { name: (*name).to_owned(), text: (*text).to_owned(), path: None })
    }

    /// Whether this is the file at `path`.
    pub(super) fn is_from(&self, path: &Path) -> bool {
        let own = self.path.as_ref().and_then(|own| own.canonicalize().ok());
        own.is_some() && own == path.canonicalize().ok()
    }

    fn is_same(&self, other: &Self) -> bool {
        match &other.path {
            Some(path) => self.is_from(path),
            None => self.path.is_none() && self.name == other.name,
        }
    }

    /// The place of the byte at `offset`.
    pub(super) fn place(&self, offset: usize) -> Origin {
        Origin::Line { file: self.name.clone(), line: line_of(&self.text, offset) }
    }

    /// Reads the configuration that this one is based on. A built-in one is based on built-in ones only.
    pub(super) fn base(&self) -> Result<Option<Self>, ConfigError> {
        let Ok(root) = DeTable::parse(&self.text) else { return Ok(None) };
        let Some(value) = root.get_ref().get("extends") else { return Ok(None) };
        let DeValue::String(name) = value.get_ref() else { return Ok(None) };
        if let Some(own) = &self.path {
            let beside = |name: &str| own.parent().unwrap_or(Path::new("")).join(expand_home(name));
            for path in [beside(name), beside(&with_ending(name))] {
                if path.is_file() {
                    return Self::read(path).map(Some);
                }
            }
        }
        Self::built_in(name).map(Some).ok_or_else(|| ConfigError::Wrong {
            place: self.place(value.span().start),
            message: format!(
                "`extends` is \"{name}\", but there is no such file beside this one, and the built-in ones are {}",
                BUILT_IN.map(|(name, _)| name).join(", ")
            ),
        })
    }

    /// The error of a configuration that would be based on itself, through `sources`.
    pub(super) fn check_not_in(&self, sources: &[Self]) -> Result<(), ConfigError> {
        let Some(last) = sources.last().filter(|_| sources.iter().any(|source| source.is_same(self))) else {
            return Ok(());
        };
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).chain([self.name.as_str()]).collect();
        let line = last.key("extends").unwrap_or_default();
        let message = format!("`extends` is circular: {}", names.join(" -> "));
        Err(ConfigError::Wrong { place: last.place(line), message })
    }

    /// The offset of `key`, as in `batch.micro`.
    pub(super) fn key(&self, key: &str) -> Option<usize> {
        let root = DeTable::parse(&self.text).ok()?;
        let mut table: &DeTable = root.get_ref();
        let (path, last) = key.rsplit_once('.').map_or((None, key), |(path, last)| (Some(path), last));
        for name in path.into_iter().flat_map(|path| path.split('.')) {
            let DeValue::Table(inner) = table.get(name)?.get_ref() else { return None };
            table = inner;
        }
        let (name, _) = table.iter().find(|(name, _)| name.get_ref() == last)?;
        Some(name.span().start)
    }
}

/// The name and text of the built-in configuration `name`, with or without `.toml`.
///
/// # Errors
/// If there is none of this name.
pub fn built_in(name: &str) -> Result<(String, String), ConfigError> {
    let source = Source::built_in(name).ok_or_else(|| ConfigError::NotBuiltIn { name: name.to_owned() })?;
    Ok((source.name, source.text))
}

/// The first sentence of the comment that `text` begins with.
pub fn first_sentence(text: &str) -> String {
    let comments = text.lines().skip_while(|line| line.starts_with("#:")).map_while(|line| line.strip_prefix('#'));
    let comment = comments.map(str::trim).collect::<Vec<_>>().join(" ");
    comment.split_once(". ").map_or(comment.as_str(), |(first, _)| first).trim_end_matches('.').to_owned()
}

fn with_ending(name: &str) -> String {
    if name.ends_with(".toml") { name.to_owned() } else { format!("{name}.toml") }
}

/// Writes the keys of `over` over those of `base`.
pub(super) fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Config, Loaded, Override, load};

    /// Loads the first of `files`, which lie in one folder, and removes that folder from messages.
    fn load_files(files: &[(&str, &str)], sets: &[&str]) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sets: Vec<Override> = sets.iter().map(|set| set.parse().unwrap()).collect();
        let prefix = format!("{}/", folder.path().display());
        load(&format!("{prefix}{}", files[0].0), &sets).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn a_configuration_says_only_how_it_differs() {
        let base = "[batch]\neffective = 12\nmicro = 3\n[model]\ntrain = [\"encoder\", \"quantize\"]\n";
        let middle = "extends = \"base/base.toml\"\n[batch]\nmicro = 6\n[optimizer]\nlearning_rate = 1e-3\n";
        let top = "extends = \"middle\"\n[model]\ntrain = [\"decoder\"]\n[batch]\nmicro = 4\n";
        let files = [("mine.toml", top), ("middle.toml", middle), ("base/base.toml", base)];
        let config = load_files(&files, &["optimizer.learning_rate=2e-3"]).unwrap().config;
        assert_eq!((config.batch.effective, config.batch.micro.samples()), (12, Some(4)));
        assert_eq!((config.model.train, config.optimizer.learning_rate), (vec!["decoder".to_owned()], 2e-3));
        assert_eq!((config.run.name.as_str(), config.extends), ("mine", None));
    }

    #[test]
    fn a_built_in_configuration_is_a_base_too() {
        let text = "extends = \"small-gpu.toml\"\n[data]\nresolution = 512\n";
        let loaded = load_files(&[("mine.toml", text)], &[]).unwrap();
        let expected = Config {
            data: crate::config::DataConfig { resolution: 512, ..load("small-gpu", &[]).unwrap().config.data },
            ..loaded.config.clone()
        };
        assert_eq!(loaded.config, expected);
        assert_eq!(loaded.config.losses.perceptual.weight, 1.0);
    }

    #[test]
    fn a_built_in_configuration_is_not_based_on_a_file_that_has_the_same_name() {
        let based = Source::built_in("8gb-gpu").unwrap().base().unwrap().unwrap();
        assert!(based.path.is_none());
        assert_eq!(based.name, "small-gpu.toml");
    }

    #[test]
    fn a_circle_is_an_error() {
        let files = [
            ("a.toml", "# a\nextends = \"b.toml\"\n"),
            ("b.toml", "extends = \"c.toml\"\n"),
            ("c.toml", "extends = \"b\""),
        ];
        let error = load_files(&files, &[]).unwrap_err();
        assert_eq!(error, "c.toml:1: `extends` is circular: a.toml -> b.toml -> c.toml -> b.toml");
        let error = load_files(&[("a.toml", "# a\nextends = \"a.toml\"\n")], &[]).unwrap_err();
        assert_eq!(error, "a.toml:2: `extends` is circular: a.toml -> a.toml");
    }

    #[test]
    fn errors_point_at_the_file_and_line_that_set_the_value() {
        let base = ("base.toml", "\n[batch]\nmicro = 0\n[data]\nsource = \"folder\"\n");
        let error = |top: &str, base: (&str, &str)| load_files(&[("mine.toml", top), base], &[]).unwrap_err();
        let plain = "extends = \"base.toml\"\n[batch]\neffective = 8\n";
        assert_eq!(error(plain, base), "base.toml:3: `batch.micro` is 0, must be at least 1");
        let micro = format!("{plain}micro = 9\n");
        assert_eq!(error(&micro, base), "mine.toml:4: `batch.micro` is 9, must be at most batch.effective = 8");
        // What nobody has set is missing in the last table that could have it.
        let sound = (base.0, "\n\n[data]\nsource = \"folder\"\n");
        assert!(error(plain, sound).starts_with("base.toml:3: `data.path` is missing"));
        assert!(
            error(&format!("{plain}[data]\nflip = true\n"), sound).starts_with("mine.toml:4: `data.path` is missing")
        );
        let misspelt = error(plain, (base.0, "[data]\nresolutoin = 8\n"));
        assert!(misspelt.starts_with("base.toml:2: unknown key `resolutoin`"), "{misspelt}");
        let nowhere = error("\nextends = \"nowhere.toml\"\n", base);
        assert!(
            nowhere.starts_with("mine.toml:2: `extends` is \"nowhere.toml\"") && nowhere.contains("small-gpu.toml")
        );
        let renamed = error(plain, (base.0, "[memory]\ncheckpoint = \"none\"\n"));
        assert_eq!(renamed, "base.toml:2: `memory.checkpoint` was renamed to `memory.recompute`");
        let number = error("extends = 3\n", base);
        assert!(number.starts_with("mine.toml:1: ") && number.contains("string"), "{number}");
    }

    #[test]
    fn an_override_cannot_name_another_base() {
        let error = load_files(&[("mine.toml", "")], &["extends=small-gpu.toml"]).unwrap_err();
        assert!(error.starts_with("--set extends=small-gpu.toml: "), "{error}");
    }
}
