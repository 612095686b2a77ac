//! Convolutions that the f16 VQGAN, VGG16, PatchGAN and CLIP have, one image in f32. An item is a floating point operation of the
//! definition, so that GItem/s are GFLOP/s; `torch_conv.py` times the same in PyTorch.

use cpu_kernels::conv2d::{Geometry, forward, input_gradient, weight_gradient};
use divan::Bencher;
use divan::counter::ItemsCount;

/// Input and output channels, size, kernel, stride, and zeros before and after.
#[derive(Debug, Clone, Copy)]
struct Layer([usize; 5], [usize; 2]);

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self([inputs, outputs, size, kernel, stride], _) = self;
        write!(f, "{inputs} to {outputs} at {size}, {kernel}x{kernel}/{stride}")
    }
}

const LAYERS: [Layer; 15] = [
    Layer([128, 128, 256, 3, 1], [1, 1]),
    Layer([256, 256, 128, 3, 1], [1, 1]),
    Layer([256, 256, 64, 3, 1], [1, 1]),
    Layer([512, 512, 32, 3, 1], [1, 1]),
    Layer([512, 512, 16, 3, 1], [1, 1]),
    Layer([64, 64, 224, 3, 1], [1, 1]),
    Layer([128, 128, 112, 3, 1], [1, 1]),
    Layer([3, 128, 256, 3, 1], [1, 1]),
    Layer([128, 3, 256, 3, 1], [1, 1]),
    Layer([128, 128, 256, 3, 2], [0, 1]),
    Layer([512, 512, 16, 1, 1], [0, 0]),
    Layer([128, 256, 64, 1, 1], [0, 0]),
    Layer([64, 128, 128, 4, 2], [1, 1]),
    Layer([256, 512, 32, 4, 1], [1, 1]),
    Layer([3, 768, 224, 32, 32], [0, 0]),
];

struct Case {
    geometry: Geometry,
    x: Vec<f32>,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    operations: ItemsCount,
}

impl From<Layer> for Case {
    fn from(Layer([inputs, outputs, size, kernel, stride], padding): Layer) -> Self {
        let square = |value| [value; 2];
        let [image, kernel, stride] = [size, kernel, stride].map(square);
        let geometry = Geometry { inputs, outputs, image, kernel, stride, padding: [padding; 2] };
        let pixels: usize = geometry.output().unwrap_or([0; 2]).iter().product();
        let numbers = |count: usize| (0..count).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect::<Vec<_>>();
        let of_kernel = inputs * kernel[0] * kernel[1];
        Self {
            geometry,
            x: numbers(inputs * size * size),
            weights: numbers(outputs * of_kernel),
            gradient: numbers(outputs * pixels),
            operations: ItemsCount::new(2 * outputs * pixels * of_kernel),
        }
    }
}

#[divan::bench(args = LAYERS)]
fn output(bencher: Bencher, layer: Layer) {
    let case = Case::from(layer);
    bencher.counter(case.operations).bench(|| forward(&case.geometry, &case.x, &case.weights, None));
}

#[divan::bench(args = LAYERS)]
fn gradient_at_input(bencher: Bencher, layer: Layer) {
    let case = Case::from(layer);
    bencher.counter(case.operations).bench(|| input_gradient(&case.geometry, &case.weights, &case.gradient));
}

#[divan::bench(args = LAYERS)]
fn gradient_at_weights(bencher: Bencher, layer: Layer) {
    let case = Case::from(layer);
    bencher.counter(case.operations).bench(|| weight_gradient(&case.geometry, &case.x, &case.gradient));
}

fn main() {
    divan::main();
}
