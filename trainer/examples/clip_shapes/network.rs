//! The network: the two towers of CLIP with weights that can be trained.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use checkpoints::{Activation, ClipArchitecture, HostTensor, Tower};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use trainer::models::clip::{ImageEncoder, TextEncoder};
use trainer::models::weights::{StateDict, WeightReader, fnv1a, state_dict};

use crate::Result;

const LOGIT_SCALE: &str = "logit_scale";

/// What cosines are multiplied with at first: 1 / 0.07, as in CLIP (Radford et al. 2021, arXiv 2103.00020).
const FIRST_SCALE: f32 = 14.3;

/// Both towers and the scale of their cosines.
#[derive(Module, Debug)]
pub struct Network {
    /// `[V, 3, S, S]` to `[V, E]`.
    pub image: ImageEncoder,
    /// `[T, L]` to `[T, E]`.
    pub text: TextEncoder,
    /// Logarithm of the factor of the cosines, `[1]`.
    pub logit_scale: Param<Tensor<1>>,
}

/// The sizes of the model, for a tokenizer with `vocabulary` tokens, the last of which ends a text.
pub fn architecture(vocabulary: usize) -> ClipArchitecture {
    ClipArchitecture {
        image_size: 64,
        patch_size: 8,
        vision: Tower { width: 96, layers: 4, heads: 3, mlp: 384 },
        text: Tower { width: 96, layers: 2, heads: 3, mlp: 384 },
        context_length: 24,
        vocabulary,
        embedding: 96,
        activation: Activation::QuickGelu,
        layer_norm_epsilon: 1e-5,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        end_of_text: vocabulary as u32 - 1,
    }
}

/// Random weights as OpenAI's code draws them, but from uniform distributions of the same standard deviations, and with
/// positions of patches as large as patches: smaller ones are long overlooked.
pub fn random_weights(architecture: &ClipArchitecture, seed: u64) -> StateDict {
    let draw = |(name, shape): (String, Vec<usize>)| {
        let tower = if name.starts_with("text") { &architecture.text } else { &architecture.vision };
        let width = tower.width as f64;
        let residual = (2.0 * tower.layers as f64).powf(-0.5);
        let ends = |end: &str| name.ends_with(end);
        let deviation = match () {
            () if ends("bias") || name.contains("norm") || name == LOGIT_SCALE => 0.0,
            () if ends("token_embedding.weight") => 0.02,
            () if name == "text_model.embeddings.position_embedding.weight" => 0.01,
            () if name == "vision_model.embeddings.position_embedding.weight" => 0.35,
            () if ends("patch_embedding.weight") => (3.0 * shape[1..].iter().product::<usize>() as f64).powf(-0.5),
            () if ends("out_proj.weight") || ends("fc2.weight") => width.powf(-0.5) * residual,
            () if ends("fc1.weight") => (2.0 * width).powf(-0.5),
            () => width.powf(-0.5),
        };
        let constant = match () {
            () if name == LOGIT_SCALE => FIRST_SCALE.ln(),
            () if name.contains("norm") && ends("weight") => 1.0,
            () => 0.0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(name.bytes()));
        let bound = 3f64.sqrt() * deviation;
        let value = |_| constant + rng.random_range(-bound..=bound) as f32;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        let host = HostTensor::from_f32(shape, &values);
        (name, host)
    };
    architecture.parameters().into_iter().map(draw).collect()
}

impl Network {
    /// The network of `weights`, which have the names of transformers' `CLIPModel`; trained on an autodiff device.
    pub fn new(architecture: &ClipArchitecture, weights: &StateDict, device: &Device) -> Result<Self> {
        // A parameter of Burn has at least one dimension.
        let scale = weights.get(LOGIT_SCALE).ok_or("there is no logit_scale")?.clone().reshape([1])?;
        let scale = BTreeMap::from([(LOGIT_SCALE.to_owned(), scale)]);
        let reader = WeightReader::new(weights, device, DType::F32);
        Ok(Self {
            image: ImageEncoder::read(&reader, architecture)?,
            text: TextEncoder::read(&reader, architecture)?,
            logit_scale: WeightReader::new(&scale, device, DType::F32).param(LOGIT_SCALE)?,
        })
    }

    /// The weights under the names of transformers' `CLIPModel`, in f32.
    pub fn weights(&self) -> Result<StateDict> {
        let inner = |name: String| match name.split_once('.') {
            Some(("image" | "text", inner)) => inner.to_owned(),
            _ => name,
        };
        let mut weights: StateDict = state_dict(self)?.into_iter().map(|(name, host)| (inner(name), host)).collect();
        if let Some(scale) = weights.remove(LOGIT_SCALE) {
            weights.insert(LOGIT_SCALE.to_owned(), scale.reshape([])?);
        }
        Ok(weights)
    }
}
