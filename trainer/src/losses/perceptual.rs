//! How different two images look to a network: the distance of its intermediate features (LPIPS, Zhang et al. 2018, arXiv
//! 1801.03924).

use burn::tensor::Tensor;
use checkpoints::hub::FileChoice;
use checkpoints::{ClipArchitecture, LpipsNetwork, WeightsError, load_lpips_backbone, load_lpips_linear};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clip::image_encoder;
use super::load::{LossError, fetch};
use super::loss::{ImageLoss, LoadContext, LoadImageLoss, Sees, Surroundings};
use super::table::{LossKeys, LossTable, loss_table};
use crate::models::clip::{ImageEncoder, preprocess};
use crate::models::lpips::Lpips;
use crate::models::random::{RANDOM, lpips_backbone, lpips_linear};
use crate::models::statistics_dtype;
use crate::models::weights::{StateDict, WeightReader};
use crate::problem::{Problem, location, problem};

const BACKBONE: &str = "losses.perceptual.backbone";
const LINEAR: &str = "losses.perceptual.linear";

loss_table! {
    /// `[losses.perceptual]`: LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1, or the distance of CLIP's features.
    perceptual: PerceptualConfig, weight = 0.0,
    /// Whose features are compared: `lpips`, or `clip` for those after each layer of the image tower of `[clip]`, which
    /// needs no other files. The next three keys are for `lpips` alone.
    features: Features = Features::Lpips,
    /// The network whose features are compared.
    network: LpipsNetwork = LpipsNetwork::Vgg16,
    /// That network's ImageNet weights, with torchvision's names: `hf://owner/name[@revision][/file]` or a local path.
    /// The default is `hf://timm/vgg16.tv_in1k` for `vgg16`; `alexnet` has none. `random` has random weights, which follow
    /// from `run.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    backbone: Option<String> = None,
    /// LPIPS's weights of the features' channels, likewise. The default is `LPIPS_v0.1_vgg-a78928a0.pth` or
    /// `LPIPS_v0.1_alex-df73285e.pth` of `hf://chaofengc/IQA-PyTorch-Weights`, which are the authors' files.
    #[serde(skip_serializing_if = "Option::is_none")]
    linear: Option<String> = None,
}

/// Whose features the loss `perceptual` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Features {
    /// Those of a network that was trained on ImageNet, with the weights that LPIPS has learned.
    Lpips,
    /// Those of the CLIP of `[clip]`.
    Clip,
}

impl PerceptualConfig {
    /// Whether the loss is on and is LPIPS.
    pub fn has_lpips(&self) -> bool {
        self.is_on() && self.features == Features::Lpips
    }

    /// Whether LPIPS has random weights.
    pub fn is_random(&self) -> bool {
        [self.backbone_location(), Some(self.linear_location())].contains(&Some(RANDOM))
    }

    /// The files that it reads: the key that names each, and where it is.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        // A backbone of one's own may be a whole LPIPS.
        let linear = (self.backbone.is_none() || self.linear.is_some()).then(|| (LINEAR, self.linear_location()));
        self.backbone_location().map(|location| (BACKBONE, location)).into_iter().chain(linear)
    }

    /// Returns where the network's weights are; `None` if they are not set and have no default.
    pub fn backbone_location(&self) -> Option<&str> {
        self.backbone.as_deref().or(match self.network {
            LpipsNetwork::Vgg16 => Some("hf://timm/vgg16.tv_in1k"),
            LpipsNetwork::AlexNet => None,
        })
    }

    /// Returns where LPIPS's own weights are.
    pub fn linear_location(&self) -> &str {
        self.linear.as_deref().unwrap_or(match self.network {
            LpipsNetwork::Vgg16 => "hf://chaofengc/IQA-PyTorch-Weights/LPIPS_v0.1_vgg-a78928a0.pth",
            LpipsNetwork::AlexNet => "hf://chaofengc/IQA-PyTorch-Weights/LPIPS_v0.1_alex-df73285e.pth",
        })
    }
}

impl LossTable for PerceptualConfig {
    fn sees(&self) -> Sees {
        Sees::Images
    }

