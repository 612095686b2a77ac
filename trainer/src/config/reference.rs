//! What every key does, its type, range and default, from the types' doc comments: as a JSON Schema for editors, and as a
//! list for people.

use std::fmt;

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Config;
use super::read::allowed;

/// The JSON Schema (draft 7) of a configuration file.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings
        .with_transform(RecursiveTransform(simplify))
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value();
    schema["title"] = "A configuration of vqgan-trainer".into();
    schema
}

/// Takes out what TOML does not have (null), what says nothing to people (names of types, formats of numbers), the line
/// breaks of doc comments and the name of a table before what it is.
fn simplify(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["format", "title", "writeOnly"] {
        object.remove(key);
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    for list in ["type", "enum", "anyOf"] {
        let Some(Value::Array(values)) = object.get_mut(list) else { continue };
        values.retain(|value| !value.is_null() && *value != "null" && *value != json!({ "type": "null" }));
        if let ("type" | "anyOf", [only]) = (list, &values[..]) {
            let only = only.clone();
            object.remove(list);
            match only {
                Value::Object(inner) => {
                    inner.into_iter().for_each(|(key, value)| _ = object.entry(key).or_insert(value));
                }
                only => drop(object.insert(list.to_owned(), only)),
            }
        }
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let of_table = line.split_once("]`: ").filter(|(table, _)| table.starts_with("`["));
        *text = of_table.map_or_else(|| line.clone(), |(_, about)| capitalised(about));
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// What there is to know of a key of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyReference {
    /// Its whole name, such as `losses.pixel.norm`.
    pub key: String,
    /// What it does, and its unit.
    pub about: String,
    /// Its value where the configuration says nothing; `None` if there is none, or if something else decides.
    pub default: Option<Value>,
    /// Its type, in words.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its range, in words, if it is a number or a list of numbers with limits.
    pub range: Option<String>,
    /// The words that it can be.
    pub values: Vec<KeyValue>,
}

/// One of the words that a key can be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyValue {
    /// The word.
    pub value: String,
    /// What it means; may be empty.
    pub about: String,
}

/// The documentation of every key, in the order of the types.
pub fn reference() -> Vec<KeyReference> {
    let mut keys = Vec::new();
    walk(&schema(), &mut Vec::new(), &mut |path, schema, is_table| {
        if !is_table {
            keys.push(key_reference(path.join("."), schema));
        }
    });
    keys
}

/// What each table is for, by its name.
pub fn tables() -> Vec<(String, String)> {
    let mut tables = Vec::new();
    walk(&schema(), &mut Vec::new(), &mut |path, schema, is_table| {
        if is_table && !path.is_empty() {
            tables.push((path.join("."), text(schema, "description")));
        }
    });
    tables
}

/// Visits `schema` and all below it, in the order of the types: the path, the schema, and whether it is a table.
fn walk(schema: &Value, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Value, bool)) {
    let Some(properties) = schema["properties"].as_object() else { return visit(path, schema, false) };
    visit(path, schema, true);
    for key in in_order(path, properties) {
        path.push(key.clone());
        walk(&properties[&key], path, visit);
        path.pop();
    }
}

/// Sorts keys as their type has them, which a JSON object does not keep: serde names them in that order.
fn in_order(path: &[String], properties: &Map<String, Value>) -> Vec<String> {
    let wrong = path.iter().rev().fold(json!({ "": null }), |inner, key| json!({ key: inner }));
    let error = Config::deserialize(wrong).map(drop).map_err(|error| error.to_string());
    let names = error.err().and_then(|error| allowed(&error).map(|(_, _, names)| names)).unwrap_or_default();
    let place = |key: &String| names.iter().position(|name| name == key);
    let mut keys: Vec<String> = properties.keys().cloned().collect();
    keys.sort_by_key(place);
    keys
}

fn key_reference(key: String, schema: &Value) -> KeyReference {
    let mut values = Vec::new();
    words(schema, &mut values);
    let default = schema.get("default").cloned();
    let item = if schema["type"] == "array" { &schema["items"] } else { schema };
    // Of alternatives, a word and a number, only the number has limits.
    let alternatives = item["anyOf"].as_array().map_or(&[][..], Vec::as_slice);
    let range = std::iter::once(item).chain(alternatives).find_map(|schema| Limits::of(schema).text());
    KeyReference { key, about: text(schema, "description"), default, kind: kind(schema), range, values }
}

