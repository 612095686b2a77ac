use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::WeightsFile;

use super::*;
use crate::losses::{GanLoss, adaptive_weight};
use crate::models::tests::{check_gradient, test_images};
use crate::models::weights::{param_id, state_dict};

const NORMS: [(DiscriminatorNorm, &str); 2] =
    [(DiscriminatorNorm::Batch, "batch"), (DiscriminatorNorm::Group, "group")];

struct Fixture {
    file: WeightsFile,
    state: StateDict,
    config: PatchGanConfig,
}

impl Fixture {
    fn open(norm: DiscriminatorNorm) -> Self {
        let name = NORMS.iter().find(|(other, _)| *other == norm).unwrap().1;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/losses");
        let file = WeightsFile::open(format!("{folder}/patchgan-{name}.safetensors")).unwrap();
        let weights = file.names().filter(|name| name.starts_with("main."));
        let state = weights.map(|name| (name.to_owned(), file.read(name).unwrap())).collect();
        Self { config: PatchGanConfig { channels: 4, layers: 3, norm }, file, state }
    }

    fn model(&self, dtype: DType) -> PatchGan {
        PatchGan::read(&WeightReader::new(&self.state, &Device::flex().autodiff(), dtype), &self.config).unwrap()
    }

    fn expected(&self, name: &str) -> Vec<f64> {
        self.file.read(name).unwrap().to_f32().into_iter().map(f64::from).collect()
    }

