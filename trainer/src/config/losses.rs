//! `[losses.*]`: what a model is trained for.

use checkpoints::{GumbelTraining, LpipsNetwork, QuantizerKind};
use serde::{Deserialize, Serialize};

use crate::losses::GanLoss;

/// `[losses.*]`: a loss that is not named keeps its default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossesConfig {
    /// `[losses.pixel]`
    pub pixel: PixelConfig,
    /// `[losses.codebook]`
    pub codebook: CodebookConfig,
    /// `[losses.perceptual]`
    pub perceptual: PerceptualConfig,
    /// `[losses.adversarial]`
    pub adversarial: AdversarialConfig,
    /// `[losses.clip_image]`
    pub clip_image: ClipImageConfig,
    /// `[losses.clip_text]`
    pub clip_text: ClipTextConfig,
    /// `[losses.clip_contrastive]`
    pub clip_contrastive: ClipContrastiveConfig,
    /// `[losses.clip_direction]`
    pub clip_direction: ClipDirectionConfig,
}

impl LossesConfig {
    /// The weights' keys and values; but for the codebook's, the last, all are of losses that see the reconstruction.
    pub(super) fn weights(&self) -> [(&'static str, f64); 8] {
        [
            ("losses.pixel.weight", self.pixel.weight),
            ("losses.perceptual.weight", self.perceptual.weight),
            ("losses.adversarial.weight", self.adversarial.weight),
            ("losses.clip_image.weight", self.clip_image.weight),
            ("losses.clip_text.weight", self.clip_text.weight),
            ("losses.clip_contrastive.weight", self.clip_contrastive.weight),
            ("losses.clip_direction.weight", self.clip_direction.weight),
            ("losses.codebook.weight", self.codebook.weight),
        ]
    }

    /// The first step that each loss counts in.
    pub(super) fn starts(&self) -> [(&'static str, u64); 8] {
        [
            ("pixel", self.pixel.start),
            ("perceptual", self.perceptual.start),
            ("adversarial", self.adversarial.start),
            ("clip_image", self.clip_image.start),
            ("clip_text", self.clip_text.start),
            ("clip_contrastive", self.clip_contrastive.start),
            ("clip_direction", self.clip_direction.start),
            ("codebook", self.codebook.start),
        ]
    }

    /// Has every loss count in full from the first step, at its weight.
    pub fn all_from_the_first_step(&mut self) {
        let Self { pixel, codebook, perceptual, adversarial, clip_image, clip_text, clip_contrastive, clip_direction } =
            self;
        (pixel.start, pixel.ramp) = (0, 0);
        (codebook.start, codebook.ramp) = (0, 0);
        (perceptual.start, perceptual.ramp) = (0, 0);
        (adversarial.start, adversarial.ramp) = (0, 0);
        (clip_image.start, clip_image.ramp) = (0, 0);
        (clip_text.start, clip_text.ramp) = (0, 0);
        (clip_contrastive.start, clip_contrastive.ramp) = (0, 0);
        (clip_direction.start, clip_direction.ramp) = (0, 0);
    }

    /// Whether a loss sees the reconstruction. Without one the decoder learns nothing.
    pub fn see_images(&self) -> bool {
        let [image @ .., _codebook] = self.weights();
        image.iter().any(|(_, weight)| *weight != 0.0)
    }

    /// Whether a loss that is on compares with each picture's own caption.
    pub fn needs_captions(&self) -> bool {
        let text = self.clip_text.weight != 0.0 && self.clip_text.prompts.is_empty();
        let contrastive = &self.clip_contrastive;
        text || contrastive.weight != 0.0 && contrastive.against.contains(&Against::Captions)
    }
}

/// `[losses.pixel]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PixelConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// The norm of the difference.
    pub norm: PixelNormConfig,
    /// Share of `l1` in `mix`, 0..1.
    pub mix: f64,
}

impl Default for PixelConfig {
    fn default() -> Self {
        Self { weight: 1.0, start: 0, ramp: 0, norm: PixelNormConfig::L1, mix: 0.5 }
    }
}

/// The norm of a difference of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelNormConfig {
    /// Mean absolute error.
    L1,
    /// Mean squared error.
    L2,
    /// A mix of both.
    Mix,
}

