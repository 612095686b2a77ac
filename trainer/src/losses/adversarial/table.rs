//! `[losses.adversarial]`, and the checks of `[discriminator]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::DiscriminatorConfig;
use super::gan_loss::GanLoss;
use crate::losses::loss::{Sees, Surroundings};
use crate::losses::table::{LossTable, loss_table};
use crate::models::discriminator::PatchGanConfig;
use crate::problem::{Problem, below_one, location, not_negative, problem};

pub(super) const MOST_CHANNELS: usize = 1024;

/// One more would leave no pixel of the largest image.
pub(super) const MOST_LAYERS: usize = 10;

loss_table! {
    /// `[losses.adversarial]`: how a discriminator, which is trained with the model, judges the reconstruction.
    adversarial: AdversarialConfig, weight = 0.0,
    /// The pair of losses for model and discriminator.
    kind: GanLoss = GanLoss::Hinge,
    /// The factor of the weight: the gradient norm of the losses that compare images (`pixel`, `perceptual`) at the
    /// decoder's last layer, divided by that of this loss (Esser et al. 2021, arXiv 2012.09841, equation 7), or none.
    adaptive: Adaptive = Adaptive::EffectiveBatch,
    /// Weight of the LeCam regulariser of the discriminator (Tseng et al. 2021, arXiv 2104.03310); 0 disables it.
    #[schemars(range(min = 0.0))]
    lecam: f64 = 0.0,
    /// Share of its averages that the regulariser keeps at a step, 0..1.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    lecam_decay: f64 = 0.999,
}

/// The gradients whose ratio is the adaptive weight of `[losses.adversarial]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Adaptive {
    /// Those of the whole effective batch, for the cost of another pass: independent of the batch split.
    EffectiveBatch,
    /// Those of each micro-batch, as in other trainers. The step then depends on `batch.micro`.
    MicroBatch,
    /// Those of the previous step's effective batch; only the first step that needs them takes another pass.
    PreviousStep,
    /// No factor.
    Off,
}

impl LossTable for AdversarialConfig {
    fn sees(&self) -> Sees {
        Sees::Discriminator
    }

    fn check(&self, around: &Surroundings) -> Result<(), Problem> {
        not_negative("losses.adversarial.lecam", self.lecam)?;
        below_one("losses.adversarial.lecam_decay", self.lecam_decay)?;
        if self.weight == 0.0 {
            return match self.lecam == 0.0 {
                true => Ok(()),
                false => {
                    problem("losses.adversarial.lecam", "has no effect: it needs losses.adversarial.weight above 0")
                }
            };
        }
        if self.adaptive == Adaptive::Off {
            return Ok(());
        }
        let comparing = around.losses.iter().filter(|(sees, _)| *sees == Sees::Images);
        let Some(first) = comparing.map(|(_, weight)| weight.start).min() else {
            let message = "must be \"off\" where losses.pixel.weight and losses.perceptual.weight are 0: it is the ratio of \
                           their gradient to the adversarial one";
            return problem("losses.adversarial.adaptive", message);
        };
        if self.start < first {
            let message = format!(
                "is {}, must be at least {first}, where losses.pixel or losses.perceptual starts: until then its adaptive \
                 weight, the ratio of their gradient to its own, is 0",
                self.start
            );
            return problem("losses.adversarial.start", message);
        }
        Ok(())
    }
}

impl DiscriminatorConfig {
    /// First optimizer step at which the discriminator of `loss` is trained; the default is the loss's own start.
    pub fn start(&self, loss: &AdversarialConfig) -> u64 {
        self.start.unwrap_or(loss.start)
    }

    /// Checks `[discriminator]`, except its optimizer and schedule.
    ///
    /// # Errors
    /// The first problem.
    pub fn check(&self, loss: &AdversarialConfig, resolution: u32) -> Result<(), Problem> {
        for (key, value, most) in [
            ("discriminator.channels", self.channels, MOST_CHANNELS),
            ("discriminator.layers", self.layers, MOST_LAYERS),
        ] {
            if !(1..=most).contains(&value) {
                return problem(key, format!("is {value}, must lie in 1 to {most}"));
            }
        }
        location("discriminator.pretrained", self.pretrained.as_deref())?;
        // A pretrained one is already trained, and its own file determines how large images have to be.
        if loss.weight == 0.0 || self.pretrained.is_some() {
            return Ok(());
        }
        let start = self.start(loss);
        if start > loss.start {
            let message = format!(
                "is {start}, must be at most losses.adversarial.start = {}, since it has to learn first",
                loss.start
            );
            return problem("discriminator.start", message);
        }
        let smallest = self.architecture().smallest_input();
        if (resolution as usize) < smallest {
            let message = format!(
                "is {}, too many for data.resolution = {resolution}, which must be {smallest} or more",
                self.layers
            );
            return problem("discriminator.layers", message);
        }
        Ok(())
    }

    /// The structure of a discriminator with random weights.
    pub fn architecture(&self) -> PatchGanConfig {
        PatchGanConfig { channels: self.channels, layers: self.layers, norm: self.norm }
    }
}
