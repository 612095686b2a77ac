//! Every algorithm against the definition of a convolution, in f64.

use half::{bf16, f16};
use pulp::Arch;

use super::*;

/// A convolution by its definition, output by output.
struct Definition {
    geometry: Geometry,
    x: Vec<f64>,
    weights: Vec<f64>,
    bias: Vec<f64>,
    gradient: Vec<f64>,
}

const SAMPLES: usize = 3;

/// Numbers of eight bits and eight magnitudes, which f16 and bf16 represent exactly: their sums depend on the order.
fn numbers(seed: u32, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (<f64 as From<u32>>::from(state % 255) - 127.0) / <f64 as From<u32>>::from(32_u32 << (state >> 8 & 7))
    };
    (0..count).map(|_| next()).collect()
}

impl Definition {
    fn new(geometry: Geometry) -> Self {
        let [height, width] = geometry.output().unwrap_or([0; 2]);
        let image = geometry.inputs * geometry.image[0] * geometry.image[1];
        Self {
            geometry,
            x: numbers(1, SAMPLES * image),
            weights: numbers(2, geometry.outputs * geometry.inputs * geometry.taps()),
            bias: numbers(3, geometry.outputs),
            gradient: numbers(4, SAMPLES * geometry.outputs * height * width),
        }
    }

    /// Calls `with` with the places of output, input and weight of each product.
    fn each(&self, mut with: impl FnMut(usize, usize, usize)) {
        let Geometry { inputs, outputs, image: [height, width], kernel, stride, padding } = self.geometry;
        let out = self.geometry.output().unwrap_or([0; 2]);
        for output in 0..SAMPLES * outputs * out[0] * out[1] {
            let (x, y) = (output % out[1], output / out[1] % out[0]);
            let (channel, sample) = (output / (out[0] * out[1]) % outputs, output / (out[0] * out[1] * outputs));
            for weight in 0..inputs * kernel[0] * kernel[1] {
                let (right, down) = (weight % kernel[1], weight / kernel[1] % kernel[0]);
                let from = weight / (kernel[0] * kernel[1]);
                let x = (x * stride[1] + right).wrapping_sub(padding[1][0]);
                let y = (y * stride[0] + down).wrapping_sub(padding[0][0]);
                if x < width && y < height {
                    let input = ((sample * inputs + from) * height + y) * width + x;
                    with(output, input, channel * inputs * kernel[0] * kernel[1] + weight);
                }
            }
        }
    }

    /// Output, gradient at the input, at the weights and at the bias.
    fn compute(&self) -> [Vec<f64>; 4] {
        let pixels = self.geometry.output().map_or(0, |[height, width]| height * width);
        let channel = |output: usize| output / pixels % self.geometry.outputs;
        let mut output: Vec<_> = (0..self.gradient.len()).map(|output| self.bias[channel(output)]).collect();
        let mut at = [vec![0.0; self.x.len()], vec![0.0; self.weights.len()], vec![0.0; self.bias.len()]];
        self.each(|place, input, weight| {
            output[place] += self.x[input] * self.weights[weight];
            at[0][input] += self.gradient[place] * self.weights[weight];
            at[1][weight] += self.gradient[place] * self.x[input];
        });
        for (place, gradient) in self.gradient.iter().enumerate() {
            at[2][channel(place)] += gradient;
        }
        let [x, weights, bias] = at;
        [output, x, weights, bias]
    }
}

/// Computes the same in another type, by an algorithm.
fn run<E: Element>(
    definition: &Definition,
    algorithm: (Algorithm, Arch),
    samples: std::ops::Range<usize>,
) -> [Vec<f64>; 4] {
    let narrow = |values: &[f64], sample: usize| -> Vec<E> {
        let values = if sample == 0 { values } else { &values[samples.start * sample..samples.end * sample] };
        values.iter().map(|value| E::narrow(NumCast::from(*value).unwrap_or_else(Float::nan))).collect()
    };
    let geometry = &definition.geometry;
    let x = narrow(&definition.x, definition.x.len() / SAMPLES);
    let gradient = narrow(&definition.gradient, definition.gradient.len() / SAMPLES);
    let [weights, bias] = [&definition.weights, &definition.bias].map(|values| narrow(values, 0));
    let bias = Some(&bias[..]);
    let [output, at_x, at_weights] = match algorithm {
        (Algorithm::Direct, arch) => [
            correlation::forward(arch, geometry, false, &x, &weights, bias),
            correlation::input_gradient(arch, geometry, &weights, &gradient),
            super::weight_gradient::weight_gradient(arch, geometry, &x, &gradient),
        ],
        (Algorithm::Winograd, arch) => [
            correlation::forward(arch, geometry, correlation::can_filter(geometry), &x, &weights, bias),
            winograd::input_gradient(arch, geometry, &weights, &gradient),
            winograd::weight_gradient(arch, geometry, &x, &gradient),
        ],
    };
    [output, at_x, at_weights, bias_gradient(geometry, &gradient)]
        .map(|values| values.into_iter().map(|value| value.widen().into()).collect())
}

fn deviation(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let whole = squares(&mut b.iter().copied());
    let apart = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if whole == 0.0 { apart } else { (apart / whole).sqrt() }
}

fn geometry(
    channels: [usize; 2],
    image: [usize; 2],
    kernel: usize,
    stride: usize,
    padding: [[usize; 2]; 2],
) -> Geometry {
    let [inputs, outputs] = channels;
    Geometry { inputs, outputs, image, kernel: [kernel; 2], stride: [stride; 2], padding }
}

