//! Converts the images of a VQGAN to CLIP's input: resizes, crops and normalises them; differentiable throughout.
//!
//! Unlike CLIP's own preprocessing it does not round to 8 bits and does not clip in between.

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::ClipArchitecture;

use crate::models::blocks::statistics_dtype;

/// Keys' cubic convolution kernel (1981) with the slope that PIL and torch's antialiased `interpolate` use.
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

/// Computes antialiased bicubic resampling of a part of an axis, as a matrix `[output, input]`, row by row.
///
/// `window` is the start and length of the part, in input pixels. It must lie within the axis, but not necessarily on
/// whole pixels. Pixels outside the window contribute where the kernel reaches them. Beyond the axis there are none:
/// there the row is scaled to a sum of 1. For the whole axis this matches PIL's `resize` and torch's
/// `interpolate(mode="bicubic", antialias=True)`.
pub fn resample_weights(input: usize, window: (f64, f64), output: usize) -> Vec<f64> {
    let (start, length) = window;
    let scale = length / output as f64;
    // Downscaling widens the kernel; upscaling interpolates.
    let stretch = scale.max(1.0);
    let reach = 2.0 * stretch;
    let mut matrix = vec![0.0; output * input];
    for (index, row) in matrix.chunks_exact_mut(input.max(1)).enumerate() {
        let centre = start + scale * (index as f64 + 0.5);
        // Casting a negative number gives 0.
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

/// Returns the part of an axis of `side` pixels that becomes the central `size` pixels, when the image's shorter side
/// `shorter` is resized to `size`.
///
/// Rounds as torchvision's `Resize` and `CenterCrop` do: the resized side down, ties of the crop's offset to even.
fn central_window(side: usize, shorter: usize, size: usize) -> (f64, f64) {
    let resized = (size * side / shorter) as f64;
    let scale = side as f64 / resized;
    let offset = ((resized - size as f64) / 2.0).round_ties_even();
    (offset * scale, size as f64 * scale)
}

/// Resizes images `[N, C, H, W]` to `[N, C, size, size]`: scales the shorter side to `size` by antialiased bicubic
/// resampling and crops the centre of the longer side.
///
/// Computes in f32 at least and returns the images' own type. Values can overshoot the range of the input.
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

/// Normalises images `[N, 3, H, W]` in -1..1 as CLIP expects: `((x + 1) / 2 - mean) / deviation` per channel.
pub fn to_clip(images: Tensor<4>, mean: [f64; 3], deviation: [f64; 3]) -> Tensor<4> {
    let per_channel = |values: [f64; 3]| {
        let data = TensorData::new(values.to_vec(), [1, 3, 1, 1]);
        Tensor::<4>::from_data(data, (&images.device(), images.dtype()))
    };
    let scale = per_channel(deviation.map(|deviation| 0.5 / deviation));
    let shift = per_channel(std::array::from_fn(|channel| (0.5 - mean[channel]) / deviation[channel]));
    images * scale + shift
}

/// Converts images `[N, 3, H, W]` in -1..1 to the input of a model's image tower, `[N, 3, S, S]`.
pub fn preprocess(images: Tensor<4>, architecture: &ClipArchitecture) -> Tensor<4> {
    to_clip(resize(images, architecture.image_size), architecture.mean, architecture.deviation)
}
