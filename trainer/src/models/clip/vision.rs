//! The image tower: a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use checkpoints::ClipArchitecture;

use super::transformer::{LayerNorm, Linear, Transformer};
use crate::models::weights::{ModelError, WeightReader};

/// Maps images to embeddings.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    vision_model: VisionModel,
    visual_projection: Linear,
}

#[derive(Module, Debug)]
struct VisionModel {
    embeddings: Embeddings,
    /// Misspelled as in transformers.
    pre_layrnorm: LayerNorm,
    encoder: Transformer,
    post_layernorm: LayerNorm,
}

#[derive(Module, Debug)]
struct Embeddings {
    /// `[W]`: the token whose final state represents the image.
    class_embedding: Param<Tensor<1>>,
    patch_embedding: PatchEmbedding,
    position_embedding: PositionEmbedding,
}

#[derive(Module, Debug)]
struct PatchEmbedding {
    /// `[W, 3, P, P]`.
    weight: Param<Tensor<4>>,
}

#[derive(Module, Debug)]
struct PositionEmbedding {
    /// `[1 + (S/P)^2, W]`, the class token first.
    weight: Param<Tensor<2>>,
}

impl ImageEncoder {
    /// Reads the image tower of a CLIP.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn read(from: &WeightReader, architecture: &ClipArchitecture) -> Result<Self, ModelError> {
        let vision = from.at("vision_model");
        let embeddings = vision.at("embeddings");
        let epsilon = architecture.layer_norm_epsilon;
        let encoder = Transformer::read(&vision.at("encoder"), &architecture.vision, architecture.activation, epsilon)?;
        let vision_model = VisionModel {
            embeddings: Embeddings {
                class_embedding: embeddings.param("class_embedding")?,
                patch_embedding: PatchEmbedding { weight: embeddings.at("patch_embedding").param("weight")? },
                position_embedding: PositionEmbedding { weight: embeddings.at("position_embedding").param("weight")? },
            },
            pre_layrnorm: LayerNorm::read(&vision.at("pre_layrnorm"), epsilon)?,
            encoder,
            post_layernorm: LayerNorm::read(&vision.at("post_layernorm"), epsilon)?,
        };
        let visual_projection = Linear::read_projection(&from.at("visual_projection"))?;
        Ok(Self { vision_model, visual_projection })
    }

    /// Maps images `[V, 3, S, S]` of any type, normalised by [`to_clip`](super::preprocess::to_clip), to embeddings
    /// `[V, E]` in the weights' type, which are not of unit length.
    ///
    /// # Panics
    /// If the images do not have the model's size `S`, or only one of images and weights is with autodiff.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let model = &self.vision_model;
        let [v, _, _, _] = images.dims();
        let tokens = model.encoder.forward(model.pre_layrnorm.forward(model.embeddings.forward(images)), None);
        let width = tokens.dims()[2];
        let class = tokens.narrow(1, 0, 1).reshape([v, width]);
        self.visual_projection.forward(model.post_layernorm.forward(class))
    }

    /// Returns the state after each layer for images as in [`forward`](Self::forward): `[V, 1 + (S/P)^2, W]`, the class
    /// token first.
    ///
    /// # Panics
    /// As for [`forward`](Self::forward).
    pub fn states(&self, images: Tensor<4>) -> Vec<Tensor<3>> {
        let model = &self.vision_model;
        model.encoder.states(model.pre_layrnorm.forward(model.embeddings.forward(images)))
    }
}

impl Embeddings {
    /// `[V, 3, S, S]` to tokens `[V, 1 + (S/P)^2, W]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<3> {
        let [v, channels, height, width] = images.dims();
        let weight = self.patch_embedding.weight.val();
        let images = images.cast(weight.dtype());
        let [out, _, patch, _] = weight.dims();
        let (rows, columns) = (height / patch, width / patch);
        // A convolution whose stride equals its kernel is one matrix product.
        let patches = images.reshape([v, channels, rows, patch, columns, patch]).permute([0, 2, 4, 1, 3, 5]).reshape([
            v,
            rows * columns,
            channels * patch * patch,
        ]);
        let kernel = weight.reshape([out, channels * patch * patch]).transpose();
        let patches = burn::tensor::module::linear(patches, kernel, None);
        let class = self.class_embedding.val().reshape([1, 1, out]).expand([v, 1, out]);
        Tensor::cat(vec![class, patches], 1) + self.position_embedding.weight.val().unsqueeze::<3>()
    }
}
