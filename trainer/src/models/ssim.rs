//! Structural similarity (Wang et al. 2004): how similar two images are in luminance, contrast and structure.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::blocks::statistics_dtype;
use super::ops::conv2d::conv2d;

/// Side of the window that statistics are computed over, in pixels. Smaller images have no SSIM.
pub const WINDOW: usize = 11;

/// Standard deviation of the window's Gaussian, in pixels.
const SIGMA: f64 = 1.5;

/// Returns the SSIM of each pair, `[N]`, 1 for equal images. Both are `[N, C, H, W]` in -1..1; `None` if they are
/// smaller than the window.
///
/// It is the mean over all windows inside the image and over the channels, with the constants of the paper. It equals
/// scikit-image's for values in 0..1 with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.
pub fn ssim(a: &Tensor<4>, b: &Tensor<4>) -> Option<Tensor<1>> {
    let [n, c, h, w] = a.dims();
    if h.min(w) < WINDOW {
        return None;
    }
    let wide = statistics_dtype(a.dtype());
    // Converts to 0..1: luminance is compared by ratios, for which black has to be 0.
    let plane = |t: &Tensor<4>| (t.clone().cast(wide).reshape([n * c, 1, h, w]) + 1.0) * 0.5;
    let (a, b) = (plane(a), plane(b));
    let kernel = gaussian(&a.device(), wide);
    let blur = |t: Tensor<4>| {
        let along = |t, kernel| conv2d(t, kernel, None, [1, 1], [[0, 0], [0, 0]]);
        along(along(t, kernel.clone()), kernel.clone().swap_dims(2, 3))
    };
    let [c1, c2] = [0.01, 0.03].map(|k: f64| k * k);
    let (mean_a, mean_b) = (blur(a.clone()), blur(b.clone()));
    let product = mean_a.clone() * mean_b.clone();
    let squares = mean_a.square() + mean_b.square();
    let covariance = blur(a.clone() * b.clone()) - product.clone();
    let variances = blur(a.square() + b.square()) - squares.clone();
    let alike = (product * 2.0 + c1) * (covariance * 2.0 + c2) / ((squares + c1) * (variances + c2));
    let [_, _, rows, columns] = alike.dims();
    Some(alike.reshape([n, c * rows * columns]).mean_dim(1).reshape([n]))
}

/// `[1, 1, 1, WINDOW]`, with sum 1.
fn gaussian(device: &Device, dtype: DType) -> Tensor<4> {
    let centre = (WINDOW / 2) as f64;
    let weight = |index: usize| (-((index as f64 - centre) / SIGMA).powi(2) / 2.0).exp();
    let sum: f64 = (0..WINDOW).map(weight).sum();
    let weights: Vec<f64> = (0..WINDOW).map(|index| weight(index) / sum).collect();
    Tensor::from_data(TensorData::new(weights, [1, 1, 1, WINDOW]), (device, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of waves, and slightly different ones, `[2, 3, 16, 19]`.
    fn waves() -> [Tensor<4>; 2] {
        let shape = [2, 3, 16, 19];
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for [i, c, y, x] in (0..2 * 3 * 16 * 19).map(|at| [at / 912, at / 304 % 3, at / 19 % 16, at % 19]) {
            let [i, c, y, x] = [i, c, y, x].map(|index| index as f64);
            let value = (0.3 * x + 0.5 * y + c + 2.0 * i).sin();
            a.push(value as f32);
            b.push((0.8 * value + 0.15 * (0.7 * x - 0.2 * y * (1.0 + i)).cos()) as f32);
        }
        [a, b].map(|values| Tensor::from_data(TensorData::new(values, shape), &Device::flex()))
    }

    fn values(a: &Tensor<4>, b: &Tensor<4>) -> Vec<f32> {
        ssim(a, b).unwrap().try_into_vec_as::<f32>().unwrap()
    }

    /// The expected values are from scipy's `gaussian_filter` in f64.
    #[test]
    fn it_is_that_of_scipy() {
        let [a, b] = waves();
        let found = values(&a, &b);
        for (found, expected) in found.iter().zip([0.950_816_713, 0.941_367_591]) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn only_equal_images_are_wholly_alike() {
        let [a, b] = waves();
        assert!(values(&a, &a).iter().all(|value| (value - 1.0).abs() < 1e-5));
        assert!(values(&a, &b).iter().all(|value| *value < 0.99));
        assert!(values(&a, &(a.clone() * -1.0)).iter().all(|value| *value < 0.0));
    }

    #[test]
    fn images_below_the_window_have_none() {
        let small = Tensor::<4>::zeros([1, 3, 10, 30], &Device::flex());
        assert!(ssim(&small, &small).is_none());
    }
}
