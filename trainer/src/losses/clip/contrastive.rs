//! InfoNCE over a whole effective batch: each reconstruction has to be nearest to its own text or original among those
//! of all samples (Radford et al. 2021, arXiv 2103.00020). The gradient is split at the embeddings (GradCache, Gao et
//! al. 2021, arXiv 2101.06983).
//!
//! The loss needs all N embeddings at once, but not their graphs. Pass 1 embeds without a graph, and
//! [`Contrastive::new`] computes the gradient with respect to each embedding. Pass 2 continues it through
//! `(embedding * gradient).sum()`, one micro-batch at a time. Any batch split gives the same gradient.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embedding::{unit, wide};
use crate::losses::loss::{Sees, Surroundings};
use crate::losses::table::{LossKeys, LossTable, loss_table};
use crate::problem::{Problem, positive, problem};

loss_table! {
    /// `[losses.clip_contrastive]`: distinguishes each reconstruction from all others of the effective batch by CLIP
    /// (the loss that CLIP was trained with, Radford et al. 2021, arXiv 2103.00020).
    clip_contrastive: ClipContrastiveConfig, weight = 0.0,
    /// What each reconstruction is matched with.
    against: Vec<Against> = vec![Against::Captions],
    /// What cosines are divided by, above 0; the default is CLIP's own, 0.01 in OpenAI's models.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64> = None,
}

/// What reconstructions are matched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// The images' captions.
    Captions,
    /// The images themselves.
    Originals,
}

impl LossTable for ClipContrastiveConfig {
    fn sees(&self) -> Sees {
        Sees::Clip
    }

    fn needs_captions(&self) -> bool {
        self.against.contains(&Against::Captions)
    }

    fn check(&self, around: &Surroundings) -> Result<(), Problem> {
        if let Some(temperature) = self.temperature {
            positive("losses.clip_contrastive.temperature", temperature)?;
        }
        if (1..self.against.len()).any(|index| self.against[..index].contains(&self.against[index])) {
            return problem("losses.clip_contrastive.against", "names the same twice");
        }
        if !self.is_on() {
            return Ok(());
        }
        if self.against.is_empty() {
            let message = "is empty, must be [\"captions\"], [\"originals\"] or both";
            return problem("losses.clip_contrastive.against", message);
        }
        if around.effective == 1 {
            let message = "needs at least 2 images to tell apart, but batch.effective is 1";
            return problem("losses.clip_contrastive.weight", message);
        }
        Ok(())
    }
}

/// Added to the logit of an excluded pair: its share of the softmax is exactly 0, and no sum becomes infinite.
const EXCLUDED: f64 = -1e9;

/// The loss of an effective batch.
#[derive(Debug, Clone)]
pub struct Contrastive {
    /// Mean over the samples of the cross-entropies of both directions, `[1]`.
    pub value: Tensor<1>,
    /// Gradient at each reconstruction's embedding before normalisation: `[N, E]`, without autodiff.
    pub gradient: Tensor<2>,
}

impl Contrastive {
    /// Computes the loss from the embeddings of the N reconstructions and of their targets, both `[N, E]` and constant.
    ///
    /// `logit_scale` is the factor of the cosines: `exp` of the checkpoint's `logit_scale`, 100 in OpenAI's models.
    ///
    /// `groups` has a number for each sample; samples with equal numbers have equal targets, such as the same caption.
    /// They are not negatives of each other: each is excluded from the other's denominators in both directions.
    pub fn new(reconstructions: Tensor<2>, others: Tensor<2>, logit_scale: f64, groups: Option<&[usize]>) -> Self {
        let leaf = wide(reconstructions.without_autodiff()).autodiff().require_grad();
        let value = loss(leaf.clone(), others.without_autodiff().autodiff(), logit_scale, groups);
        let mut gradients = value.backward();
        let gradient = leaf.grad_remove(&mut gradients).unwrap_or_else(|| leaf.without_autodiff().zeros_like());
        Self { value: value.without_autodiff(), gradient }
    }
}

