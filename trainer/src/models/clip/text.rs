//! The text tower: a transformer that reads a caption from left to right.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor};
use checkpoints::ClipArchitecture;

use super::transformer::{LayerNorm, Linear, Transformer};
use crate::models::weights::{ModelError, WeightReader};

/// Maps captions, as tokens, to embeddings.
#[derive(Module, Debug)]
pub struct TextEncoder {
    text_model: TextModel,
    text_projection: Linear,
    end_of_text: usize,
}

#[derive(Module, Debug)]
struct TextModel {
    embeddings: Embeddings,
    encoder: Transformer,
    final_layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Embeddings {
    token_embedding: Table,
    position_embedding: Table,
}

#[derive(Module, Debug)]
struct Table {
    /// `[vocabulary, W]` or `[context, W]`.
    weight: Param<Tensor<2>>,
}

impl Table {
    fn read(from: &WeightReader) -> Result<Self, ModelError> {
        Ok(Self { weight: from.param("weight")? })
    }
}

impl TextEncoder {
    /// Reads the text tower of a CLIP.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn read(from: &WeightReader, architecture: &ClipArchitecture) -> Result<Self, ModelError> {
        let text = from.at("text_model");
        let embeddings = text.at("embeddings");
        let epsilon = architecture.layer_norm_epsilon;
        let encoder = Transformer::read(&text.at("encoder"), &architecture.text, architecture.activation, epsilon)?;
        let text_model = TextModel {
            embeddings: Embeddings {
                token_embedding: Table::read(&embeddings.at("token_embedding"))?,
                position_embedding: Table::read(&embeddings.at("position_embedding"))?,
            },
            encoder,
            final_layer_norm: LayerNorm::read(&text.at("final_layer_norm"), epsilon)?,
        };
        Ok(Self {
            text_model,
            text_projection: Linear::read_projection(&from.at("text_projection"))?,
            end_of_text: architecture.end_of_text as usize,
        })
    }

    /// Maps token ids `[T, L]`, `L` at most the model's context, to embeddings `[T, E]`, which are not of unit length.
    ///
    /// A caption's embedding is the state of its first end-of-text token. This token does not see later tokens, so the
    /// embedding does not depend on the padding. Without such a token it is the state of the last token.
    ///
    /// # Panics
    /// If there are more tokens than the model has positions, or an id is not in its vocabulary.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        let [captions, length] = ids.dims();
        let TextModel { embeddings, encoder, final_layer_norm } = &self.text_model;
        let words = embeddings.token_embedding.weight.val();
        let ids = if words.is_autodiff() { ids.autodiff() } else { ids.without_autodiff() };
        let device = ids.device();
        let width = words.dims()[1];

        let tokens = words.select(0, ids.clone().reshape([captions * length])).reshape([captions, length, width]);
        let positions = embeddings.position_embedding.weight.val().narrow(0, 0, length);
        let future = Tensor::<2, Bool>::tril_mask([length, length], 0, &device);
        let states = encoder.forward(tokens + positions.unsqueeze::<3>(), Some(future.unsqueeze::<4>()));

        let position = Tensor::<1, Int>::arange(0..length as i64, &device).unsqueeze::<2>().expand([captions, length]);
        let other = ids.not_equal_elem(self.end_of_text as i64);
        let end = position.mask_fill(other, length as i64 - 1).min_dim(1).reshape([captions]);
        let rows = Tensor::<1, Int>::arange(0..captions as i64, &device) * length as i64 + end;
        let pooled = states.reshape([captions * length, width]).select(0, rows);
        self.text_projection.forward(final_layer_norm.forward(pooled))
    }
}
