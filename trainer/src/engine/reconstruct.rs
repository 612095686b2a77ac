//! The forward pass of a micro-batch to the reconstruction, and the backward pass from the gradient at the image.

use burn::tensor::Tensor;

use super::chain::{Chain, Recompute};
use crate::losses::Gradients;
use crate::models::VqGan;
use crate::models::quantizer::gumbel::Sampling;
use crate::models::quantizer::{Quantized, Terms};
use crate::models::statistics_dtype;
use crate::optim::GradientSum;
use crate::precision::Probe;

/// What the backward pass of a micro-batch needs.
pub(super) struct Reconstruct<'a> {
    model: &'a VqGan,
    encoder: Chain<'a>,
    /// The encoder's output, where the quantizer's graph begins.
    latent: Tensor<4>,
    quantized: Quantized,
    decoder: Chain<'a>,
    last_input: Tensor<4>,
    last_layer: Chain<'a>,
}

impl<'a> Reconstruct<'a> {
    /// Runs `images`, `[n, 3, H, W]`, through the model. Images and reconstruction are in f32 at least and without
    /// autodiff. `plain` is the same model as `model`, without autodiff; `sampling` is for a Gumbel quantizer.
    pub(super) fn forward(
        model: &'a VqGan,
        plain: &'a VqGan,
        images: Tensor<4>,
        sampling: Option<Sampling>,
        recompute: Recompute,
        probe: Option<&'a Probe>,
    ) -> (Self, Tensor<4>) {
        let (_, dtype) = plain.place();
        let chain = |tracked: &[_], plain: &[_], input: Tensor<4>, upstream| {
            Chain::forward(tracked, plain, input.cast(dtype), upstream, recompute, probe)
        };
        let (mut encoder, latent) = chain(&model.encoder_blocks(), &plain.encoder_blocks(), images, false);
        // Its backward pass comes last, after those of all losses and of the decoder.
        encoder.drop_largest_inputs();
        let latent = latent.autodiff();
        let latent = if encoder.has_gradient() { latent.require_grad() } else { latent };
        let quantized = model.quantize_in_training(latent.clone(), sampling);
        if let Some(probe) = probe {
            match &quantized.terms {
                Terms::Nearest(terms) => probe.forward(|| "quantize".into(), &terms.commitment),
                Terms::Gumbel(terms) => probe.forward(|| "quantize".into(), terms.vectors()),
            }
        }

        let (tracked, plain) = (model.decoder_blocks(), plain.decoder_blocks());
        let last = tracked.len() - 1;
        let input = quantized.latent.clone().without_autodiff();
        let upstream = encoder.has_gradient() || model.quantizer().learns_from_decoder();
        let (decoder, last_input) = chain(&tracked[..last], &plain[..last], input, upstream);
        let upstream = decoder.has_gradient();
        let (last_layer, reconstruction) = chain(&tracked[last..], &plain[last..], last_input.clone(), upstream);
        let reconstruction = reconstruction.cast(statistics_dtype(dtype));
        (Self { model, encoder, latent, quantized, decoder, last_input, last_layer }, reconstruction)
    }

    /// The codes, with a graph back to the latents and the codebook.
    pub(super) fn quantized(&self) -> &Quantized {
        &self.quantized
    }

    /// The input of the last layer, `[n, C, H, W]`.
    pub(super) fn last_input(&self) -> &Tensor<4> {
        &self.last_input
    }

    /// Adds the parameters' gradients, given those at reconstruction and [`quantized`](Self::quantized), f32 at least.
    pub(super) fn backward(self, gradients: Gradients, sum: &mut GradientSum, probe: Option<&Probe>) {
        let Self { model, encoder, latent, quantized, decoder, last_input, last_layer } = self;
        let at_image = gradients.at_image.cast(last_input.dtype());
        drop(last_input);
        let at_last_input = last_layer.backward(at_image, sum);
        let at_quantized = at_last_input.and_then(|gradient| decoder.backward(gradient, sum));
        let straight_through = at_quantized.map(|gradient| {
            let gradient = gradient.cast(quantized.latent.dtype());
            quantized.surrogate(gradient)
        });
        let scalar = straight_through.into_iter().chain(gradients.at_codes).reduce(Tensor::add);
        let Some(scalar) = scalar.filter(Tensor::is_tracked) else { return };
        let mut gradients = scalar.backward();
        sum.add_module(&mut gradients, model.quantizer());
        if let Some(at_latent) = latent.grad_remove(&mut gradients) {
            if let Some(probe) = probe {
                probe.backward(|| "quantize".into(), &at_latent);
            }
            encoder.backward(at_latent, sum);
        }
    }
}
