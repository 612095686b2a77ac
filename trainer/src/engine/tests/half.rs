//! Half precision against f32, and what an overflow does.

use super::all_losses::{Run, all_losses};
use super::*;
use crate::losses::LeCam;
use crate::models::weights::{ParameterVisitor, visit_parameters};

fn settings(compute: DType, scale: f64) -> StepSettings<'static> {
    StepSettings {
        effective: 8,
        checkpoint: Checkpoint::Blocks,
        adversarial: AdversarialState { balance: None, lecam: LeCam { real: 0.4, fake: -0.2, decay: 0.9 } },
        compute: Some(compute),
        loss_scales: LossScales { generator: scale, discriminator: scale },
        ..StepSettings::default()
    }
}

/// All losses, whose networks are held in `compute` too.
fn step(run: &Run, compute: DType, scale: f64, sizes: &[usize]) -> EffectiveBatch {
    let losses = all_losses(&run.device, compute, Adaptive::EffectiveBatch, 3);
    run.step(&losses, settings(compute, scale), sizes)
}

/// Cosine of the angle between two whole gradients, and the ratio of their lengths.
fn compare<M: Module>(module: &M, a: &GradientsParams, b: &GradientsParams) -> (f64, f64) {
    struct Products<'a>(&'a GradientsParams, &'a GradientsParams, [f64; 3]);
    impl ParameterVisitor for Products<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: burn::module::ParamId, _value: Tensor<D>) {
            let read = |gradients: &GradientsParams| -> Vec<f64> {
                gradients.get::<D>(id).unwrap().cast(DType::F64).into_data().try_into_vec().unwrap()
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

#[test]
fn the_gradient_in_half_precision_is_near_that_in_f32() {
    let run = Run::new(DType::F32);
    let reference = step(&run, DType::F32, 1.0, &[4, 4]);
    for (compute, scale, least) in [(DType::F16, 1024.0, 0.999), (DType::BF16, 1.0, 0.99)] {
        let half = step(&run, compute, scale, &[4, 4]);
        let generator = compare(&run.vqgan, &half.generator, &reference.generator);
        let discriminator = compare(&run.discriminator, &half.discriminator, &reference.discriminator);
        for (of, (cosine, length)) in [("generator", generator), ("discriminator", discriminator)] {
            println!("{compute:?}, {of}: cosine {cosine:.6}, length {:.5}", length / scale);
            assert!(cosine >= least, "{compute:?}, {of}: {cosine}");
            assert!((length / scale - 1.0).abs() < 0.05, "{compute:?}, {of}: {length}");
        }
    }
}

/// One decision for the whole step, which no micro-batch of it can change.
#[test]
fn whether_a_step_overflows_does_not_depend_on_how_it_is_cut() {
    let run = Run::new(DType::F32);
    let finite = |batch: &EffectiveBatch| {
        [global_norm(&run.vqgan, &batch.generator), global_norm(&run.discriminator, &batch.discriminator)]
            .map(|norm| precision::is_finite(&norm.unwrap()))
    };
    let mut seen = Vec::new();
    for exponent in [8, 12, 16, 20, 24, 28] {
        let scale = f64::from(1 << exponent);
        let (whole, single) = (step(&run, DType::F16, scale, &[8]), step(&run, DType::F16, scale, &[1; 8]));
        println!("scale 2^{exponent}: finite {:?} as 8, {:?} as 8 x 1", finite(&whole), finite(&single));
        assert_eq!(finite(&whole), finite(&single), "scale 2^{exponent}");
        if finite(&whole) == [true; 2] {
            let generator = relative_deviation(&run.vqgan, &single.generator, &whole.generator);
            let discriminator = relative_deviation(&run.discriminator, &single.discriminator, &whole.discriminator);
            println!("scale 2^{exponent}: deviation {generator:.1e}, discriminator {discriminator:.1e}");
            // A few roundings to 11 bits each.
            assert!(generator < 1e-2 && discriminator < 1e-2, "{generator} {discriminator}");
        }
        seen.push(finite(&whole));
    }
    assert!(seen.contains(&[true; 2]) && seen.contains(&[false; 2]), "{seen:?}");
}

#[test]
fn experiment() {
    let run = Run::new(DType::F32);
    let plain = Device::flex();
    let batch = super::all_losses::batch(0, 4);
    let original = batch.images(&plain, DType::F32);
    let recon32 = run.vqgan.valid().reconstruct(original.clone()).0;
    let recon16 = compute_copy(&run.vqgan, DType::F16).valid().reconstruct(original.clone()).0;
    let read = |t: Tensor<4>| -> Vec<f64> { t.cast(DType::F64).into_data().try_into_vec().unwrap() };
    let cos = |a: Tensor<4>, b: Tensor<4>| { let (a, b) = (read(a), read(b)); let d = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>(); d(&a, &b) / (d(&a, &a) * d(&b, &b)).sqrt() };
    println!("EXP recon rel diff {:.2e}", relative(&read(recon16.clone()), &read(recon32.clone())));
    for index in [0, 1] {
        let g = |dtype, recon: &Tensor<4>, scale: f64| {
            let losses = all_losses(&run.device, dtype, Adaptive::EffectiveBatch, 3);
            gradient_at(recon, |leaf| losses.image[index].1.per_sample(original.clone().autodiff(), leaf).sum() * scale) / scale
        };
        let smooth = original.clone() * 0.8 + 0.05;
        for (name, recon) in [("recon", &recon32), ("near", &smooth)] {
            for scale in [1.0, 1024.0, 65536.0] {
                println!("EXP loss {index} {name} scale {scale} f16 {:.6} bf16 {:.6}", cos(g(DType::F16, recon, scale), g(DType::F32, recon, 1.0)), cos(g(DType::BF16, recon, scale), g(DType::F32, recon, 1.0)));
            }
        }
        println!("EXP loss {index} f32 network at f16 recon {:.6}", cos(g(DType::F32, &recon16, 1.0), g(DType::F32, &recon32, 1.0)));
    }
}
fn relative(a: &[f64], b: &[f64]) -> f64 {
    (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}
