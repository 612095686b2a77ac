//! A model with a Gumbel quantizer: neither the codes drawn nor the gradients depend on the batch split.

use std::sync::Arc;

use checkpoints::{GumbelTraining, HostTensor, Quantizer, QuantizerKind};

use super::all_losses::{Run, SPLITS, all_losses, deviation_of_trained};
use super::*;
use crate::losses::{Adaptive, GumbelLoss};
use crate::models::quantizer::gumbel::SeededNoise;
use crate::models::weights::param_id;
use crate::optim::{Trainable, freeze};

const EFFECTIVE: usize = 6;

fn architecture() -> Architecture {
    let tiny = tiny_architecture();
    let quantizer = Quantizer { kind: QuantizerKind::Gumbel, l2_norm: false, ..tiny.quantizer };
    Architecture { code_dim: tiny.latent_channels, quantizer, ..tiny }
}

fn run(dtype: DType) -> Run {
    let mut weights = random_weights(&architecture(), 7);
    // Random latents are small; larger weights make some codes likelier than others.
    let projection = weights.get_mut("quantize.proj.weight").unwrap();
    let larger: Vec<f32> = projection.to_f32().iter().map(|value| value * 10.0).collect();
    *projection = HostTensor::from_f32(&projection.shape, &larger);
    let mut run = Run::new(dtype);
    run.vqgan = VqGan::new(&architecture(), &weights, &device().autodiff(), dtype).unwrap();
    run
}

fn losses(run: &Run, dtype: DType) -> Losses {
    let training =
        GumbelTraining { kl_weight: 0.05, temperature_start: 0.8, temperature_end: 0.3, temperature_steps: 10 };
    let loss = GumbelLoss { training, noise: Arc::new(SeededNoise { seed: 3 }) };
    let codebook = Codebook { weight: Weight::constant(0.7), loss: CodebookLoss::Gumbel(loss) };
    Losses { codebook: Some(codebook), ..all_losses(&run.device, dtype, Adaptive::EffectiveBatch, 3) }
}

fn step(run: &Run, losses: &Losses, sizes: &[usize], recompute: Recompute) -> EffectiveBatch {
    run.step(losses, StepSettings { step: 4, effective: EFFECTIVE, recompute, ..StepSettings::default() }, sizes)
}

fn metrics(batch: &EffectiveBatch) -> StepMetrics {
    batch.read(Tensor::zeros([1], &Device::flex()), None).unwrap()
}

#[test]
fn no_gradient_or_metric_depends_on_the_batch_split() {
    for (dtype, limit) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
        let run = run(dtype);
        let losses = losses(&run, dtype);
        let reference = step(&run, &losses, &[EFFECTIVE], Recompute::None);
        assert_eq!(reference.generator.len(), architecture().parameters().len());
        let whole = metrics(&reference);
        assert!(whole.code_counts.iter().filter(|count| **count > 0.0).count() >= 16, "{:?}", whole.code_counts);
        assert!(whole.get("kl").unwrap() > 0.01 && (whole.get("temperature").unwrap() - 0.6).abs() < 0.1);
        for (sizes, recompute) in
            [(SPLITS[0], Recompute::None), (SPLITS[1], Recompute::Blocks), (SPLITS[2], Recompute::None)]
        {
            let split = step(&run, &losses, sizes, recompute);
            let generator = relative_deviation(&run.vqgan, &split.generator, &reference.generator);
            let discriminator = relative_deviation(&run.discriminator, &split.discriminator, &reference.discriminator);
            println!("{dtype:?}, {sizes:?}, {recompute:?}: {generator:.1e}, discriminator {discriminator:.1e}");
            assert!(generator <= limit && discriminator <= limit, "{dtype:?} {sizes:?}: {generator} {discriminator}");
            let found = metrics(&split);
            assert_eq!(found.code_counts, whole.code_counts);
            for (name, value) in &whole.values {
                let found = found.get(name).unwrap();
                assert!((found - value).abs() <= 10.0 * limit * value.abs().max(1.0), "{name}: {found} {value}");
            }
        }
    }
}

/// Codes and decoder do not affect which codes are chosen, so their gradient is a derivative. For a loss that couples
/// samples this holds only if both passes draw the same codes.
#[test]
fn the_gradient_of_codes_and_decoder_is_that_of_finite_differences() {
    let run = run(DType::F64);
    let losses = Losses { adversarial: None, ..losses(&run, DType::F64) };
    let total = |vqgan: &VqGan| {
        let mut run = Run::new(DType::F64);
        run.vqgan = vqgan.clone();
        metrics(&step(&run, &losses, SPLITS[1], Recompute::None)).total
    };
    let batch = step(&run, &losses, SPLITS[1], Recompute::None);
    let read = |data: TensorData| data.try_into_vec::<f64>().unwrap();
    let embed = read(batch.generator.get::<2>(param_id("quantize.embed.weight")).unwrap().into_data());
    let last = read(batch.generator.get::<4>(param_id("decoder.conv_out.weight")).unwrap().into_data());
    let largest = (0..embed.len()).max_by(|a, b| embed[*a].abs().total_cmp(&embed[*b].abs())).unwrap();
    for (name, index, expected) in [
        ("quantize.embed.weight", largest, embed[largest]),
        ("quantize.embed.weight", largest ^ 1, embed[largest ^ 1]),
        ("decoder.conv_out.weight", 5, last[5]),
    ] {
        let at = |amount| total(&nudged(&run.vqgan, name, index, amount));
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        let error = (difference - expected).abs() / difference.abs().max(1e-6);
        assert!(error < 1e-4, "{name}[{index}]: {expected} against {difference}");
    }
}

/// If the encoder is frozen, the decoder's gradient still reaches the quantizer.
#[test]
fn freezing_changes_no_gradient_of_what_is_trained() {
    let whole = run(DType::F64);
    let losses = losses(&whole, DType::F64);
    let reference = step(&whole, &losses, &[EFFECTIVE], Recompute::None);
    for patterns in [
        &["quantize"][..],
        &["quantize.proj"],
        &["quantize.embed"],
        &["encoder"],
        &["decoder"],
        &["decoder.up.0", "quantize.embed"],
    ] {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let parameters = architecture().parameters();
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        let trained = Trainable::new(&patterns, &names).unwrap();
        let count = names.iter().filter(|name| trained.is_trained(name)).count();
        let mut run = run(DType::F64);
        run.vqgan = freeze(run.vqgan, &trained);
        for recompute in [Recompute::None, Recompute::Blocks] {
            let found = step(&run, &losses, SPLITS[1], recompute);
            assert_eq!(found.generator.len(), count, "{patterns:?}");
            let deviation = deviation_of_trained(&run.vqgan, &found.generator, &reference.generator);
            assert!(deviation <= 1e-9, "{patterns:?} {recompute:?}: {deviation}");
        }
    }
}
