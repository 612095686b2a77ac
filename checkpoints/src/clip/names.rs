//! The parameters of a CLIP, and what transformers and OpenAI call them.

use super::{ClipArchitecture, Tower};
use crate::tensor::HostTensor;

pub(super) const PATCHES: &str = "vision_model.embeddings.patch_embedding.weight";
pub(super) const GRID: &str = "vision_model.embeddings.position_embedding.weight";
pub(super) const TOKENS: &str = "text_model.embeddings.token_embedding.weight";
pub(super) const POSITIONS: &str = "text_model.embeddings.position_embedding.weight";
pub(super) const SCALE: &str = "logit_scale";

impl ClipArchitecture {
    /// Names and shapes of all parameters, as transformers' `CLIPModel` has them.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let ClipArchitecture { vision, text, patch_size, .. } = self;
        let side = self.image_size / self.patch_size;
        let mut all = vec![
            (SCALE.to_owned(), vec![]),
            ("vision_model.embeddings.class_embedding".to_owned(), vec![vision.width]),
            (PATCHES.to_owned(), vec![vision.width, 3, *patch_size, *patch_size]),
            (GRID.to_owned(), vec![side * side + 1, vision.width]),
            ("visual_projection.weight".to_owned(), vec![self.embedding, vision.width]),
            (TOKENS.to_owned(), vec![self.vocabulary, text.width]),
            (POSITIONS.to_owned(), vec![self.context_length, text.width]),
            ("text_projection.weight".to_owned(), vec![self.embedding, text.width]),
        ];
        // The misspelling is transformers' own.
        for norm in ["vision_model.pre_layrnorm", "vision_model.post_layernorm"] {
            all.extend(affine(norm, vec![vision.width]));
        }
        all.extend(affine("text_model.final_layer_norm", vec![text.width]));
        for (name, tower) in [("vision_model", vision), ("text_model", text)] {
            let Tower { width, mlp, .. } = *tower;
            for layer in 0..tower.layers {
                let block = format!("{name}.encoder.layers.{layer}");
                for norm in ["layer_norm1", "layer_norm2"] {
                    all.extend(affine(&format!("{block}.{norm}"), vec![width]));
                }
                for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    all.extend(affine(&format!("{block}.self_attn.{projection}"), vec![width, width]));
                }
                all.extend(affine(&format!("{block}.mlp.fc1"), vec![mlp, width]));
                all.extend(affine(&format!("{block}.mlp.fc2"), vec![width, mlp]));
            }
        }
        all
    }
}

/// Whether a canonical parameter is used for texts alone.
pub(super) fn is_of_texts(canonical: &str) -> bool {
    canonical.starts_with("text_model.") || canonical.starts_with("text_projection.")
}

/// A layer's weight and bias.
fn affine(name: &str, weight: Vec<usize>) -> [(String, Vec<usize>); 2] {
    let bias = vec![weight[0]];
    [(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]
}

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// transformers' `CLIPModel`.
    Transformers,
    /// OpenAI's, which OpenCLIP took over.
    Original,
}

/// How a file keeps a canonical parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is.
    Same,
    /// A matrix `[in, out]`.
    Transposed,
    /// One third of the rows: query, key and value are one matrix.
    Third(usize),
}

