//! The files of the model, as transformers has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use checkpoints::{ClipArchitecture, write_safetensors};
use serde_json::{Value, json};
use trainer::models::weights::StateDict;

use crate::Result;
use crate::data::Samples;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const UNKNOWN: &str = "<|unknown|>";
/// Words that say nothing of a scene; commas and these are left out.
const EMPTY_WORDS: &str = r"\b(a|an|and|at|in|on|the)\b|[^\p{L}\p{N}]+";
/// In so many captions every word appears.
const CAPTIONS: usize = 3000;

/// A `tokenizer.json` with a token for each word of the captions, and the number of its tokens.
pub fn tokenizer(samples: &Samples) -> (Value, usize) {
    let empty = ["a", "an", "and", "at", "in", "on", "the"];
    let captions = (0..CAPTIONS).map(|index| samples.caption(index).replace(',', ""));
    let words: BTreeSet<String> =
        captions.flat_map(|caption| caption.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let words = words.into_iter().filter(|word| !empty.contains(&word.as_str()));
    let tokens = [UNKNOWN.to_owned()].into_iter().chain(words).chain([START, END].map(str::to_owned));
    let vocabulary: BTreeMap<String, usize> = tokens.enumerate().map(|(id, token)| (token, id)).collect();
    let (start, end, size) = (vocabulary[START], vocabulary[END], vocabulary.len());
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let description = json!({
        "version": "1.0",
        "added_tokens": [special(start, START), special(end, END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": EMPTY_WORDS}, "content": " "},
        ]},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    });
    (description, size)
}

/// Writes the model into `folder`: weights in f16, configuration, preprocessing and tokenizer.
pub fn write(folder: &Path, architecture: &ClipArchitecture, weights: &StateDict, tokenizer: &Value) -> Result<()> {
    fs::create_dir_all(folder)?;
    let weights: StateDict = weights.iter().map(|(name, host)| (name.clone(), host.to_f16())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join("model.safetensors"), &weights, Some(&metadata))?;
    let put = |name: &str, json: &Value| fs::write(folder.join(name), serde_json::to_string_pretty(json)? + "\n");
    put("config.json", &configuration(architecture))?;
    put("preprocessor_config.json", &json!({"image_mean": architecture.mean, "image_std": architecture.deviation}))?;
    put("tokenizer.json", tokenizer)?;
    Ok(())
}

fn configuration(architecture: &ClipArchitecture) -> Value {
    let ClipArchitecture { vision, text, .. } = architecture;
    json!({
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": architecture.embedding,
        "vision_config": {
            "hidden_size": vision.width, "intermediate_size": vision.mlp, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "image_size": architecture.image_size,
            "patch_size": architecture.patch_size, "hidden_act": "quick_gelu",
        },
        "text_config": {
            "hidden_size": text.width, "intermediate_size": text.mlp, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "vocab_size": architecture.vocabulary,
            "max_position_embeddings": architecture.context_length, "hidden_act": "quick_gelu",
            "bos_token_id": architecture.end_of_text - 1, "eos_token_id": architecture.end_of_text,
        },
    })
}
