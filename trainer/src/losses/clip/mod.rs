//! Losses on embeddings of CLIP (Radford et al. 2021, arXiv 2103.00020): the four tables `[losses.clip_*]` and the one
//! network that they share.
//!
//! They are functions of embeddings alone, `[V, E]` with one row per view, of any length: each loss scales its rows to
//! unit length itself. Half precision is converted to f32; wider types are kept. No row's value depends on another row,
//! except for [`contrastive`], which couples the samples of an effective batch by design.

mod captions;
pub mod config;
pub mod contrastive;
pub mod cutouts;
pub mod direction;
mod embedding;
mod guidance;
pub mod image;
mod read;
pub mod text;

#[cfg(test)]
pub(crate) mod fixture;

use burn::tensor::Tensor;

pub use self::captions::CaptionEncoder;
pub use self::config::ClipConfig;
pub use self::contrastive::{Against, ClipContrastiveConfig};
pub use self::direction::ClipDirectionConfig;
pub use self::guidance::{ClipEmbeddings, ClipGuidance, ContrastiveCoupling, ContrastiveTargets, TextTarget, Views};
pub use self::image::ClipImageConfig;
pub(crate) use self::read::image_encoder;
pub use self::text::ClipTextConfig;
use super::load::LossError;
use super::loss::{Forward, Gradients, LoadContext, Loss, LossStep, Needs, StepContext};
use super::metrics::Metrics;
use crate::losses::phase::Phase;

impl Loss for ClipGuidance {
    type Tables<'a> = (&'a ClipImageConfig, &'a ClipTextConfig, &'a ClipContrastiveConfig, &'a ClipDirectionConfig);

    const METRICS: &'static [(&'static str, &'static str)] = &[
        ("clip_image", "loss/clip_image"),
        ("clip_text", "loss/clip_text"),
        ("clip_contrastive", "loss/clip_contrastive"),
        ("clip_direction", "loss/clip_direction"),
    ];

    fn load(tables: Self::Tables<'_>, context: &mut LoadContext<'_>) -> Result<Option<Self>, LossError> {
        read::guidance(tables, context)
    }

    fn couples_samples(&self, step: u64) -> bool {
        self.is_coupled(step)
    }

    fn begin<'a>(&'a self, context: &'a StepContext<'a>) -> Option<Box<dyn LossStep + 'a>> {
        let step = ClipStep { guidance: self, context, embeddings: ClipEmbeddings::default(), coupling: None };
        self.counts(context.step).then(|| Box::new(step) as Box<dyn LossStep>)
    }
}

/// The CLIP losses in one optimizer step.
struct ClipStep<'a> {
    guidance: &'a ClipGuidance,
    context: &'a StepContext<'a>,
    /// From the first pass.
    embeddings: ClipEmbeddings,
    coupling: Option<ContrastiveCoupling>,
}

impl LossStep for ClipStep<'_> {
    fn needs(&self) -> Needs {
        if self.guidance.is_coupled(self.context.step) { Needs::Images } else { Needs::Nothing }
    }

    fn observe_images(&mut self, forward: &Forward, _at_image: Option<&Tensor<4>>) -> Result<(), LossError> {
        if self.guidance.is_coupled(self.context.step) {
            self.guidance.embed(&forward.images, &mut self.embeddings)?;
        }
        Ok(())
    }

    fn couple(&mut self) {
        let embeddings = std::mem::take(&mut self.embeddings);
        self.coupling = self.guidance.couple(embeddings, self.context.step);
    }

    fn add_gradient(&mut self, forward: &Forward, to: &mut Gradients, metrics: &mut Metrics) -> Result<(), LossError> {
        self.context.enter(Phase::Loss("clip"));
        let record = &mut |name, value: Tensor<1>, weight| metrics.add_loss(name, value, weight);
        if let Some(at_image) = self.guidance.gradient(&forward.images, self.coupling.as_ref(), record)? {
            self.context.probe_gradient("the loss clip", &at_image);
            to.add_at_image(at_image);
        }
        Ok(())
    }

    fn finish(&mut self, metrics: &mut Metrics) {
        if let Some(coupling) = &self.coupling {
            metrics.add_loss("clip_contrastive", coupling.value.clone(), coupling.weight);
        }
    }
}

#[cfg(test)]
mod tests;
