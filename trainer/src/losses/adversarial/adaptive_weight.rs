//! The gradients at the last layer that determine the weight of the adversarial loss (Esser, Rombach, Ommer 2021, arXiv
//! 2012.09841, equation 7).

use burn::tensor::{DType, Tensor};

use crate::models::ops::conv2d::Conv2d;
use crate::models::statistics_dtype;
use crate::optim::overflow_as;

/// taming's guard against an adversarial gradient of zero, and its limit for the adaptive weight.
const EPSILON: f64 = 1e-4;
const LIMIT: f64 = 1e4;

/// Gradients of the reconstruction losses and of the adversarial loss with respect to the last layer's weight, summed
/// over samples; and the type of that weight.
#[derive(Default)]
pub(super) struct LastLayerGradients(Option<([Tensor<4>; 2], DType)>);

impl LastLayerGradients {
    /// Adds the gradients of a micro-batch, given the layer, its input `[n, C, H, W]` and both gradients at its output
    /// `[n, 3, H, W]`. Computes them in the layer's type and adds them up in f32 at least.
    pub(super) fn add(&mut self, layer: &Conv2d, input: &Tensor<4>, at_output: [&Tensor<4>; 2]) {
        let weight = layer.weight.val();
        let narrow = weight.dtype();
        let [outputs, ..] = weight.dims();
        let both = Tensor::cat(at_output.map(Tensor::clone).to_vec(), 1).cast(narrow);
        let gradients = layer.weight_gradient(input.clone(), both);
        let wide = statistics_dtype(gradients.dtype());
        let gradients = gradients.cast(wide);
        let [reconstruction, adversarial] = [0, outputs].map(|first| gradients.clone().narrow(0, first, outputs));
        let sums = match self.0.take() {
            Some(([a, b], _)) => [a + reconstruction, b + adversarial],
            None => [reconstruction, adversarial],
        };
        self.0 = Some((sums, narrow));
    }

    /// Returns the ratio of the gradients' norms, `[1]`, in f32 at least, after scaling the sums by `scale`; `None` if
    /// nothing was added. It is NaN where the weight's type cannot hold a sum, as in [`GradientSum::into_gradients`].
    ///
    /// [`GradientSum::into_gradients`]: crate::optim::GradientSum::into_gradients
    pub(super) fn weight(&self, scale: f64) -> Option<Tensor<1>> {
        let (sums, narrow) = self.0.clone()?;
        let [reconstruction, adversarial] = sums.map(|sum| overflow_as(sum, narrow) * scale);
        Some(adaptive_weight(reconstruction, adversarial))
    }
}

/// Returns the weight that makes the adversarial loss's gradient as large as that of the losses that compare images
/// (Esser et al. 2021, arXiv 2012.09841, equation 7; the guard and the limit are taming's): `[1]`, on the gradients'
/// device. It is NaN where one of them is not finite, which the limit would otherwise hide.
pub fn adaptive_weight<const D: usize>(
    reconstruction_gradient: Tensor<D>,
    adversarial_gradient: Tensor<D>,
) -> Tensor<1> {
    let norm = |gradient: Tensor<D>| {
        let dtype = statistics_dtype(gradient.dtype());
        gradient.cast(dtype).square().sum().sqrt()
    };
    let (reconstruction, adversarial) = (norm(reconstruction_gradient), norm(adversarial_gradient));
    let overflow = reconstruction.clone().is_finite().bool_and(adversarial.clone().is_finite()).bool_not();
    let ratio = reconstruction / (adversarial + EPSILON);
    ratio.clamp(0.0, LIMIT).mask_fill(overflow, f64::NAN)
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Device;

    use super::*;
    use crate::precision::compute_copy;

    /// In two micro-batches each gradient is finite in f16, but in one with their sum it is not.
    #[test]
    fn a_sum_that_f16_cannot_hold_has_no_weight_in_however_many_micro_batches() {
        let device = Device::flex();
        for (dtype, overflows) in [(DType::F16, true), (DType::BF16, false), (DType::F32, false)] {
            let weight = Param::from_tensor(Tensor::ones([3, 1, 1, 1], &device));
            let layer = Conv2d { weight, bias: None, stride: [1; 2], padding: [[0; 2]; 2] };
            let layer = compute_copy(&layer, dtype);
            let adaptive_weight = |of_each: &[f32]| {
                let mut sums = LastLayerGradients::default();
                for value in of_each {
                    let input = Tensor::<4>::ones([1, 1, 1, 1], &device).cast(dtype);
                    let at_output = [*value, 20.0].map(|value| Tensor::full([1, 3, 1, 1], value, &device));
                    sums.add(&layer, &input, [&at_output[0], &at_output[1]]);
                }
                sums.weight(1.0).unwrap().into_scalar::<f64>()
            };
            assert_eq!(adaptive_weight(&[4e4, 4e4]).is_nan(), overflows, "{dtype:?}");
            let expected = 6e4 / 40.0;
            assert!((adaptive_weight(&[3e4, 3e4]) / expected - 1.0).abs() < 1e-2, "{dtype:?}");
        }
    }
}
