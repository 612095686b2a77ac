//! The losses: a file or a folder for each, with everything about it. They depend on models, optimizers and precision;
//! the engine uses them only through [`Loss`] and [`LossStep`].
//!
//! `trainer/docs/adding-a-loss.md` shows how to add one.

pub mod adversarial;
mod charbonnier;
pub mod clip;
pub mod codebook;
pub mod load;
pub mod loss;
pub mod metrics;
mod perceptual;
pub mod phase;
mod pixel;
mod ssim;
mod table;

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::adversarial::{
    Adaptive, Adversarial, AdversarialConfig, AdversarialState, Discriminator, DiscriminatorConfig, GanLoss, LeCam,
    SavedDiscriminator, adaptive_weight,
};
pub use self::clip::{
    Against, ClipConfig, ClipContrastiveConfig, ClipDirectionConfig, ClipGuidance, ClipImageConfig, ClipTextConfig,
};
pub use self::codebook::{
    Codebook, CodebookConfig, CodebookLoss, EntropyCoupling, GumbelLoss, NearestLoss, divergence, sum_probabilities,
};
use self::load::LossError;
pub use self::loss::{
    Forward, Gradients, ImageLoss, Images, LoadContext, Loss, LossKeys, LossScales, LossStep, Needs, Sees, StepContext,
    Surroundings, Weight, Weighted,
};
pub use self::metrics::{Metrics, StepMetrics};
pub use self::perceptual::{Features, PerceptualConfig, PerceptualLoss};
pub use self::phase::{Event, Phase};
pub use self::pixel::{PixelConfig, PixelLoss, PixelNorm};
pub use self::table::LossTable;

/// Makes the list of losses, in the order in which a step asks them for gradients, with the tables that configure each.
macro_rules! losses {
    ($($loss:ident: $Loss:ty { $($table:ident: $Table:ty),+ }),+ $(,)?) => {
        /// `[losses.*]`: a loss that is not named keeps its default.
        #[derive(Debug, Clone, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        #[expect(missing_docs, reason = "each table's type says what it is")]
        pub struct LossesConfig {
            $($(pub $table: $Table,)+)+
        }

        impl LossesConfig {
            /// All tables.
            pub fn tables(&self) -> Vec<&dyn LossTable> {
                vec![$($(&self.$table,)+)+]
            }

            fn tables_mut(&mut self) -> Vec<&mut dyn LossTable> {
                vec![$($(&mut self.$table,)+)+]
            }
        }

        /// The metrics of all losses, as in [`Loss::METRICS`].
        pub static METRICS: LazyLock<Vec<(&'static str, &'static str)>> =
            LazyLock::new(|| [$(<$Loss as Loss>::METRICS),+].concat());

        /// The losses of a run that are on, with their networks.
        #[derive(Default)]
        pub struct Losses {
            $(#[doc = concat!("The loss `", stringify!($loss), "`.")] pub $loss: Option<$Loss>,)+
        }

        impl Losses {
            /// Loads the losses of `config`.
            ///
            /// # Errors
            /// If a network cannot be fetched or read, or a setting does not fit it.
            pub fn load(config: &LossesConfig, mut context: LoadContext<'_>) -> Result<Self, LossError> {
                Ok(Self { $($loss: <$Loss as Loss>::load(($(&config.$table,)+), &mut context)?,)+ })
            }

            /// Returns the losses that need no files; see [`Loss::example`].
            pub fn examples() -> Self {
                Self { $($loss: <$Loss as Loss>::example(),)+ }
            }

            /// Whether a loss couples samples in an optimizer step, counted from 0. Such a step needs two passes.
            pub fn couple_samples(&self, step: u64) -> bool {
                [$(self.$loss.as_ref().is_some_and(|loss| loss.couples_samples(step))),+].contains(&true)
            }

            /// Begins an optimizer step with the losses that take part in it, in the order of their gradients.
            pub fn begin<'a>(&'a self, context: &'a StepContext<'a>) -> Vec<Box<dyn LossStep + 'a>> {
                [$(self.$loss.as_ref().and_then(|loss| loss.begin(context))),+].into_iter().flatten().collect()
            }

            /// Returns the losses that are functions of an original and its reconstruction alone.
            pub fn image_losses(&self) -> Vec<&dyn ImageLoss> {
                [$(self.$loss.as_ref().and_then(Loss::as_image_loss)),+].into_iter().flatten().collect()
            }
        }
    };
}

