//! The loss of the quantizer: ties codes and latents together (van den Oord et al. 2017, arXiv 1711.00937, equation 3),
//! and keeps the codes in use.

mod entropy;
mod gumbel;

use std::sync::Arc;

use burn::tensor::Tensor;
use checkpoints::{GumbelTraining, QuantizerKind};

pub use self::entropy::{EntropyCoupling, EntropyGradient, sum_probabilities};
pub use self::gumbel::{GumbelLoss, divergence};
use super::load::LossError;
use super::loss::{Forward, Gradients, LoadContext, Loss, LossStep, Needs, Sees, StepContext, Surroundings, Weight};
use super::metrics::Metrics;
use super::table::{LossTable, loss_table};
use crate::losses::phase::Phase;
use crate::models::quantizer::gumbel::{GumbelTerms, Sampling, SeededNoise};
use crate::models::quantizer::{NearestTerms, Quantizer, Terms};
use crate::models::surrogate::surrogate;
use crate::problem::{Problem, not_negative, positive, problem};

loss_table! {
    /// `[losses.codebook]`: ties codes and latents together, and keeps the codes in use.
    codebook: CodebookConfig, weight = 1.0,
    /// Weight of the commitment term, or of the codes' term with `legacy`; the other term's is 1. The default is the
    /// checkpoint's.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    beta: Option<f64> = None,
    /// Whether `beta` weights the codes' term, as taming's legacy form does; the default is the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    legacy: Option<bool> = None,
    /// Weight of the entropy term; the default is the checkpoint's.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    entropy: Option<f64> = None,
    /// For a Gumbel quantizer only, as are the next three keys: weight, within this loss, of the divergence of the
    /// codes' probabilities from uniform ones; the default is 1e-8.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    kl_weight: Option<f64> = None,
    /// Temperature at the first step of the softmax that gradients use, above 0; the default is 0.9.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature_start: Option<f64> = None,
    /// Temperature at the last of `temperature_steps` and after it, above 0; the default is 1e-6.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature_end: Option<f64> = None,
    /// Optimizer steps from start to end of the temperature, along half a cosine; the default is 1,000,001.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature_steps: Option<u64> = None,
}

impl CodebookConfig {
    /// How a Gumbel quantizer is trained.
    pub fn gumbel_training(&self) -> GumbelTraining {
        let published = GumbelTraining::PUBLISHED;
        GumbelTraining {
            kl_weight: self.kl_weight.unwrap_or(published.kl_weight),
            temperature_start: self.temperature_start.unwrap_or(published.temperature_start),
            temperature_end: self.temperature_end.unwrap_or(published.temperature_end),
            temperature_steps: self.temperature_steps.unwrap_or(published.temperature_steps),
        }
    }

    /// Returns a key that is set but has no effect with a quantizer of `kind`.
    pub(crate) fn without_effect(&self, kind: QuantizerKind) -> Option<&'static str> {
        let of_nearest = [
            ("losses.codebook.beta", self.beta.is_some()),
            ("losses.codebook.legacy", self.legacy.is_some()),
            ("losses.codebook.entropy", self.entropy.is_some()),
        ];
        let of_gumbel = [
            ("losses.codebook.kl_weight", self.kl_weight.is_some()),
            ("losses.codebook.temperature_start", self.temperature_start.is_some()),
            ("losses.codebook.temperature_end", self.temperature_end.is_some()),
            ("losses.codebook.temperature_steps", self.temperature_steps.is_some()),
        ];
        let keys = match kind {
            QuantizerKind::Nearest => &of_gumbel[..],
            QuantizerKind::Gumbel => &of_nearest[..],
        };
        keys.iter().find(|(_, is_set)| *is_set).map(|(key, _)| *key)
    }
}

impl LossTable for CodebookConfig {
    fn sees(&self) -> Sees {
        Sees::Latents
    }

