//! taming-transformers with its `GumbelVQ`, and the first stages of latent-diffusion.

use super::{
    Architecture, ConfigFile, ExportFile, GumbelTraining, Layout, Quantizer, QuantizerKind, obstacle_of_multiples,
    with_unit_codes,
};

/// The average of codes that taming's `EMAVectorQuantizer` keeps.
const AVERAGE: &str = "quantize.embedding.embed_avg";

impl GumbelTraining {
    /// As taming's model of OpenImages was trained (8,192 codes, f8).
    pub const PUBLISHED: GumbelTraining =
        GumbelTraining { kl_weight: 1e-8, temperature_start: 0.9, temperature_end: 1e-6, temperature_steps: 1_000_001 };
}

pub(super) static LAYOUT: Layout = Layout {
    name: "taming",
    prefixes: &["encoder.down.", "decoder.up."],
    // The indices in use (`remap`), and the averages of `EMAVectorQuantizer`, which looks codes up like any other.
    buffers: &["quantize.used", "quantize.embedding.cluster_size", AVERAGE],
    quantizer: Quantizer::TAMING,
    has_gumbel: true,
    name_of: |canonical, _| canonical.to_owned(),
    old_name: |_| None,
    config_file: None,
    read_settings: |_, _, _| Ok(()),
    note: Some((AVERAGE, "its codebook was learnt by moving averages, and is trained by gradients here")),
    obstacle,
    weights_file: ExportFile::Torch { name: "model.ckpt", key: "state_dict" },
    convert: with_unit_codes,
    more_tensors: Vec::new,
    config: |architecture| Some(ConfigFile { name: "config.yaml", text: config_text(architecture) }),
    args: |_| None,
};

fn obstacle(architecture: &Architecture) -> Option<&'static str> {
    let Architecture { attention_levels, mid_attention, quantizer, .. } = architecture;
    if quantizer.kind == QuantizerKind::Gumbel && !mid_attention {
        return Some("a Gumbel quantizer and no attention in the middle");
    }
    obstacle_of_multiples(architecture).or_else(|| {
        // latent-diffusion's attn_type is that of all levels.
        let is_partial = !mid_attention && !attention_levels.is_empty();
        is_partial.then_some("attention at a level and none in the middle")
    })
}

fn config_text(architecture: &Architecture) -> String {
    // taming says at which resolutions there is attention. Any resolution serves that all levels divide.
    let resolution = architecture.downsampling().max(256);
    let attended = architecture.attention_levels.iter();
    let attended: Vec<usize> = attended.map(|level| resolution >> level).collect();
    let multiples = architecture.channels.iter();
    let multiples: Vec<usize> = multiples.map(|c| c / architecture.base_channels).collect();
    // taming always has attention in the middle and ignores `attn_type`. latent-diffusion's class is the same but for
    // that.
    let (target, attention) = match (architecture.quantizer.kind, architecture.mid_attention) {
        (QuantizerKind::Gumbel, _) => ("taming.models.vqgan.GumbelVQ", None),
        (QuantizerKind::Nearest, true) => ("taming.models.vqgan.VQModel", None),
        (QuantizerKind::Nearest, false) => ("ldm.models.autoencoder.VQModel", Some("      attn_type: none".to_owned())),
    };
    let mut lines = vec![
        "model:".to_owned(),
        format!("  target: {target}"),
        "  params:".to_owned(),
        format!("    embed_dim: {}", architecture.code_dim),
        format!("    n_embed: {}", architecture.codes),
        "    ddconfig:".to_owned(),
        "      double_z: false".to_owned(),
        format!("      z_channels: {}", architecture.latent_channels),
        format!("      resolution: {resolution}"),
        format!("      in_channels: {}", architecture.in_channels),
        format!("      out_ch: {}", architecture.out_channels),
        format!("      ch: {}", architecture.base_channels),
        format!("      ch_mult: {multiples:?}"),
        format!("      num_res_blocks: {}", architecture.res_blocks),
        format!("      attn_resolutions: {attended:?}"),
        "      dropout: 0.0".to_owned(),
    ];
    lines.extend(attention);
    if architecture.quantizer.kind == QuantizerKind::Gumbel {
        let GumbelTraining { kl_weight, temperature_start, temperature_end, temperature_steps } =
            GumbelTraining::PUBLISHED;
        // PyYAML reads a power of ten as text unless there is a point before it.
        lines.extend([
            format!("    kl_weight: {kl_weight:.1e}"),
            "    temperature_scheduler_config:".to_owned(),
            "      target: taming.lr_scheduler.LambdaWarmUpCosineScheduler".to_owned(),
            "      params:".to_owned(),
            "        warm_up_steps: 0".to_owned(),
            format!("        max_decay_steps: {temperature_steps}"),
            format!("        lr_start: {temperature_start:?}"),
            format!("        lr_max: {temperature_start:?}"),
            format!("        lr_min: {temperature_end:.1e}"),
        ]);
    }
    lines.push("    lossconfig:".to_owned());
    lines.push("      target: taming.modules.losses.DummyLoss".to_owned());
    lines.join("\n") + "\n"
}