// The order is part of the contract: the adversarial loss scales itself by the gradient of the losses before it.
losses! {
    pixel: Weighted<PixelLoss> { pixel: PixelConfig },
    charbonnier: Weighted<charbonnier::Charbonnier> { charbonnier: charbonnier::CharbonnierConfig },
    ssim: Weighted<ssim::Ssim> { ssim: ssim::SsimConfig },
    perceptual: Weighted<PerceptualLoss> { perceptual: PerceptualConfig },
    adversarial: Adversarial { adversarial: AdversarialConfig },
    clip: ClipGuidance {
        clip_image: ClipImageConfig,
        clip_text: ClipTextConfig,
        clip_contrastive: ClipContrastiveConfig,
        clip_direction: ClipDirectionConfig
    },
    codebook: Codebook { codebook: CodebookConfig },
}

impl Losses {
    /// The discriminator, if a loss has one.
    pub fn discriminator(&self) -> Option<&Discriminator> {
        self.adversarial.as_ref().map(|loss| &loss.discriminator)
    }

    /// The discriminator, to take its step.
    pub fn discriminator_mut(&mut self) -> Option<&mut Discriminator> {
        self.adversarial.as_mut().map(|loss| &mut loss.discriminator)
    }
}

impl LossesConfig {
    /// Gives every loss its full weight from the first step.
    pub fn all_from_the_first_step(&mut self) {
        for table in self.tables_mut() {
            table.set_weight(Weight::constant(table.weight().value));
        }
    }

    /// Switches on every loss that compares images and is off, at `weight`.
    pub fn switch_on_images(&mut self, weight: f64) {
        let off = self.tables_mut().into_iter().filter(|table| table.sees() == Sees::Images && !table.is_on());
        off.for_each(|table| table.set_weight(Weight::constant(weight)));
    }

    /// Returns the tables of the losses that are on.
    pub fn on(&self) -> impl Iterator<Item = &dyn LossTable> {
        self.tables().into_iter().filter(|table| table.is_on())
    }

    /// Whether a loss that looks at `what` is on.
    pub fn has(&self, what: Sees) -> bool {
        self.on().any(|table| table.sees() == what)
    }

    /// Whether a loss sees the reconstruction. Without one the decoder learns nothing.
    pub fn see_images(&self) -> bool {
        self.on().any(|table| table.sees() != Sees::Latents)
    }

    /// Whether a loss that is on compares with each image's own caption.
    pub fn needs_captions(&self) -> bool {
        self.first_that_needs_captions().is_some()
    }

    /// The first loss that is on and compares with each image's own caption.
    pub fn first_that_needs_captions(&self) -> Option<&'static str> {
        self.on().find(|table| table.needs_captions()).map(|table| table.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_starts_ramps_and_stays() {
        let weight = Weight { value: 2.0, start: 3, ramp: 3 };
        let at: Vec<f64> = (0..9).map(|step| weight.at(step)).collect();
        assert_eq!(at, [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn metrics_of_losses_are_shown_in_their_groups() {
        for (key, tag) in [
            ("loss", "loss/total"),
            ("pixel", "loss/pixel"),
            ("perceptual", "loss/perceptual"),
            ("codebook", "loss/codebook"),
            ("entropy", "loss/entropy"),
            ("adversarial", "loss/adversarial"),
            ("clip_image", "loss/clip_image"),
            ("clip_text", "loss/clip_text"),
            ("clip_contrastive", "loss/clip_contrastive"),
            ("clip_direction", "loss/clip_direction"),
            ("discriminator", "discriminator/loss"),
            ("logits_real", "discriminator/logits_real"),
            ("logits_fake", "discriminator/logits_fake"),
            ("adaptive_weight", "discriminator/adaptive_weight"),
            ("discriminator_skipped", "discriminator/skipped"),
        ] {
            assert_eq!(report::keys::tag(key, &METRICS), tag);
        }
    }

    #[test]
    fn the_page_on_adding_a_loss_shows_the_code_as_it_is() {
        let page = include_str!("../../docs/adding-a-loss.md");
        let code = [include_str!("charbonnier.rs"), include_str!("mod.rs")];
        let blocks: Vec<&str> = page.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(blocks.len(), 5);
        for line in blocks.concat().lines().filter(|line| line.trim() != "…") {
            assert!(code.iter().any(|code| code.lines().any(|other| other == line)), "{line}");
        }
    }
}
