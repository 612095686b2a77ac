//! LlamaGen's image tokenizer.

use safetensors::Dtype;
use serde_json::{Map, Value as Json, json};

use super::{Architecture, ExportFile, Layout, Quantizer, level_from_coarsest, obstacle_of_multiples};
use crate::files::WeightsFile;
use crate::tensor::HostTensor;

/// The record of used codes, which its programs want although nothing depends on it.
const USED: &str = "quantize.codebook_used";
/// The length of that record.
const USED_LENGTH: usize = 65536;

pub(super) static LAYOUT: Layout = Layout {
    name: "LlamaGen",
    prefixes: &["encoder.conv_blocks.", "decoder.conv_blocks."],
    buffers: &[USED],
    quantizer: Quantizer { l2_norm: true, legacy_beta: false, ..Quantizer::TAMING },
    has_gumbel: false,
    name_of,
    old_name: |_| None,
    config_file: None,
    read_settings: |architecture, file, _| {
        read_args(architecture, file);
        Ok(())
    },
    note: None,
    obstacle,
    weights_file: ExportFile::Torch { name: "vqgan.pt", key: "model" },
    convert: |_, weight, _| weight,
    more_tensors: || {
        vec![(USED, HostTensor { dtype: Dtype::F32, shape: vec![USED_LENGTH], bytes: vec![0; USED_LENGTH * 4] })]
    },
    config: |_| None,
    args: |architecture| Some(args(architecture)),
};

fn name_of(canonical: &str, levels: usize) -> String {
    let parts: Vec<&str> = canonical.split('.').collect();
    match parts[..] {
        [side, "down" | "up", level, ref rest @ ..] => {
            let level = level_from_coarsest(side, level, levels);
            let rest = rest.join(".").replacen("block.", "res.", 1);
            format!("{side}.conv_blocks.{level}.{rest}")
        }
        [side, "mid", part, ref rest @ ..] => {
            let part = match part {
                "block_1" => "0",
                "attn_1" => "1",
                _ => "2",
            };
            format!("{side}.mid.{part}.{}", rest.join("."))
        }
        _ => canonical.to_owned(),
    }
}

/// Reads the training's arguments, where they were saved.
fn read_args(architecture: &mut Architecture, file: &WeightsFile) {
    let quantizer = &mut architecture.quantizer;
    let number = |name| file.hyper(name).and_then(|value| value.as_f64());
    let l2_norm = file.hyper("codebook_l2_norm").and_then(|value| value.as_bool());
    quantizer.l2_norm = l2_norm.unwrap_or(quantizer.l2_norm);
    quantizer.beta = number("commit_loss_beta").unwrap_or(quantizer.beta);
    quantizer.entropy_ratio = number("entropy_loss_ratio").unwrap_or(quantizer.entropy_ratio);
}

fn obstacle(architecture: &Architecture) -> Option<&'static str> {
    let Architecture { channels, attention_levels, mid_attention, quantizer, .. } = architecture;
    obstacle_of_multiples(architecture).or_else(|| {
        if *attention_levels != [channels.len() - 1] || !mid_attention {
            Some("attention anywhere but at the coarsest level and in the middle")
        } else if !quantizer.l2_norm {
            // Its programs build every model with codebook_l2_norm; their option cannot turn it off.
            Some("a codebook of codes that are not compared at length 1 (codebook_l2_norm = False)")
        } else {
            None
        }
    })
}

/// The arguments of a training that belong to the model.
fn args(architecture: &Architecture) -> Map<String, Json> {
    let quantizer = &architecture.quantizer;
    let args = [
        ("codebook_size", json!(architecture.codes)),
        ("codebook_embed_dim", json!(architecture.code_dim)),
        ("codebook_l2_norm", json!(quantizer.l2_norm)),
        ("commit_loss_beta", json!(quantizer.beta)),
        ("entropy_loss_ratio", json!(quantizer.entropy_ratio)),
    ];
    args.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}
