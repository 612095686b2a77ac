//! The discriminator and its training: its own optimizer, schedule, clipping and loss scale.

use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use checkpoints::hub::FileChoice;
use checkpoints::load_discriminator;

use super::state::{AdversarialState, SavedDiscriminator};
use super::table::AdversarialConfig;
use crate::losses::load::{LossError, fetch};
use crate::losses::loss::Surroundings;
use crate::models::discriminator::{BatchStatistics, DiscriminatorNorm, PatchGan, PatchGanConfig};
use crate::models::weights::{ModelError, StateDict, WeightReader};
use crate::optim::{LossScaler, LrSchedule, ModelOptimizer, global_norm, unscale_and_clip};

const KEY: &str = "discriminator.pretrained";

/// A discriminator in training.
pub struct Discriminator {
    /// `None` only during the optimizer's step.
    model: Option<PatchGan>,
    optimizer: ModelOptimizer,
    schedule: LrSchedule,
    clip_norm: f64,
    scaler: LossScaler,
    /// The loss's state between steps.
    pub state: AdversarialState,
}

impl Discriminator {
    /// Loads the configuration's discriminator: a pretrained one, or one with random weights.
    ///
    /// # Errors
    /// If the pretrained one cannot be fetched or read, or needs larger images.
    pub fn fresh(loss: &AdversarialConfig, around: &Surroundings, device: &Device) -> Result<Self, LossError> {
        let weights = match &around.discriminator.pretrained {
            Some(spec) => {
                let fetched = fetch(KEY, spec, FileChoice::Vqgan)?;
                load_discriminator(fetched).map_err(|source| LossError::Weights { key: KEY, source })?
            }
            None => PatchGan::random_weights(&around.discriminator.architecture(), around.seed),
        };
        let discriminator = Self::read(loss, around, &weights, device);
        Ok(discriminator.map_err(|source| LossError::Model { key: KEY, source })?.with_moments())
    }

    /// Restores a saved discriminator with its optimizer's state.
    ///
    /// # Errors
    /// If the tensors are not those of a discriminator, or of one that needs larger images.
    pub fn resumed(
        loss: &AdversarialConfig,
        around: &Surroundings,
        saved: SavedDiscriminator,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let SavedDiscriminator { weights, optimizer, state, scaler } = saved;
        let mut discriminator = Self { state, ..Self::read(loss, around, &weights, device)? };
        if let Some(scaler) = scaler {
            discriminator.scaler = LossScaler::resumed(around.precision, scaler);
        }
        if let Some(model) = &discriminator.model {
            discriminator.optimizer.load_state_dict(model, &optimizer)?;
        }
        Ok(discriminator.with_moments())
    }

    /// Creates a discriminator that takes no step, for tests that only compute gradients.
    #[cfg(test)]
    pub(crate) fn untrained(model: PatchGan, state: AdversarialState) -> Self {
        let config = crate::config::Config::default();
        Self {
            model: Some(model),
            optimizer: ModelOptimizer::new(&config.optimizer),
            schedule: LrSchedule::new(&config.schedule, &config.optimizer, 1),
            clip_norm: 0.0,
            scaler: LossScaler::new(&config.precision),
            state,
        }
    }

    /// Allocates the moments of its optimizer.
    fn with_moments(mut self) -> Self {
        if let Some(model) = &self.model {
            self.optimizer.allocate(model);
        }
        self
    }

    fn read(
        loss: &AdversarialConfig,
        around: &Surroundings,
        weights: &StateDict,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let architecture = PatchGanConfig::of(weights)?;
        let (smallest, resolution) = (architecture.smallest_input(), around.resolution);
        if (resolution as usize) < smallest {
            return Err(ModelError::ImagesTooSmall { smallest, resolution });
        }
        if architecture.norm == DiscriminatorNorm::Batch {
            note!("discriminator: it has BatchNorm, so what a step computes depends on batch.micro");
        }
        let settings = around.discriminator;
        let optimizer = settings.optimizer.over(around.optimizer);
        Ok(Self {
            model: Some(PatchGan::read(&WeightReader::new(weights, device, DType::F32), &architecture)?),
            schedule: LrSchedule::new(&settings.schedule.over(around.schedule), &optimizer, around.steps)
                .starting_at(settings.start(loss)),
            clip_norm: optimizer.clip_norm,
            scaler: LossScaler::new(around.precision),
            optimizer: ModelOptimizer::new(&optimizer),
            state: AdversarialState::new(loss.lecam_decay),
        })
    }

    /// Whether the discriminator has BatchNorm, so that a step depends on the micro-batch.
    pub fn has_batch_norm(&self) -> bool {
        self.model().has_batch_norm()
    }