/// `[losses.codebook]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodebookConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// The smaller of the two terms' weights; the checkpoint's where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Whether `beta` weights the codes' term (taming's legacy) and not the commitment; the checkpoint's where nothing is
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legacy: Option<bool>,
    /// Weight of the entropy term; the checkpoint's where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Of a Gumbel quantizer alone, as are the next three: weight within this loss of the divergence of the codes'
    /// probabilities from even ones; 1e-8 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_weight: Option<f64>,
    /// Temperature of the softmax that gradients take, at the first step, above 0; 0.9 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_start: Option<f64>,
    /// Temperature at the last of `temperature_steps` and from there on, above 0; 1e-6 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_end: Option<f64>,
    /// Optimizer steps over which the temperature goes from start to end, along half a cosine; 1,000,001 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_steps: Option<u64>,
}

impl Default for CodebookConfig {
    fn default() -> Self {
        Self {
            weight: 1.0,
            start: 0,
            ramp: 0,
            beta: None,
            legacy: None,
            entropy: None,
            kl_weight: None,
            temperature_start: None,
            temperature_end: None,
            temperature_steps: None,
        }
    }
}

impl CodebookConfig {
    /// How a Gumbel quantizer is trained.
    pub fn gumbel_training(&self) -> GumbelTraining {
        let published = GumbelTraining::PUBLISHED;
        GumbelTraining {
            kl_weight: self.kl_weight.unwrap_or(published.kl_weight),
            temperature_start: self.temperature_start.unwrap_or(published.temperature_start),
            temperature_end: self.temperature_end.unwrap_or(published.temperature_end),
            temperature_steps: self.temperature_steps.unwrap_or(published.temperature_steps),
        }
    }

    /// A key that is set and has no effect with a quantizer of `kind`.
    pub(super) fn without_effect(&self, kind: QuantizerKind) -> Option<&'static str> {
        let of_nearest = [
            ("losses.codebook.beta", self.beta.is_some()),
            ("losses.codebook.legacy", self.legacy.is_some()),
            ("losses.codebook.entropy", self.entropy.is_some()),
        ];
        let of_gumbel = [
            ("losses.codebook.kl_weight", self.kl_weight.is_some()),
            ("losses.codebook.temperature_start", self.temperature_start.is_some()),
            ("losses.codebook.temperature_end", self.temperature_end.is_some()),
            ("losses.codebook.temperature_steps", self.temperature_steps.is_some()),
        ];
        let keys = match kind {
            QuantizerKind::Nearest => &of_gumbel[..],
            QuantizerKind::Gumbel => &of_nearest[..],
        };
        keys.iter().find(|(_, is_set)| *is_set).map(|(key, _)| *key)
    }
}

/// `[losses.perceptual]`: LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerceptualConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// The network whose features are compared.
    pub network: LpipsNetwork,
    /// That network's ImageNet weights, by torchvision's names: `hf://owner/name[@revision][/file]` or a local path.
    /// Where nothing is said, `hf://timm/vgg16.tv_in1k` for `vgg16`; `alexnet` has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backbone: Option<String>,
    /// LPIPS's weights of the features' channels, likewise. Where nothing is said, `LPIPS_v0.1_vgg-a78928a0.pth` or
    /// `LPIPS_v0.1_alex-df73285e.pth` of `hf://chaofengc/IQA-PyTorch-Weights`, which are the authors' files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear: Option<String>,
}

impl Default for PerceptualConfig {
    fn default() -> Self {
        Self { weight: 0.0, start: 0, ramp: 0, network: LpipsNetwork::Vgg16, backbone: None, linear: None }
    }
}