    fn check(&self, around: &Surroundings) -> Result<(), Problem> {
        location(BACKBONE, self.backbone.as_deref())?;
        location(LINEAR, self.linear.as_deref())?;
        if !self.is_on() {
            return Ok(());
        }
        if self.features == Features::Clip {
            let set =
                [(BACKBONE, &self.backbone), (LINEAR, &self.linear)].into_iter().find(|(_, value)| value.is_some());
            return match set {
                Some((key, _)) => problem(key, "has no effect with losses.perceptual.features = \"clip\""),
                None => Ok(()),
            };
        }
        if self.backbone_location().is_none() {
            let message = "is missing: losses.perceptual.network = \"alexnet\" needs torchvision's weights, as in \
                           alexnet-owt-7be5be79.pth";
            return problem(BACKBONE, message);
        }
        let (smallest, resolution) = (Lpips::smallest_input(self.network) as u32, around.resolution);
        if resolution < smallest {
            let message = format!(
                "needs images of at least {smallest} pixels for its network, but data.resolution is {resolution}"
            );
            return problem("losses.perceptual.weight", message);
        }
        Ok(())
    }
}

fn lpips_weights(loss: &PerceptualConfig, seed: u64) -> Result<StateDict, LossError> {
    let wrong = |key| move |source| LossError::Weights { key, source };
    let unnamed = || Problem { key: BACKBONE, message: "is not set, and alexnet has no default".into() };
    let backbone = loss.backbone_location().ok_or_else(|| LossError::Setting(unnamed()))?;
    let mut weights = if backbone == RANDOM {
        lpips_backbone(loss.network, seed)
    } else {
        let backbone = fetch(BACKBONE, backbone, FileChoice::Any)?;
        let mut weights = load_lpips_backbone(loss.network, backbone.clone()).map_err(wrong(BACKBONE))?;
        // A whole LPIPS as the backbone contains its linear layers: nothing else has to be fetched.
        if loss.backbone.is_some() && loss.linear.is_none() {
            match load_lpips_linear(loss.network, backbone) {
                Err(WeightsError::Unsupported { .. }) => {}
                own => {
                    weights.extend(own.map_err(wrong(BACKBONE))?);
                    return Ok(weights);
                }
            }
        }
        weights
    };
    weights.extend(match loss.linear_location() {
        RANDOM => lpips_linear(loss.network),
        linear => {
            let linear = fetch(LINEAR, linear, FileChoice::Any)?;
            load_lpips_linear(loss.network, linear).map_err(wrong(LINEAR))?
        }
    });
    Ok(weights)
}

/// The loss `perceptual`.
#[derive(Debug)]
pub struct PerceptualLoss {
    network: FeatureNetwork,
    /// Whether its weights are random, so that its value says nothing about images.
    is_random: bool,
}

#[derive(Debug)]
enum FeatureNetwork {
    Lpips(Lpips),
    Clip(Box<ClipFeatures>),
}

impl PerceptualLoss {
    /// Uses a network that was read frozen, on the device of the images.
    pub fn new(network: Lpips) -> Self {
        Self { network: FeatureNetwork::Lpips(network), is_random: false }
    }

    /// Compares features of a CLIP's image tower, which was read frozen, on the device of the images.
    pub fn of_clip(encoder: ImageEncoder, architecture: ClipArchitecture) -> Self {
        Self { network: FeatureNetwork::Clip(Box::new(ClipFeatures { encoder, architecture })), is_random: false }
    }

    /// Whether its value is LPIPS, by weights that have learned what people see.
    pub fn is_lpips(&self) -> bool {
        matches!(self.network, FeatureNetwork::Lpips(_)) && !self.is_random
    }
}

/// The features of a CLIP's image tower.
#[derive(Debug)]
struct ClipFeatures {
    encoder: ImageEncoder,
    architecture: ClipArchitecture,
}

/// Shorter features than this count as this long.
const SHORTEST: f64 = 1e-3;

impl ClipFeatures {
    /// The tokens after each layer, `[N, T, W]`, each of unit length, in f32 at least.
    fn of(&self, images: Tensor<4>) -> Vec<Tensor<3>> {
        let unit = |x: Tensor<3>| {
            let dtype = statistics_dtype(x.dtype());
            let x = x.cast(dtype);
            x.clone() / x.square().sum_dim(2).clamp_min(SHORTEST * SHORTEST).sqrt()
        };
        self.encoder.states(preprocess(images, &self.architecture)).into_iter().map(unit).collect()
    }

