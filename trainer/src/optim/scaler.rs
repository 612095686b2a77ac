//! Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2) by the rule of PyTorch's
//! `GradScaler`.

use serde::{Deserialize, Serialize};

use crate::precision::{PrecisionConfig, ScalerConfig};

/// NVIDIA Apex's bound: without it a model whose gradients vanish doubles its scale forever.
const LARGEST: f64 = (1_u64 << 24) as f64;

/// The factor of one optimizer's losses before the backward pass, so that gradients do not vanish in half precision. It
/// decides once per optimizer step, however many micro-batches there are.
#[derive(Debug, Clone, PartialEq)]
pub struct LossScaler {
    /// `None` for a fixed scale.
    rule: Option<ScalerConfig>,
    state: ScalerState,
}

/// The state of a scaler between steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScalerState {
    /// The scale of the next step.
    pub scale: f64,
    /// Steps taken since the last change of the scale.
    pub since_change: u64,
    /// Number of skipped steps.
    pub skipped: u64,
    /// Steps skipped since the last one that was taken.
    pub in_a_row: u64,
}

impl LossScaler {
    /// The scaler before the first step.
    pub fn new(config: &PrecisionConfig) -> Self {
        let rule = config.scaling();
        let scale = match &rule {
            Ok(rule) => rule.init,
            Err(fixed) => *fixed,
        };
        Self { rule: rule.ok(), state: ScalerState { scale, since_change: 0, skipped: 0, in_a_row: 0 } }
    }

    /// Restores a saved scaler; a fixed scale comes from the configuration.
    pub fn resumed(config: &PrecisionConfig, state: ScalerState) -> Self {
        let fresh = Self::new(config);
        let scale = if fresh.rule.is_some() { state.scale } else { fresh.state.scale };
        Self { state: ScalerState { scale, ..state }, ..fresh }
    }

    /// The scale of the next step.
    pub fn scale(&self) -> f64 {
        self.state.scale
    }

    /// The state to be saved.
    pub fn state(&self) -> ScalerState {
        self.state
    }

    /// Whether the scale changes.
    pub fn is_dynamic(&self) -> bool {
        self.rule.is_some()
    }

    /// Returns how many of `steps` steps the optimizer has taken, which its schedule counts.
    pub fn taken(&self, steps: u64) -> u64 {
        steps.saturating_sub(self.state.skipped)
    }

    /// Updates the scale: a step with a finite gradient was taken, any other was skipped.
    pub fn update(&mut self, finite: bool) {
        let state = &mut self.state;
        match finite {
            true => (state.since_change, state.in_a_row) = (state.since_change + 1, 0),
            false => {
                (state.skipped, state.in_a_row, state.since_change) = (state.skipped + 1, state.in_a_row + 1, 0);
            }
        }
        let Some(rule) = &self.rule else { return };
        if !finite {
            state.scale = (state.scale * rule.backoff_factor).max(rule.min);
        } else if state.since_change >= rule.growth_interval {
            state.scale = (state.scale * rule.growth_factor).min(LARGEST.max(state.scale));
            state.since_change = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::{Compute, LossScaleConfig};

    fn config(scaler: ScalerConfig) -> PrecisionConfig {
        PrecisionConfig { compute: Compute::Fp16, scaler, ..PrecisionConfig::default() }
    }

    #[derive(Deserialize)]
    struct Recorded {
        init: f64,
        growth_factor: f64,
        backoff_factor: f64,
        growth_interval: u64,
        finite: Vec<bool>,
        scales: Vec<f64>,
    }

    /// `tests/fixtures/make_grad_scaler.py`.
    #[test]
    fn its_scale_moves_as_that_of_pytorchs_grad_scaler() {
        let recorded = include_str!("../../../tests/fixtures/grad_scaler.json");
        let recorded: Vec<Recorded> = serde_json::from_str(recorded).unwrap();
        assert_eq!(recorded.len(), 3);
        for Recorded { init, growth_factor, backoff_factor, growth_interval, finite, scales } in recorded {
            let rule = ScalerConfig { init, growth_factor, backoff_factor, growth_interval, min: 1e-30 };
            let mut scaler = LossScaler::new(&config(rule));
            assert_eq!(scaler.scale(), init);
            let ours: Vec<f64> = finite
                .iter()
                .map(|finite| {
                    scaler.update(*finite);
                    scaler.scale()
                })
                .collect();
            assert_eq!(ours, scales);
            let skipped = finite.iter().filter(|finite| !**finite).count() as u64;
            assert_eq!((scaler.state().skipped, scaler.taken(1000)), (skipped, 1000 - skipped));
        }
    }

    #[test]
    fn a_scale_stays_within_its_bounds() {
        let rule = ScalerConfig { init: 8.0, min: 2.0, growth_interval: 1, ..ScalerConfig::default() };
        let mut scaler = LossScaler::new(&config(rule.clone()));
        (0..10).for_each(|_| scaler.update(false));
        assert_eq!((scaler.scale(), scaler.state().in_a_row), (2.0, 10));
        (0..40).for_each(|_| scaler.update(true));
        assert_eq!((scaler.scale(), scaler.state().in_a_row), (LARGEST, 0));
        // A scale that starts above the bound does not shrink after a finite step.
        let mut scaler = LossScaler::new(&config(ScalerConfig { init: LARGEST * 4.0, ..rule }));
        scaler.update(true);
        assert_eq!(scaler.scale(), LARGEST * 4.0);
    }

    #[test]
    fn a_fixed_scale_stays_and_counts_what_is_skipped() {
        let fixed = PrecisionConfig { loss_scale: Some(LossScaleConfig::Fixed(128.0)), ..config(Default::default()) };
        let mut scaler = LossScaler::new(&fixed);
        scaler.update(false);
        assert_eq!((scaler.scale(), scaler.state().skipped), (128.0, 1));
        let other = PrecisionConfig { loss_scale: Some(LossScaleConfig::Fixed(64.0)), ..fixed };
        let resumed = LossScaler::resumed(&other, scaler.state());
        assert_eq!((resumed.scale(), resumed.state().skipped), (64.0, 1));
    }

    #[test]
    fn only_fp16_is_scaled_unless_it_is_asked_for() {
        let scale = |compute| LossScaler::new(&PrecisionConfig { compute, ..PrecisionConfig::default() });
        assert!(scale(Compute::Fp16).is_dynamic());
        for compute in [Compute::Fp32, Compute::Bf16] {
            assert!(!scale(compute).is_dynamic());
            assert_eq!(scale(compute).scale(), 1.0);
        }
    }

    #[test]
    fn what_is_saved_goes_on_where_it_was() {
        let settings = config(ScalerConfig { growth_interval: 3, ..ScalerConfig::default() });
        let mut straight = LossScaler::new(&settings);
        [true, false, true, true].into_iter().for_each(|finite| straight.update(finite));
        let saved = serde_json::to_string(&straight.state()).unwrap();
        let mut resumed = LossScaler::resumed(&settings, serde_json::from_str(&saved).unwrap());
        for scaler in [&mut straight, &mut resumed] {
            scaler.update(true);
        }
        assert_eq!(resumed, straight);
        assert_eq!(resumed.scale(), 65536.0);
    }
}
