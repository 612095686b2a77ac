//! `VQModel` of diffusers.

use serde_json::{Value as Json, json};

use super::architecture::is_projection;
use super::{Architecture, ConfigFile, ExportFile, Layout, MOVQ, Quantizer, level_from_coarsest, with_unit_codes};
use crate::files::{WeightsError, WeightsFile};

/// The configuration beside its weights.
const CONFIG: &str = "config.json";
/// Keys of the configuration that only pipelines and trainers of diffusers read.
const KEPT: [&str; 2] = ["force_upcast", "sample_size"];

pub(super) static LAYOUT: Layout = Layout {
    name: "diffusers",
    prefixes: &["encoder.down_blocks.", "decoder.up_blocks."],
    // The indices in use (`remap`).
    buffers: &["quantize.used"],
    quantizer: Quantizer::TAMING,
    has_gumbel: false,
    name_of,
    old_name,
    config_file: Some(CONFIG),
    read_settings: |architecture, file, config| config.map_or(Ok(()), |config| read_config(architecture, file, config)),
    note: None,
    obstacle: |architecture| {
        let is_other = architecture.channels.first() != Some(&architecture.base_channels);
        is_other.then_some("a first level with other than base_channels")
    },
    weights_file: ExportFile::Safetensors("diffusion_pytorch_model.safetensors"),
    convert: |canonical, mut weight, architecture| {
        if is_projection(canonical) {
            weight.shape.truncate(2);
        }
        with_unit_codes(canonical, weight, architecture)
    },
    more_tensors: Vec::new,
    config: |architecture| Some(ConfigFile { name: CONFIG, text: format!("{:#}\n", config(architecture)) }),
    args: |_| None,
};

fn name_of(canonical: &str, levels: usize) -> String {
    let parts: Vec<&str> = canonical.split('.').collect();
    match parts[..] {
        [side, direction @ ("down" | "up"), level, ref rest @ ..] => {
            let level = level_from_coarsest(side, level, levels);
            let rest = match *rest {
                ["block", block, leaf, kind] => format!("resnets.{block}.{}.{kind}", leaf_name(leaf)),
                ["attn", block, leaf, kind] => format!("attentions.{block}.{}.{kind}", leaf_name(leaf)),
                [_sample, "conv", kind] => format!("{direction}samplers.0.conv.{kind}"),
                _ => rest.join("."),
            };
            format!("{side}.{direction}_blocks.{level}.{rest}")
        }
        [side, "mid", part, leaf, kind] => {
            let part = match part {
                "block_1" => "resnets.0",
                "attn_1" => "attentions.0",
                _ => "resnets.1",
            };
            format!("{side}.mid_block.{part}.{}.{kind}", leaf_name(leaf))
        }
        [side, "norm_out", kind] => format!("{side}.conv_norm_out.{kind}"),
        _ => canonical.to_owned(),
    }
}

fn leaf_name(leaf: &str) -> &str {
    match leaf {
        "nin_shortcut" => "conv_shortcut",
        "norm" => "group_norm",
        "q" => "to_q",
        "k" => "to_k",
        "v" => "to_v",
        "proj_out" => "to_out.0",
        other => other,
    }
}

/// The name that diffusers before 0.17 gave to a projection of attention.
fn old_name(name: &str) -> Option<String> {
    if !name.contains(".attentions.") {
        return None;
    }
    let pairs = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
    let (new, old) = pairs.iter().find(|(new, _)| name.contains(new))?;
    Some(name.replace(new, old))
}

fn read_config(architecture: &mut Architecture, file: &WeightsFile, config: &Json) -> Result<(), WeightsError> {
    let text = |key: &str| config.get(key).and_then(Json::as_str);
    if let Some(class) = text("_class_name").filter(|class| *class != "VQModel") {
        return file.refuse(format!("its config.json says {class}, not VQModel"));
    }
    if text("norm_type") == Some("spatial") {
        return file.refuse(MOVQ);
    }
    if let Some(act) = text("act_fn").filter(|act| !matches!(*act, "silu" | "swish")) {
        return file.refuse(format!("its activation is {act}; only silu is supported"));
    }
    if let Some(groups) = config.get("norm_num_groups").and_then(Json::as_u64) {
        architecture.groups = usize::try_from(groups).unwrap_or(usize::MAX);
    }
    architecture.lookup_from_codebook = config.get("lookup_from_codebook").and_then(Json::as_bool).unwrap_or(false);
    architecture.scaling_factor = config.get("scaling_factor").and_then(Json::as_f64);
    let kept = KEPT.iter().filter_map(|key| Some(((*key).to_owned(), config.get(*key)?.clone())));
    architecture.diffusers = kept.collect();
    Ok(())
}

fn config(architecture: &Architecture) -> Json {
    let blocks = |plain: &str, attending: &str| -> Vec<String> {
        let block = |level| match architecture.attention_levels.contains(&level) {
            true => attending.to_owned(),
            false => plain.to_owned(),
        };
        (0..architecture.channels.len()).map(block).collect()
    };
    let down = blocks("DownEncoderBlock2D", "AttnDownEncoderBlock2D");
    let mut up = blocks("UpDecoderBlock2D", "AttnUpDecoderBlock2D");
    up.reverse();
    let mut config = json!({
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": architecture.channels,
        "down_block_types": down,
        "in_channels": architecture.in_channels,
        "latent_channels": architecture.latent_channels,
        "layers_per_block": architecture.res_blocks,
        "lookup_from_codebook": architecture.lookup_from_codebook,
        "mid_block_add_attention": architecture.mid_attention,
        "norm_num_groups": architecture.groups,
        "norm_type": "group",
        "num_vq_embeddings": architecture.codes,
        "out_channels": architecture.out_channels,
        "sample_size": 256,
        "scaling_factor": architecture.scaling_factor.unwrap_or(0.18215),
        "up_block_types": up,
        "vq_embed_dim": architecture.code_dim,
    });
    for (key, value) in &architecture.diffusers {
        config[key] = value.clone();
    }
    config
}
