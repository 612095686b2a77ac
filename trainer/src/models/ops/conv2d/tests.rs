use std::ops::Range;

use burn::backend::{Autodiff, AutodiffBackend, Flex};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, TensorData};
use burn_flex::FlexTensor;

use super::operation::Conv2dBackend;
use super::*;
use crate::device::tested;
use crate::models::ops::testing::{deviations, precisions, read, scattered, with_channels_last};

type Place<'a> = (&'a Device, DType);

const SAMPLES: usize = 3;

const fn case(
    [inputs, outputs]: [usize; 2],
    image: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    padding: [[usize; 2]; 2],
) -> Geometry {
    Geometry { inputs, outputs, image, kernel, stride: [stride; 2], padding }
}

/// The kernels, strides and paddings of all networks, with channels and pixels that are no multiples of a vector.
const CASES: [Geometry; 14] = [
    case([5, 16], [9, 7], [3, 3], 1, [[1; 2]; 2]),
    case([32, 40], [9, 8], [3, 3], 2, [[0, 1], [0, 1]]),
    case([1, 1], [1, 1], [3, 3], 1, [[1; 2]; 2]),
    case([40, 33], [5, 7], [1, 1], 1, [[0; 2]; 2]),
    case([96, 3], [6, 4], [3, 3], 1, [[1, 0], [2, 1]]),
    case([64, 96], [7, 5], [3, 3], 1, [[1; 2]; 2]),
    case([16, 32], [6, 1], [3, 3], 1, [[1; 2]; 2]),
    case([33, 5], [11, 6], [4, 4], 2, [[1; 2]; 2]),
    case([5, 1], [6, 5], [4, 4], 1, [[1; 2]; 2]),
    case([5, 3], [13, 9], [7, 7], 2, [[3; 2]; 2]),
    case([3, 64], [35, 31], [11, 11], 4, [[2; 2]; 2]),
    case([3, 5], [35, 32], [16, 16], 16, [[0; 2]; 2]),
    case([1, 1], [12, 17], [1, 11], 1, [[0; 2]; 2]),
    case([40, 16], [4, 9], [1, 1], 2, [[0; 2]; 2]),
];

/// All cases on the CPU. On a GPU they run Burn's kernels, and each case is tuned for seconds: one of each padding there.
fn cases(device: &Device) -> &'static [Geometry] {
    if *device == Device::flex() { &CASES } else { &CASES[..2] }
}

fn own(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    layer.forward(x)
}

fn burns_own(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    let padding = layer.padding.map(|[before, after]| (before, after));
    let options = ConvOptions::new_with_padding(layer.stride, padding, [1, 1], 1);
    burn::tensor::module::conv2d(x, layer.weight.val(), layer.bias.as_ref().map(Param::val), options)
}

fn layer(case: Geometry, place: Place) -> Conv2d {
    let [height, width] = case.kernel;
    let weight = scattered(1, [case.outputs, case.inputs, height, width], place);
    let bias = scattered(2, [case.outputs], place);
    let (weight, bias) = (Param::from_tensor(weight), Some(Param::from_tensor(bias)));
    Conv2d { weight, bias, stride: case.stride, padding: case.padding }
}

/// The input, and what multiplies the output.
fn input(case: Geometry, place: Place) -> [Tensor<4>; 2] {
    let ([h, w], [out_h, out_w]) = (case.image, case.output().unwrap());
    [(3, [SAMPLES, case.inputs, h, w]), (4, [SAMPLES, case.outputs, out_h, out_w])]
        .map(|(seed, shape)| scattered(seed, shape, place))
}

/// Returns the output for some of the samples and the gradients at the input, the weight and the bias.
fn run(
    case: Geometry,
    (device, dtype): Place,
    samples: Range<usize>,
    forward: impl Fn(&Conv2d, Tensor<4>) -> Tensor<4>,
) -> [Vec<f64>; 4] {
    let place = (&device.clone().autodiff(), dtype);
    let layer = layer(case, place);
    let [x, upstream] = input(case, place).map(|all| all.slice([samples.clone()]));
    let x = x.detach().require_grad();
    let y = forward(&layer, x.clone());
    let gradients = (y.clone() * upstream).sum().backward();
    let of_bias = layer.bias.as_ref().unwrap().val().grad(&gradients).unwrap();
    let [of_x, of_weight] = [x, layer.weight.val()].map(|leaf| read(leaf.grad(&gradients).unwrap()));
    [read(y), of_x, of_weight, read(of_bias)]
}

#[test]
fn values_and_gradients_are_those_of_burns_own_convolution() {
    let device = tested();
    // Burn's kernels for GPUs round sums in between: up to 2.2e-3 on wgpu:cpu.
    let half = if device == Device::flex() { 1e-3 } else { 5e-3 };
    let of_each = [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, half), (DType::BF16, 5e-3)];
    for (index, &case) in cases(&device).iter().enumerate() {
        let exact = run(case, (&Device::flex(), DType::F64), 0..SAMPLES, burns_own);
        for (dtype, most) in precisions(of_each, &device) {
            let found = deviations(&run(case, (&device, dtype), 0..SAMPLES, own), &exact);
            println!("{index}, {dtype:?}: {found:?}");
            assert!(found.iter().all(|deviation| *deviation < most), "{case:?}, {dtype:?}: {found:?}");
        }
    }
}

