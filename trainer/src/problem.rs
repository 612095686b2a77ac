//! Reports values of the configuration that have the right type but make no sense, by checks that many keys share.

use checkpoints::hub::Location;

/// What is wrong with the value of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The key, as in `batch.micro`.
    pub key: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
}

pub(crate) fn problem(key: &'static str, message: impl Into<String>) -> Result<(), Problem> {
    Err(Problem { key, message: message.into() })
}

pub(crate) fn at_least_one(key: &'static str, value: usize) -> Result<(), Problem> {
    if value == 0 { problem(key, "is 0, must be at least 1") } else { Ok(()) }
}

pub(crate) fn not_negative(key: &'static str, value: f64) -> Result<(), Problem> {
    if value >= 0.0 && value.is_finite() { Ok(()) } else { problem(key, format!("is {value}, must be 0 or more")) }
}

pub(crate) fn positive(key: &'static str, value: f64) -> Result<(), Problem> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { problem(key, format!("is {value}, must be above 0")) }
}

pub(crate) fn share(key: &'static str, value: f64) -> Result<(), Problem> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { problem(key, format!("is {value}, must lie in 0 to 1")) }
}

pub(crate) fn below_one(key: &'static str, value: f64) -> Result<(), Problem> {
    if (0.0..1.0).contains(&value) && (value as f32) < 1.0 {
        Ok(())
    } else {
        problem(key, format!("is {value}, must be at least 0 and below 1"))
    }
}

/// Checks a location of weights: a local path, or a file or repository on the Hub.
pub(crate) fn location(key: &'static str, spec: Option<&str>) -> Result<(), Problem> {
    match spec.map(Location::parse) {
        Some(Err(error)) => problem(key, format!("is wrong: {error}")),
        _ => Ok(()),
    }
}

/// Finds the word of `allowed` that `wrong` most likely means, if one is near enough.
pub(crate) fn nearest<'a>(wrong: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let distances = allowed.iter().map(|name| (strsim::damerau_levenshtein(wrong, name), *name));
    let near = distances.filter(|(distance, name)| *distance <= (name.len().max(wrong.len()) / 2).max(1));
    near.min().map(|(_, name)| name)
}
