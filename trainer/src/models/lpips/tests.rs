use std::sync::LazyLock;

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::{HostTensor, LpipsNetwork, WeightsFile};

use super::{Lpips, Plan, alexnet, vgg16};
use crate::models::tests::{check_gradient, test_images};
use crate::models::weights::{StateDict, WeightReader, fnv1a};

const NETWORKS: [(LpipsNetwork, &str); 2] = [(LpipsNetwork::Vgg16, "vgg"), (LpipsNetwork::AlexNet, "alex")];

/// Keeps the gradient from vanishing in f16; a power of two, so that it changes nothing in other types.
const LOSS_SCALE: f64 = 1024.0;

/// Values in -1..1 by name and index, as in `make_losses.py`: splitmix64, 24 bits each.
pub(crate) fn formula(name: &str, len: usize) -> Vec<f64> {
    let key = fnv1a(name.bytes());
    let value = |index: usize| {
        let mut x = key.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        (x >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (0..len).map(value).collect()
}

fn state(plans: Vec<Plan>) -> StateDict {
    let mut state = StateDict::new();
    let mut put = |name: String, shape: &[usize], scale: f64, shift: f64| {
        let values = formula(&name, shape.iter().product());
        let values: Vec<f32> = values.into_iter().map(|value| (value * scale + shift) as f32).collect();
        state.insert(name, HostTensor::from_f32(shape, &values));
    };
    let mut inputs = 3;
    for (stage, (_, convolutions)) in plans.into_iter().enumerate() {
        for convolution in convolutions {
            let fan_in = inputs * convolution.kernel * convolution.kernel;
            let shape = [convolution.channels, inputs, convolution.kernel, convolution.kernel];
            put(format!("features.{}.weight", convolution.index), &shape, (6.0 / fan_in as f64).sqrt(), 0.0);
            put(format!("features.{}.bias", convolution.index), &shape[..1], 0.1, 0.0);
            inputs = convolution.channels;
        }
        put(format!("lin{stage}.weight"), &[1, inputs, 1, 1], 0.5, 0.5);
    }
    state
}

static VGG16: LazyLock<StateDict> = LazyLock::new(|| state(vgg16()));
static ALEXNET: LazyLock<StateDict> = LazyLock::new(|| state(alexnet()));

/// The weights of the fixtures.
pub(crate) fn weights(network: LpipsNetwork) -> &'static StateDict {
    match network {
        LpipsNetwork::Vgg16 => &VGG16,
        LpipsNetwork::AlexNet => &ALEXNET,
    }
}

/// Reads the network frozen, on the CPU with autodiff.
pub(crate) fn read(network: LpipsNetwork, dtype: DType) -> Lpips {
    let device = Device::flex().autodiff();
    Lpips::read(&WeightReader::frozen(weights(network), &device, dtype), network).unwrap()
}

fn fixture() -> WeightsFile {
    WeightsFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/losses/lpips.safetensors")).unwrap()
}

fn tensor(file: &WeightsFile, name: &str, dtype: DType) -> Tensor<4> {
    let host = file.read(name).unwrap();
    Tensor::from_data(TensorData::new(host.to_f32(), host.shape), (&Device::flex(), dtype))
}

/// Returns the distances, and the gradient of their sum at the reconstruction; all without autodiff.
fn compare(network: &Lpips, original: Tensor<4>, reconstruction: Tensor<4>) -> (Vec<f64>, Vec<f64>) {
    let leaf = reconstruction.autodiff().require_grad();
    let distance = network.distance(network.features(original.autodiff()), leaf.clone());
    let values = distance.clone().without_autodiff().cast(DType::F64).into_data().try_into_vec().unwrap();
    let gradient = leaf.grad_remove(&mut (distance.sum() * LOSS_SCALE).backward()).unwrap();
    (values, (gradient.cast(DType::F64) / LOSS_SCALE).into_data().try_into_vec().unwrap())
}

/// `|a - b| / |b|`.
fn deviation(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Returns the deviations of value and gradient from the fixtures, the worst of all sizes.
fn deviations(network: LpipsNetwork, name: &str, dtype: DType) -> (f64, f64) {
    let (file, model) = (fixture(), read(network, dtype));
    let expected = |name: String| file.read(&name).unwrap().to_f32().into_iter().map(f64::from).collect::<Vec<_>>();
    let of_size = |size| {
        let image = |which| tensor(&file, &format!("{size}.{which}"), dtype);
        let (distance, gradient) = compare(&model, image("original"), image("reconstruction"));
        let distance = deviation(&distance, &expected(format!("{size}.{name}.distance")));
        let gradient = deviation(&gradient, &expected(format!("{size}.{name}.gradient")));
        println!("{name} {size} {dtype:?}: distance {distance:.1e}, gradient {gradient:.1e}");
        (distance, gradient)
    };
    ["32x32", "44x31"].into_iter().map(of_size).fold((0.0, 0.0), |a: (f64, f64), b| (a.0.max(b.0), a.1.max(b.1)))
}

#[test]
fn distance_and_gradient_are_those_of_the_package() {
    for (network, name) in NETWORKS {
        let (distance, gradient) = deviations(network, name, DType::F32);
        assert!(distance < 1e-5 && gradient < 1e-4, "{name}: distance {distance}, gradient {gradient}");
    }
}

#[test]
fn half_precision_is_near() {
    // PyTorch rounds likewise and deviates by up to 3e-4 and 5e-2 in f16, and by 2e-3 and 1.7e-1 in bf16: the two
    // images are similar, so the difference of their features has few significant bits.
    for (network, name) in NETWORKS {
        for (dtype, most, most_gradient) in [(DType::F16, 1e-3, 7e-2), (DType::BF16, 6e-3, 2.5e-1)] {
            let (distance, gradient) = deviations(network, name, dtype);
            assert!(distance < most && gradient < most_gradient, "{name} {dtype:?}: {distance}, {gradient}");
        }
    }
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    for (network, _) in NETWORKS {
        let model = read(network, DType::F64);
        let side = Lpips::smallest_input(network);
        let original = test_images(2, side, side);
        let reconstruction = original.clone() * 0.8 + 0.05;
        let pixels = original.dims().iter().product::<usize>();
        let distance = |images| model.distance(model.features(original.clone().autodiff()), images);
        check_gradient(distance, &reconstruction, (0..5).map(|i| i * pixels / 5 + 17), 1e-6);
    }
}

#[test]
fn a_sample_does_not_see_the_others() {
    for (network, name) in NETWORKS {
        let model = read(network, DType::F64);
        let original = test_images(3, 32, 33);
        let reconstruction = original.clone().square() - 0.3;
        let (values, gradient) = compare(&model, original.clone(), reconstruction.clone());
        let alone: Vec<_> = (0..3)
            .map(|i| compare(&model, original.clone().slice(i..i + 1), reconstruction.clone().slice(i..i + 1)))
            .collect();
        let (value, gradients): (Vec<_>, Vec<_>) = alone.into_iter().unzip();
        assert!(deviation(&values, &value.concat()) < 1e-12, "{name}");
        assert!(deviation(&gradient, &gradients.concat()) < 1e-12, "{name}");
    }
}

#[test]
fn the_smallest_input_is_large_enough() {
    for (network, name) in NETWORKS {
        let (model, side) = (read(network, DType::F32), Lpips::smallest_input(network));
        let image = test_images(1, side, side).cast(DType::F32);
        let last = model.features(image.clone().autodiff()).last().unwrap().dims();
        assert_eq!(last[2..], [1, 1], "{name}");
        let (distance, _) = compare(&model, image.clone(), -image);
        assert!(distance[0] > 0.0, "{name}");
    }
}

/// Where a layer does not respond to an image, its features have length 0, where the slope of the length is infinite.
#[test]
fn features_of_length_zero_have_no_gradient() {
    let mut state = weights(LpipsNetwork::AlexNet).clone();
    state.insert("features.3.bias".into(), HostTensor::from_f32([192], &[-1e3; 192]));
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let device = Device::flex().autodiff();
        let model = Lpips::read(&WeightReader::frozen(&state, &device, dtype), LpipsNetwork::AlexNet).unwrap();
        let image = test_images(1, 32, 32).cast(dtype);
        let (distance, gradient) = compare(&model, image.clone(), image.clone() * 0.5);
        assert!(distance[0] > 0.0 && distance[0].is_finite(), "{dtype:?}");
        assert!(gradient.iter().all(|g| g.is_finite()) && gradient.iter().any(|g| *g != 0.0), "{dtype:?}");
        let (distance, gradient) = compare(&model, image.clone(), image);
        assert_eq!(distance, [0.0], "{dtype:?}");
        assert!(gradient.iter().all(|g| *g == 0.0), "{dtype:?}");
    }
}

#[test]
fn weights_of_another_network_are_refused_by_name() {
    let device = Device::flex();
    let read = |weights: &StateDict, network| {
        Lpips::read(&WeightReader::frozen(weights, &device, DType::F32), network).unwrap_err().to_string()
    };
    let error = read(weights(LpipsNetwork::AlexNet), LpipsNetwork::Vgg16);
    assert_eq!(error, "`features.0.weight` has shape [64, 3, 11, 11], must be [64, 3, 3, 3]");
    let mut incomplete = weights(LpipsNetwork::AlexNet).clone();
    incomplete.remove("lin4.weight");
    assert_eq!(read(&incomplete, LpipsNetwork::AlexNet), "the weights lack `lin4.weight`");
}