    fn tensor(&self, name: &str, dtype: DType) -> Tensor<4> {
        let host = self.file.read(name).unwrap();
        Tensor::from_data(TensorData::new(host.to_f32(), host.shape), (&Device::flex(), dtype))
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.without_autodiff().cast(DType::F64).into_data().try_into_vec().unwrap()
}

/// `|a - b| / |b|`.
fn deviation(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn assert_near(what: &str, found: &[f64], expected: &[f64], most: f64) {
    let deviation = deviation(found, expected);
    println!("{what}: {deviation:.1e}");
    assert!(deviation < most, "{what}: {deviation}");
}

#[test]
fn a_step_of_the_discriminator_is_tamings() {
    for (norm, of) in NORMS {
        let fixture = Fixture::open(norm);
        let [real, fake] = ["real", "fake"].map(|name| fixture.tensor(name, DType::F32).autodiff());
        for (loss, name) in [(GanLoss::Hinge, "hinge"), (GanLoss::Vanilla, "vanilla")] {
            let model = fixture.model(DType::F32);
            let (logits_real, seen_real) = model.forward_with_statistics(real.clone());
            let (logits_fake, seen_fake) = model.forward_with_statistics(fake.clone());
            assert_near("logits", &values(logits_real.clone()), &fixture.expected("logits_real"), 1e-5);
            assert_near("logits", &values(logits_fake.clone()), &fixture.expected("logits_fake"), 1e-5);
            let value = loss.discriminator(logits_real, logits_fake).mean();
            assert_near(name, &values(value.clone()), &fixture.expected(name), 1e-5);

            let gradients = GradientsParams::from_module(&mut value.backward(), &model);
            for (parameter, tensor) in &fixture.state {
                let id = param_id(parameter);
                let gradient = match tensor.shape.len() {
                    1 => gradients.get::<1>(id).map(values),
                    _ => gradients.get::<4>(id).map(values),
                };
                if parameter.contains("running") {
                    assert!(gradient.is_none(), "{parameter}");
                    continue;
                }
                let expected = fixture.expected(&format!("grad.{name}.{parameter}"));
                assert_near(&format!("{of} {name} {parameter}"), &gradient.unwrap(), &expected, 1e-4);
            }

            let after = state_dict(&model.with_statistics(seen_real).with_statistics(seen_fake)).unwrap();
            for (parameter, tensor) in after.iter().filter(|(parameter, _)| parameter.contains("running")) {
                let found: Vec<f64> = tensor.to_f32().into_iter().map(f64::from).collect();
                assert_near(parameter, &found, &fixture.expected(&format!("after.{parameter}")), 1e-5);
            }
        }
    }
}

#[test]
fn a_step_of_the_generator_is_tamings() {
    for (norm, of) in NORMS {
        let fixture = Fixture::open(norm);
        let model = fixture.model(DType::F32);
        let fake = fixture.tensor("fake", DType::F32).autodiff().require_grad();
        let value = GanLoss::Hinge.generator(model.forward(fake.clone())).mean();
        assert_near(of, &values(value.clone()), &fixture.expected("generator"), 1e-5);
        let gradient = fake.grad_remove(&mut value.backward()).unwrap();
        assert_near(of, &values(gradient.clone()), &fixture.expected("grad.fake"), 1e-4);
        let weight = adaptive_weight(fixture.tensor("grad.pixel", DType::F32), gradient);
        assert_near(of, &values(weight), &fixture.expected("adaptive_weight"), 1e-4);
        let evaluated = model.evaluate(fixture.tensor("real", DType::F32).autodiff());
        assert_near(of, &values(evaluated), &fixture.expected("evaluated"), 1e-5);
    }
}

#[test]
fn half_precision_is_near() {
    for (norm, name) in NORMS {
        let fixture = Fixture::open(norm);
        for (dtype, most) in [(DType::F16, 5e-3), (DType::BF16, 5e-2)] {
            let logits = fixture.model(dtype).forward(fixture.tensor("real", dtype).autodiff());
            assert_near(&format!("{name} {dtype:?}"), &values(logits), &fixture.expected("logits_real"), most);
        }
    }
}

#[test]
fn gradients_at_the_image_are_those_of_finite_differences() {
    for (norm, _) in NORMS {
        let fixture = Fixture::open(norm);
        let (model, images) = (fixture.model(DType::F64), test_images(2, 32, 26));
        for loss in [GanLoss::Hinge, GanLoss::NonSaturating] {
            let pixels = (0..5).map(|i| i * 997 + 3);
            check_gradient(|x| loss.generator(model.forward(x)), &images, pixels, 1e-6);
        }
        check_gradient(|x| GanLoss::Vanilla.of_fake(model.evaluate(x)), &images, [5, 3000], 1e-6);
    }
}

#[test]
fn a_sample_does_not_see_the_others_unless_batch_norm_shows_it() {
    let images = test_images(3, 32, 32);
    let deviation_alone = |logits: &dyn Fn(Tensor<4>) -> Tensor<4>| {
        let alone = (0..3).map(|i| values(logits(images.clone().slice(i..i + 1).autodiff())));
        deviation(&alone.collect::<Vec<_>>().concat(), &values(logits(images.clone().autodiff())))
    };
    let group = Fixture::open(DiscriminatorNorm::Group).model(DType::F64);
    assert!(deviation_alone(&|x| group.forward(x)) < 1e-12);
    let batch = Fixture::open(DiscriminatorNorm::Batch).model(DType::F64);
    assert!(deviation_alone(&|x| batch.evaluate(x)) < 1e-12);
    assert!(deviation_alone(&|x| batch.forward(x)) > 1e-3);
}

#[test]
fn parameters_have_the_names_they_were_read_by() {
    for (norm, _) in NORMS {
        let fixture = Fixture::open(norm);
        let saved = state_dict(&fixture.model(DType::F32)).unwrap();
        assert_eq!(saved.keys().collect::<Vec<_>>(), fixture.state.keys().collect::<Vec<_>>());
        assert!(saved.iter().all(|(name, tensor)| tensor.to_f32() == fixture.state[name].to_f32()));
    }
}

/// An optimizer does not see them, even after a change to evaluation mode and back or after an update.
#[test]
fn running_statistics_are_never_trained() {
    let fixture = Fixture::open(DiscriminatorNorm::Batch);
    let images = test_images(2, 32, 32).cast(DType::F32).autodiff();
    let model = fixture.model(DType::F32).valid().train();
    let (_, seen) = model.forward_with_statistics(images.clone());
    let model = model.with_statistics(seen);
    let loss = model.forward(images.clone()).mean() + model.evaluate(images).mean();
    let gradients = GradientsParams::from_module(&mut loss.backward(), &model);
    assert!(gradients.get::<1>(param_id("main.3.weight")).is_some());
    for name in ["running_mean", "running_var"] {
        assert!(gradients.get::<1>(param_id(&format!("main.3.{name}"))).is_none(), "{name}");
    }
}

#[test]
fn what_weights_belong_to_is_seen_from_them() {
    for (norm, _) in NORMS {
        let fixture = Fixture::open(norm);
        assert_eq!(PatchGanConfig::of(&fixture.state).unwrap(), fixture.config);
        for layers in 1..=5 {
            let config = PatchGanConfig { channels: 6, layers, norm };
            let state = PatchGan::random_weights(&config, 0);
            assert_eq!(PatchGanConfig::of(&state).unwrap(), config);
            let device = Device::flex();
            let model = PatchGan::read(&WeightReader::new(&state, &device, DType::F32), &config).unwrap();
            assert_eq!(state_dict(&model).unwrap(), state);
            let side = config.smallest_input();
            let logits = model.forward(test_images(2, side, side).cast(DType::F32));
            assert_eq!(logits.dims(), [2, 1, 1, 1], "{layers} layers");
        }
    }
}

#[test]
fn wrong_weights_are_refused_by_name() {
    let fixture = Fixture::open(DiscriminatorNorm::Group);
    let error = |state: &StateDict, config: &PatchGanConfig| {
        let device = Device::flex();
        PatchGan::read(&WeightReader::new(state, &device, DType::F32), config).unwrap_err().to_string()
    };
    let wide = PatchGanConfig { channels: 8, ..fixture.config.clone() };
    assert_eq!(error(&fixture.state, &wide), "`main.0.weight` has shape [4, 3, 4, 4], must be [8, 3, 4, 4]");
    let mut state = fixture.state.clone();
    state.insert("main.3.bias".into(), HostTensor::from_f32([7], &[0.0; 7]));
    assert_eq!(error(&state, &fixture.config), "`main.3.bias` has shape [7], must be [8]");
    state.remove("main.3.weight");
    assert_eq!(error(&state, &fixture.config), "the weights lack `main.3.weight`");
    assert!(PatchGanConfig::of(&StateDict::new()).is_err());
}

#[test]
fn random_weights_are_tamings() {
    let config = PatchGanConfig { channels: 64, layers: 3, norm: DiscriminatorNorm::Batch };
    let state = PatchGan::random_weights(&config, 7);
    assert_eq!(state, PatchGan::random_weights(&config, 7));
    assert_ne!(state, PatchGan::random_weights(&config, 8));
    let moments = |name: &str| {
        let values: Vec<f64> = state[name].to_f32().into_iter().map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    };
    // Two million values: the bounds are five standard errors.
    let (mean, deviation) = moments("main.8.weight");
    assert!(mean.abs() < 7e-5 && (deviation - 0.02).abs() < 5e-5, "{mean} {deviation}");
    let (mean, deviation) = moments("main.9.weight");
    assert!((mean - 1.0).abs() < 5e-3 && (deviation - 0.02).abs() < 4e-3, "{mean} {deviation}");
    let bound = (1.0_f32 / 48.0).sqrt();
    let largest = state["main.0.bias"].to_f32().into_iter().map(f32::abs).fold(0.0, f32::max);
    assert!(largest <= bound && largest > 0.8 * bound, "{largest}");
    assert!(state["main.9.running_var"].to_f32().iter().all(|v| *v == 1.0));
    assert!(!state.contains_key("main.8.bias"));
}

#[test]
fn groups_divide_the_channels() {
    assert_eq!([64, 128, 256, 512].map(groups), [16, 32, 32, 32]);
    assert_eq!([6, 8, 12, 16, 48, 96].map(groups), [1, 2, 1, 4, 4, 8]);
    assert!((1..=512).all(|channels| channels % groups(channels) == 0));
}