impl PerceptualConfig {
    /// Where the network's weights are; nothing if that is left open and there is no default.
    pub fn backbone_location(&self) -> Option<&str> {
        self.backbone.as_deref().or(match self.network {
            LpipsNetwork::Vgg16 => Some("hf://timm/vgg16.tv_in1k"),
            LpipsNetwork::AlexNet => None,
        })
    }

    /// Where LPIPS's own weights are.
    pub fn linear_location(&self) -> &str {
        self.linear.as_deref().unwrap_or(match self.network {
            LpipsNetwork::Vgg16 => "hf://chaofengc/IQA-PyTorch-Weights/LPIPS_v0.1_vgg-a78928a0.pth",
            LpipsNetwork::AlexNet => "hf://chaofengc/IQA-PyTorch-Weights/LPIPS_v0.1_alex-df73285e.pth",
        })
    }
}

/// `[losses.adversarial]`: what a discriminator, which learns beside the model, makes of the reconstruction.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdversarialConfig {
    /// Weight; 0 switches it off, and the discriminator with it.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// The pair of losses of model and discriminator.
    pub kind: GanLoss,
    /// What the weight is multiplied with: the norm of the gradient of `pixel` and `perceptual` at the decoder's last
    /// layer over that of this loss (Esser et al. 2020, arXiv 2012.09841, equation 7), or nothing.
    pub adaptive: Adaptive,
    /// Weight of the LeCam regularizer of the discriminator (Tseng et al. 2021, arXiv 2104.03310); 0 leaves it out.
    pub lecam: f64,
    /// Share of its old averages that the regularizer keeps at a step, 0..1.
    pub lecam_decay: f64,
}

impl Default for AdversarialConfig {
    fn default() -> Self {
        Self {
            weight: 0.0,
            start: 0,
            ramp: 0,
            kind: GanLoss::Hinge,
            adaptive: Adaptive::EffectiveBatch,
            lecam: 0.0,
            lecam_decay: 0.999,
        }
    }
}

/// Which gradients the adaptive weight of `[losses.adversarial]` is the ratio of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adaptive {
    /// Those of the whole effective batch, for one more pass over it: it does not depend on how the batch is cut.
    EffectiveBatch,
    /// Those of each micro-batch, as other trainers do. The step then depends on `batch.micro`.
    MicroBatch,
    /// Those of the effective batch one step earlier, without another pass but in the first step that needs them.
    PreviousStep,
    /// The weight is not multiplied.
    Off,
}

/// `[losses.clip_image]`: draws the reconstruction's CLIP embedding to the picture's own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipImageConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
}

/// `[losses.clip_text]`: draws the reconstruction's CLIP embedding to that of a text.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTextConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// Texts for all pictures, each with a weight after a colon if it is not to be 1, as in `a photo:0.5`; a negative one
    /// draws away. Where there are none, each picture's own caption.
    pub prompts: Vec<String>,
}

/// `[losses.clip_contrastive]`: tells each reconstruction from all others of the effective batch by CLIP (the loss that
/// CLIP was trained with, Radford et al. 2021, arXiv 2103.00020).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipContrastiveConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// What a reconstruction is to be told apart by.
    pub against: Vec<Against>,
    /// What cosines are divided by, above 0; CLIP's own where nothing is said, 0.01 in those of OpenAI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

impl Default for ClipContrastiveConfig {
    fn default() -> Self {
        Self { weight: 0.0, start: 0, ramp: 0, against: vec![Against::Captions], temperature: None }
    }
}

/// What reconstructions are contrasted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// The pictures' captions.
    Captions,
    /// The pictures themselves.
    Originals,
}

/// `[losses.clip_direction]`: the way from picture to reconstruction, in CLIP's space, is to be that from one text to
/// another (Gal et al. 2021, arXiv 2108.00946).
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipDirectionConfig {
    /// Weight; 0 switches it off.
    pub weight: f64,
    /// First optimizer step that counts.
    pub start: u64,
    /// Optimizer steps over which the weight grows.
    pub ramp: u64,
    /// What the pictures are, as in `photo`; has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the reconstructions are to become, as in `sketch`; has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}
