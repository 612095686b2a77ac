//! The losses, and the networks that they need.
//!
//! What is set for a loss that is off has to be in its range, and nothing more.

use super::{Problem, below_one, location, not_negative, positive, problem, share};
use crate::config::{Adaptive, Config, DiscriminatorConfig, LossesConfig, PixelConfig, PixelNormConfig};
use crate::losses::load::prompts;
use crate::models::discriminator::PatchGanConfig;
use crate::models::lpips::Lpips;

/// More views of one picture than that are a slip of the hand.
const MOST_CUTOUTS: usize = 1024;

const MOST_CHANNELS: usize = 1024;

/// One more would leave nothing of the largest picture.
const MOST_LAYERS: usize = 10;

impl Config {
    /// A line for each loss that is on, and for the discriminator, that begins only after the last step.
    pub fn losses_that_never_count(&self) -> Vec<String> {
        let steps = self.run.steps;
        let weights = self.losses.weights();
        let is_on =
            |name: &str| weights.iter().any(|(key, weight)| *key == format!("losses.{name}.weight") && *weight != 0.0);
        let starts = self.losses.starts().into_iter().filter(|(name, _)| is_on(name));
        let starts = starts.map(|(name, start)| (format!("losses.{name}.start"), start));
        let discriminator = self.discriminator.start.filter(|_| is_on("adversarial"));
        let discriminator = discriminator.map(|start| ("discriminator.start".to_owned(), start));
        let late = starts.chain(discriminator).filter(|(_, start)| *start >= steps);
        late.map(|(key, start)| format!("{key} is {start}, but run.steps is {steps}: it never begins")).collect()
    }

    /// `[losses.*]`.
    pub(super) fn check_losses(&self) -> Result<(), Problem> {
        let losses = &self.losses;
        for (key, weight) in losses.weights() {
            not_negative(key, weight)?;
        }
        if losses.weights().iter().all(|(_, weight)| *weight == 0.0) {
            return problem("losses.pixel.weight", "is 0, and so is every other loss's: there is nothing to train for");
        }
        share("losses.pixel.mix", losses.pixel.mix)?;
        if losses.pixel.norm != PixelNormConfig::Mix && losses.pixel.mix != PixelConfig::default().mix {
            return problem("losses.pixel.mix", "has no effect: it needs losses.pixel.norm = \"mix\"");
        }
        not_negative("losses.codebook.beta", losses.codebook.beta.unwrap_or(0.0))?;
        not_negative("losses.codebook.entropy", losses.codebook.entropy.unwrap_or(0.0))?;
        let gumbel = losses.codebook.gumbel_training();
        not_negative("losses.codebook.kl_weight", gumbel.kl_weight)?;
        positive("losses.codebook.temperature_start", gumbel.temperature_start)?;
        positive("losses.codebook.temperature_end", gumbel.temperature_end)?;
        if gumbel.temperature_steps == 0 {
            return problem("losses.codebook.temperature_steps", "is 0, must be at least 1");
        }
        self.check_perceptual()?;
        check_adversarial(losses)?;
        check_clip_text(losses)?;
        self.check_clip_contrastive()?;
        check_clip_direction(losses)
    }

    fn check_perceptual(&self) -> Result<(), Problem> {
        let perceptual = &self.losses.perceptual;
        location("losses.perceptual.backbone", perceptual.backbone.as_deref())?;
        location("losses.perceptual.linear", perceptual.linear.as_deref())?;
        if perceptual.weight == 0.0 {
            return Ok(());
        }
        if perceptual.backbone_location().is_none() {
            let message = "is missing: losses.perceptual.network = \"alexnet\" needs torchvision's weights, as in \
                           alexnet-owt-7be5be79.pth";
            return problem("losses.perceptual.backbone", message);
        }
        let smallest = Lpips::smallest_input(perceptual.network) as u32;
        if self.data.resolution < smallest {
            let message = format!(
                "needs pictures of at least {smallest} pixels for its network, but data.resolution is {}",
                self.data.resolution
            );
            return problem("losses.perceptual.weight", message);
        }
        Ok(())
    }

    fn check_clip_contrastive(&self) -> Result<(), Problem> {
        let contrastive = &self.losses.clip_contrastive;
        if let Some(temperature) = contrastive.temperature {
            positive("losses.clip_contrastive.temperature", temperature)?;
        }
        let mut seen = Vec::new();
        for against in &contrastive.against {
            if seen.contains(against) {
                return problem("losses.clip_contrastive.against", "names the same twice");
            }
            seen.push(*against);
        }
        if contrastive.weight == 0.0 {
            return Ok(());
        }
        if contrastive.against.is_empty() {
            let message = "is empty, must be [\"captions\"], [\"originals\"] or both";
            return problem("losses.clip_contrastive.against", message);
        }
        if self.batch.effective == 1 {
            let message = "needs other pictures to tell one from, but batch.effective is 1";
            return problem("losses.clip_contrastive.weight", message);
        }
        Ok(())
    }

