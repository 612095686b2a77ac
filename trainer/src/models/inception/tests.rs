use burn::tensor::TensorData;
use checkpoints::{HostTensor, WeightsFile};

use super::*;
use crate::models::lpips::tests::formula;

fn fixture() -> WeightsFile {
    WeightsFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/inception/expected.safetensors")).unwrap()
}

/// A tensor of the fixture, in its order.
pub(crate) fn expected(name: &str) -> Vec<f32> {
    fixture().read(name).unwrap().to_f32()
}

/// Adds the weights of `plans` below `prefix` by the formulas of `make_inception.py`; returns the channels of the output.
fn put(state: &mut StateDict, prefix: &str, plans: &[Plan], mut channels: usize) -> usize {
    for plan in plans {
        match plan {
            Plan::AveragePool | Plan::MaxPool { .. } => {}
            Plan::Convolution { name, outputs, kernel, .. } => {
                let mut put = |name: String, shape: &[usize], scale: f64, shift: f64| {
                    let values = formula(&name, shape.iter().product());
                    let values: Vec<f32> = values.into_iter().map(|value| (shift + scale * value) as f32).collect();
                    state.insert(name, HostTensor::from_f32(shape, &values));
                };
                let shape = [*outputs, channels, kernel[0], kernel[1]];
                let fan_in = shape[1..].iter().product::<usize>() as f64;
                put(format!("{prefix}{name}.conv.weight"), &shape, (6.0 / fan_in).sqrt(), 0.0);
                for (kind, scale, shift) in
                    [("weight", 0.2, 1.0), ("bias", 0.1, 0.0), ("running_mean", 0.1, 0.0), ("running_var", 0.5, 1.0)]
                {
                    put(format!("{prefix}{name}.bn.{kind}"), &[*outputs], scale, shift);
                }
                channels = *outputs;
            }
            Plan::Block { name, branches } => {
                let prefix = if name.is_empty() { prefix.to_owned() } else { format!("{prefix}{name}.") };
                channels = branches.iter().map(|branch| put(state, &prefix, branch, channels)).sum();
            }
        }
    }
    channels
}

/// The network of the fixture.
pub(crate) fn weights() -> StateDict {
    let mut state = StateDict::new();
    assert_eq!(put(&mut state, "", &network(), 3), FEATURES);
    for (name, shape) in [("fc.weight", &[CLASSES, FEATURES][..]), ("fc.bias", &[CLASSES])] {
        let values = formula(name, shape.iter().product());
        let values: Vec<f32> = values.into_iter().map(|value| (0.1 * value) as f32).collect();
        state.insert(name.to_owned(), HostTensor::from_f32(shape, &values));
    }
    state
}

/// The images of the fixture, `[N, 3, H, W]` in -1..1.
pub(crate) fn images(name: &str, [count, height, width]: [usize; 3]) -> Tensor<4> {
    let noise = formula(name, count * 3 * height * width);
    let light = formula(&format!("{name}.light"), count * 3);
    let contrast = formula(&format!("{name}.contrast"), count);
    let level = |(at, noise): (usize, &f64)| {
        let (row, channel) = (at / width % height, at / (height * width));
        let slope = 1.0 - 2.0 * row as f64 / (height - 1) as f64;
        let contrast = 0.2 + 0.8 * contrast[channel / 3].abs();
        let level = 127.5 + 60.0 * light[channel] + 40.0 * contrast * noise + 25.0 * slope;
        (level.round_ties_even().clamp(0.0, 255.0) / 127.5 - 1.0) as f32
    };
    let levels: Vec<f32> = noise.iter().enumerate().map(level).collect();
    Tensor::from_data(TensorData::new(levels, [count, 3, height, width]), (&Device::flex(), DType::F32))
}

fn assert_near(found: Tensor<2>, expected: &[f32], what: &str) {
    let found = found.try_into_vec_as::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    let relative = norm(&difference) / norm(expected);
    assert!(relative < 1e-4, "{what}: {relative}");
}

#[test]
fn features_and_logits_are_those_of_the_packages() {
    let (state, device) = (weights(), Device::flex());
    for (package, name) in [(FidPackage::TorchFidelity, "torch-fidelity"), (FidPackage::PytorchFid, "pytorch-fid")] {
        assert_eq!(package.to_string(), name);
        let network = Inception::read(&state, &device, package).unwrap();
        let small = network.forward(images("small", [24, 40, 48]).narrow(0, 0, 4));
        assert_near(small.features, &expected(&format!("small.{name}")), name);
        if package == FidPackage::TorchFidelity {
            assert_near(small.logits, &expected("small.logits"), "logits");
        }
        let large = network.forward(images("large", [1, 320, 308]));
        assert_near(large.features, &expected(&format!("large.{name}")), name);
    }
}

#[test]
fn a_weight_that_is_missing_is_named() {
    let mut state = weights();
    state.remove("Mixed_7c.branch3x3_2b.bn.running_var");
    let error = Inception::read(&state, &Device::flex(), FidPackage::default()).unwrap_err();
    assert!(matches!(error, ModelError::Missing(name) if name == "Mixed_7c.branch3x3_2b.bn.running_var"));
}
