//! All CLIP losses of a run, with the one network that they share.
//!
//! A picture is seen as views: the whole of it, and random cutouts. Each loss is a mean over the views of each sample, so that
//! any number of them can be worked on at a time. Only the contrastive loss couples samples; it sees whole pictures.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use checkpoints::ClipArchitecture;
use datasets::SampleKey;

use super::contrastive::Contrastive;
use super::{direction, image, text};
use crate::cutouts::{Cutout, Cutouts};
use crate::engine::gradient_at;
use crate::losses::{Seen, Weight};
use crate::models::clip::{ClipTokenizer, ImageEncoder, TextEncoder, TokenizerError, preprocess, to_clip};

/// The CLIP losses of a run.
pub struct ClipGuidance {
    /// On the autodiff device and frozen: gradients go through it to the picture.
    pub encoder: ImageEncoder,
    /// What the encoder is built like.
    pub architecture: ClipArchitecture,
    /// Only if a loss compares with captions.
    pub captions: Option<CaptionEncoder>,
    /// What is seen of a picture.
    pub views: Views,
    /// `clip_image`.
    pub image: Option<Weight>,
    /// `clip_text`.
    pub text: Option<(Weight, TextTarget)>,
    /// `clip_contrastive`.
    pub contrastive: Option<(Weight, ContrastiveTargets)>,
    /// `clip_direction`, with the direction, `[E]`.
    pub direction: Option<(Weight, Tensor<1>)>,
}

/// The views of a picture.
#[derive(Debug, Clone)]
pub struct Views {
    /// Whether the whole picture is one.
    pub whole: bool,
    /// The others.
    pub cutouts: Cutouts,
    /// Cutouts of a sample at a time; 0 for all of them.
    pub at_once: usize,
    /// The run's seed.
    pub seed: u64,
}

/// What `clip_text` draws reconstructions to.
#[derive(Debug)]
pub enum TextTarget {
    /// Each picture's own caption.
    Captions,
    /// The same texts for every picture: embeddings `[P, E]` and their weights.
    Prompts(Box<Tensor<2>>, Vec<f64>),
}

/// What `clip_contrastive` tells reconstructions apart by.
#[derive(Debug, Clone, Copy)]
pub struct ContrastiveTargets {
    /// The captions.
    pub captions: bool,
    /// The original pictures.
    pub originals: bool,
    /// What cosines are multiplied with.
    pub logit_scale: f64,
}

/// Embeds captions, without a graph.
pub struct CaptionEncoder {
    tokenizer: ClipTokenizer,
    /// From tokens to embeddings, without autodiff.
    encoder: TextEncoder,
    device: Device,
    truncated: Mutex<Truncated>,
}

impl CaptionEncoder {
    /// `encoder`'s parameters are on `device`, without autodiff.
    pub fn new(tokenizer: ClipTokenizer, encoder: TextEncoder, device: Device) -> Self {
        Self { tokenizer, encoder, device, truncated: Mutex::default() }
    }

    /// `[texts, E]`, not normalised. Texts that are longer than the context lose their end.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn embed<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<Tensor<2>, TokenizerError> {
        let (mut ids, mut rows) = (Vec::new(), 0);
        for text in texts {
            let tokens = self.tokenizer.encode(text)?;
            if tokens.truncated {
                self.note_truncated(text);
            }
            ids.extend(tokens.ids.iter().map(|&id| i64::from(id)));
            rows += 1;
        }
        let context = ids.len() / rows.max(1);
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, context]), &self.device);
        Ok(self.encoder.forward(ids))
    }

    fn note_truncated(&self, text: &str) {
        let mut truncated = self.truncated.lock().unwrap_or_else(PoisonError::into_inner);
        if *truncated == Truncated::None {
            *truncated = Truncated::Unsaid(text.to_owned());
        }
    }

    /// The first text that was longer than the context, once.
    pub fn take_truncated(&self) -> Option<String> {
        let mut truncated = self.truncated.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *truncated, Truncated::Said) {
            Truncated::Unsaid(text) => Some(text),
            Truncated::Said => None,
            Truncated::None => {
                *truncated = Truncated::None;
                None
            }
        }
    }
}

/// What is to be said of texts that are too long.
#[derive(Debug, Default, PartialEq)]
enum Truncated {
    #[default]
    None,
    Unsaid(String),
    Said,
}

/// Embeddings of the whole pictures of an effective batch, collected in the first pass.
#[derive(Default)]
pub struct ClipEmbeddings {
    reconstructions: Vec<Tensor<2>>,
    originals: Vec<Tensor<2>>,
    captions: Vec<Tensor<2>>,
    texts: Vec<String>,
}

/// What the contrastive loss of an effective batch comes to.
pub struct ContrastiveCoupling {
    /// The loss, mean over the samples, `[1]`.
    pub value: Tensor<1>,
    /// Its weight in this step.
    pub weight: f64,
    /// Its gradient with respect to each reconstruction's embedding, `[N, E]`, unweighted.
    gradient: Tensor<2>,
    /// The originals' embeddings, `[N, E]`, if it is against them.
    originals: Option<Tensor<2>>,
    /// The captions' embeddings, `[N, E]`, if it is against them.
    captions: Option<Tensor<2>>,
}