    fn check(&self, _around: &Surroundings) -> Result<(), Problem> {
        not_negative("losses.codebook.beta", self.beta.unwrap_or(0.0))?;
        not_negative("losses.codebook.entropy", self.entropy.unwrap_or(0.0))?;
        let gumbel = self.gumbel_training();
        not_negative("losses.codebook.kl_weight", gumbel.kl_weight)?;
        positive("losses.codebook.temperature_start", gumbel.temperature_start)?;
        positive("losses.codebook.temperature_end", gumbel.temperature_end)?;
        if gumbel.temperature_steps == 0 {
            return problem("losses.codebook.temperature_steps", "is 0, must be at least 1");
        }
        Ok(())
    }
}

/// The loss `codebook`. It exists at weight 0 too, to count codes and to draw those of a Gumbel quantizer.
pub struct Codebook {
    /// Its weight in each step.
    pub weight: Weight,
    /// The loss, by the kind of quantizer.
    pub loss: CodebookLoss,
}

/// The loss of a quantizer.
#[derive(Debug, Clone)]
pub enum CodebookLoss {
    /// For a quantizer that takes the nearest code.
    Nearest(NearestLoss),
    /// For a Gumbel quantizer.
    Gumbel(GumbelLoss),
}

/// Ties latents to their nearest codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearestLoss {
    /// The smaller of the two weights below, 0.25 in every family.
    pub beta: f64,
    /// `VectorQuantizer2`'s legacy form, which puts `beta` on the codes' term and not on the commitment.
    pub legacy: bool,
    /// Weight of the entropy term within this loss; 0 disables it.
    pub entropy: f64,
}

impl NearestLoss {
    /// Returns the value per sample, `[N]`, without the entropy term.
    pub fn per_sample(&self, terms: &NearestTerms) -> Tensor<1> {
        let (codes, commitment) = if self.legacy { (self.beta, 1.0) } else { (1.0, self.beta) };
        terms.codebook.clone() * codes + terms.commitment.clone() * commitment
    }
}

impl Loss for Codebook {
    type Tables<'a> = (&'a CodebookConfig,);

    const METRICS: &'static [(&'static str, &'static str)] = &[
        ("codebook", "loss/codebook"),
        ("entropy", "loss/entropy"),
        ("kl", "codebook/kl"),
        ("temperature", "codebook/temperature"),
    ];

    /// The checkpoint provides the defaults of the configuration.
    fn load((table,): Self::Tables<'_>, context: &mut LoadContext<'_>) -> Result<Option<Self>, LossError> {
        let quantizer = context.quantizer;
        let loss = match quantizer.kind {
            QuantizerKind::Nearest => CodebookLoss::Nearest(NearestLoss {
                beta: table.beta.unwrap_or(quantizer.beta),
                legacy: table.legacy.unwrap_or(quantizer.legacy_beta),
                entropy: table.entropy.unwrap_or(quantizer.entropy_ratio),
            }),
            QuantizerKind::Gumbel => CodebookLoss::Gumbel(GumbelLoss {
                training: table.gumbel_training(),
                noise: Arc::new(SeededNoise { seed: context.around.seed }),
            }),
        };
        Ok(Some(Self { weight: Weight { value: table.weight, start: table.start, ramp: table.ramp }, loss }))
    }

    fn couples_samples(&self, step: u64) -> bool {
        self.weight.at(step) != 0.0 && matches!(&self.loss, CodebookLoss::Nearest(loss) if loss.entropy != 0.0)
    }

    fn begin<'a>(&'a self, context: &'a StepContext<'a>) -> Option<Box<dyn LossStep + 'a>> {
        let weight = self.weight.at(context.step);
        Some(match &self.loss {
            CodebookLoss::Nearest(loss) => {
                let codes = context.model.quantizer().codes();
                let couples = self.couples_samples(context.step);
                let probabilities = couples.then(|| Tensor::zeros([codes], (&context.device, context.dtype)));
                Box::new(NearestStep { loss, weight, context, probabilities, tokens: 0, coupling: None })
            }
            CodebookLoss::Gumbel(loss) => Box::new(GumbelStep { loss, weight, context }),
        })
    }
}

struct NearestStep<'a> {
    loss: &'a NearestLoss,
    weight: f64,
    context: &'a StepContext<'a>,
    /// The codes' probabilities, summed over the tokens of the first pass, `[codes]`, if the entropy term has a weight.
    probabilities: Option<Tensor<1>>,
    tokens: usize,
    coupling: Option<EntropyCoupling>,
}