    /// The discriminator.
    pub fn model(&self) -> &PatchGan {
        self.model.as_ref().expect("the optimizer gives the model back before the step goes on")
    }

    /// Its optimizer, to be saved.
    pub fn optimizer(&self) -> &ModelOptimizer {
        &self.optimizer
    }

    /// Returns the gradient's global norm, `[1]`; `None` in a step that does not train it.
    pub fn grad_norm(&self, gradients: &GradientsParams) -> Option<Tensor<1>> {
        global_norm(self.model(), gradients)
    }

    /// Its loss scale.
    pub fn scaler(&self) -> &LossScaler {
        &self.scaler
    }

    /// Returns its learning rate at a step; steps that it has skipped do not count.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.schedule.at(self.scaler.taken(step))
    }

    /// Takes the run's step `step`, counted from 0, with gradients of the global norm `norm`, and moves the running
    /// statistics; `logits` are the mean logits of real and of fake images. If something is not finite, it only changes
    /// the loss scale. Returns whether everything was finite.
    pub fn step(
        &mut self,
        step: u64,
        gradients: GradientsParams,
        norm: f64,
        logits: Option<[f64; 2]>,
        statistics: Vec<BatchStatistics>,
    ) -> bool {
        let logits = logits.filter(|logits| logits.iter().all(|logit| logit.is_finite()));
        let finite = norm.is_finite() && logits.is_some();
        if let Some([real, fake]) = logits.filter(|_| finite) {
            let gradients = unscale_and_clip(self.model(), gradients, self.scaler.scale(), norm, self.clip_norm);
            let learning_rate = self.learning_rate(step);
            let stepped = self.model.take().map(|model| self.optimizer.step(learning_rate, model, gradients));
            self.model = stepped.map(|model| statistics.into_iter().fold(model, PatchGan::with_statistics));
            self.state.lecam = self.state.lecam.updated(real, fake);
        }
        self.scaler.update(finite);
        finite
    }

    /// Keeps the adaptive weight of a step for the next one, if that step had one.
    pub fn remember(&mut self, adaptive_weight: Option<f64>) {
        self.state.adaptive_weight = adaptive_weight.filter(|weight| weight.is_finite()).or(self.state.adaptive_weight);
    }
}

#[cfg(test)]
mod tests {
    use checkpoints::write_safetensors;

    use super::*;
    use crate::config::Config;

    fn fresh(config: &Config) -> Result<Discriminator, LossError> {
        Discriminator::fresh(&config.losses.adversarial, &config.surroundings(), &Device::flex().autodiff())
    }

    fn config(layers: usize, resolution: u32) -> Config {
        let mut config = Config::default();
        config.losses.adversarial.weight = 1.0;
        config.discriminator.channels = 4;
        config.discriminator.layers = layers;
        config.data.resolution = resolution;
        config
    }

    /// The imported file determines how large images have to be.
    #[test]
    fn an_imported_discriminator_has_to_fit_the_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("discriminator.safetensors");
        for (norm, layers, smallest) in [(DiscriminatorNorm::Batch, 3, 24), (DiscriminatorNorm::Group, 2, 12)] {
            let architecture = PatchGanConfig { channels: 4, layers, norm };
            write_safetensors(&path, &PatchGan::random_weights(&architecture, 0), None).unwrap();
            let fresh_at = |resolution: u32| {
                let mut config = config(1, resolution);
                config.discriminator.pretrained = Some(path.display().to_string());
                fresh(&config).map(drop).map_err(|error| error.to_string())
            };
            assert_eq!(fresh_at(smallest), Ok(()));
            let error = fresh_at(smallest - 1).unwrap_err();
            let words = format!(
                "`discriminator.pretrained`: the discriminator needs images of at least {smallest} pixels, but \
                 data.resolution is {}",
                smallest - 1
            );
            assert_eq!(error, words);
        }
    }

    #[test]
    fn its_schedule_counts_from_the_step_at_which_it_starts_to_learn() {
        let mut config = config(1, 16);
        config.optimizer.learning_rate = 1.0;
        config.schedule.warmup = 3;
        config.losses.adversarial.start = 100;
        let rates = |config: &Config| {
            let discriminator = fresh(config).unwrap();
            [50, 51, 52, 53, 100, 101, 102, 103].map(|step| discriminator.learning_rate(step))
        };
        assert_eq!(rates(&config)[4..], [0.25, 0.5, 0.75, 1.0]);
        config.discriminator.start = Some(50);
        assert_eq!(rates(&config), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]);
    }
}