fn text(schema: &Value, key: &str) -> String {
    schema[key].as_str().unwrap_or_default().to_owned()
}

/// The type of values in words.
fn kind(schema: &Value) -> String {
    if let Some(word) = schema.get("const") {
        return word.to_string();
    }
    let alternatives = schema["anyOf"].as_array();
    match (schema["type"].as_str(), alternatives) {
        (Some("array"), _) => format!("list of {}s", kind(&schema["items"])),
        (Some("boolean"), _) => "true or false".to_owned(),
        (Some("integer"), _) => "whole number".to_owned(),
        (Some("number"), _) => "number".to_owned(),
        (None, Some(alternatives)) => alternatives.iter().map(kind).collect::<Vec<_>>().join(" or "),
        _ => "string".to_owned(),
    }
}

/// Collects the words that `schema` allows.
fn words(schema: &Value, found: &mut Vec<KeyValue>) {
    let word = |value: &Value, about| value.as_str().map(|value| KeyValue { value: value.to_owned(), about });
    found.extend(word(&schema["const"], text(schema, "description")));
    let listed = schema["enum"].as_array().into_iter().flatten();
    found.extend(listed.filter_map(|value| word(value, text(schema, "description"))));
    for inner in ["oneOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten().chain(schema.get("items"))
    {
        words(inner, found);
    }
}

/// The limits of a number.
struct Limits<'a> {
    from: Option<&'a Value>,
    above: Option<&'a Value>,
    to: Option<&'a Value>,
    below: Option<&'a Value>,
}

impl<'a> Limits<'a> {
    fn of(schema: &'a Value) -> Self {
        Self {
            from: schema.get("minimum"),
            above: schema.get("exclusiveMinimum"),
            to: schema.get("maximum"),
            below: schema.get("exclusiveMaximum"),
        }
    }

    fn text(&self) -> Option<String> {
        let parts = match self {
            Self { from: Some(from), to: Some(to), .. } => return Some(format!("{} to {}", Plain(from), Plain(to))),
            Self { from: Some(from), .. } => [Some(format!("{} or more", Plain(from))), self.end()],
            Self { above: Some(above), .. } => [Some(format!("above {}", Plain(above))), self.end()],
            _ => [None, self.end()],
        };
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join(" and "))
    }

    fn end(&self) -> Option<String> {
        let to = self.to.map(|to| format!("at most {}", Plain(to)));
        to.or_else(|| self.below.map(|below| format!("below {}", Plain(below))))
    }
}

/// A number without a fraction of 0.
struct Plain<'a>(&'a Value);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_f64() {
            Some(number) => number.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::BUILT_IN;

    fn found(key: &str) -> KeyReference {
        reference().into_iter().find(|known| known.key == key).unwrap_or_else(|| panic!("{key}"))
    }

