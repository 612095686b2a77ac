//! The figures of one optimizer step, which stay on the device until the step is over.

use burn::tensor::{Tensor, Transaction};

use crate::models::quantizer::{Quantized, count_codes};

/// Sums over the micro-batches, by name, in the order in which the names came up.
#[derive(Default)]
pub(super) struct Sums {
    values: Vec<(&'static str, Tensor<1>)>,
    total: Option<Tensor<1>>,
    next_balance: Option<Tensor<1>>,
    code_counts: Option<Tensor<1>>,
}

fn add(sum: &mut Option<Tensor<1>>, value: Tensor<1>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + value,
        None => value,
    });
}

impl Sums {
    /// Adds a micro-batch's part of a mean over samples, `[1]`.
    pub(super) fn add(&mut self, name: &'static str, value: Tensor<1>) {
        match self.values.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum = sum.clone() + value,
            None => self.values.push((name, value)),
        }
    }

    /// Adds a micro-batch's part of a loss, `[1]`, to its mean and, weighted, to the total.
    pub(super) fn add_loss(&mut self, name: &'static str, value: Tensor<1>, weight: f64) {
        self.add(name, value.clone());
        self.add_to_total(value * weight);
    }

    /// Adds to the weighted sum of all losses, `[1]`.
    pub(super) fn add_to_total(&mut self, value: Tensor<1>) {
        add(&mut self.total, value);
    }

    /// Keeps the balance of this step's gradients, `[1]`, for the next step.
    pub(super) fn set_next_balance(&mut self, balance: Tensor<1>) {
        self.next_balance = Some(balance);
    }

    /// Forgets the figures whose names are as `which` says.
    pub(super) fn leave_out(&mut self, which: impl Fn(&str) -> bool) {
        self.values.retain(|(name, _)| !which(name));
    }

    /// Makes the total unknown, and with it what else is of the whole batch.
    pub(super) fn leave_out_total(&mut self) {
        self.total = self.total.take().map(|total| total.full_like(f64::NAN));
        (self.next_balance, self.code_counts) = (None, None);
    }

    /// Counts a micro-batch's codes.
    pub(super) fn add_codes(&mut self, quantized: &Quantized, codes: usize) {
        add(&mut self.code_counts, count_codes(quantized.codes.clone(), codes));
    }

    /// See [`EffectiveBatch::read`](super::EffectiveBatch::read).
    pub(super) fn read(&self, generator: Tensor<1>, discriminator: Option<Tensor<1>>) -> Result<Figures, String> {
        let optional = |value: &Option<Tensor<1>>| value.clone().unwrap_or_else(|| generator.zeros_like());
        let has_discriminator = discriminator.is_some();
        let mut transaction = Transaction::default()
            .register(optional(&self.total))
            .register(generator.clone())
            .register(optional(&discriminator))
            .register(optional(&self.next_balance));
        for (_, value) in &self.values {
            transaction = transaction.register(value.clone());
        }
        let data = transaction.register(optional(&self.code_counts)).try_execute().map_err(|e| e.to_string())?;
        let mut data = data.into_iter().map(|d| d.convert::<f64>().try_into_vec::<f64>().unwrap_or_default());
        let mut scalar = || data.next().and_then(|v| v.first().copied()).unwrap_or(f64::NAN);
        let (total, grad_norm, discriminator, balance) = (scalar(), scalar(), scalar(), scalar());
        let losses = self.values.iter().map(|(name, _)| (*name, scalar())).collect();
        let code_counts = data.next().filter(|_| self.code_counts.is_some()).unwrap_or_default();
        let code_counts = code_counts.into_iter().map(|count| count as f32).collect();
        let discriminator_grad_norm = has_discriminator.then_some(discriminator);
        let next_balance = self.next_balance.as_ref().map(|_| balance);
        Ok(Figures { losses, total, grad_norm, discriminator_grad_norm, next_balance, code_counts })
    }
}

/// The figures of an optimizer step, read back from the device at once.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Mean over the samples of each loss, unweighted, and of what else is worth knowing about the step.
    pub losses: Vec<(&'static str, f64)>,
    /// The weighted sum of the losses; not a number if the step was left early.
    pub total: f64,
    /// The generator's gradient's global norm, before clipping.
    pub grad_norm: f64,
    /// The discriminator's, in a step in which it learns.
    pub discriminator_grad_norm: Option<f64>,
    /// The balance that the adversarial loss gets in the next step, where that is this step's.
    pub next_balance: Option<f64>,
    /// How often each code was chosen; empty if the step was left early.
    pub code_counts: Vec<f32>,
}

impl Figures {
    /// The figure of that name, if there is one in this step.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.losses.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }
}
