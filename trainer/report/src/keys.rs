//! Where the keys of `metrics.jsonl` and `validation.jsonl` are shown: their tags, `group/name`.

use serde_json::{Map, Value};

/// The tags of the metrics of losses: pairs of a key and its tag. All other keys are known here.
pub type Groups = [(&'static str, &'static str)];

/// The numbers of a line by their keys. Nested objects give keys with slashes; true is 1 and false is 0. Skips `step`,
/// text, lists, and `null`, which stands for a value that is not finite.
pub fn numbers(line: &Map<String, Value>) -> Vec<(String, f64)> {
    values(line).into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// As [`numbers`], with `None` for each `null`.
pub fn values(line: &Map<String, Value>) -> Vec<(String, Option<f64>)> {
    let mut found = Vec::new();
    collect("", line, &mut found);
    found
}

fn collect(prefix: &str, object: &Map<String, Value>, found: &mut Vec<(String, Option<f64>)>) {
    for (key, value) in object {
        if prefix.is_empty() && key == "step" {
            continue;
        }
        let key = format!("{prefix}{key}");
        match value {
            Value::Number(number) => found.push((key, number.as_f64())),
            Value::Bool(truth) => found.push((key, Some(f64::from(u8::from(*truth))))),
            Value::Null => found.push((key, None)),
            Value::Object(nested) => collect(&format!("{key}/"), nested, found),
            Value::String(_) | Value::Array(_) => {}
        }
    }
}

/// The tag of a key of `metrics.jsonl`, such as `loss/pixel`. An unknown key with slashes is its own tag; without
/// slashes, it is in the group `other`.
pub fn tag(key: &str, losses: &Groups) -> String {
    if let Some((_, tag)) = losses.iter().find(|(known, _)| *known == key) {
        return (*tag).to_owned();
    }
    let within = |group: &str, name: &str| format!("{group}/{name}");
    match key {
        "loss" => within("loss", "total"),
        "learning_rate" | "grad_norm" | "loss_scale" | "skipped" => within("optimizer", key),
        "images_per_second" | "data_wait" => within("speed", key),
        "peak_memory" => within("memory", "peak"),
        "process_memory" => within("memory", "process"),
        "host_buffers" => within("memory", key),
        "micro" => within("batch", key),
        "codes_used" | "perplexity" => within("codebook", key),
        _ if key.contains('/') => key.to_owned(),
        _ => match key.split_once('_') {
            Some((group @ ("discriminator" | "memory"), name)) => within(group, name),
            Some(("peak", name)) if name.starts_with("memory_") => within("memory", &format!("peak_{}", &name[7..])),
            _ => within("other", key),
        },
    }
}

/// The tag of a key of `validation.jsonl`.
pub fn validation_tag(key: &str) -> String {
    format!("validation/{key}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_number_of_a_line_is_found_and_nothing_else() {
        let line = json!({
            "step": 3, "loss": 0.5, "skipped": true, "grad_norm": null, "note": "x", "list": [1],
            "memory": {"forward": 7, "of": {"step": 8}},
        });
        let mut found = numbers(line.as_object().unwrap());
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [("loss", 0.5), ("memory/forward", 7.0), ("memory/of/step", 8.0), ("skipped", 1.0)];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value)));
    }

    #[test]
    fn tags_are_grouped_and_unknown_keys_keep_their_name() {
        let losses = [("discriminator", "discriminator/loss"), ("new_loss", "loss/new_loss")];
        for (key, expected) in [
            ("loss", "loss/total"),
            ("new_loss", "loss/new_loss"),
            ("discriminator", "discriminator/loss"),
            ("discriminator_skipped", "discriminator/skipped"),
            ("peak_memory", "memory/peak"),
            ("process_memory", "memory/process"),
            ("peak_memory_first_pass", "memory/peak_first_pass"),
            ("memory_backward", "memory/backward"),
            ("memory/forward", "memory/forward"),
            ("host_buffers", "memory/host_buffers"),
            ("something_new", "other/something_new"),
        ] {
            assert_eq!(tag(key, &losses), expected);
        }
    }
}
