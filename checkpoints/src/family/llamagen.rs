//! LlamaGen's image tokenizer.

use safetensors::Dtype;
use serde_json::{Map, Value as Json, json};

use super::{Architecture, ExportFile, Layout, Quantizer, QuantizerKind, level_from_coarsest, obstacle_of_multiples};
use crate::files::{WeightsError, WeightsFile};
use crate::tensor::HostTensor;

/// The record of used codes, which its programs want although nothing depends on it.
const USED: &str = "quantize.codebook_used";
/// The length of that record.
const USED_LENGTH: usize = 65536;

pub(super) struct LlamaGen;

impl Layout for LlamaGen {
    fn name(&self) -> &'static str {
        "LlamaGen"
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["encoder.conv_blocks.", "decoder.conv_blocks."]
    }

    fn name_of(&self, canonical: &str, levels: usize) -> String {
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

    fn buffers(&self) -> &'static [&'static str] {
        &[USED]
    }

    fn quantizer(&self) -> Quantizer {
        let kind = QuantizerKind::Nearest;
        Quantizer { kind, l2_norm: true, legacy_beta: false, beta: 0.25, entropy_ratio: 0.0 }
    }

    /// Reads the training's arguments, where they were saved.
    fn read_settings(
        &self,
        architecture: &mut Architecture,
        file: &WeightsFile,
        _config: Option<&Json>,
    ) -> Result<(), WeightsError> {
        let quantizer = &mut architecture.quantizer;
        let number = |name| file.hyper(name).and_then(|value| value.as_f64());
        let l2_norm = file.hyper("codebook_l2_norm").and_then(|value| value.as_bool());
        quantizer.l2_norm = l2_norm.unwrap_or(quantizer.l2_norm);
        quantizer.beta = number("commit_loss_beta").unwrap_or(quantizer.beta);
        quantizer.entropy_ratio = number("entropy_loss_ratio").unwrap_or(quantizer.entropy_ratio);
        Ok(())
    }

    fn obstacle(&self, architecture: &Architecture) -> Option<&'static str> {
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

    fn weights_file(&self) -> ExportFile {
        ExportFile::Torch { name: "vqgan.pt", key: "model" }
    }

    fn convert(&self, _canonical: &str, weight: HostTensor, _architecture: &Architecture) -> HostTensor {
        weight
    }

    fn more_tensors(&self) -> Vec<(&'static str, HostTensor)> {
        vec![(USED, HostTensor { dtype: Dtype::F32, shape: vec![USED_LENGTH], bytes: vec![0; USED_LENGTH * 4] })]
    }

    fn args(&self, architecture: &Architecture) -> Option<Map<String, Json>> {
        let quantizer = &architecture.quantizer;
        let args = [
            ("codebook_size", json!(architecture.codes)),
            ("codebook_embed_dim", json!(architecture.code_dim)),
            ("codebook_l2_norm", json!(quantizer.l2_norm)),
            ("commit_loss_beta", json!(quantizer.beta)),
            ("entropy_loss_ratio", json!(quantizer.entropy_ratio)),
        ];
        Some(args.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
    }
}