/// What the networks have, in small, and what none has.
fn geometries() -> Vec<Geometry> {
    let around = |zeros| [[zeros; 2]; 2];
    vec![
        geometry([3, 40], [9, 13], 3, 1, around(1)),
        geometry([33, 3], [12, 8], 3, 1, around(1)),
        geometry([64, 96], [5, 70], 3, 1, around(1)),
        geometry([40, 20], [7, 6], 3, 1, around(0)),
        geometry([20, 16], [6, 7], 3, 1, [[2, 0], [1, 2]]),
        geometry([16, 16], [1, 1], 3, 1, around(1)),
        geometry([1, 1], [4, 5], 3, 1, around(1)),
        // Several blocks of channels, chunks of tiles, and bands.
        geometry([100, 2], [40, 64], 3, 1, around(1)),
        // Several tasks for channels on both sides.
        geometry([140, 100], [12, 9], 3, 1, around(1)),
        // Several bands with a stride.
        geometry([6, 5], [70, 66], 4, 2, around(1)),
        geometry([8, 12], [9, 10], 3, 2, [[0, 1], [0, 1]]),
        geometry([5, 7], [11, 9], 4, 2, around(1)),
        geometry([6, 1], [5, 6], 4, 1, around(1)),
        geometry([70, 50], [6, 5], 1, 1, around(0)),
        geometry([3, 4], [23, 27], 11, 4, around(2)),
        geometry([3, 10], [32, 48], 16, 16, around(0)),
        geometry([2, 3], [8, 9], 7, 1, around(3)),
        geometry([4, 2], [3, 3], 2, 1, around(3)),
        Geometry { kernel: [1, 3], stride: [2, 1], ..geometry([3, 2], [6, 7], 1, 1, [[0, 2], [1, 0]]) },
    ]
}

fn archs() -> Vec<Arch> {
    #[cfg(target_arch = "x86_64")]
    let other = pulp::x86::V3::try_new().map(Arch::V3);
    #[cfg(not(target_arch = "x86_64"))]
    let other = None;
    [Arch::Scalar, Arch::new()].into_iter().chain(other).collect()
}

/// All algorithms that can compute a convolution.
fn algorithms(geometry: &Geometry) -> Vec<(Algorithm, Arch)> {
    let winograd = Algorithm::winograd_can(geometry).then_some(Algorithm::Winograd);
    let both = [Algorithm::Direct].into_iter().chain(winograd);
    both.flat_map(|algorithm| archs().into_iter().map(move |arch| (algorithm, arch))).collect()
}

#[test]
fn values_and_gradients_are_those_of_the_definition() {
    for geometry in geometries() {
        let definition = Definition::new(geometry);
        let exact = definition.compute();
        let check = |name: &str, found: [Vec<f64>; 4], most: f64| {
            let apart: [f64; 4] = std::array::from_fn(|i| deviation(&found[i], &exact[i]));
            println!("{geometry:?} {name}: {apart:?}");
            assert!(apart.iter().all(|apart| *apart <= most), "{geometry:?} {name}: {apart:?}");
        };
        for arch in archs() {
            check("f64", run::<f64>(&definition, (Algorithm::Direct, arch), 0..SAMPLES), 1e-13);
        }
        for algorithm in algorithms(&geometry) {
            check("f32", run::<f32>(&definition, algorithm, 0..SAMPLES), 5e-6);
            check("f16", run::<f16>(&definition, algorithm, 0..SAMPLES), 1e-3);
            check("bf16", run::<bf16>(&definition, algorithm, 0..SAMPLES), 5e-3);
        }
    }
}

#[test]
fn neither_other_samples_nor_threads_change_a_bit() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for geometry in geometries() {
        let definition = Definition::new(geometry);
        for algorithm in algorithms(&geometry) {
            let run = |threads, samples| pool(threads).install(|| run::<f32>(&definition, algorithm, samples));
            let all = run(1, 0..SAMPLES);
            assert_eq!(all, run(3, 0..SAMPLES), "{geometry:?}");
            let alone: [_; SAMPLES] = std::array::from_fn(|sample| run(2, sample..sample + 1));
            for tensor in 0..2 {
                let together = alone.each_ref().map(|alone| alone[tensor].as_slice()).concat();
                assert_eq!(all[tensor], together, "{geometry:?}");
            }
        }
    }
}

#[test]
fn a_kernel_larger_than_the_padded_image_has_no_output() {
    assert_eq!(geometry([1, 1], [2, 9], 4, 2, [[0, 1]; 2]).output(), None);
    assert_eq!(geometry([1, 1], [3, 9], 4, 2, [[0, 1]; 2]).output(), Some([1, 4]));
}

#[test]
fn an_output_is_exact_to_rounding() {
    for geometry in geometries() {
        let definition = Definition::new(geometry);
        let exact = definition.compute();
        for algorithm in algorithms(&geometry) {
            let apart = deviation(&run::<f32>(&definition, algorithm, 0..SAMPLES)[0], &exact[0]);
            assert!(apart < 3e-7, "{geometry:?} {algorithm:?}: {apart}");
        }
    }
}

#[test]
fn whatever_is_chosen_f64_is_exact() {
    for geometry in geometries() {
        let definition = Definition::new(geometry);
        let Definition { x, weights, bias, gradient, .. } = &definition;
        let found = [
            forward(&geometry, x, weights, Some(bias)),
            input_gradient(&geometry, weights, gradient),
            super::weight_gradient(&geometry, x, gradient),
        ];
        for (found, exact) in found.iter().zip(definition.compute()) {
            let apart = deviation(found, &exact);
            assert!(apart < 1e-13, "{geometry:?}: {apart}");
        }
    }
}
