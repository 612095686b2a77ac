//! `--set key=value` and `--unset key`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::Config;
use super::hints::check_known;
use super::read::{explain, renamed_to};

/// One `--set key=value`, or `--unset key`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    key: Vec<String>,
    /// `None` removes the key.
    value: Option<String>,
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
        let key = parts(key).ok_or_else(|| format!("`{text}` has no key like batch.micro before its `=`"))?;
        Ok(Self { key, value: Some(value.trim().to_owned()) })
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.join(".");
        match &self.value {
            Some(value) => write!(f, "--set {key}={value}"),
            None => write!(f, "--unset {key}"),
        }
    }
}

/// The parts of a key such as `batch.micro`, none of them empty.
fn parts(key: &str) -> Option<Vec<String>> {
    let key: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
    key.iter().all(|part| !part.is_empty()).then_some(key)
}

impl Override {
    /// `key` is as in `batch.micro`.
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.split('.').map(str::to_owned).collect(), value: Some(value.to_owned()) }
    }

    /// Gives a key or a table, as in `losses.clip_text`, its default.
    ///
    /// # Errors
    /// If `key` is no key.
    pub fn unset(key: &str) -> Result<Self, String> {
        let key = parts(key).ok_or_else(|| format!("`{key}` is not a key like batch.micro"))?;
        Ok(Self { key, value: None })
    }

    /// Whether this gives a key its default.
    pub(super) fn is_unset(&self) -> bool {
        self.value.is_none()
    }

    /// Whether this decides `key`, as in `batch.micro`: sets or removes it, or removes its table.
    pub(super) fn covers(&self, key: &str) -> bool {
        let mut parts = key.split('.');
        let is_prefix = self.key.iter().all(|part| parts.next() == Some(part));
        is_prefix && (self.is_unset() || parts.next().is_none())
    }

    /// The value as TOML, or as a string if it is no TOML.
    fn parse(value: &str) -> toml::Value {
        let parsed = format!("value = {value}").parse::<toml::Table>();
        let parsed = parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
        parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()))
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

    /// Applies it to `table`. Tries the value as a string second: a number may be meant as a string (`run.name=7`).
    pub(super) fn apply(&self, table: &toml::Table) -> Result<(toml::Table, Config), String> {
        if let Some(message) = renamed_to(&self.key) {
            return Err(message);
        }
        if self.covers("extends") {
            return Err("`extends` belongs in a file: --config names the base, and --set says what differs".to_owned());
        }
        let Some(value) = &self.value else { return self.remove(table.clone()) };
        let attempt = |value: toml::Value| {
            let table = self.insert(table.clone(), value)?;
            let config = Config::deserialize(table.clone()).map_err(|e| explain(e.message()))?;
            Ok::<_, String>((table, config))
        };
        attempt(Self::parse(value)).or_else(|error| attempt(toml::Value::String(value.clone())).map_err(|_| error))
    }

    fn remove(&self, mut table: toml::Table) -> Result<(toml::Table, Config), String> {
        check_known(&self.key.join("."))?;
        let mut at = Some(&mut table);
        if let Some((last, path)) = self.key.split_last() {
            for name in path {
                at = at.and_then(|table| table.get_mut(name)?.as_table_mut());
            }
            at.and_then(|table| table.remove(last));
        }
        let config = Config::deserialize(table.clone()).map_err(|error| explain(error.message()))?;
        Ok((table, config))
    }
}
