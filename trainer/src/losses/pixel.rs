//! Difference of pixels: mean absolute error, mean squared error, or a mix of both.

use burn::tensor::Tensor;

use super::ImageLoss;

/// How a difference of pixels counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelNorm {
    /// Mean absolute error, as taming and latent-diffusion train with.
    L1,
    /// Mean squared error.
    L2,
    /// `l1 * L1 + (1 - l1) * L2`.
    Mix {
        /// Share of L1, 0..1.
        l1: f64,
    },
}

/// The loss `pixel`.
#[derive(Debug, Clone, Copy)]
pub struct PixelLoss(pub PixelNorm);

impl ImageLoss for PixelLoss {
    fn name(&self) -> &'static str {
        "pixel"
    }

    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        let [n, c, h, w] = original.dims();
        let difference = (reconstruction - original).reshape([n, c * h * w]);
        let l1 = |d: Tensor<2>| d.abs().mean_dim(1).reshape([n]);
        let l2 = |d: Tensor<2>| d.square().mean_dim(1).reshape([n]);
        match self.0 {
            PixelNorm::L1 => l1(difference),
            PixelNorm::L2 => l2(difference),
            PixelNorm::Mix { l1: share } => l1(difference.clone()) * share + l2(difference) * (1.0 - share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn each_norm_is_the_mean_over_a_samples_pixels() {
        let device = Device::flex();
        let original = Tensor::<4>::zeros([2, 1, 1, 2], &device);
        let reconstruction = Tensor::<4>::from_data([[[[1.0, -3.0]]], [[[0.5, 0.5]]]], &device);
        let value = |norm| {
            let loss = PixelLoss(norm).per_sample(original.clone(), reconstruction.clone());
            loss.into_data_as::<f32>().try_to_vec::<f32>().unwrap()
        };
        assert_eq!(value(PixelNorm::L1), [2.0, 0.5]);
        assert_eq!(value(PixelNorm::L2), [5.0, 0.25]);
        assert_eq!(value(PixelNorm::Mix { l1: 0.5 }), [3.5, 0.375]);
    }
}
