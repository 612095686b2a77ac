//! The gradients at the last layer from which the adversarial loss gets its weight (Esser, Rombach, Ommer 2021,
//! arXiv 2012.09841, equation 7).

use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use burn::tensor::module::conv2d_weight_backward;
use burn::tensor::ops::ConvOptions;

use crate::losses::adaptive_weight;
use crate::models::statistics_dtype;

/// Gradients of the reconstruction losses and of the adversarial loss with respect to the last layer's weight, summed over
/// samples.
#[derive(Default)]
pub(super) struct LastLayerGradients(Option<[Tensor<4>; 2]>);

impl LastLayerGradients {
    /// Adds `scale` times those of a micro-batch, given the layer, its input `[n, C, H, W]` and both gradients at its output
    /// `[n, 3, H, W]`. They are computed in the layer's type and added up in f32 at least.
    pub(super) fn add(&mut self, layer: &Conv2d, input: &Tensor<4>, at_output: [&Tensor<4>; 2], scale: f64) {
        let weight = layer.weight.val();
        let [outputs, ..] = weight.dims();
        let padding = layer.kernel_size.map(|size| size / 2);
        let options = ConvOptions::new(layer.stride, padding, layer.dilation, layer.groups);
        // As one layer of twice the outputs, so that the input is gone through once.
        let both = Tensor::cat(at_output.map(Tensor::clone).to_vec(), 1).cast(weight.dtype());
        let weights = Tensor::cat(vec![weight.clone(), weight], 0);
        let gradients = conv2d_weight_backward(input.clone(), weights, both, options);
        let wide = statistics_dtype(gradients.dtype());
        let gradients = gradients.cast(wide) * scale;
        let [reconstruction, adversarial] = [0, outputs].map(|first| gradients.clone().narrow(0, first, outputs));
        self.0 = Some(match self.0.take() {
            Some([a, b]) => [a + reconstruction, b + adversarial],
            None => [reconstruction, adversarial],
        });
    }

    /// The ratio of their norms, `[1]`, in f32 at least; `None` if nothing was added.
    pub(super) fn balance(&self) -> Option<Tensor<1>> {
        let [reconstruction, adversarial] = self.0.clone()?;
        Some(adaptive_weight(reconstruction, adversarial))
    }
}