    /// The squared distance of the tokens, mean over tokens and layers: `[N]`, in 0..4.
    fn distance(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        let [n, ..] = original.dims();
        let layers = self.of(original).into_iter().zip(self.of(reconstruction));
        let distances: Vec<Tensor<1>> =
            layers.map(|(a, b)| (a - b).square().sum_dim(2).mean_dim(1).reshape([n])).collect();
        Tensor::stack::<2>(distances, 0).mean_dim(0).reshape([n])
    }
}

impl ImageLoss for PerceptualLoss {
    fn name(&self) -> &'static str {
        "perceptual"
    }

    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        // The original is detached, so its features are not tracked.
        let original = original.detach();
        match &self.network {
            FeatureNetwork::Lpips(network) => network.distance(network.features(original), reconstruction),
            FeatureNetwork::Clip(features) => features.distance(original, reconstruction),
        }
    }
}

impl LoadImageLoss for PerceptualLoss {
    type Table = PerceptualConfig;

    const METRIC: (&'static str, &'static str) = ("perceptual", "loss/perceptual");

    fn load(table: &PerceptualConfig, context: &LoadContext<'_>) -> Result<Self, LossError> {
        if table.features == Features::Clip {
            let around = &context.around;
            let (architecture, encoder) = image_encoder(around.clip, around.seed, context.device, context.frozen)?;
            return Ok(Self::of_clip(encoder, architecture));
        }
        let weights = lpips_weights(table, context.around.seed)?;
        let reader = WeightReader::frozen(&weights, context.device, context.frozen);
        let network = Lpips::read(&reader, table.network);
        let network = network.map_err(|source| LossError::Model { key: BACKBONE, source })?;
        Ok(Self { is_random: table.is_random(), ..Self::new(network) })
    }

    /// Its network has to be fetched.
    fn example() -> Option<Self> {
        None
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};
    use checkpoints::{Activation, HostTensor, Tower, write_safetensors};

    use super::*;
    use crate::models::lpips::tests::read;
    use crate::models::random::clip_weights;
    use crate::models::tests::test_images;

    #[test]
    fn only_the_reconstruction_has_a_gradient() {
        let loss = PerceptualLoss::new(read(LpipsNetwork::AlexNet, DType::F32));
        let image = test_images(2, 32, 32).cast(DType::F32);
        let original = image.clone().autodiff().require_grad();
        let reconstruction = (image * 0.7).autodiff().require_grad();
        let value = loss.per_sample(original.clone(), reconstruction.clone());
        assert_eq!(value.dims(), [2]);
        let mut gradients = value.sum().backward();
        assert!(original.grad_remove(&mut gradients).is_none());
        assert!(reconstruction.grad_remove(&mut gradients).is_some());
    }

    #[test]
    fn features_of_clip_are_those_of_each_layer_at_unit_length() {
        let tower = Tower { width: 12, layers: 2, heads: 3, mlp: 20 };
        let architecture = ClipArchitecture {
            image_size: 16,
            patch_size: 8,
            vision: tower.clone(),
            text: tower,
            context_length: 8,
            vocabulary: 20,
            embedding: 10,
            activation: Activation::Gelu,
            layer_norm_epsilon: 1e-5,
            mean: [0.4, 0.5, 0.6],
            deviation: [0.3; 3],
            end_of_text: 19,
        };
        let weights = clip_weights(&architecture, 0);
        let device = Device::flex().autodiff();
        let encoder = ImageEncoder::read(&WeightReader::frozen(&weights, &device, DType::F64), &architecture).unwrap();
        let loss = PerceptualLoss::of_clip(encoder.clone(), architecture.clone());
        let image = test_images(3, 16, 16);
        let reconstruction = (image.clone() * 0.6 + 0.1).autodiff().require_grad();
        let value = loss.per_sample(image.clone().autodiff(), reconstruction.clone());
        let found: Vec<f64> = value.clone().into_data().try_into_vec().unwrap();

        let states = |images: Tensor<4>| encoder.states(preprocess(images.autodiff(), &architecture));
        let layers = states(image.clone()).into_iter().zip(states(image * 0.6 + 0.1));
        let mut expected = [0.0; 3];
        for (a, b) in layers {
            let [n, tokens, width] = a.dims();
            let values = |x: Tensor<3>| -> Vec<f64> { x.into_data().try_into_vec().unwrap() };
            let (a, b) = (values(a), values(b));
            let length = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
            for (token, (a, b)) in a.chunks(width).zip(b.chunks(width)).enumerate() {
                let (la, lb) = (length(a), length(b));
                let apart: f64 = a.iter().zip(b).map(|(a, b)| (a / la - b / lb).powi(2)).sum();
                expected[token / tokens] += apart / (tokens * architecture.vision.layers) as f64;
            }
            assert_eq!(n, 3);
        }
        assert!(found.iter().zip(expected).all(|(f, e)| e > 1e-4 && (f - e).abs() < 1e-12), "{found:?}, {expected:?}");
        assert!(reconstruction.grad_remove(&mut value.sum().backward()).is_some());
    }

