//! Architectures by name, for models that start from random weights.

use checkpoints::{Architecture, Family, Quantizer, QuantizerKind};

/// The names that [`by_name`] knows.
pub const NAMES: [&str; 10] = [
    "tiny",
    "tiny-f8-512",
    "taming-f16-1024",
    "taming-f16-16384",
    "taming-gumbel-f8-8192",
    "ldm-f4-8192",
    "ldm-f8-16384",
    "llamagen-vq-8",
    "llamagen-vq-16",
    "amused",
];

/// Returns a built-in architecture: `tiny` and `tiny-f8-512` are for a CPU, the others are as published with taming-transformers (arXiv
/// 2012.09841), latent-diffusion (arXiv 2112.10752), LlamaGen (arXiv 2406.06525) and aMUSEd (arXiv 2401.01808).
pub fn by_name(name: &str) -> Option<Architecture> {
    let taming = |channels: &[usize], attention_levels: &[usize], latent: usize, codes: usize| Architecture {
        family: Family::Taming,
        in_channels: 3,
        out_channels: 3,
        base_channels: 128,
        channels: channels.to_vec(),
        res_blocks: 2,
        attention_levels: attention_levels.to_vec(),
        mid_attention: true,
        latent_channels: latent,
        code_dim: latent,
        codes,
        groups: 32,
        quantizer: Quantizer::of(Family::Taming),
        lookup_from_codebook: false,
        scaling_factor: None,
        diffusers: serde_json::Map::new(),
    };
    let llamagen = |channels: &[usize]| Architecture {
        family: Family::LlamaGen,
        code_dim: 8,
        quantizer: Quantizer::of(Family::LlamaGen),
        ..taming(channels, &[channels.len() - 1], 256, 16_384)
    };
    const F16: [usize; 5] = [128, 128, 256, 256, 512];
    Some(match name {
        "tiny" => Architecture {
            // diffusers' names allow any number of groups. Short normalised codes learn easily from random weights.
            family: Family::Diffusers,
            base_channels: 16,
            channels: vec![16, 32, 64],
            res_blocks: 1,
            mid_attention: false,
            code_dim: 4,
            groups: 4,
            quantizer: Quantizer::of(Family::LlamaGen),
            ..taming(&[], &[], 32, 256)
        },
        // diffusers' names allow any number of groups, and have attention in the middle alone: at the lowest level.
        "tiny-f8-512" => Architecture {
            family: Family::Diffusers,
            base_channels: 16,
            channels: vec![16, 32, 64, 96],
            res_blocks: 1,
            code_dim: 8,
            groups: 4,
            quantizer: Quantizer::of(Family::LlamaGen),
            ..taming(&[], &[3], 64, 512)
        },
        "taming-f16-1024" => taming(&F16, &[4], 256, 1024),
        "taming-f16-16384" => taming(&F16, &[4], 256, 16_384),
        "taming-gumbel-f8-8192" => Architecture {
            quantizer: Quantizer { kind: QuantizerKind::Gumbel, ..Quantizer::of(Family::Taming) },
            ..taming(&[128, 128, 256, 512], &[3], 256, 8192)
        },
        "ldm-f4-8192" => taming(&[128, 256, 512], &[], 3, 8192),
        "ldm-f8-16384" => taming(&[128, 256, 256, 512], &[3], 4, 16_384),
        "llamagen-vq-8" => llamagen(&[128, 256, 256, 512]),
        "llamagen-vq-16" => llamagen(&F16),
        "amused" => Architecture {
            family: Family::Diffusers,
            mid_attention: false,
            quantizer: Quantizer::of(Family::Diffusers),
            lookup_from_codebook: true,
            ..taming(&[128, 256, 256, 512, 768], &[], 64, 8192)
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_and_the_paper_model_has_its_76_million_parameters() {
        for name in NAMES {
            assert!(by_name(name).is_some_and(|architecture| architecture.check().is_ok()), "{name}");
        }
        let count = |name| -> usize {
            let parameters = by_name(name).map(|architecture| architecture.parameters()).unwrap_or_default();
            parameters.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        assert_eq!(count("taming-f16-16384"), 76_073_859);
        assert_eq!(count("taming-gumbel-f8-8192"), 68_995_971);
    }
}
