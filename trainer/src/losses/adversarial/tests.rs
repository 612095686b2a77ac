use burn::tensor::{DType, Device, Tensor, TensorData};

use super::*;
use crate::models::tests::check_gradient;

const LOSSES: [GanLoss; 3] = [GanLoss::Hinge, GanLoss::Vanilla, GanLoss::NonSaturating];

/// Two samples of four patches.
const REAL: [f64; 8] = [0.3, -1.7, 2.2, 0.9, -0.4, 5.0, -12.0, 0.01];
const FAKE: [f64; 8] = [-0.2, 1.4, -2.6, 0.1, 30.0, -0.9, 3.0, -40.0];

fn logits(values: &[f64]) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values.to_vec(), [2, 1, 2, 2]), (&Device::flex(), DType::F64))
}

fn read(values: Tensor<1>) -> Vec<f64> {
    values.into_data().try_into_vec().unwrap()
}

/// Returns each sample's mean of `value` over its patches.
fn by_hand(logits: &[f64], value: impl Fn(f64) -> f64) -> Vec<f64> {
    logits.chunks(4).map(|sample| sample.iter().map(|&logit| value(logit)).sum::<f64>() / 4.0).collect()
}

fn assert_near(found: Tensor<1>, expected: Vec<f64>) {
    let found = read(found);
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-8 * b.abs()), "{found:?} against {expected:?}");
}

#[test]
fn each_loss_is_its_formula() {
    let (real, fake) = (logits(&REAL), logits(&FAKE));
    let softplus = |x: f64| x.exp().ln_1p();
    let sum = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| 0.5 * (a + b)).collect::<Vec<_>>();

    let hinge = sum(by_hand(&REAL, |x| (1.0 - x).max(0.0)), by_hand(&FAKE, |x| (1.0 + x).max(0.0)));
    assert_near(GanLoss::Hinge.discriminator(real.clone(), fake.clone()), hinge);
    let entropy = sum(by_hand(&REAL, |x| softplus(-x)), by_hand(&FAKE, softplus));
    assert_near(GanLoss::Vanilla.discriminator(real.clone(), fake.clone()), entropy.clone());
    assert_near(GanLoss::NonSaturating.discriminator(real, fake.clone()), entropy);

    assert_near(GanLoss::Hinge.generator(fake.clone()), by_hand(&FAKE, |x| -x));
    assert_near(GanLoss::Vanilla.generator(fake.clone()), by_hand(&FAKE, |x| -x));
    assert_near(GanLoss::NonSaturating.generator(fake.clone()), by_hand(&FAKE, |x| softplus(-x)));
    assert_near(mean_logits(fake), by_hand(&FAKE, |x| x));
}

#[test]
fn lecam_holds_each_side_to_the_average_of_the_other() {
    let lecam = LeCam { real: 0.6, fake: -0.5, decay: 0.9 };
    let of_real = by_hand(&REAL, |x| (x + 0.5).max(0.0).powi(2));
    let of_fake = by_hand(&FAKE, |x| (0.6 - x).max(0.0).powi(2));
    let expected = of_real.iter().zip(&of_fake).map(|(a, b)| a + b).collect();
    assert_near(lecam.per_sample(logits(&REAL), logits(&FAKE)), expected);
}

#[test]
fn lecams_averages_move_by_what_the_decay_leaves() {
    let lecam = LeCam::new(0.9).updated(2.0, -1.0);
    assert!((lecam.real - 0.2).abs() < 1e-12 && (lecam.fake + 0.1).abs() < 1e-12, "{lecam:?}");
    let lecam = lecam.updated(2.0, -1.0);
    assert!((lecam.real - 0.38).abs() < 1e-12 && (lecam.fake + 0.19).abs() < 1e-12, "{lecam:?}");
    let saved = serde_json::to_string(&lecam).unwrap();
    assert_eq!(serde_json::from_str::<LeCam>(&saved).unwrap(), lecam);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let lecam = LeCam { real: 0.6, fake: -0.5, decay: 0.9 };
    for values in [REAL, FAKE] {
        for loss in LOSSES {
            check_gradient(|x| loss.generator(x), &logits(&values), 0..8, 1e-7);
            check_gradient(|x| loss.of_real(x), &logits(&values), 0..8, 1e-7);
            check_gradient(|x| loss.of_fake(x), &logits(&values), 0..8, 1e-7);
        }
        check_gradient(|x| lecam.of_real(x), &logits(&values), 0..8, 1e-7);
        check_gradient(|x| lecam.of_fake(x), &logits(&values), 0..8, 1e-7);
    }
}

