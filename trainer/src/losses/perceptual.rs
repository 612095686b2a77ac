//! How different two images look (LPIPS, Zhang et al. 2018, arXiv 1801.03924).

use burn::tensor::Tensor;

use super::ImageLoss;
use crate::models::lpips::Lpips;

/// The loss `perceptual`.
#[derive(Debug)]
pub struct PerceptualLoss(Lpips);

impl PerceptualLoss {
    /// With a network that was read frozen, on the device of the images.
    pub fn new(network: Lpips) -> Self {
        Self(network)
    }
}

impl ImageLoss for PerceptualLoss {
    fn name(&self) -> &'static str {
        "perceptual"
    }

    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        // What the original's features are computed from is not tracked, so neither are they.
        self.0.distance(self.0.features(original.detach()), reconstruction)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;
    use checkpoints::LpipsNetwork;

    use super::*;
    use crate::models::lpips::tests::read;
    use crate::models::tests::picture;

    #[test]
    fn only_the_reconstruction_has_a_gradient() {
        let loss = PerceptualLoss::new(read(LpipsNetwork::AlexNet, DType::F32));
        let image = picture(2, 32, 32).cast(DType::F32);
        let original = image.clone().autodiff().require_grad();
        let reconstruction = (image * 0.7).autodiff().require_grad();
        let value = loss.per_sample(original.clone(), reconstruction.clone());
        assert_eq!(value.dims(), [2]);
        let mut gradients = value.sum().backward();
        assert!(original.grad_remove(&mut gradients).is_none());
        assert!(reconstruction.grad_remove(&mut gradients).is_some());
    }
}