    /// `[discriminator]` but for its optimizer and schedule.
    pub(super) fn check_discriminator(&self) -> Result<(), Problem> {
        let Self { discriminator, losses, data, .. } = self;
        for (key, value, most) in [
            ("discriminator.channels", discriminator.channels, MOST_CHANNELS),
            ("discriminator.layers", discriminator.layers, MOST_LAYERS),
        ] {
            if !(1..=most).contains(&value) {
                return problem(key, format!("is {value}, must lie in 1 to {most}"));
            }
        }
        location("discriminator.pretrained", discriminator.pretrained.as_deref())?;
        // A pretrained one knows something already, and its own file says how large pictures have to be.
        if losses.adversarial.weight == 0.0 || discriminator.pretrained.is_some() {
            return Ok(());
        }
        let start = self.discriminator_start();
        if start > losses.adversarial.start {
            let message = format!(
                "is {start}, must be at most losses.adversarial.start = {}, where it has to know something",
                losses.adversarial.start
            );
            return problem("discriminator.start", message);
        }
        let DiscriminatorConfig { channels, layers, norm, .. } = *discriminator;
        let smallest = PatchGanConfig { channels, layers, norm }.smallest_input();
        if (data.resolution as usize) < smallest {
            let message = format!(
                "is {layers}, too many for data.resolution = {}, which must be {smallest} or more",
                data.resolution
            );
            return problem("discriminator.layers", message);
        }
        Ok(())
    }

    /// `[clip]`.
    pub(super) fn check_clip(&self) -> Result<(), Problem> {
        let clip = &self.clip;
        location("clip.pretrained", clip.pretrained.as_deref())?;
        location("clip.tokenizer", clip.tokenizer.as_deref())?;
        if clip.cutouts > MOST_CUTOUTS {
            return problem("clip.cutouts", format!("is {}, must be at most {MOST_CUTOUTS}", clip.cutouts));
        }
        let LossesConfig { clip_image, clip_text, clip_direction, .. } = &self.losses;
        // `clip_contrastive` sees whole pictures in any case.
        let of_views = [clip_image.weight, clip_text.weight, clip_direction.weight];
        if clip.cutouts == 0 && !clip.whole && of_views.iter().any(|weight| *weight != 0.0) {
            let message = "is 0 and clip.whole is false: CLIP would see nothing of a picture";
            return problem("clip.cutouts", message);
        }
        positive("clip.cutout_power", clip.cutout_power)?;
        share("clip.affine", clip.affine)?;
        share("clip.perspective", clip.perspective)?;
        share("clip.jitter", clip.jitter)?;
        share("clip.erasing", clip.erasing)?;
        not_negative("clip.noise", clip.noise)
    }
}

fn check_adversarial(losses: &LossesConfig) -> Result<(), Problem> {
    let adversarial = &losses.adversarial;
    not_negative("losses.adversarial.lecam", adversarial.lecam)?;
    below_one("losses.adversarial.lecam_decay", adversarial.lecam_decay)?;
    if adversarial.weight == 0.0 {
        return match adversarial.lecam == 0.0 {
            true => Ok(()),
            false => problem("losses.adversarial.lecam", "has no effect: it needs losses.adversarial.weight above 0"),
        };
    }
    if adversarial.adaptive == Adaptive::Off {
        return Ok(());
    }
    let (pixel, perceptual) = (&losses.pixel, &losses.perceptual);
    let references = [(pixel.weight, pixel.start), (perceptual.weight, perceptual.start)];
    let Some(first) = references.iter().filter(|(weight, _)| *weight != 0.0).map(|(_, start)| *start).min() else {
        let message = "must be \"off\" where losses.pixel.weight and losses.perceptual.weight are 0: it is the ratio of \
                       their gradient to the adversarial one";
        return problem("losses.adversarial.adaptive", message);
    };
    if adversarial.start < first {
        let message = format!(
            "is {}, must be at least {first}, where losses.pixel or losses.perceptual starts: until then its adaptive \
             weight, the ratio of their gradient to its own, is 0",
            adversarial.start
        );
        return problem("losses.adversarial.start", message);
    }
    Ok(())
}

fn check_clip_text(losses: &LossesConfig) -> Result<(), Problem> {
    let text = &losses.clip_text;
    if text.weight != 0.0 && text.prompts.iter().any(|prompt| is_blank(prompt)) {
        return problem(
            "losses.clip_text.prompts",
            "has an empty text; without any, each picture's own caption is taken",
        );
    }
    match text.weight == 0.0 {
        true => Ok(()),
        false => prompts(&text.prompts).map(drop),
    }
}

fn check_clip_direction(losses: &LossesConfig) -> Result<(), Problem> {
    let direction = &losses.clip_direction;
    if direction.weight == 0.0 {
        return Ok(());
    }
    let (from, to) = (direction.from.as_deref(), direction.to.as_deref());
    for (key, text) in [("losses.clip_direction.from", from), ("losses.clip_direction.to", to)] {
        match text {
            None => return problem(key, "is missing: the direction is that from one text to another"),
            Some(text) if is_blank(text) => return problem(key, "is empty, must be a text"),
            Some(_) => {}
        }
    }
    if from.map(str::trim) == to.map(str::trim) {
        return problem(
            "losses.clip_direction.to",
            "is the same text as losses.clip_direction.from: there is no direction",
        );
    }
    Ok(())
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
