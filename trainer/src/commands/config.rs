//! `train config`: what there is to configure.

use std::process::ExitCode;

use clap::Args;

use super::{CommandError, Json, print_json, print_line};
use crate::losses::{KeyReference, LossesConfig};
use crate::problem::nearest;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Print what a key does and its default, or all keys of a table: losses, losses.NAME or losses.NAME.KEY
    #[arg(long, value_name = "KEY")]
    reference: String,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &ConfigArgs) -> Result<ExitCode, CommandError> {
    let all = LossesConfig::reference();
    let is_asked =
        |key: &str| key.strip_prefix(&args.reference).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let asked: Vec<&KeyReference> = all.iter().filter(|known| is_asked(&known.key)).collect();
    if asked.is_empty() {
        return Err(CommandError::Usage(unknown(&args.reference, &all)));
    }
    if args.json.json {
        print_json(&serde_json::json!({ "keys": asked }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for KeyReference { key, default, about } in asked {
        let default = default.as_ref().map_or_else(|| "no default".to_owned(), |value| format!("default {value}"));
        print_line(&format!("{key} ({default})\n    {about}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says that there is no reference for `asked`, and which key or table of a loss may be meant.
fn unknown(asked: &str, all: &[KeyReference]) -> String {
    let tables = all.iter().filter_map(|known| known.key.rsplit_once('.').map(|(table, _)| table));
    let known: Vec<&str> = all.iter().map(|known| known.key.as_str()).chain(tables).collect();
    let hint = nearest(asked, &known).map(|key| format!(", did you mean `{key}`?")).unwrap_or_default();
    format!("there is no reference for `{asked}`{hint} (so far it has the keys below `losses`)")
}
