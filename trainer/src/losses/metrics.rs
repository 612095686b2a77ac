//! The metrics of one optimizer step, which stay on the device until the step is over.

use burn::tensor::{Tensor, Transaction};

use crate::models::quantizer::{Quantized, count_codes};

/// Sums over the micro-batches by name, in the order in which names first appear.
#[derive(Default)]
pub struct Metrics {
    values: Vec<(&'static str, Tensor<1>)>,
    total: Option<Tensor<1>>,
    carried: Option<Tensor<1>>,
    code_counts: Option<Tensor<1>>,
}

fn add(sum: &mut Option<Tensor<1>>, value: Tensor<1>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + value,
        None => value,
    });
}

impl Metrics {
    /// Adds a micro-batch's part of a mean over samples, `[1]`.
    pub fn add(&mut self, name: &'static str, value: Tensor<1>) {
        match self.values.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum = sum.clone() + value,
            None => self.values.push((name, value)),
        }
    }

    /// Adds a micro-batch's part of a loss, `[1]`, to its mean and, weighted, to the total.
    pub fn add_loss(&mut self, name: &'static str, value: Tensor<1>, weight: f64) {
        self.add(name, value.clone());
        self.add_to_total(value * weight);
    }

    /// Adds to the weighted sum of all losses, `[1]`.
    pub fn add_to_total(&mut self, value: Tensor<1>) {
        add(&mut self.total, value);
    }

    /// Keeps `adaptive_weight`, `[1]`, to be read with the metrics for the next step.
    pub fn carry(&mut self, adaptive_weight: Tensor<1>) {
        self.carried = Some(adaptive_weight);
    }

    /// Counts a micro-batch's codes.
    pub fn add_codes(&mut self, quantized: &Quantized, codes: usize) {
        add(&mut self.code_counts, count_codes(quantized.codes.clone(), codes));
    }

    /// Waits for the device and reads all metrics in one transfer, with the global norms of the generator's gradient
    /// and, in a step that trains it, of the discriminator's, `[1]` each.
    ///
    /// # Errors
    /// The device's error, if it failed anywhere in the step.
    pub fn read(&self, generator: Tensor<1>, discriminator: Option<Tensor<1>>) -> Result<StepMetrics, String> {
        let optional = |value: &Option<Tensor<1>>| value.clone().unwrap_or_else(|| generator.zeros_like());
        let has_discriminator = discriminator.is_some();
        let mut transaction = Transaction::default()
            .register(optional(&self.total))
            .register(generator.clone())
            .register(optional(&discriminator))
            .register(optional(&self.carried));
        for (_, value) in &self.values {
            transaction = transaction.register(value.clone());
        }
        let data = transaction.register(optional(&self.code_counts)).try_execute().map_err(|e| e.to_string())?;
        let mut data = data.into_iter().map(|d| d.convert::<f64>().try_into_vec::<f64>().unwrap_or_default());
        let mut scalar = || data.next().and_then(|v| v.first().copied()).unwrap_or(f64::NAN);
        let (total, grad_norm, discriminator, carried) = (scalar(), scalar(), scalar(), scalar());
        let values = self.values.iter().map(|(name, _)| (*name, scalar())).collect();
        let code_counts = data.next().filter(|_| self.code_counts.is_some()).unwrap_or_default();
        let code_counts = code_counts.into_iter().map(|count| count as f32).collect();
        let discriminator_grad_norm = has_discriminator.then_some(discriminator);
        let next_adaptive_weight = self.carried.as_ref().map(|_| carried);
        Ok(StepMetrics { values, total, grad_norm, discriminator_grad_norm, next_adaptive_weight, code_counts })
    }
}

/// The metrics of an optimizer step, read back from the device.
#[derive(Debug, Clone)]
pub struct StepMetrics {
    /// Unweighted mean over the samples of each loss, and of other values of the step.
    pub values: Vec<(&'static str, f64)>,
    /// The weighted sum of the losses.
    pub total: f64,
    /// Global norm of the generator's gradient, before clipping.
    pub grad_norm: f64,
    /// Global norm of the discriminator's gradient, in a step that trains it.
    pub discriminator_grad_norm: Option<f64>,
    /// The adaptive weight of the adversarial loss for the next step, if that uses this step's.
    pub next_adaptive_weight: Option<f64>,
    /// How often each code was chosen.
    pub code_counts: Vec<f32>,
}

impl StepMetrics {
    /// Returns the value of that name, if this step has it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }
}
