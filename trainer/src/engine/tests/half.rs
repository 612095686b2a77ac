//! Half precision against f32, and the effect of an overflow.

use super::all_losses::{Run, all_losses};
use super::*;
use crate::losses::Adaptive;
use crate::models::weights::{ParameterVisitor, visit_parameters};
use crate::optim::global_norm;

fn settings(compute: DType, scale: f64) -> StepSettings<'static> {
    StepSettings {
        effective: 8,
        recompute: Recompute::Blocks,
        compute: Some(compute),
        loss_scales: LossScales { generator: scale, discriminator: scale },
        ..StepSettings::default()
    }
}

/// Runs a step with all losses, whose networks are in `compute` too.
fn step(run: &Run, compute: DType, scale: f64, sizes: &[usize]) -> EffectiveBatch {
    let losses = all_losses(&run.device, compute, Adaptive::EffectiveBatch, 3);
    run.step(&losses, settings(compute, scale), sizes)
}

/// Returns the cosine of the angle between two whole gradients, and the ratio of their lengths.
fn compare<M: Module>(module: &M, a: &GradientsParams, b: &GradientsParams) -> (f64, f64) {
    struct Products<'a>(&'a GradientsParams, &'a GradientsParams, [f64; 3]);
    impl ParameterVisitor for Products<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: burn::module::ParamId, _value: Tensor<D>) {
            let read = |gradients: &GradientsParams| -> Vec<f64> {
                gradients.get::<D>(id).unwrap().try_into_vec_as().unwrap()
            };
            for (a, b) in read(self.0).into_iter().zip(read(self.1)) {
                self.2 = [self.2[0] + a * b, self.2[1] + a * a, self.2[2] + b * b];
            }
        }
    }
    let mut products = Products(a, b, [0.0; 3]);
    visit_parameters(module, &mut products);
    let [ab, aa, bb] = products.2;
    (ab / (aa * bb).sqrt(), (aa / bb).sqrt())
}

/// Rounding can move a latent near the border of two codes to the other one, where the gradient jumps, in any
/// precision. Few latents and few codes keep that out of a comparison of the arithmetic.
fn without_borders() -> Run {
    let channels = vec![8, 16, 16];
    let architecture = Architecture { codes: 4, channels, attention_levels: vec![2], ..tiny_architecture() };
    let mut run = Run::new(DType::F32);
    run.vqgan = model_of(&architecture, 11, DType::F32);
    run
}

#[test]
fn the_gradient_in_half_precision_is_near_that_in_f32() {
    let run = without_borders();
    let step = |compute, scale| {
        let losses = all_losses(&run.device, compute, Adaptive::EffectiveBatch, 3);
        run.step(&losses, StepSettings { effective: 4, ..settings(compute, scale) }, &[2, 2])
    };
    let codes = |batch: &EffectiveBatch| batch.read(Tensor::zeros([1], &device()), None).unwrap().code_counts;
    let reference = step(DType::F32, 1.0);
    for (compute, scale, least) in [(DType::F16, 1024.0, 0.999), (DType::BF16, 1.0, 0.99)] {
        if !device().supports_dtype(compute) {
            continue;
        }
        let half = step(compute, scale);
        assert_eq!(codes(&half), codes(&reference), "{compute:?}");
        let generator = compare(&run.vqgan, &half.generator, &reference.generator);
        let discriminator = compare(&run.discriminator, &half.discriminator, &reference.discriminator);
        for (of, (cosine, length)) in [("generator", generator), ("discriminator", discriminator)] {
            println!("{compute:?}, {of}: cosine {cosine:.6}, length {:.5}", length / scale);
            assert!(cosine >= least, "{compute:?}, {of}: {cosine}");
            assert!((length / scale - 1.0).abs() < 0.05, "{compute:?}, {of}: {length}");
        }
    }
}

/// One decision for the whole step, whatever the micro-batches.
#[test]
fn whether_a_step_overflows_does_not_depend_on_the_batch_split() {
    let run = Run::new(DType::F32);
    let finite = |batch: &EffectiveBatch| {
        [global_norm(&run.vqgan, &batch.generator), global_norm(&run.discriminator, &batch.discriminator)]
            .map(|norm| norm.unwrap().is_finite().into_scalar::<bool>())
    };
    for (exponent, expected) in [(8, true), (12, true), (26, false), (30, false)] {
        let scale = f64::from(1 << exponent);
        let (whole, single) = (step(&run, DType::F16, scale, &[8]), step(&run, DType::F16, scale, &[1; 8]));
        for (batch, name) in [(&whole, "8"), (&single, "8 x 1")] {
            assert_eq!(finite(batch), [expected; 2], "scale 2^{exponent}, {name}");
        }
        if expected {
            let generator = relative_deviation(&run.vqgan, &single.generator, &whole.generator);
            let discriminator = relative_deviation(&run.discriminator, &single.discriminator, &whole.discriminator);
            println!("scale 2^{exponent}: deviation {generator:.1e}, discriminator {discriminator:.1e}");
            // A few roundings to 11 bits each.
            assert!(generator < 1e-2 && discriminator < 1e-2, "{generator} {discriminator}");
        }
    }
}

/// The purpose of the loss scale: without it a small loss has a gradient below the smallest f16. bf16 has f32's range.
#[test]
fn a_small_loss_needs_its_scale_in_f16() {
    let run = without_borders();
    let mut losses = losses(0.1);
    losses.pixel.as_mut().unwrap().weight = Weight::constant(1e-4);
    losses.codebook.as_mut().unwrap().weight = Weight::constant(1e-4);
    let step = |compute, scale| run.step(&losses, StepSettings { effective: 4, ..settings(compute, scale) }, &[2, 2]);
    let reference = step(DType::F32, 1.0);
    let cosine = |compute, scale| {
        let (cosine, length) = compare(&run.vqgan, &step(compute, scale).generator, &reference.generator);
        println!("{compute:?}, scale {scale}: cosine {cosine:.6}, length {:.5}", length / scale);
        cosine
    };
    assert!(cosine(DType::F16, f64::from(1 << 20)) >= 0.999);
    assert!(cosine(DType::F16, 1.0) < 0.99);
    assert!(cosine(DType::BF16, 1.0) >= 0.99);
}
