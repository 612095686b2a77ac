//! `train config`: the configurations that come with the program, and what there is to configure.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::json;

use super::{CommandError, Json, print_json, print_line};
use crate::config::{self, BUILT_IN, KeyReference};
use crate::problem::nearest;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("asked").required(true)))]
pub(super) struct ConfigArgs {
    /// Print this built-in configuration, to start your own from
    #[arg(value_name = "NAME", group = "asked")]
    name: Option<String>,
    /// List the built-in configurations
    #[arg(long, group = "asked")]
    list: bool,
    /// Print what a key does, its range and its default: of one key, of a table such as losses.clip_text, or of all keys
    #[arg(long, value_name = "KEY", num_args = 0..=1, group = "asked")]
    reference: Option<Option<String>>,
    /// Print the JSON Schema by which editors complete and check configurations
    #[arg(long, group = "asked")]
    schema: bool,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &ConfigArgs) -> Result<ExitCode, CommandError> {
    if let Some(key) = &args.reference {
        print_reference(key.as_deref().unwrap_or_default(), args.json.json)?;
    } else if args.schema {
        print_json(&config::schema())?;
    } else if let Some(name) = &args.name {
        let (name, text) = config::built_in(name)?;
        match args.json.json {
            true => print_json(&json!({ "name": name, "text": text }))?,
            false => print_line(text.trim_end())?,
        }
    } else {
        let all = BUILT_IN.map(|(name, text)| (name, config::first_sentence(text)));
        match args.json.json {
            true => print_json(
                &json!({ "configurations": all.map(|(name, about)| json!({ "name": name, "about": about })) }),
            )?,
            false => all.iter().try_for_each(|(name, about)| print_line(&format!("{name:<22}{about}")))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what there is to know of the key or table `asked`; of all if it is empty.
fn print_reference(asked: &str, as_json: bool) -> Result<(), CommandError> {
    let is_asked = |key: &str| {
        asked.is_empty() || key.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let (mut keys, mut tables) = (config::reference(), config::tables());
    if !keys.iter().any(|known| is_asked(&known.key)) {
        return Err(CommandError::Usage(unknown(asked, &keys, &tables)));
    }
    keys.retain(|known| is_asked(&known.key));
    tables.retain(|(name, _)| is_asked(name));
    if as_json {
        let tables: Vec<_> = tables.iter().map(|(name, about)| json!({ "table": name, "about": about })).collect();
        return print_json(&json!({ "keys": keys, "tables": tables }));
    }
    let mut shown = "";
    for known in &keys {
        let table = known.key.rsplit_once('.').map_or("", |(table, _)| table);
        if let Some((name, about)) = tables.iter().find(|(name, _)| name == table && name != shown) {
            print_line(&format!("[{name}]\n    {about}"))?;
            shown = name;
        }
        print_line(&described(known))?;
    }
    Ok(())
}

/// Formats one key for people.
fn described(known: &KeyReference) -> String {
    let KeyReference { key, about, default, kind, range, values } = known;
    let default = default.as_ref().map_or_else(|| "no default".to_owned(), |value| format!("default {value}"));
    let kind = [Some(kind.clone()), range.clone(), Some(default)].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let values = values.iter().map(|word| format!("\n      {:<20}{}", format!("{:?}", word.value), word.about));
    format!("{key} ({kind})\n    {about}{}", values.collect::<String>())
}

/// Says that there is no reference for `asked`, and which key or table may be meant.
fn unknown(asked: &str, keys: &[KeyReference], tables: &[(String, String)]) -> String {
    let keys = keys.iter().map(|known| known.key.as_str());
    let known: Vec<&str> = keys.chain(tables.iter().map(|(name, _)| name.as_str())).collect();
    let hint = nearest(asked, &known).map(|key| format!(", did you mean `{key}`?")).unwrap_or_default();
    format!("there is no key or table `{asked}`{hint} (train config --reference prints all)")
}