/// A convolution is linear in each of its inputs, so the difference of any step is the gradient times the step.
#[test]
fn gradients_are_finite_differences() {
    let place = (&Device::flex(), DType::F64);
    for case in CASES {
        let [x, upstream] = input(case, place);
        let plain = layer(case, place);
        let [_, at_x, at_weight, at_bias] = run(case, place, 0..SAMPLES, own);
        let loss = |layer: &Conv2d, x: &Tensor<4>| read((own(layer, x.clone()) * upstream.clone()).sum())[0];
        let before = loss(&plain, &x);
        let check = |difference: f64, gradient: &[f64], step: Vec<f64>| {
            let expected: f64 = gradient.iter().zip(step).map(|(gradient, step)| gradient * step).sum();
            assert!((difference - expected).abs() < 1e-12 * before.abs().max(1e3), "{case:?}");
        };
        let step = scattered(5, x.dims(), place);
        check(loss(&plain, &(x.clone() + step.clone())) - before, &at_x, read(step));
        let step = scattered(6, plain.weight.dims(), place);
        let moved = Conv2d { weight: plain.weight.clone().map(|weight| weight + step.clone()), ..plain.clone() };
        check(loss(&moved, &x) - before, &at_weight, read(step));
        let step = scattered(7, [case.outputs], place);
        let bias = plain.bias.clone().map(|bias| bias.map(|bias| bias + step.clone()));
        check(loss(&Conv2d { bias, ..plain.clone() }, &x) - before, &at_bias, read(step));
    }
}

/// On the CPU only: on a GPU the number of samples is among what autotune chooses a kernel by.
#[test]
fn a_sample_gives_the_same_alone_and_in_a_batch() {
    let device = Device::flex();
    for (case, dtype) in CASES.into_iter().flat_map(|case| [(case, DType::F32), (case, DType::F16)]) {
        let [output, at_x, ..] = run(case, (&device, dtype), 0..SAMPLES, own);
        let alone = [0, 1, 2].map(|i| run(case, (&device, dtype), i..i + 1, own));
        assert_eq!(alone.each_ref().map(|alone| alone[0].clone()).concat(), output, "{case:?}, {dtype:?}");
        assert_eq!(alone.each_ref().map(|alone| alone[1].clone()).concat(), at_x, "{case:?}, {dtype:?}");
    }
}

#[test]
fn a_graph_does_not_change_the_output() {
    let device = tested();
    for (dtype, _) in precisions([DType::F64, DType::F32, DType::F16, DType::BF16].map(|dtype| (dtype, 0.0)), &device) {
        for &case in cases(&device) {
            let [output, ..] = run(case, (&device, dtype), 0..SAMPLES, own);
            let [x, _] = input(case, (&device, dtype));
            assert_eq!(read(layer(case, (&device, dtype)).forward(x)), output, "{case:?}, {dtype:?}");
        }
    }
}

#[test]
fn the_order_of_the_elements_in_memory_does_not_matter() {
    let device = tested();
    for &case in cases(&device) {
        let turned = |layer: &Conv2d, x: Tensor<4>| with_channels_last(layer.forward(with_channels_last(x)));
        let place = (&device, DType::F32);
        let (turned, plain) = (run(case, place, 0..SAMPLES, turned), run(case, place, 0..SAMPLES, own));
        assert_eq!(turned, plain, "{case:?}");
    }
}

#[test]
fn a_frozen_convolution_passes_the_gradient_on() {
    let place = (&tested().autodiff(), DType::F32);
    let layer = layer(CASES[0], place).no_grad();
    let [x, _] = input(CASES[0], place).map(Tensor::require_grad);
    let gradients = layer.forward(x.clone()).square().sum().backward();
    assert!(x.grad(&gradients).is_some() && layer.weight.val().grad(&gradients).is_none());
}

#[test]
fn a_graph_keeps_only_what_its_gradients_need() {
    type Graph = Autodiff<Flex>;
    let geometry = case([2, 1], [3, 3], [3, 3], 1, [[1; 2]; 2]);
    for tracked in [[false, false], [false, true], [true, false], [true, true]] {
        let data = [[1, 2, 3, 3]; 2].map(|shape| FlexTensor::from_data(TensorData::new(vec![1.0_f32; 18], shape)));
        let [x, weight] = [0, 1].map(|i| {
            let leaf = Graph::from_inner(data[i].clone());
            if tracked[i] { leaf.require_grad() } else { leaf }
        });
        let output = Graph::convolution(x, weight, geometry);
        let kept = data.map(|data| !data.is_unique());
        assert_eq!(kept, [tracked[1], tracked[0]]);
        drop(output);
    }
}

#[test]
fn a_weight_gradient_of_two_outputs_side_by_side_is_both_gradients() {
    let device = tested();
    let place = (&device, DType::F32);
    for &case in cases(&device) {
        let layer = Conv2d { bias: None, ..layer(case, place) };
        let [x, upstream] = input(case, place);
        let both = Tensor::cat(vec![upstream.clone(), upstream * 2.0], 1);
        let [_, _, expected, _] = run(case, place, 0..SAMPLES, own);
        let twice = expected.iter().map(|value| value * 2.0).collect();
        let found = read(layer.weight_gradient(x, both));
        let [deviation] = deviations(&[found], &[[expected, twice].concat()]);
        assert!(deviation < 1e-5, "{case:?}: {deviation}");
    }
}

#[test]
fn without_a_bias_it_is_that_with_a_bias_of_zeros() {
    let device = tested();
    let place = (&device, DType::F32);
    let case = CASES[0];
    let [x, _] = input(case, place);
    let layer = layer(case, place);
    let zeros = Some(Param::from_tensor(Tensor::zeros([case.outputs], &device)));
    let [without, with] = [None, zeros].map(|bias| read(Conv2d { bias, ..layer.clone() }.forward(x.clone())));
    assert_eq!(without, with);
}
