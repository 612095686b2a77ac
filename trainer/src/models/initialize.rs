//! Random weights for a model that is trained from scratch, as PyTorch's layers draw them.

use checkpoints::{Architecture, HostTensor, QuantizerKind};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::weights::{StateDict, param_id};

/// Draws weights of `architecture` as a pure function of `seed`: the same on every device and in every version of Burn.
///
/// Convolutions and their biases are uniform within `1/sqrt(fan in)` (PyTorch's default), and norms are the identity.
/// Codes are uniform within `1/codes` (taming's default). In a normalised codebook they are random directions of unit
/// length instead, and in a Gumbel quantizer they have variance 1.
pub fn random_weights(architecture: &Architecture, seed: u64) -> StateDict {
    let parameters = architecture.parameters();
    let fan_in = |name: &str| {
        let weight = format!("{}.weight", name.rsplit_once('.').map_or(name, |(layer, _)| layer));
        let shape = parameters.iter().find(|(other, _)| *other == weight).map(|(_, shape)| shape);
        shape.map_or(1, |shape| shape.iter().skip(1).product::<usize>().max(1))
    };
    let is_norm = |name: &str| name.contains("norm");
    let init = |(name, shape): &(String, Vec<usize>)| {
        let len = shape.iter().product();
        let mut rng = rng_for(seed, name);
        let mut uniform = |bound: f64| (0..len).map(|_| rng.random_range(-bound..=bound) as f32).collect::<Vec<_>>();
        let values = if name == architecture.quantizer.codebook() {
            match (architecture.quantizer.kind, architecture.quantizer.l2_norm) {
                (QuantizerKind::Gumbel, _) => uniform(3f64.sqrt()),
                (_, true) => unit_rows(&uniform(1.0), architecture.code_dim),
                (_, false) => uniform(1.0 / architecture.codes as f64),
            }
        } else if is_norm(name) {
            vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; len]
        } else {
            uniform((fan_in(name) as f64).powf(-0.5))
        };
        (name.clone(), HostTensor::from_f32(shape, &values))
    };
    parameters.iter().map(init).collect()
}

fn unit_rows(values: &[f32], width: usize) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter().map(|v| v / length).collect::<Vec<_>>()
    };
    values.chunks(width.max(1)).flat_map(unit).collect()
}

pub(crate) fn rng_for(seed: u64, name: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ param_id(name).val())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::tests::tiny_architecture;

    #[test]
    fn weights_depend_on_the_seed_and_on_nothing_else() {
        let architecture = tiny_architecture();
        let [a, b, c] = [1, 1, 2].map(|seed| random_weights(&architecture, seed));
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    #[test]
    fn normalised_codes_start_at_unit_length() {
        let architecture = tiny_architecture();
        assert!(architecture.quantizer.l2_norm);
        let codes = random_weights(&architecture, 0)["quantize.embedding.weight"].to_f32();
        for code in codes.chunks(architecture.code_dim) {
            let length: f32 = code.iter().map(|v| v * v).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }

    #[test]
    fn a_convolution_is_bounded_by_its_fan_in_and_uses_the_range() {
        let weights = random_weights(&tiny_architecture(), 0);
        let weight = &weights["encoder.down.0.block.0.conv1.weight"];
        let bound = 1.0 / ((weight.shape[1] * 9) as f32).sqrt();
        let largest = weight.to_f32().into_iter().map(f32::abs).fold(0.0, f32::max);
        assert!(largest <= bound && largest > 0.9 * bound, "{largest} against {bound}");
    }
}
