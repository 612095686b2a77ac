//! The gradients at the last layer from which the adversarial loss gets its weight (Esser, Rombach, Ommer 2021,
//! arXiv 2012.09841, equation 7).

use burn::nn::conv::Conv2d;
use burn::tensor::module::conv2d_weight_backward;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};

use crate::losses::adaptive_weight;

/// Gradients of the reconstruction losses and of the adversarial loss with respect to the last layer's weight, summed over
/// samples.
#[derive(Default)]
pub(super) struct LastLayerGradients(Option<[Tensor<4>; 2]>);

impl LastLayerGradients {
    /// Adds `scale` times those of a micro-batch, given the layer, its input `[n, C, H, W]` and both gradients at its output
    /// `[n, 3, H, W]`.
    pub(super) fn add(&mut self, layer: &Conv2d, input: &Tensor<4>, at_output: [&Tensor<4>; 2], scale: f64) {
        let weight = layer.weight.val();
        let [kernel_h, kernel_w] = layer.kernel_size;
        let padding = [kernel_h / 2, kernel_w / 2];
        let gradient = |at_output: &Tensor<4>| {
            let options = ConvOptions::new(layer.stride, padding, layer.dilation, layer.groups);
            conv2d_weight_backward(input.clone(), weight.clone(), at_output.clone(), options) * scale
        };
        let added = at_output.map(gradient);
        self.0 = Some(match self.0.take() {
            Some([a, b]) => {
                let [c, d] = added;
                [a + c, b + d]
            }
            None => added,
        });
    }

    /// The ratio of their norms, `[1]`; 1 if nothing was added.
    pub(super) fn balance(&self, device: &Device) -> Tensor<1> {
        match &self.0 {
            Some([reconstruction, adversarial]) => adaptive_weight(reconstruction.clone(), adversarial.clone()),
            None => Tensor::ones([1], device),
        }
    }
}