#[test]
fn extreme_logits_stay_finite_in_every_type() {
    let lecam = LeCam { real: 1.0, fake: -1.0, decay: 0.9 };
    let extreme = [6e4, -6e4, 0.0, -0.0, 100.0, -100.0, 20.0, -20.0];
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let check = |value: &dyn Fn(Tensor<4>) -> Tensor<1>| {
            let leaf = logits(&extreme).cast(dtype).autodiff().require_grad();
            let value = value(leaf.clone());
            let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            assert_eq!(value.dtype(), wide);
            let mut gradients = value.clone().sum().backward();
            let gradient = leaf.grad_remove(&mut gradients).unwrap().cast(DType::F64);
            let gradient = gradient.into_data().try_into_vec::<f64>().unwrap();
            assert!(read(value.without_autodiff().cast(DType::F64)).iter().all(|v| v.is_finite()), "{dtype:?}");
            assert!(gradient.iter().all(|g| g.is_finite()), "{dtype:?}: {gradient:?}");
            gradient
        };
        for loss in LOSSES {
            check(&|x| loss.generator(x));
            check(&|x| loss.of_real(x));
            let at_zero = check(&|x| loss.of_fake(x))[2];
            // Half (of the loss) of a quarter (of the patches) of the slope, which is one half at 0 for the softplus.
            let slope = if loss == GanLoss::Hinge { 1.0 } else { 0.5 };
            assert!((at_zero - slope / 8.0).abs() < 1e-6, "{loss:?} {dtype:?}: {at_zero}");
        }
        check(&|x| lecam.of_real(x));
        check(&|x| lecam.of_fake(x));
    }
}

#[test]
fn the_adaptive_weight_is_the_ratio_of_the_norms_within_its_limit() {
    let gradient = |values: [f64; 2], dtype| Tensor::<1>::from_data(values, (&Device::flex(), dtype));
    let weight = |a, b, dtype| {
        let weight = adaptive_weight(gradient(a, dtype), gradient(b, dtype));
        read(weight.cast(DType::F64))[0]
    };
    assert!((weight([3.0, 4.0], [0.0, 2.0], DType::F64) - 5.0 / 2.0001).abs() < 1e-12);
    assert!((weight([3e-5, 0.0], [0.0, 0.0], DType::F64) - 0.3).abs() < 1e-12);
    assert_eq!(weight([3.0, 4.0], [0.0, 0.0], DType::F64), 1e4);
    // f16 can hold the squares of neither.
    let found = weight([3e4, 4e4], [1e-4, 0.0], DType::F16);
    assert_eq!(found, 1e4);
    let found = weight([3e4, 4e4], [0.0, 5e4], DType::F16);
    assert!((found - 1.0).abs() < 1e-3, "{found}");
}

/// The limit would make it a valid weight, which would hide that the step has overflowed.
#[test]
fn the_adaptive_weight_of_an_overflow_is_not_a_number() {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        for (a, b) in [(f64::INFINITY, 1.0), (1.0, f64::INFINITY), (f64::INFINITY, f64::INFINITY), (f64::NAN, 1.0)] {
            let gradient = |value: f64| Tensor::<1>::from_data([value, 0.5], (&Device::flex(), dtype));
            let weight = adaptive_weight(gradient(a), gradient(b)).cast(DType::F64);
            assert!(read(weight.clone())[0].is_nan(), "{dtype:?}, {a} and {b}: {weight}");
        }
    }
}

#[test]
fn a_loss_is_named_as_in_the_configuration() {
    let names = LOSSES.map(|loss| serde_json::to_string(&loss).unwrap());
    assert_eq!(names, ["\"hinge\"", "\"vanilla\"", "\"non-saturating\""]);
}
