//! The first pass over an effective batch: computes what couples its samples, without a graph through the model.

use burn::tensor::Tensor;

use super::{MicroBatch, Pass, StepFailure, sampling};
use crate::losses::load::LossError;
use crate::losses::{Forward, Gradients, LossStep, Metrics, Needs};
use crate::models::vqgan::forward;

impl Pass<'_> {
    /// Shows the effective batch once to the losses that couple samples, and runs only the networks that they need.
    pub(super) fn observe<B: MicroBatch, E>(
        &self,
        losses: &mut [Box<dyn LossStep + '_>],
        batches: impl Iterator<Item = Result<B, E>>,
    ) -> Result<(), StepFailure<E>> {
        let plain = self.context.model;
        let (quantizer, (_, dtype)) = (plain.quantizer(), plain.place());
        let (encoder, decoder) = (plain.encoder_blocks(), plain.decoder_blocks());
        let (last, decoder) = decoder.split_last().map_or((None, &decoder[..]), |(last, rest)| (Some(last), rest));
        let most = losses.iter().map(|loss| loss.needs()).max().unwrap_or(Needs::Nothing);
        let mut first = 0;
        for batch in batches {
            let batch = batch.map_err(StepFailure::Batch)?;
            let original = self.images(&batch);
            let latents = forward(&encoder, original.clone().cast(dtype));
            for loss in losses.iter_mut().filter(|loss| loss.needs() >= Needs::Latents) {
                loss.observe_latents(quantizer, &latents);
            }
            if most < Needs::Images {
                continue;
            }
            let quantized = quantizer.forward_in_training(latents, sampling(losses, &batch));
            let last_input = forward(decoder, quantized.latent.clone().cast(dtype));
            let reconstruction = last.map_or_else(|| last_input.clone(), |last| last.forward(last_input.clone()));
            let images = self.make_images(&batch, first, original, reconstruction.cast(self.context.dtype));
            let forward = Forward { images, last_input: &last_input, quantized: &quantized };
            observe_images(losses, &forward).map_err(StepFailure::Loss)?;
            first += batch.samples();
        }
        Ok(())
    }
}

/// Shows a micro-batch's reconstructions, and the gradient of the previous losses, to the losses that need them.
fn observe_images(losses: &mut [Box<dyn LossStep + '_>], forward: &Forward) -> Result<(), LossError> {
    let last = losses.iter().rposition(|loss| loss.needs() == Needs::ImageGradient);
    let mut gradients = Gradients::zero(&forward.images);
    for (index, loss) in losses.iter_mut().enumerate() {
        let needs = loss.needs();
        if needs >= Needs::Images {
            let at_image: Option<&Tensor<4>> = (needs == Needs::ImageGradient).then_some(&gradients.at_image);
            loss.observe_images(forward, at_image)?;
        }
        if last.is_some_and(|last| index < last) {
            loss.add_gradient(forward, &mut gradients, &mut Metrics::default())?;
        }
    }
    Ok(())
}
