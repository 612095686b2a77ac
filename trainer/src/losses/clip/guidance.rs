//! All CLIP losses of a run, with the network that they share.
//!
//! CLIP sees an image as views: the whole image, and random cutouts. Each loss is a mean over the views of each sample,
//! so any number of views can be processed at a time. Only the contrastive loss couples samples; it sees whole images.

use std::collections::HashMap;
use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;
use checkpoints::ClipArchitecture;
use datasets::SampleKey;

use super::captions::CaptionEncoder;
use super::contrastive::Contrastive;
use super::cutouts::{Cutout, Cutouts};
use super::{direction, image, text};
use crate::losses::loss::{Images, Weight, gradient_at};
use crate::models::clip::{ImageEncoder, TokenizerError, preprocess, to_clip};

/// The CLIP losses of a run.
pub struct ClipGuidance {
    /// On the autodiff device and frozen: gradients go through it to the image.
    pub encoder: ImageEncoder,
    /// The encoder's architecture.
    pub architecture: ClipArchitecture,
    /// Only if a loss compares with captions.
    pub captions: Option<CaptionEncoder>,
    /// The views of an image.
    pub views: Views,
    /// `clip_image`.
    pub image: Option<Weight>,
    /// `clip_text`.
    pub text: Option<(Weight, TextTarget)>,
    /// `clip_contrastive`.
    pub contrastive: Option<(Weight, ContrastiveTargets)>,
    /// `clip_direction`, with the direction, `[E]`.
    pub direction: Option<(Weight, Tensor<1>)>,
    /// Whether CLIP has random weights, so that its similarities say nothing.
    pub is_random: bool,
}

/// The views of an image.
#[derive(Debug, Clone)]
pub struct Views {
    /// Whether the whole image is one of them.
    pub whole: bool,
    /// The other views.
    pub cutouts: Cutouts,
    /// Cutouts of a sample at a time; 0 for all of them.
    pub at_once: usize,
    /// The run's seed.
    pub seed: u64,
}

/// What `clip_text` pulls reconstructions towards.
#[derive(Debug)]
pub enum TextTarget {
    /// Each image's own caption.
    Captions,
    /// The same texts for every image: embeddings `[P, E]` and their weights.
    Prompts(Box<Tensor<2>>, Vec<f64>),
}

/// What `clip_contrastive` matches reconstructions with.
#[derive(Debug, Clone, Copy)]
pub struct ContrastiveTargets {
    /// The captions.
    pub captions: bool,
    /// The original images.
    pub originals: bool,
    /// The factor of the cosines.
    pub logit_scale: f64,
}

/// Embeddings of the whole images of an effective batch, collected in the first pass.
#[derive(Default)]
pub struct ClipEmbeddings {
    reconstructions: Vec<Tensor<2>>,
    originals: Vec<Tensor<2>>,
    captions: Vec<Tensor<2>>,
    texts: Vec<String>,
}

/// The contrastive loss of an effective batch.
pub struct ContrastiveCoupling {
    /// The loss, mean over the samples, `[1]`.
    pub value: Tensor<1>,
    /// Its weight in this step.
    pub weight: f64,
    /// Its gradient with respect to each reconstruction's embedding, `[N, E]`, unweighted.
    gradient: Tensor<2>,
    /// The originals' embeddings, `[N, E]`, if they are targets.
    originals: Option<Tensor<2>>,
    /// The captions' embeddings, `[N, E]`, if they are targets.
    captions: Option<Tensor<2>>,
}

/// Views that are embedded together.
#[derive(Debug, Clone)]
enum Group {
    Whole,
    Cutouts(Range<usize>),
}

/// The losses with a weight in a step, and their weights.
struct Active<'a> {
    image: f64,
    text: Option<(f64, &'a TextTarget)>,
    direction: Option<(f64, &'a Tensor<1>)>,
    contrastive: f64,
}

/// What the embeddings of a group are compared with; without autodiff.
struct Targets {
    /// Embeddings of the same views of the originals.
    originals: Option<Tensor<2>>,
    /// One for each sample.
    captions: Option<Tensor<2>>,
}

impl Views {
    /// Number of views of an image.
    fn count(&self) -> usize {
        self.cutouts.settings().count + usize::from(self.whole)
    }
}

impl ContrastiveCoupling {
    /// Returns a scalar whose gradient at `embeddings`, `[n, E]`, is that of the weighted loss; `first` is the first
    /// sample's index in the effective batch.
    fn surrogate(&self, embeddings: Tensor<2>, first: usize) -> Tensor<1> {
        let gradient = self.gradient.clone().narrow(0, first, embeddings.dims()[0]);
        (embeddings.cast(gradient.dtype()) * gradient.autodiff()).sum() * self.weight
    }
}

/// Returns the rows of a micro-batch of `samples`, whose first sample has the index `first` in the effective batch.
fn rows(all: &Tensor<2>, first: usize, samples: usize) -> Tensor<2> {
    all.clone().narrow(0, first, samples)
}

impl Active<'_> {
    fn needs_views(&self) -> bool {
        self.image != 0.0 || self.text.is_some() || self.direction.is_some()
    }

    fn needs_originals(&self) -> bool {
        self.image != 0.0 || self.direction.is_some()
    }
}