/// Views that are embedded together.
#[derive(Debug, Clone)]
enum Group {
    Whole,
    Cutouts(Range<usize>),
}

/// The losses that count in a step, with their weights.
struct Active<'a> {
    image: f64,
    text: Option<(f64, &'a TextTarget)>,
    direction: Option<(f64, &'a Tensor<1>)>,
    contrastive: f64,
}

/// What a group's embeddings are compared with; without autodiff.
struct Targets {
    /// Embeddings of the same views of the originals.
    originals: Option<Tensor<2>>,
    /// One for each sample.
    captions: Option<Tensor<2>>,
}

impl Views {
    /// Views of a picture.
    fn count(&self) -> usize {
        self.cutouts.settings().count + usize::from(self.whole)
    }
}

impl ContrastiveCoupling {
    /// A scalar whose gradient at `embeddings`, `[n, E]`, is the weighted loss's; `first` is the first sample's index in the
    /// effective batch.
    fn surrogate(&self, embeddings: Tensor<2>, first: usize) -> Tensor<1> {
        let gradient = self.gradient.clone().narrow(0, first, embeddings.dims()[0]);
        (embeddings.cast(gradient.dtype()) * gradient.autodiff()).sum() * self.weight
    }
}

/// The rows of a micro-batch of `samples`, of which the first has the index `first` in the effective batch.
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

    /// Embeds a micro-batch's whole pictures for [`couple`](Self::couple), without a graph.
    pub fn embed(&self, seen: &Seen, into: &mut ClipEmbeddings) {
        let Some((_, targets)) = &self.contrastive else { return };
        let encoder = self.encoder.valid();
        let embed = |images: &Tensor<4>| encoder.forward(preprocess(images.clone(), &self.architecture));
        into.reconstructions.push(embed(&seen.reconstruction));
        if targets.originals {
            into.originals.push(embed(&seen.original));
        }
        if targets.captions {
            into.captions.extend(self.embed_captions(seen));
            into.texts.extend(seen.captions.iter().map(|text| text.clone().unwrap_or_default()));
        }
    }

    fn embed_captions(&self, seen: &Seen) -> Option<Tensor<2>> {
        let texts = seen.captions.iter().map(|text| text.as_deref().unwrap_or_default());
        self.captions.as_ref()?.embed(texts).ok()
    }

    /// The contrastive loss over the embeddings of a whole effective batch: the mean over what it is against.
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

    /// Gradient at the reconstruction of the weighted sum of the losses of a step, times the loss scale, `[n, 3, H, W]`; `None`
    /// if none counts.
    /// `record` gets each loss's name, the micro-batch's part of its mean over samples, and its weight.
    pub fn gradient(
        &self,
        seen: &Seen,
        coupling: Option<&ContrastiveCoupling>,
        record: &mut dyn FnMut(&'static str, Tensor<1>, f64),
    ) -> Option<Tensor<4>> {
        let active = self.active(seen.step);
        let samples = seen.draws.len();
        // What the first pass has embedded is not embedded again.
        let captions = match (active.text, coupling.and_then(|coupling| coupling.captions.as_ref())) {
            (Some((_, TextTarget::Captions)), Some(all)) => Some(rows(all, seen.first, samples)),
            (Some((_, TextTarget::Captions)), None) => self.embed_captions(seen),
            _ => None,
        };
        let ClipArchitecture { mean, deviation, .. } = &self.architecture;
        let plain = self.encoder.valid();
        let plans = if active.needs_views() { self.plans(seen) } else { Vec::new() };
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
                (Group::Whole, Some(all)) => rows(all, seen.first, samples),
                _ => plain.forward(see(seen.original.clone())),
            });
            let at_image = gradient_at(&seen.reconstruction, |leaf| {
                let embeddings = self.encoder.forward(see(leaf));
                let mut terms = Vec::new();
                if is_view {
                    let targets = Targets { originals, captions: captions.clone() };
                    terms = self.view_terms(&active, seen, embeddings.clone(), targets, record);
                }
                if let (Group::Whole, Some(coupling)) = (&group, coupling) {
                    terms.push(coupling.surrogate(embeddings.clone(), seen.first));
                }
                let sum = terms.into_iter().reduce(Tensor::add).unwrap_or_else(|| embeddings.sum() * 0.0);
                sum * seen.loss_scale
            });
            sum = Some(match sum {
                Some(sum) => sum + at_image,
                None => at_image,
            });
        }
        sum
    }

    /// The weighted losses of one group of views, given their embeddings `[n * views, E]`, a sample's views after one another.
    fn view_terms(
        &self,
        active: &Active,
        seen: &Seen,
        embeddings: Tensor<2>,
        targets: Targets,
        record: &mut dyn FnMut(&'static str, Tensor<1>, f64),
    ) -> Vec<Tensor<1>> {
        let share = seen.per_sample / self.views.count() as f64;
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

    /// The cutouts of each sample of a micro-batch.
    fn plans(&self, seen: &Seen) -> Vec<Vec<Cutout>> {
        let Views { cutouts, seed, .. } = &self.views;
        let [_, _, height, width] = seen.original.dims();
        let of_sample = |&draw: &u64| {
            let key = SampleKey { seed: *seed, draw };
            cutouts.draw(key, 0..cutouts.settings().count, height, width)
        };
        seen.draws.iter().map(of_sample).collect()
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