impl Naming {
    /// The name and form that a canonical parameter has.
    pub fn of(self, canonical: &str) -> (String, Form) {
        let same = |name: &str| (name.to_owned(), Form::Same);
        if self == Naming::Transformers {
            return same(canonical);
        }
        let (tower, inner) = match canonical.split_once('.') {
            Some(("vision_model", inner)) => ("visual.", inner),
            Some(("text_model", inner)) => ("", inner),
            Some(("visual_projection", _)) => return ("visual.proj".to_owned(), Form::Transposed),
            Some(("text_projection", _)) => return ("text_projection".to_owned(), Form::Transposed),
            _ => return same(canonical),
        };
        let parts: Vec<&str> = inner.split('.').collect();
        let (inner, form) = match parts[..] {
            ["embeddings", "class_embedding"] => ("class_embedding".to_owned(), Form::Same),
            ["embeddings", "patch_embedding", kind] => (format!("conv1.{kind}"), Form::Same),
            ["embeddings", "token_embedding", kind] => (format!("token_embedding.{kind}"), Form::Same),
            ["embeddings", "position_embedding", _] => ("positional_embedding".to_owned(), Form::Same),
            ["pre_layrnorm", kind] => (format!("ln_pre.{kind}"), Form::Same),
            ["post_layernorm", kind] => (format!("ln_post.{kind}"), Form::Same),
            ["final_layer_norm", kind] => (format!("ln_final.{kind}"), Form::Same),
            ["encoder", "layers", layer, ref rest @ ..] => {
                let (rest, form) = in_block(rest);
                (format!("transformer.resblocks.{layer}.{rest}"), form)
            }
            _ => (inner.to_owned(), Form::Same),
        };
        (format!("{tower}{inner}"), form)
    }

    /// What the names of a tower's blocks begin with, up to their number.
    pub fn blocks(self, tower: &str) -> &'static str {
        match (self, tower) {
            (Naming::Transformers, "vision") => "vision_model.encoder.layers.",
            (Naming::Transformers, _) => "text_model.encoder.layers.",
            (Naming::Original, "vision") => "visual.transformer.resblocks.",
            (Naming::Original, _) => "transformer.resblocks.",
        }
    }

    /// Buffers that follow from the architecture, and the numbers that OpenAI keeps beside the weights.
    pub fn is_no_parameter(self, name: &str) -> bool {
        let last = name.rsplit('.').next().unwrap_or(name);
        match self {
            Naming::Transformers => last == "position_ids",
            Naming::Original => {
                last == "attn_mask" || matches!(name, "input_resolution" | "context_length" | "vocab_size")
            }
        }
    }
}

fn in_block(rest: &[&str]) -> (String, Form) {
    match *rest {
        ["self_attn", "out_proj", kind] => (format!("attn.out_proj.{kind}"), Form::Same),
        ["self_attn", projection, kind] => {
            let third = match projection {
                "q_proj" => 0,
                "k_proj" => 1,
                _ => 2,
            };
            (format!("attn.in_proj_{kind}"), Form::Third(third))
        }
        ["layer_norm1", kind] => (format!("ln_1.{kind}"), Form::Same),
        ["layer_norm2", kind] => (format!("ln_2.{kind}"), Form::Same),
        ["mlp", "fc1", kind] => (format!("mlp.c_fc.{kind}"), Form::Same),
        ["mlp", "fc2", kind] => (format!("mlp.c_proj.{kind}"), Form::Same),
        _ => (rest.join("."), Form::Same),
    }
}

impl Form {
    /// The shape in the file of a parameter that is `shape`.
    pub fn stored(self, shape: &[usize]) -> Vec<usize> {
        let mut stored = shape.to_vec();
        match self {
            Form::Same => {}
            Form::Transposed => stored.reverse(),
            Form::Third(_) => stored[0] *= 3,
        }
        stored
    }

    /// The parameter in a tensor of the file, whose shape is as [`stored`](Self::stored) says.
    pub fn canonical(self, tensor: HostTensor) -> HostTensor {
        let HostTensor { dtype, mut shape, bytes } = tensor;
        let bytes = match (self, &shape[..]) {
            (Form::Transposed, &[rows, columns]) => {
                shape.reverse();
                transposed(&bytes, rows, columns, dtype.bitsize() / 8)
            }
            (Form::Third(third), &[rows, ..]) => {
                shape[0] = rows / 3;
                let length = bytes.len() / 3;
                bytes[third * length..(third + 1) * length].to_vec()
            }
            _ => bytes,
        };
        HostTensor { dtype, shape, bytes }
    }
}

fn transposed(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    let mut turned = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            turned.extend_from_slice(&bytes[at..at + size]);
        }
    }
    turned
}
