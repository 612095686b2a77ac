//! The gradient of one optimizer step.
//!
//! The contrastive loss needs all embeddings of an effective batch, but not their graphs (GradCache, Gao et al. 2021,
//! arXiv 2101.06983): a first pass embeds without a graph, the loss gives the gradient at each embedding, and a second
//! pass carries it through the towers, one micro-batch at a time.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use checkpoints::ClipArchitecture;
use trainer::models::clip::ClipTokenizer;
use trainer::optim::{GradientSum, add_gradients};

use crate::Result;
use crate::data::{Samples, WRONG_CAPTIONS, tokens};
use crate::network::Network;

/// Images, their captions, and after these their wrong captions, kind after kind.
struct MicroBatch {
    images: Tensor<4>,
    texts: Tensor<2, Int>,
}

/// How samples become micro-batches.
pub struct Micro<'a> {
    pub samples: &'a Samples,
    pub tokenizer: &'a ClipTokenizer,
    pub architecture: &'a ClipArchitecture,
    /// Cycles of the schedule that are over.
    pub cycle: u64,
    /// Samples in a micro-batch.
    pub size: usize,
    /// Without autodiff.
    pub device: Device,
}

/// What a step is judged by.
pub struct Judged {
    /// The contrastive loss.
    pub loss: f32,
    /// Share of the images whose own caption is the most similar of all captions of the batch, wrong ones included.
    pub top_1: f32,
    /// Share of the images to which their own caption is more similar than their wrong ones.
    pub attribute: f32,
    /// The factor of the cosines.
    pub scale: f32,
}

impl Micro<'_> {
    fn batch(&self, indices: &[usize]) -> Result<MicroBatch> {
        let mut captions: Vec<String> = indices.iter().map(|index| self.samples.caption(*index)).collect();
        let wrong: Vec<_> = indices.iter().map(|index| self.samples.wrong_captions(*index, self.cycle)).collect();
        for kind in 0..WRONG_CAPTIONS {
            captions.extend(wrong.iter().map(|captions| captions[kind].clone()));
        }
        Ok(MicroBatch {
            images: self.samples.images(indices, self.architecture, &self.device)?,
            texts: tokens(&captions, self.tokenizer, self.architecture.end_of_text, &self.device)?,
        })
    }

    /// Does `work` for each micro-batch of `indices`, given the position of its first sample.
    fn each<T>(&self, indices: &[usize], work: impl Fn(usize, MicroBatch) -> T) -> Result<Vec<T>> {
        let batches = indices.chunks(self.size).enumerate();
        batches.map(|(at, part)| Ok(work(at * self.size, self.batch(part)?))).collect()
    }

    /// Computes the gradient of the contrastive loss over the samples at `indices`.
    pub fn gradient(&self, network: &Network, indices: &[usize]) -> Result<(GradientsParams, Judged)> {
        let plain = network.valid();
        let embedded = self.each(indices, |_, batch| {
            let texts = plain.text.forward(batch.texts);
            (plain.image.forward(batch.images), texts.chunk(1 + WRONG_CAPTIONS, 0))
        })?;
        let (images, texts): (Vec<_>, Vec<_>) = embedded.into_iter().unzip();
        let kinds = (0..=WRONG_CAPTIONS).flat_map(|kind| texts.iter().map(move |texts| texts[kind].clone()));
        let texts = kinds.collect();
        let [images, texts] = [images, texts].map(|parts| Tensor::cat(parts, 0).autodiff().require_grad());

        let (loss, mut judged) = contrastive(images.clone(), texts.clone(), network.logit_scale.val())?;
        judged.loss = loss.clone().into_scalar();
        let mut gradients = loss.backward();
        let missing = "a tower has no gradient";
        let at_images = images.grad_remove(&mut gradients).ok_or(missing)?;
        let at_texts = texts.grad_remove(&mut gradients).ok_or(missing)?;
        let mut of_scale = GradientSum::default();
        of_scale.add_module(&mut gradients, network);
        let sum = of_scale.into_gradients(network);

        let parts = self.each(indices, |first, batch| {
            let n = batch.images.dims()[0];
            let kinds = 0..=WRONG_CAPTIONS;
            let at_texts = kinds.map(|kind| at_texts.clone().narrow(0, kind * indices.len() + first, n)).collect();
            let images = network.image.forward(batch.images.autodiff());
            let texts = network.text.forward(batch.texts);
            let surrogate = (images * at_images.clone().narrow(0, first, n).autodiff()).sum()
                + (texts * Tensor::cat(at_texts, 0).autodiff()).sum();
            let mut gradients = surrogate.backward();
            let mut sum = GradientSum::default();
            sum.add_module(&mut gradients, network);
            sum.into_gradients(network)
        })?;
        Ok((parts.into_iter().fold(sum, |sum, part| add_gradients(network, sum, part)), judged))
    }
}

/// InfoNCE in both directions, with wrong captions (Yuksekgonul et al. 2023, arXiv 2210.01936): an image has to be
/// nearest to its own caption among all texts, a caption nearest to its own image among all N images.
///
/// `images` is `[N, E]`; `texts` is `[(1 + WRONG_CAPTIONS) N, E]`, the captions of the images and then their wrong captions, kind
/// after kind.
fn contrastive(images: Tensor<2>, texts: Tensor<2>, log_scale: Tensor<1>) -> Result<(Tensor<1>, Judged)> {
    let unit = |x: Tensor<2>| x.clone() / x.square().sum_dim(1).clamp_min(1e-12).sqrt();
    let n = images.dims()[0];
    // As in CLIP, at most 100.
    let scale = log_scale.clamp_max(100f64.ln()).exp();
    let logits = unit(images).matmul(unit(texts).swap_dims(0, 1)) * scale.clone().unsqueeze::<2>();
    let own = Tensor::<2>::from_data(
        TensorData::new((0..n * n).map(|at| f32::from(at / n == at % n)).collect::<Vec<f32>>(), [n, n]),
        &logits.device(),
    );
    let to_texts = log_softmax(logits.clone(), 1).narrow(1, 0, n);
    let to_images = log_softmax(logits.clone().narrow(1, 0, n), 0);
    let loss = ((to_texts + to_images) * own).sum() / (-2.0 * n as f64);

    let values: Vec<f32> =
        logits.without_autodiff().into_data().try_into_vec().map_err(|error| format!("{error:?}"))?;
    let rows = || values.chunks_exact((1 + WRONG_CAPTIONS) * n).enumerate();
    let share = |count: usize| count as f32 / n as f32;
    let top_1 =
        rows().filter(|(at, row)| row.iter().enumerate().all(|(other, v)| other == *at || *v < row[*at])).count();
    let attribute = rows().filter(|(at, row)| (1..=WRONG_CAPTIONS).all(|kind| row[*at] > row[kind * n + at])).count();
    let scale = scale.without_autodiff().into_scalar();
    Ok((loss, Judged { loss: 0.0, top_1: share(top_1), attribute: share(attribute), scale }))
}