impl NearestStep<'_> {
    /// Returns a scalar whose gradient is that of the unweighted loss.
    fn surrogate(&self, terms: &NearestTerms, metrics: &mut Metrics) -> Tensor<1> {
        let value = self.loss.per_sample(terms).sum() / self.context.effective as f64;
        metrics.add_loss("codebook", value.clone().without_autodiff(), self.weight);
        let Some(coupling) = &self.coupling else { return value };

        let NearestTerms { vectors, codebook_vectors, .. } = terms;
        let entropy =
            coupling.gradient(vectors.clone().without_autodiff(), codebook_vectors.clone().without_autodiff());
        metrics.add_loss("entropy", entropy.sample_entropy, self.weight * self.loss.entropy);
        let surrogate =
            surrogate(vectors.clone(), entropy.vectors) + surrogate(codebook_vectors.clone(), entropy.codebook);
        value + surrogate * self.loss.entropy
    }
}

impl LossStep for NearestStep<'_> {
    fn needs(&self) -> Needs {
        if self.probabilities.is_some() { Needs::Latents } else { Needs::Nothing }
    }

    fn observe_latents(&mut self, quantizer: &Quantizer, latents: &Tensor<4>) {
        if let (Some(sum), Quantizer::Nearest(quantizer)) = (self.probabilities.take(), quantizer) {
            let (vectors, codebook) = quantizer.compared(latents.clone());
            self.tokens += vectors.dims()[0];
            self.probabilities = Some(sum + sum_probabilities(vectors, codebook));
        }
    }

    fn couple(&mut self) {
        let sum = self.probabilities.take();
        self.coupling = sum.map(|sum| EntropyCoupling::new(sum, self.tokens.max(1)));
    }

    fn add_gradient(&mut self, forward: &Forward, to: &mut Gradients, metrics: &mut Metrics) -> Result<(), LossError> {
        self.context.enter(Phase::Backward);
        metrics.add_codes(forward.quantized, self.context.model.quantizer().codes());
        if let Terms::Nearest(terms) = &forward.quantized.terms {
            let scale = self.weight * self.context.loss_scales.generator;
            to.at_codes = Some(self.surrogate(terms, metrics) * scale);
        }
        Ok(())
    }

    fn finish(&mut self, metrics: &mut Metrics) {
        if let Some(coupling) = &self.coupling {
            metrics.add_loss("entropy", coupling.shared_value(), self.weight * self.loss.entropy);
        }
    }
}

struct GumbelStep<'a> {
    loss: &'a GumbelLoss,
    weight: f64,
    context: &'a StepContext<'a>,
}

impl GumbelStep<'_> {
    /// Returns a scalar whose gradient is that of the weighted loss, times the loss scale.
    fn surrogate(&self, terms: &GumbelTerms, metrics: &mut Metrics) -> Tensor<1> {
        let effective = self.context.effective as f64;
        let (kl_weight, share) = (self.loss.training.kl_weight, terms.samples() as f64 / effective);
        let (kl, surrogate) = divergence(terms);
        metrics.add_loss("codebook", kl.clone() * (kl_weight / effective), self.weight);
        metrics.add("kl", kl / effective);
        metrics.add("temperature", self.context.scalar(self.loss.temperature(self.context.step) * share));
        surrogate * (kl_weight / effective * self.weight * self.context.loss_scales.generator)
    }
}

impl LossStep for GumbelStep<'_> {
    fn sampling(&self, draws: &[u64]) -> Option<Sampling> {
        Some(self.loss.sampling(self.context.step, draws))
    }

    fn add_gradient(&mut self, forward: &Forward, to: &mut Gradients, metrics: &mut Metrics) -> Result<(), LossError> {
        self.context.enter(Phase::Backward);
        metrics.add_codes(forward.quantized, self.context.model.quantizer().codes());
        if let Terms::Gumbel(terms) = &forward.quantized.terms {
            to.at_codes = Some(self.surrogate(terms, metrics));
        }
        Ok(())
    }
}
