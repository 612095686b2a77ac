//! `--set key=value`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::Config;
use super::read::{explain, renamed_to};

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
        write!(f, "--set {}={}", self.key.join("."), self.value)
    }
}

impl Override {
    /// `key` is as in `batch.micro`.
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.split('.').map(str::to_owned).collect(), value: value.to_owned() }
    }

    /// Whether this sets `key`, as in `batch.micro`.
    pub(super) fn is_for(&self, key: &str) -> bool {
        self.key.iter().map(String::as_str).eq(key.split('.'))
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

    /// Applies it to `table`. Tries the value as a string second: a number may be meant as a string (`run.name=7`).
    pub(super) fn apply(&self, table: &toml::Table) -> Result<(toml::Table, Config), String> {
        if let Some(message) = renamed_to(&self.key) {
            return Err(message);
        }
        if self.is_for("extends") {
            return Err("`extends` belongs into a file: --config takes the base, and --set what differs".to_owned());
        }
        let attempt = |value: toml::Value| {
            let table = self.insert(table.clone(), value)?;
            let config = Config::deserialize(table.clone()).map_err(|e| explain(e.message()))?;
            Ok::<_, String>((table, config))
        };
        attempt(self.value()).or_else(|error| attempt(toml::Value::String(self.value.clone())).map_err(|_| error))
    }
}
