use burn::tensor::{DType, Device};
use datasets::Batch;

use super::super::{Bars, judge};
use super::*;
use crate::config::SweepConfig;
use crate::engine::{StepSettings, effective_batch_gradient};
use crate::losses::{Codebook, CodebookLoss, Losses, NearestLoss, PixelLoss, PixelNorm, Weight, Weighted};
use crate::memory::Status;
use crate::models::initialize::random_weights;
use crate::models::tests::tiny_architecture;
use crate::optim::relative_deviation;
use crate::verification::sweep::rows::tests::row;

const SIDE: usize = 8;

fn model() -> VqGan {
    let architecture = tiny_architecture();
    let device = Device::flex().autodiff();
    VqGan::new(&architecture, &random_weights(&architecture, 7), &device, DType::F32).unwrap()
}

/// Images `samples` by formula, each another one.
fn images(samples: std::ops::Range<usize>) -> Batch {
    let pixel = |sample: usize, i: usize| ((i * (7 + 3 * sample) + 11 * sample * sample) % 256) as u8;
    Batch {
        draws: samples.clone().map(|sample| sample as u64).collect(),
        resolution: SIDE as u32,
        pixels: samples.clone().flat_map(|sample| (0..SIDE * SIDE * 3).map(move |i| pixel(sample, i))).collect(),
        captions: samples.map(|_| None).collect(),
    }
}

fn gradient(model: &VqGan, effective: usize, splits: &[(usize, usize)]) -> EffectiveBatch {
    scaled_gradient(model, effective, splits, LossScales::default())
}

fn scaled_gradient(
    model: &VqGan,
    effective: usize,
    splits: &[(usize, usize)],
    loss_scales: LossScales,
) -> EffectiveBatch {
    let losses = Losses {
        pixel: Some(Weighted { weight: Weight::constant(1.0), loss: PixelLoss { norm: PixelNorm::L1, mix: 0.5 } }),
        codebook: Some(Codebook {
            weight: Weight::constant(1.0),
            loss: CodebookLoss::Nearest(NearestLoss { beta: 0.25, legacy: false, entropy: 0.0 }),
        }),
        ..Losses::default()
    };
    let settings = StepSettings { effective, loss_scales, ..StepSettings::default() };
    let batches = || splits.iter().map(|split| Ok::<_, String>(images(split.0..split.1)));
    effective_batch_gradient(model, &losses, settings, batches(), batches(), |_| {}).unwrap()
}

#[test]
fn a_file_gives_the_deviation_that_two_gradients_have() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let model = model();
    let [reference, other] = [(0, 4), (1, 5)].map(|split| gradient(&model, 4, &[split]));
    write(&path, &model, None, &reference).unwrap();
    let same = deviation(&path, &model, None, &reference).unwrap();
    assert_eq!(same, Deviation { whole: Some(0.0), generator: Some(0.0), discriminator: None });
    let deviation = deviation(&path, &model, None, &other).unwrap();
    let expected = relative_deviation(&model, &other.generator, &reference.generator);
    assert!(
        expected > 1e-3 && (deviation.whole.unwrap() - expected).abs() < 1e-9 * expected,
        "{deviation:?} {expected}"
    );
}

#[test]
fn the_loss_scale_is_no_part_of_a_gradient() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let model = model();
    write(&path, &model, None, &gradient(&model, 4, &[(0, 4)])).unwrap();
    let scaled = scaled_gradient(&model, 4, &[(0, 4)], LossScales { generator: 1000.0, discriminator: 1.0 });
    let whole = deviation(&path, &model, None, &scaled).unwrap().whole.unwrap();
    assert!(whole < 1e-5, "{whole}");
    write(&path, &model, None, &scaled).unwrap();
    let back = deviation(&path, &model, None, &gradient(&model, 4, &[(0, 4)])).unwrap().whole.unwrap();
    assert!(back < 1e-5, "{back}");
}

#[test]
fn a_gradient_on_one_side_only_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let model = model();
    let mut batch = gradient(&model, 2, &[(0, 2)]);
    batch.generator = GradientsParams::new();
    write(&path, &model, None, &batch).unwrap();
    let error = deviation(&path, &model, None, &gradient(&model, 2, &[(0, 2)])).unwrap_err().to_string();
    assert!(error.starts_with("`generator.encoder.") && error.contains("no gradient in the reference"), "{error}");
}

/// The mean over micro-batches of their means, which is what trainers get wrong that divide by the number of
/// micro-batches: the ragged last one counts for too much.
fn by_micro_batch(model: &VqGan, splits: &[(usize, usize)]) -> EffectiveBatch {
    struct Sum<'a>(GradientsParams, &'a EffectiveBatch, f64);
    impl ParameterVisitor for Sum<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            let Some(gradient) = self.1.generator.get::<D>(id) else { return };
            let part = gradient * self.2;
            let sum = self.0.remove::<D>(id).map_or_else(|| part.clone(), |sum| sum + part.clone());
            self.0.register(id, sum);
        }
    }
    let mut sum = GradientsParams::new();
    let mut whole = gradient(model, 8, splits);
    for split in splits {
        let batch = gradient(model, split.1 - split.0, std::slice::from_ref(split));
        let mut visitor = Sum(sum, &batch, 1.0 / splits.len() as f64);
        visit_parameters(model, &mut visitor);
        sum = visitor.0;
    }
    whole.generator = sum;
    whole
}

#[test]
fn weights_by_micro_batch_instead_of_by_sample_fail_the_bar() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let model = model();
    let splits = [(0, 3), (3, 6), (6, 8)];
    write(&path, &model, None, &gradient(&model, 8, &[(0, 8)])).unwrap();
    let bars =
        Bars::of(&SweepConfig { max_deviation: Some("1e-5".parse().unwrap()), ..SweepConfig::default() }).unwrap();
    let is_met = |batch: &EffectiveBatch| {
        let whole = deviation(&path, &model, None, batch).unwrap().whole.unwrap();
        println!("{whole:e}");
        judge(&[row(3, Status::Ok, Some((1, 1.0, whole)))], &bars).iter().all(|bar| bar.met)
    };
    assert!(is_met(&gradient(&model, 8, &splits)));
    assert!(!is_met(&by_micro_batch(&model, &splits)));
    // Even splits hide the mistake, so a sweep needs one that is not.
    assert!(is_met(&by_micro_batch(&model, &[(0, 4), (4, 8)])));
}
