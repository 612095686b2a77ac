//! The first pass over an effective batch: what couples its samples, without a graph through the model.

use burn::tensor::Tensor;

use super::adaptive::LastLayerGradients;
use super::figures::Sums;
use super::{MicroBatch, Pass};
use crate::losses::{ClipEmbeddings, ContrastiveCoupling, EntropyCoupling, sum_probabilities};
use crate::models::quantizer::Quantizer;
use crate::models::vqgan::forward;

/// What the second pass needs to know of the effective batch as a whole.
#[derive(Default)]
pub(super) struct Coupling {
    pub(super) entropy: Option<EntropyCoupling>,
    pub(super) contrastive: Option<ContrastiveCoupling>,
    last_layer: LastLayerGradients,
}

impl Coupling {
    /// The adversarial loss's adaptive weight over the effective batch, `[1]`, with gradients that are `loss_scale` times too
    /// large; `None` if it was not asked for.
    pub(super) fn balance(&self, loss_scale: f64) -> Option<Tensor<1>> {
        self.last_layer.balance(1.0 / loss_scale)
    }
}

impl Pass<'_> {
    /// Goes once over the effective batch, no further into the networks than the coupled losses of this step need.
    pub(super) fn couple<B: MicroBatch, E>(&self, batches: impl Iterator<Item = Result<B, E>>) -> Result<Coupling, E> {
        let (losses, settings) = (self.losses, &self.settings);
        let adversarial = self.adversarial.as_ref().filter(|(loss, _)| loss.needs_first_pass(&settings.adversarial));
        let clip = losses.clip.as_ref().filter(|clip| clip.is_coupled(settings.step));
        let entropy = losses.entropy_couples(settings.step);
        let (quantizer, (_, dtype)) = (self.plain.quantizer(), self.plain.place());
        let (encoder, decoder) = (self.plain.encoder_blocks(), self.plain.decoder_blocks());
        let (last, decoder) = decoder.split_last().map_or((None, &decoder[..]), |(last, rest)| (Some(last), rest));

        let mut probabilities = Tensor::<1>::zeros([quantizer.codes()], (&self.device, self.wide));
        let (mut tokens, mut first) = (0, 0);
        let (mut last_layer, mut embeddings) = (LastLayerGradients::default(), ClipEmbeddings::default());
        for batch in batches {
            let batch = batch?;
            let original = self.images(&batch);
            let latent = forward(&encoder, original.clone().cast(dtype));
            if let (true, Quantizer::Nearest(quantizer)) = (entropy, quantizer) {
                let (vectors, codebook) = quantizer.compared(latent.clone());
                tokens += vectors.dims()[0];
                probabilities = probabilities + sum_probabilities(vectors, codebook);
            }
            if adversarial.is_none() && clip.is_none() {
                continue;
            }
            let quantized = quantizer.forward_in_training(latent, self.sampling(&batch));
            let last_input = forward(decoder, quantized.latent.cast(dtype));
            let reconstruction = last.map_or_else(|| last_input.clone(), |last| last.forward(last_input.clone()));
            let reconstruction = reconstruction.cast(self.wide);
            let seen = self.seen(&batch, first, original, reconstruction);
            if let Some(clip) = clip {
                clip.embed(&seen, &mut embeddings);
            }
            if let Some((loss, discriminator)) = adversarial {
                let reconstruction = self.reconstruction_gradient(&seen, &mut Sums::default());
                let (adversarial, _) = self.adversarial_gradient(loss, discriminator, &seen);
                let gradients = [&reconstruction, &adversarial];
                last_layer.add(self.plain.last_layer(), &last_input, gradients);
            }
            first += batch.samples();
        }
        Ok(Coupling {
            entropy: entropy.then(|| EntropyCoupling::new(probabilities, tokens.max(1))),
            contrastive: clip.and_then(|clip| clip.couple(embeddings, settings.step)),
            last_layer,
        })
    }
}
