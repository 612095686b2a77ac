//! Images as a VQGAN has them to images as CLIP wants them: resized, cropped, normalised; differentiable throughout.
//!
//! Unlike CLIP's own preprocessing there is no rounding to 8 bits and no clipping in between.

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::ClipArchitecture;

use crate::models::blocks::statistics_dtype;

/// Keys' cubic convolution kernel (1981) with the slope that PIL, and torch's antialiased `interpolate`, take.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Antialiased bicubic resampling of a part of an axis, as a matrix `[output, input]`, row after row.
///
/// `window` is the part's start and length in pixels of the input and must lie on the axis, not necessarily on whole
/// pixels. Pixels beside the window contribute as far as the kernel reaches; beyond the axis there are none, and the
/// rest of the row is scaled to a sum of 1. For the whole axis this is what PIL's `resize` and torch's
/// `interpolate(mode="bicubic", antialias=True)` compute.
pub fn resample_weights(input: usize, window: (f64, f64), output: usize) -> Vec<f64> {
    let (start, length) = window;
    let scale = length / output as f64;
    // A coarser output has a wider kernel, a finer one interpolates.
    let stretch = scale.max(1.0);
    let reach = 2.0 * stretch;
    let mut matrix = vec![0.0; output * input];
    for (index, row) in matrix.chunks_exact_mut(input.max(1)).enumerate() {
        let centre = start + scale * (index as f64 + 0.5);
        // Casts of negative numbers end at 0.
        let first = (centre - reach + 0.5) as usize;
        let last = ((centre + reach + 0.5) as usize).min(input);
        let mut sum = 0.0;
        for (pixel, weight) in row.iter_mut().enumerate().take(last).skip(first) {
            *weight = cubic((pixel as f64 + 0.5 - centre) / stretch);
            sum += *weight;
        }
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    matrix
}

/// The part of an axis of `side` pixels that lands in the central `size` pixels, when the image's shorter side
/// `shorter` becomes `size`.
///
/// Rounds as torchvision's `Resize` and `CenterCrop` do: the resized side down, the crop's offset to the even number.
fn central_window(side: usize, shorter: usize, size: usize) -> (f64, f64) {
    let resized = (size * side / shorter) as f64;
    let scale = side as f64 / resized;
    let offset = ((resized - size as f64) / 2.0).round_ties_even();
    (offset * scale, size as f64 * scale)
}

/// Images `[N, C, H, W]` to `[N, C, size, size]`: the shorter side to `size` by antialiased bicubic resampling, and the
/// centre of the longer one.
///
/// Computes in f32 at least and gives back the images' own type. Values can overshoot the range of the input.
pub fn resize(images: Tensor<4>, size: usize) -> Tensor<4> {
    let [n, c, height, width] = images.dims();
    if (height, width) == (size, size) {
        return images;
    }
    let dtype = images.dtype();
    let wide = statistics_dtype(dtype);
    let matrix = |side: usize| {
        let weights = resample_weights(side, central_window(side, height.min(width), size), size);
        host_matrix(weights, [size, side], &images.device(), wide)
    };
    let (rows, columns) = (matrix(height), matrix(width));
    let narrowed = images.cast(wide).reshape([n * c * height, width]).matmul(columns.transpose());
    let resized = rows.unsqueeze::<3>().matmul(narrowed.reshape([n * c, height, size]));
    resized.reshape([n, c, size, size]).cast(dtype)
}

fn host_matrix(values: Vec<f64>, shape: [usize; 2], device: &Device, dtype: DType) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (device, dtype))
}

/// Images `[N, 3, H, W]` in -1..1 to CLIP's values: `((x + 1) / 2 - mean) / deviation` per channel.
pub fn to_clip(images: Tensor<4>, mean: [f64; 3], deviation: [f64; 3]) -> Tensor<4> {
    let per_channel = |values: [f64; 3]| {
        let data = TensorData::new(values.to_vec(), [1, 3, 1, 1]);
        Tensor::<4>::from_data(data, (&images.device(), images.dtype()))
    };
    let scale = per_channel(deviation.map(|deviation| 0.5 / deviation));
    let shift = per_channel(std::array::from_fn(|channel| (0.5 - mean[channel]) / deviation[channel]));
    images * scale + shift
}

/// Images `[N, 3, H, W]` in -1..1 to what a model's image tower takes, `[N, 3, S, S]`.
pub fn preprocess(images: Tensor<4>, architecture: &ClipArchitecture) -> Tensor<4> {
    to_clip(resize(images, architecture.image_size), architecture.mean, architecture.deviation)
}