fn loss(reconstructions: Tensor<2>, others: Tensor<2>, logit_scale: f64, groups: Option<&[usize]>) -> Tensor<1> {
    let [n, _] = reconstructions.dims();
    let reconstructions = unit(reconstructions);
    let others = unit(others).cast(reconstructions.dtype());
    let mut logits = reconstructions.matmul(others.swap_dims(0, 1)) * logit_scale;
    let matrix = |of: &dyn Fn(usize, usize) -> f64| {
        let values: Vec<f64> = (0..n * n).map(|index| of(index / n, index % n)).collect();
        Tensor::<2>::from_data(TensorData::new(values, [n, n]), (&logits.device(), logits.dtype()))
    };
    let own = matrix(&|i, j| if i == j { 1.0 } else { 0.0 });
    if let Some(groups) = groups {
        let equal = |i: usize, j: usize| i != j && groups[i] == groups[j];
        let excluded = matrix(&|i, j| if equal(i, j) { EXCLUDED } else { 0.0 });
        logits = logits + excluded;
    }
    let log_probability = log_softmax(logits.clone(), 1) + log_softmax(logits, 0);
    (log_probability * own).sum() / (-2.0 * n as f64)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Expected, assert_near, read, rows, wave};
    use super::*;

    const N: usize = 5;
    const SCALE: f64 = 7.0;

    fn new(reconstructions: Tensor<2>, groups: Option<&[usize]>) -> Contrastive {
        Contrastive::new(reconstructions, wave(N, 4, 0.3), SCALE, groups)
    }

    #[test]
    fn two_samples_by_hand() {
        let reconstructions = rows(&[&[2.0, 0.0], &[0.0, 3.0]]);
        let others = rows(&[&[5.0, 0.0], &[3.0, 4.0]]);
        let found = read(Contrastive::new(reconstructions, others, 2.0, None).value)[0];
        // Logits: 2 and 1.2 for the first reconstruction, 0 and 1.6 for the second.
        let cross_entropy = |own: f64, other: f64| (1.0 + (other - own).exp()).ln();
        let rows = cross_entropy(2.0, 1.2) + cross_entropy(1.6, 0.0);
        let columns = cross_entropy(2.0, 0.0) + cross_entropy(1.6, 1.2);
        assert!((found - (rows + columns) / 4.0).abs() < 1e-12, "{found}");
    }

    #[test]
    fn value_and_gradient_are_those_of_open_clip() {
        let expected = Expected::open();
        let [others, reconstructions] = ["original", "reconstruction"].map(|name| expected.rows(name, 4));
        let found = Contrastive::new(reconstructions, others, 10.0, None);
        assert_near(&read(found.value), &expected.read("contrastive.value"), 1e-12);
        assert_near(&read(found.gradient), &expected.read("contrastive.gradient"), 1e-12);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let start = read(wave(N, 4, 1.1));
        let (step, groups) = (1e-6, [0, 1, 0, 2, 1]);
        for groups in [None, Some(groups.as_slice())] {
            let value = |values: &[f64]| {
                let reconstructions: Vec<&[f64]> = values.chunks(4).collect();
                read(new(rows(&reconstructions), groups).value)[0]
            };
            let gradient = read(new(wave(N, 4, 1.1), groups).gradient);
            assert!(gradient.iter().any(|g| g.abs() > 0.1), "{gradient:?}");
            for (index, expected) in gradient.iter().enumerate() {
                let nudged = |amount: f64| {
                    let mut values = start.clone();
                    values[index] += amount;
                    value(&values)
                };
                let difference = (nudged(step) - nudged(-step)) / (2.0 * step);
                assert!((difference - expected).abs() < 1e-8, "{index}: {expected} against {difference}");
            }
        }
    }

    #[test]
    fn the_sum_over_micro_batches_is_the_gradient_of_the_whole_batch() {
        // An embedding network with a single weight matrix.
        let inputs = wave(N, 6, 2.0);
        let weights = wave(6, 4, 0.7);
        let whole = weights.clone().autodiff().require_grad();
        let mut gradients =
            loss(inputs.clone().autodiff().matmul(whole.clone()), wave(N, 4, 0.3).autodiff(), SCALE, None).backward();
        let whole = read(whole.grad_remove(&mut gradients).unwrap());

        let at_embeddings = new(inputs.clone().matmul(weights.clone()), None).gradient;
        for micro in [1, 2, 5] {
            let mut sum = vec![0.0; whole.len()];
            for (inputs, at_embeddings) in
                inputs.clone().split(micro, 0).into_iter().zip(at_embeddings.clone().split(micro, 0))
            {
                let leaf = weights.clone().autodiff().require_grad();
                let embeddings = inputs.autodiff().matmul(leaf.clone());
                let mut gradients = (embeddings * at_embeddings.autodiff()).sum().backward();
                let part = read(leaf.grad_remove(&mut gradients).unwrap());
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            assert_near(&sum, &whole, 1e-12);
        }
    }

    // A sample of the same group is excluded from the denominators, as if it were absent.
    #[test]
    fn equal_texts_are_no_negatives_of_each_other() {
        let reconstructions = rows(&[&[1.0, 0.0], &[0.8, 0.6], &[0.0, 1.0]]);
        let others = rows(&[&[1.0, 0.0], &[1.0, 0.0], &[0.6, -0.8]]);
        let value = |groups| read(Contrastive::new(reconstructions.clone(), others.clone(), 3.0, groups).value)[0];
        let grouped = value(Some(&[4, 4, 7]));
        let cosines: [[f64; 3]; 3] = [[1.0, 1.0, 0.6], [0.8, 0.8, 0.0], [0.0, 0.0, -0.8]];
        let counts = |i: usize, j: usize| i == j || !(i < 2 && j < 2);
        let mut expected = 0.0;
        for (i, row) in cosines.iter().enumerate() {
            let own = 3.0 * row[i];
            let column: f64 = (0..3).filter(|&j| counts(j, i)).map(|j| (3.0 * cosines[j][i]).exp()).sum();
            let row: f64 = (0..3).filter(|&j| counts(i, j)).map(|j| (3.0 * row[j]).exp()).sum();
            expected += row.ln() + column.ln() - 2.0 * own;
        }
        assert!((grouped - expected / 6.0).abs() < 1e-12, "{grouped} against {}", expected / 6.0);
        assert!(value(None) > grouped + 0.1);
        assert_eq!(value(Some(&[0, 1, 2])), value(None));
    }

    #[test]
    fn a_single_sample_has_no_loss() {
        let found = Contrastive::new(rows(&[&[1.0, 2.0]]), rows(&[&[2.0, -1.0]]), 100.0, None);
        assert_eq!((read(found.value), read(found.gradient)), (vec![0.0], vec![0.0, 0.0]));
    }
}
