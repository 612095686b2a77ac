//! What the keys of `metrics.jsonl` and `validation.jsonl` are called where they are shown: `group/name`.

use serde_json::{Map, Value};

/// The numbers of a line by their key. What is nested has a key with slashes; a truth value is 0 or 1. `step`, text, lists
/// and what is not a number (`null` after an overflow) are left out.
pub fn numbers(line: &Map<String, Value>) -> Vec<(String, f64)> {
    values(line).into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// [`numbers`], and `None` for each `null`.
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

/// Where a key of `metrics.jsonl` is shown, such as `loss/pixel`. A key that is not known keeps its name, in a group of its
/// own where it has slashes and in `other` where not.
pub fn tag(key: &str) -> String {
    let within = |group: &str, name: &str| format!("{group}/{name}");
    match key {
        "loss" => within("loss", "total"),
        "pixel" | "perceptual" | "codebook" | "entropy" | "adversarial" => within("loss", key),
        "discriminator" => within("discriminator", "loss"),
        "logits_real" | "logits_fake" | "adaptive_weight" => within("discriminator", key),
        "learning_rate" | "grad_norm" | "loss_scale" | "skipped" => within("optimizer", key),
        "images_per_second" | "data_wait" => within("speed", key),
        "peak_memory" => within("memory", "peak"),
        "process_memory" => within("memory", "process"),
        "host_buffers" => within("memory", key),
        "micro" => within("batch", key),
        "codes_used" | "perplexity" => within("codebook", key),
        _ if key.contains('/') => key.to_owned(),
        _ => match key.split_once('_') {
            Some(("clip", _)) => within("loss", key),
            Some((group @ ("discriminator" | "memory"), name)) => within(group, name),
            Some(("peak", name)) if name.starts_with("memory_") => within("memory", &format!("peak_{}", &name[7..])),
            _ => within("other", key),
        },
    }
}

/// Where a key of `validation.jsonl` is shown.
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
        for (key, expected) in [
            ("loss", "loss/total"),
            ("clip_text", "loss/clip_text"),
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
            assert_eq!(tag(key), expected);
        }
    }
}
