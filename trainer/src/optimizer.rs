//! Burn's optimizers, built from the configuration.

use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, decay::WeightDecayConfig};

use crate::config::{OptimizerConfig, OptimizerName};

/// The optimizer of `config`, without state.
pub fn build(config: &OptimizerConfig) -> ModuleOptimizer {
    let [beta_1, beta_2] = config.betas.map(|beta| beta as f32);
    let epsilon = config.epsilon as f32;
    match config.name {
        OptimizerName::Adam => {
            let decay = (config.weight_decay > 0.0).then(|| WeightDecayConfig::new(config.weight_decay as f32));
            AdamConfig::new()
                .with_beta_1(beta_1)
                .with_beta_2(beta_2)
                .with_epsilon(epsilon)
                .with_weight_decay(decay)
                .init()
        }
        OptimizerName::AdamW => AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(epsilon)
            .with_weight_decay(config.weight_decay as f32)
            .init(),
    }
}
