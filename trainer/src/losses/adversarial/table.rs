//! `[losses.adversarial]`, and the checks of `[discriminator]`.

use serde::{Deserialize, Serialize};

use super::config::DiscriminatorConfig;
use super::gan_loss::GanLoss;
use crate::losses::loss::{Sees, Surroundings};
use crate::losses::table::{LossTable, loss_table};
use crate::models::discriminator::PatchGanConfig;
use crate::problem::{Problem, below_one, location, not_negative, problem};

const MOST_CHANNELS: usize = 1024;

/// One more would leave nothing of the largest image.
const MOST_LAYERS: usize = 10;

loss_table! {
    /// `[losses.adversarial]`: what a discriminator, which learns beside the model, makes of the reconstruction.
    adversarial: AdversarialConfig, weight = 0.0,
    /// The pair of losses of model and discriminator.
    kind: GanLoss = GanLoss::Hinge,
    /// What the weight is multiplied with: the norm of the gradient of the losses that compare images (`pixel`, `perceptual`)
    /// at the decoder's last layer over that of this loss (Esser et al. 2021, arXiv 2012.09841, equation 7), or nothing.
    adaptive: Adaptive = Adaptive::EffectiveBatch,
    /// Weight of the LeCam regularizer of the discriminator (Tseng et al. 2021, arXiv 2104.03310); 0 leaves it out.
    lecam: f64 = 0.0,
    /// Share of its old averages that the regularizer keeps at a step, 0..1.
    lecam_decay: f64 = 0.999,
}

/// Which gradients the adaptive weight of `[losses.adversarial]` is the ratio of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adaptive {
    /// Those of the whole effective batch, for one more pass over it: it does not depend on how the batch is split.
    EffectiveBatch,
    /// Those of each micro-batch, as other trainers do. The step then depends on `batch.micro`.
    MicroBatch,
    /// Those of the effective batch one step earlier, without another pass but in the first step that needs them.
    PreviousStep,
    /// The weight is not multiplied.
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
    /// First optimizer step at which the discriminator of `loss` learns: that of the loss where nothing is said.
    pub fn start(&self, loss: &AdversarialConfig) -> u64 {
        self.start.unwrap_or(loss.start)
    }

    /// Checks `[discriminator]` but for its optimizer and schedule.
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
        // A pretrained one knows something already, and its own file says how large images have to be.
        if loss.weight == 0.0 || self.pretrained.is_some() {
            return Ok(());
        }
        let start = self.start(loss);
        if start > loss.start {
            let message = format!(
                "is {start}, must be at most losses.adversarial.start = {}, where it has to know something",
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

    /// What a discriminator with random weights is built like.
    pub fn architecture(&self) -> PatchGanConfig {
        PatchGanConfig { channels: self.channels, layers: self.layers, norm: self.norm }
    }
}
