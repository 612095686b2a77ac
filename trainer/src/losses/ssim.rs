//! Structural dissimilarity (Zhao et al. 2017, arXiv 1511.08861): structure and contrast of small windows rather than
//! single pixels.

use burn::tensor::Tensor;

use super::load::LossError;
use super::loss::{ImageLoss, LoadContext, LoadImageLoss, Sees, Surroundings};
use super::table::{LossTable, loss_table};
use crate::models::ssim::{WINDOW, ssim};
use crate::problem::{Problem, problem};

loss_table! {
    /// `[losses.ssim]`: 1 - SSIM of image and reconstruction.
    ssim: SsimConfig, weight = 0.0,
}

impl LossTable for SsimConfig {
    fn sees(&self) -> Sees {
        Sees::Images
    }

    fn check(&self, around: &Surroundings) -> Result<(), Problem> {
        let resolution = around.resolution as usize;
        if self.weight == 0.0 || resolution >= WINDOW {
            return Ok(());
        }
        let message = format!("is {resolution}, but losses.ssim compares windows of {WINDOW} pixels");
        problem("data.resolution", message)
    }
}

/// The loss `ssim`.
#[derive(Debug, Clone, Copy)]
pub struct Ssim;

impl ImageLoss for Ssim {
    fn name(&self) -> &'static str {
        "ssim"
    }

    /// `1 - SSIM`, in 0..2. Images that are smaller than the window count as equal.
    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        match ssim(&original, &reconstruction) {
            Some(similarity) => similarity * -1.0 + 1.0,
            None => reconstruction.clone().mean_dims(&[1, 2, 3]).reshape([reconstruction.dims()[0]]) * 0.0,
        }
    }
}

impl LoadImageLoss for Ssim {
    type Table = SsimConfig;

    const METRIC: (&'static str, &'static str) = ("ssim", "loss/ssim");

    fn load(_table: &SsimConfig, _context: &LoadContext<'_>) -> Result<Self, LossError> {
        Ok(Self)
    }

    fn example() -> Option<Self> {
        Some(Self)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;
    use crate::losses::loss::gradient_at;

    const SHAPE: [usize; 4] = [2, 1, 11, 12];

    fn images(values: &[f64]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values.to_vec(), SHAPE), (&Device::flex(), DType::F64))
    }

    fn wave(frequency: f64) -> Vec<f64> {
        (0..SHAPE.iter().product()).map(|at| 0.8 * (frequency * at as f64).sin()).collect()
    }

    fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn only_equal_images_have_no_loss() {
        let [a, b] = [wave(0.3), wave(0.5)].map(|values| images(&values));
        assert!(read(Ssim.per_sample(a.clone(), a.clone())).iter().all(|loss| loss.abs() < 1e-12));
        assert!(read(Ssim.per_sample(a, b)).iter().all(|loss| (0.5..2.0).contains(loss)));
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (original, values) = (images(&wave(0.3)), wave(0.31));
        let gradient = read(gradient_at(&images(&values), |x| Ssim.per_sample(original.clone().autodiff(), x).sum()));
        for index in [0, 17, 65, 131, 132, 200, 263] {
            let at = |amount: f64| {
                let mut values = values.clone();
                values[index] += amount;
                read(Ssim.per_sample(original.clone(), images(&values)).sum())[0]
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((difference - gradient[index]).abs() < 1e-8, "[{index}]: {} {difference}", gradient[index]);
        }
    }
}
