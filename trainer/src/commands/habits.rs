//! Answers to what users of other trainers type first. Each is an error that names what this program has.

use std::convert::Infallible;

use clap::{Args, CommandFactory};

use super::{CommandError, CommandLine};
use crate::config::BUILT_IN;
use crate::problem::nearest;

/// Options that are keys of the configuration here.
#[derive(Debug, Args)]
pub(super) struct Habits {
    #[arg(long = "seed", hide = true, value_name = "N", num_args = 0..=1, default_missing_value = "N", value_parser = |value: &str| key("run.seed", value))]
    _seed: Option<Infallible>,
    #[arg(long = "steps", hide = true, value_name = "N", num_args = 0..=1, default_missing_value = "N", value_parser = |value: &str| key("run.steps", value))]
    _steps: Option<Infallible>,
    #[arg(long = "lr", alias = "learning-rate", hide = true, value_name = "X", num_args = 0..=1, default_missing_value = "X", value_parser = |value: &str| key("optimizer.learning_rate", value))]
    _learning_rate: Option<Infallible>,
    #[arg(long = "batch-size", hide = true, value_name = "N", num_args = 0..=1, default_missing_value = "N", value_parser = |value: &str| key("batch.effective", value))]
    _batch_size: Option<Infallible>,
    #[arg(long = "data", hide = true, value_name = "DIR", num_args = 0..=1, default_missing_value = "DIR", value_parser = |value: &str| key("data.source=folder --set data.path", value))]
    _data: Option<Infallible>,
}

fn key(key: &str, value: &str) -> Result<Infallible, String> {
    Err(format!("use --set {key}={value}"))
}

/// The error for `words` that begin with none of the verbs.
pub(super) fn unknown_verb(words: &[String]) -> CommandError {
    let (first, rest) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let is_config = |name: &str| {
        let stem = name.trim_end_matches(".toml");
        stem != name || BUILT_IN.iter().any(|(built_in, _)| built_in.trim_end_matches(".toml") == stem)
    };
    let meant = match first {
        "train" if rest.is_empty() => Some("train --config NAME".to_owned()),
        "train" => Some(format!("train {}", rest.join(" "))),
        name if is_config(name) => Some(format!("train --config {}", words.join(" "))),
        name => {
            let command = CommandLine::command();
            let verbs: Vec<&str> =
                command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(clap::Command::get_name).collect();
            nearest(name, &verbs).map(|verb| format!("train {verb}"))
        }
    };
    let hint = meant.map(|command| format!(", did you mean `{command}`?")).unwrap_or_default();
    CommandError::Usage(format!("there is no verb `{first}`{hint} (train --help lists them)"))
}