    /// Every key of `value`, a table, by its whole name.
    fn leaves(value: &Value, path: &str, keys: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(table) => table.iter().for_each(|(key, value)| {
                leaves(value, format!("{path}.{key}").trim_start_matches('.'), keys);
            }),
            value => keys.push((path.to_owned(), value.clone())),
        }
    }

    #[test]
    fn every_key_has_its_documentation_type_and_default() {
        let reference = reference();
        let mut written = Vec::new();
        leaves(&serde_json::to_value(Config::default()).unwrap(), "", &mut written);
        written.retain(|(key, _)| !key.is_empty());
        assert!(written.len() > 60);
        for (key, value) in written {
            let known = reference.iter().find(|known| known.key == key).unwrap_or_else(|| panic!("{key}"));
            assert_eq!(known.default.as_ref(), Some(&value), "{key}");
        }
        assert!(reference.iter().all(|known| !known.about.is_empty()));
        assert!(tables().iter().all(|(name, about)| !about.is_empty() && !about.contains(&format!("[{name}]"))));
        let keys: BTreeSet<&str> = reference.iter().map(|known| known.key.as_str()).collect();
        assert_eq!(keys.len(), reference.len());
    }

    #[test]
    fn keys_stand_in_the_order_of_their_types() {
        let reference = reference();
        let keys: Vec<&str> = reference.iter().map(|known| known.key.as_str()).collect();
        assert_eq!(keys[..4], ["extends", "run.name", "run.steps", "run.seed"]);
        let of = |table: &str| keys.iter().filter_map(|key| key.strip_prefix(table)).collect::<Vec<_>>();
        assert_eq!(of("losses.charbonnier."), ["weight", "start", "ramp", "epsilon"]);
        assert_eq!(of("discriminator.schedule."), ["kind", "warmup", "last"]);
    }

    #[test]
    fn types_ranges_and_words_are_said_in_words() {
        let known = found("batch.micro");
        assert_eq!((known.kind.as_str(), known.range.as_deref()), ("\"auto\" or whole number", Some("1 or more")));
        assert_eq!(known.values[0].value, "auto");
        assert_eq!(found("discriminator.layers").range.as_deref(), Some("1 to 10"));
        assert_eq!(found("ema.decay").range.as_deref(), Some("0 or more and below 1"));
        assert_eq!(found("precision.scaler.backoff_factor").range.as_deref(), Some("above 0 and below 1"));
        assert_eq!(found("clip.cutouts").range.as_deref(), Some("0 to 1024"));
        assert_eq!(found("model.train").kind, "list of strings");
        let kind = found("losses.adversarial.kind");
        let words: Vec<&str> = kind.values.iter().map(|word| word.value.as_str()).collect();
        assert_eq!(words, ["hinge", "vanilla", "non-saturating"]);
        assert!(kind.values.iter().all(|word| !word.about.is_empty()));
        assert_eq!((kind.default, found("losses.codebook.beta").default), (Some("hinge".into()), None));
        assert_eq!(found("losses.clip_contrastive.against").values.len(), 2);
    }

    /// Sets `key` to `value` and returns the key that the check refuses.
    fn refused(key: &str, value: Value) -> Option<String> {
        let value = key.rsplit('.').fold(value, |inner, key| json!({ key: inner }));
        let config = Config::deserialize(value).unwrap_or_else(|error| panic!("{key}: {error}"));
        config.check().err().map(|problem| problem.key.to_owned())
    }

    /// The limits that the reference shows are those that the program checks.
    #[test]
    fn a_number_beyond_its_documented_range_is_refused() {
        let mut checked = 0;
        walk(&schema(), &mut Vec::new(), &mut |path, schema, is_table| {
            let key = path.join(".");
            let is_list = schema["type"] == "array";
            let item = if is_list { &schema["items"] } else { schema };
            let alternatives = item["anyOf"].as_array().map_or(&[][..], Vec::as_slice);
            let number = std::iter::once(item)
                .chain(alternatives)
                .find(|schema| schema["type"] == "integer" || schema["type"] == "number");
            let Some(schema) = number.filter(|_| !is_table && key != "sweep.max_deviation") else { return };
            let limits = Limits::of(schema);
            let whole = schema["type"] == "integer";
            assert!(limits.from.is_some() || limits.above.is_some(), "{key} has no lower limit");
            let step = |limit: &Value, by: f64| match whole {
                true => json!(limit.as_f64().unwrap() as i64 + by.signum() as i64),
                false => json!(limit.as_f64().unwrap() + by),
            };
            let beyond = [
                limits.from.filter(|from| !whole || from.as_f64() != Some(0.0)).map(|from| step(from, -0.01)),
                limits.above.cloned(),
                limits.to.map(|to| step(to, 0.01)),
                limits.below.cloned(),
            ];
            for value in beyond.into_iter().flatten() {
                let length = schema_length(is_list, &key);
                let value = if is_list { json!(vec![value; length]) } else { value };
                assert_eq!(refused(&key, value.clone()).as_deref(), Some(key.as_str()), "{value}");
                checked += 1;
            }
        });
        assert!(checked > 60, "{checked}");
    }

    fn schema_length(is_list: bool, key: &str) -> usize {
        if is_list && key.ends_with("betas") { 2 } else { 1 }
    }

    #[test]
    fn the_schema_is_current_and_named_by_every_configuration() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let committed: Value = serde_json::from_str(&fs::read_to_string(folder.join("schema.json")).unwrap()).unwrap();
        assert!(committed == schema(), "train config --schema > configs/schema.json");
        for (name, text) in BUILT_IN {
            assert_eq!(text.lines().next(), Some("#:schema ./schema.json"), "{name}");
        }
    }
}