    /// Returns a whole AlexNet LPIPS whose linear layers have the value `linear`.
    fn whole(linear: f32) -> StateDict {
        let network = LpipsNetwork::AlexNet;
        let mut weights = StateDict::new();
        let mut put = |name: String, shape: &[usize], value: f32| {
            weights.insert(name, HostTensor::from_f32(shape, &vec![value; shape.iter().product()]));
        };
        for (number, shape) in network.convolutions() {
            put(format!("features.{number}.weight"), shape, 0.5);
            put(format!("features.{number}.bias"), &shape[..1], 0.5);
        }
        for (layer, channels) in network.channels().into_iter().enumerate() {
            put(format!("lin{layer}.weight"), &[1, channels, 1, 1], linear);
        }
        weights
    }

    fn without_linear(mut weights: StateDict) -> StateDict {
        weights.retain(|name, _| !name.starts_with("lin"));
        weights
    }

    /// Returns what `[losses.perceptual]` loads from these files; errors do not name their folder.
    fn lpips(network: LpipsNetwork, backbone: &StateDict, linear: Option<&StateDict>) -> Result<StateDict, String> {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, weights: &StateDict| {
            let path = folder.path().join(name);
            write_safetensors(&path, weights, None).unwrap();
            path.display().to_string()
        };
        let loss = PerceptualConfig {
            network,
            backbone: Some(place("backbone.safetensors", backbone)),
            linear: linear.map(|weights| place("linear.safetensors", weights)),
            ..Default::default()
        };
        let prefix = format!("{}/", folder.path().display());
        lpips_weights(&loss, 0).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn a_whole_lpips_as_the_backbone_needs_no_other_file() {
        let alexnet = LpipsNetwork::AlexNet;
        assert!(lpips(alexnet, &whole(7.0), None) == Ok(whole(7.0)));
        // If a file is set, it is the one that is read.
        assert!(lpips(alexnet, &whole(7.0), Some(&whole(3.0))) == Ok(whole(3.0)));
        assert!(lpips(alexnet, &without_linear(whole(7.0)), Some(&whole(3.0))) == Ok(whole(3.0)));
    }

    #[test]
    fn each_file_of_lpips_is_wrong_under_its_own_key() {
        let alexnet = LpipsNetwork::AlexNet;
        let error = lpips(alexnet, &whole(7.0), Some(&without_linear(whole(7.0)))).unwrap_err();
        assert!(
            error.starts_with("`losses.perceptual.linear`: linear.safetensors: it has no linear layers"),
            "{error}"
        );
        let error = lpips(LpipsNetwork::Vgg16, &whole(7.0), None).unwrap_err();
        assert!(error.starts_with("`losses.perceptual.backbone`: backbone.safetensors: it is not VGG16"), "{error}");
        let mut broken = whole(7.0);
        broken.remove("lin3.weight");
        let error = lpips(alexnet, &broken, None).unwrap_err();
        assert!(error.starts_with("`losses.perceptual.backbone`: backbone.safetensors"), "{error}");
        assert!(error.contains("1 missing (lin3.weight)"), "{error}");
    }
}