impl ClipGuidance {
    fn active(&self, step: u64) -> Active<'_> {
        let at = |weight: &Weight| weight.at(step);
        Active {
            image: self.image.as_ref().map_or(0.0, at),
            text: self.text.as_ref().map(|(w, target)| (at(w), target)).filter(|(w, _)| *w != 0.0),
            direction: self.direction.as_ref().map(|(w, d)| (at(w), d)).filter(|(w, _)| *w != 0.0),
            contrastive: self.contrastive.as_ref().map_or(0.0, |(w, _)| at(w)),
        }
    }

    /// Whether a loss couples the samples in a step.
    pub fn is_coupled(&self, step: u64) -> bool {
        self.active(step).contrastive != 0.0
    }

    /// Whether any loss has a weight in a step.
    pub fn counts(&self, step: u64) -> bool {
        let active = self.active(step);
        active.needs_views() || active.contrastive != 0.0
    }

    /// Whether any loss of the run sees cutouts.
    pub fn needs_cutouts(&self) -> bool {
        self.views.cutouts.settings().count > 0
            && (self.image.is_some() || self.text.is_some() || self.direction.is_some())
    }

    /// Embeds a micro-batch's whole images for [`couple`](Self::couple), without a graph.
    ///
    /// # Errors
    /// If a caption cannot be turned into tokens.
    pub fn embed(&self, images: &Images, into: &mut ClipEmbeddings) -> Result<(), TokenizerError> {
        let Some((_, targets)) = &self.contrastive else { return Ok(()) };
        let encoder = self.encoder.valid();
        let embed = |images: &Tensor<4>| encoder.forward(preprocess(images.clone(), &self.architecture));
        into.reconstructions.push(embed(&images.reconstruction));
        if targets.originals {
            into.originals.push(embed(&images.original));
        }
        if targets.captions {
            into.captions.extend(self.embed_captions(images)?);
            into.texts.extend(images.captions.iter().map(|text| text.clone().unwrap_or_default()));
        }
        Ok(())
    }

    fn embed_captions(&self, images: &Images) -> Result<Option<Tensor<2>>, TokenizerError> {
        let texts = images.captions.iter().map(|text| text.as_deref().unwrap_or_default());
        self.captions.as_ref().map(|encoder| encoder.embed(texts)).transpose()
    }

    /// Returns the contrastive loss over the embeddings of a whole effective batch: the mean over its targets.
    pub fn couple(&self, embeddings: ClipEmbeddings, step: u64) -> Option<ContrastiveCoupling> {
        let (weight, targets) = self.contrastive.as_ref()?;
        let ClipEmbeddings { reconstructions, originals, captions, texts } = embeddings;
        if reconstructions.is_empty() {
            return None;
        }
        let joined = |parts: Vec<Tensor<2>>| (!parts.is_empty()).then(|| Tensor::cat(parts, 0));
        let (reconstructions, originals, captions) =
            (Tensor::cat(reconstructions, 0), joined(originals), joined(captions));
        let mut seen = HashMap::new();
        let groups: Vec<usize> =
            texts.into_iter().enumerate().map(|(index, text)| *seen.entry(text).or_insert(index)).collect();
        let against = [(&captions, Some(&groups[..])), (&originals, None)];
        let results: Vec<Contrastive> = against
            .into_iter()
            .filter_map(|(others, groups)| {
                let others = others.clone()?;
                Some(Contrastive::new(reconstructions.clone(), others, targets.logit_scale, groups))
            })
            .collect();
        let share = 1.0 / results.len().max(1) as f64;
        let sum = results.into_iter().map(|r| (r.value, r.gradient)).reduce(|a, b| (a.0 + b.0, a.1 + b.1));
        sum.map(|(value, gradient)| ContrastiveCoupling {
            value: value * share,
            gradient: gradient * share,
            weight: weight.at(step),
            originals,
            captions,
        })
    }

    /// See [`CaptionEncoder::take_truncated`].
    pub fn take_truncated(&self) -> Option<String> {
        self.captions.as_ref()?.take_truncated()
    }

    /// Returns the gradient at the reconstruction of the weighted sum of a step's losses, times the loss scale,
    /// `[n, 3, H, W]`; `None` if no loss has a weight. `record` gets each loss's name, the micro-batch's part of its
    /// mean over samples, and its weight.
    ///
    /// # Errors
    /// If a caption cannot be turned into tokens.
    pub fn gradient(
        &self,
        images: &Images,
        coupling: Option<&ContrastiveCoupling>,
        record: &mut dyn FnMut(&'static str, Tensor<1>, f64),
    ) -> Result<Option<Tensor<4>>, TokenizerError> {
        let active = self.active(images.step);
        let samples = images.draws.len();
        // Uses the embeddings of the first pass again.
        let captions = match (active.text, coupling.and_then(|coupling| coupling.captions.as_ref())) {
            (Some((_, TextTarget::Captions)), Some(all)) => Some(rows(all, images.first, samples)),
            (Some((_, TextTarget::Captions)), None) => self.embed_captions(images)?,
            _ => None,
        };
        let ClipArchitecture { mean, deviation, .. } = &self.architecture;
        let plain = self.encoder.valid();
        let plans = if active.needs_views() { self.plans(images) } else { Vec::new() };
        let mut sum: Option<Tensor<4>> = None;
        for group in self.groups(&active) {
            let see = |images: Tensor<4>| match &group {
                Group::Whole => preprocess(images, &self.architecture),
                Group::Cutouts(range) => {
                    let plans: Vec<Vec<Cutout>> = plans.iter().map(|plan| plan[range.clone()].to_vec()).collect();
                    to_clip(self.views.cutouts.apply(images, &plans), *mean, *deviation)
                }
            };
            let is_view = self.views.whole || !matches!(group, Group::Whole);
            let known = coupling.and_then(|coupling| coupling.originals.as_ref());
            let originals = (is_view && active.needs_originals()).then(|| match (&group, known) {
                (Group::Whole, Some(all)) => rows(all, images.first, samples),
                _ => plain.forward(see(images.original.clone())),
            });
            let at_image = gradient_at(&images.reconstruction, |leaf| {
                let embeddings = self.encoder.forward(see(leaf));
                let mut terms = Vec::new();
                if is_view {
                    let targets = Targets { originals, captions: captions.clone() };
                    terms = self.view_terms(&active, images, embeddings.clone(), targets, record);
                }
                if let (Group::Whole, Some(coupling)) = (&group, coupling) {
                    terms.push(coupling.surrogate(embeddings.clone(), images.first));
                }
                let sum = terms.into_iter().reduce(Tensor::add).unwrap_or_else(|| embeddings.sum() * 0.0);
                sum * images.loss_scale
            });
            sum = Some(match sum {
                Some(sum) => sum + at_image,
                None => at_image,
            });
        }
        Ok(sum)
    }

    /// Returns the weighted losses of one group of views, given their embeddings `[n * views, E]`, sample by sample.
    fn view_terms(
        &self,
        active: &Active,
        images: &Images,
        embeddings: Tensor<2>,
        targets: Targets,
        record: &mut dyn FnMut(&'static str, Tensor<1>, f64),
    ) -> Vec<Tensor<1>> {
        let share = images.per_sample / self.views.count() as f64;
        let originals = targets.originals.map(Tensor::autodiff);
        let mut terms = Vec::new();
        let mut push = |name, per_view: Tensor<1>, weight: f64| {
            let value = per_view.sum() * share;
            record(name, value.clone().without_autodiff(), weight);
            terms.push(value * weight);
        };
        if let Some(originals) = originals.clone().filter(|_| active.image != 0.0) {
            push("clip_image", image::per_view(originals, embeddings.clone()), active.image);
        }
        match (active.text, targets.captions) {
            (Some((weight, TextTarget::Prompts(prompts, weights))), _) => {
                let prompts = prompts.as_ref().clone().autodiff();
                push("clip_text", text::per_view(embeddings.clone(), prompts, weights), weight);
            }
            (Some((weight, TextTarget::Captions)), Some(captions)) => {
                let [n, e] = captions.dims();
                let views = embeddings.dims()[0] / n;
                let captions = captions.reshape([n, 1, e]).repeat_dim(1, views).reshape([n * views, e]);
                push("clip_text", text::per_view_paired(embeddings.clone(), captions.autodiff()), weight);
            }
            _ => {}
        }
        if let (Some((weight, direction)), Some(originals)) = (active.direction, originals) {
            push("clip_direction", direction::per_view(originals, embeddings, direction.clone().autodiff()), weight);
        }
        terms
    }

    /// Draws the cutouts of each sample of a micro-batch.
    fn plans(&self, images: &Images) -> Vec<Vec<Cutout>> {
        let Views { cutouts, seed, .. } = &self.views;
        let [_, _, height, width] = images.original.dims();
        let of_sample = |&draw: &u64| {
            let key = SampleKey { seed: *seed, draw };
            cutouts.draw(key, 0..cutouts.settings().count, height, width)
        };
        images.draws.iter().map(of_sample).collect()
    }

    fn groups(&self, active: &Active) -> Vec<Group> {
        let Views { whole, cutouts, at_once, .. } = &self.views;
        let mut groups = Vec::new();
        if active.contrastive != 0.0 || (*whole && active.needs_views()) {
            groups.push(Group::Whole);
        }
        if active.needs_views() {
            let count = cutouts.settings().count;
            let at_once = if *at_once == 0 { count.max(1) } else { *at_once };
            let range = |first| Group::Cutouts(first..(first + at_once).min(count));
            groups.extend((0..count).step_by(at_once).map(range));
        }
        groups
    }
}
