//! Loads a CLIP that transformers, OpenCLIP or OpenAI published, under transformers' names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::{Differences, Fetched, WeightsError, WeightsFile, in_folder};
use crate::tensor::HostTensor;

mod config;
mod names;
#[cfg(test)]
mod tests;

use config::Source;
use names::{Form, Naming};

/// What transformers and OpenCLIP call the weights in a model's folder, best first.
pub(crate) const WEIGHTS: [&str; 4] =
    ["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"];
/// The prefix of a CLIP that is part of a larger model.
const HOLDER: &str = "model.";
/// Files beside the weights that belong to a CLIP.
pub(crate) const BESIDE: [&str; 6] =
    ["config.json", "open_clip_config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"];

/// What a tokenizer is called in a model's folder, best first; `vocab.json` has its `merges.txt` beside it.
pub const CLIP_TOKENIZERS: [&str; 5] =
    ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt", "merges.txt"];

/// The architecture of a CLIP with a vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipArchitecture {
    /// Width and height of the images, in pixels.
    pub image_size: usize,
    /// Width and height of a patch, in pixels.
    pub patch_size: usize,
    /// The transformer over patches.
    pub vision: Tower,
    /// The transformer over tokens.
    pub text: Tower,
    /// Most tokens of a text, start and end included.
    pub context_length: usize,
    /// Number of tokens that there are.
    pub vocabulary: usize,
    /// Length of the embeddings that images and texts share.
    pub embedding: usize,
    /// Between the two layers of every MLP.
    pub activation: Activation,
    /// Added to the variance in every norm.
    pub layer_norm_epsilon: f64,
    /// Subtracted from an image's red, green and blue in 0..1.
    pub mean: [f64; 3],
    /// The colours minus `mean` are divided by it.
    pub deviation: [f64; 3],
    /// The token whose position gives the text's embedding.
    pub end_of_text: u32,
}

/// A transformer's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tower {
    /// Length of a token's vector.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads of a block; they share the width.
    pub heads: usize,
    /// Width between the two layers of the MLP.
    pub mlp: usize,
}

/// The nonlinearity of a CLIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 * x)`, OpenAI's.
    QuickGelu,
    /// The exact one, `x * Phi(x)`.
    Gelu,
}

/// A CLIP as it was published.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Its architecture.
    pub architecture: ClipArchitecture,
    /// The weights under the names of transformers' `CLIPModel`, in the file's element types; projections are
    /// `[out, in]`.
    pub weights: BTreeMap<String, HostTensor>,
    /// The `tokenizer.json` beside the weights, else the `vocab.json` that has its `merges.txt` there.
    pub tokenizer: Option<PathBuf>,
}

/// Reads a CLIP with a vision transformer from a file of weights, or from the folder that has it under a usual name.
///
/// | names of the tensors | published by | architecture |
/// |---|---|---|
/// | `vision_model.…`, `text_model.…` | transformers | `config.json`; mean and deviation in `preprocessor_config.json` |
/// | `visual.…`, `transformer.…` | OpenCLIP | `open_clip_config.json` |
/// | the same | OpenAI (`torch.save` or TorchScript) | the shapes, with 64 channels per head and QuickGELU |
///
/// The configurations lie beside the weights. Without `open_clip_config.json` a file is OpenAI's if it is a TorchScript
/// program, has OpenAI's `input_resolution`, or is nothing but a state dict with the names as they are; not if the
/// file's name begins with `open_clip`, its tensors have wrappers around them or lie under a key, as in a checkpoint of
/// a training.
///
/// # Errors
/// One line: what the file is instead, or what of configuration and tensors contradict each other.
/// [`WeightsError::Mismatch`] names all tensors that are missing, unexpected or different, by the file's own names.
/// [`WeightsError::NoActivation`] if [`read_clip`] has to be told.
pub fn load_clip(weights: impl Into<Fetched>) -> Result<Clip, WeightsError> {
    read_clip(weights, None, true)
}

/// As [`load_clip`], without the weights of the text tower: what `text_model.` and `text_projection.` begin is checked
/// and not read.
///
/// # Errors
/// As [`load_clip`].
pub fn load_clip_images(weights: impl Into<Fetched>) -> Result<Clip, WeightsError> {
    read_clip(weights, None, false)
}

/// Does what [`load_clip`] or, without texts, [`load_clip_images`] does, with an activation in place of what the
/// configuration says; of a file without one, the rest is taken from the shapes, as of OpenAI's.
///
/// # Errors
/// As [`load_clip`].
pub fn read_clip(
    weights: impl Into<Fetched>,
    activation: Option<Activation>,
    with_texts: bool,
) -> Result<Clip, WeightsError> {
    let weights = weights.into();
    let path = &weights.weights;
    let is_folder = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let path = if is_folder { in_folder(path, &WEIGHTS, &[""])? } else { path.to_owned() };
    let file = WeightsFile::open_with(&path, weights.key.as_deref())?;
    let tensors = Tensors::of(&file)?;
    let source = Source::beside(&file, tensors.naming)?;
    if source.is_none() && !tensors.are_openais()? && activation.is_none() {
        return Err(WeightsError::NoActivation { path });
    }
    let mut architecture = match &source {
        Some(source) => {
            let architecture = source.architecture(file.path())?;
            tensors.agree(&architecture, source)?;
            architecture
        }
        None => tensors.infer()?,
    };
    architecture.activation = activation.unwrap_or(architecture.activation);
    let weights = tensors.read(&architecture, |name| with_texts || !names::is_of_texts(name))?;
    Ok(Clip { architecture, weights, tokenizer: tokenizer_beside(file.path()) })
}

fn tokenizer_beside(weights: &Path) -> Option<PathBuf> {
    let has = |name: &str| Some(weights.with_file_name(name)).filter(|path| path.is_file());
    has("tokenizer.json").or_else(|| has("merges.txt").and_then(|_| has("vocab.json")))
}

/// The tensors of a CLIP in a file.
struct Tensors<'a> {
    file: &'a WeightsFile,
    naming: Naming,
    /// Name within the model -> name in the file; without what is no parameter.
    names: BTreeMap<String, &'a str>,
}

impl<'a> Tensors<'a> {
    /// Recognises whose names they are, and refuses by name other models that look like a CLIP.
    fn of(file: &'a WeightsFile) -> Result<Tensors<'a>, WeightsError> {
        let mut names = BTreeMap::new();
        for (name, in_file) in file.unwrapped()?.0 {
            let inside = name.trim_start_matches(HOLDER).to_owned();
            file.insert(&mut names, inside, in_file)?;
        }
        let starts = |prefix: &str| names.keys().any(|name| name.starts_with(prefix));
        let first = |prefix: &str| {
            let mut found = names.range(prefix.to_owned()..).map(|(_, in_file)| *in_file);
            found.next().unwrap_or_default().to_owned()
        };
        if starts("visual.layer1.") {
            let first = first("visual.layer1.");
            return file
                .refuse(format!("it is a CLIP with a ResNet ({first}); only vision transformers are supported"));
        }
        if starts("visual.trunk.") {
            let what = "it is a CLIP whose image tower is timm's";
            return file.refuse(format!("{what} ({}); only CLIP's own is supported", first("visual.trunk.")));
        }
        let transformers = [starts("vision_model."), starts("text_model.")];
        let original = [starts("visual."), starts("transformer.") || names.contains_key("token_embedding.weight")];
        if original[0] && starts("text.") {
            let what = "it is a CLIP whose text tower is not CLIP's own";
            return file.refuse(format!("{what} ({})", first("text.")));
        }
        let naming = match (transformers, original) {
            ([true, true], _) => Naming::Transformers,
            (_, [true, true]) => Naming::Original,
            ([true, _], _) | (_, [true, _]) => {
                return file.refuse("it is the image tower of a CLIP alone; the text tower is needed too");
            }
            ([_, true], _) => {
                return file.refuse("it is the text tower of a CLIP alone; the image tower is needed too");
            }
            _ => {
                let some = file.first_names();
                return file.refuse(format!(
                    "it is not a CLIP of transformers, OpenCLIP or OpenAI; its tensors are {some}, ..."
                ));
            }
        };
        let names = names.into_iter().filter(|(name, _)| !naming.is_no_parameter(name)).collect();
        Ok(Tensors { file, naming, names })
    }

    /// What the file calls a canonical parameter, and its shape there turned back to the canonical one.
    fn shape(&self, canonical: &str) -> Option<(&'a str, Vec<usize>)> {
        let (name, form) = self.naming.of(canonical);
        let in_file = *self.names.get(name.as_str())?;
        let mut shape = self.file.info(in_file)?.1.to_vec();
        if form == Form::Transposed {
            shape.reverse();
        }
        Some((in_file, shape))
    }

    /// Number of blocks of a tower.
    fn layers(&self, tower: &str) -> usize {
        let prefix = self.naming.blocks(tower);
        // Counted, because a single name can have any number in it.
        let numbers = self.names.keys().filter_map(|name| name.strip_prefix(prefix)?.split('.').next());
        numbers.collect::<BTreeSet<&str>>().len()
    }

    /// Whether the tensors, which have no configuration, are as OpenAI gave them out.
    ///
    /// # Errors
    /// Where they are not, and have more channels than a head of 64 ever has had in them.
    fn are_openais(&self) -> Result<bool, WeightsError> {
        let is_said = self.file.info("input_resolution").is_some_and(|(_, shape)| shape.is_empty());
        let is_renamed = || self.names.iter().any(|(name, in_file)| name != in_file);
        let name = self.file.path().file_name().unwrap_or_default().to_string_lossy();
        if is_said || (self.file.is_state_dict() && !is_renamed() && !name.starts_with("open_clip")) {
            return Ok(true);
        }
        match self.shape(names::PATCHES) {
            Some((_, shape)) if shape.first().is_some_and(|width| *width > MOST_OF_64) => self.file.refuse(format!(
                "open_clip_config.json is not beside it, and only that file says how many heads share the {} channels",
                shape[0]
            )),
            _ => Ok(false),
        }
    }

    /// Compares the sizes in the configuration with those of the tensors.
    fn agree(&self, architecture: &ClipArchitecture, source: &Source) -> Result<(), WeightsError> {
        let said = |key: &str| source.words(key);
        let ClipArchitecture { vision, text, .. } = architecture;
        let sizes = [
            (names::PATCHES, 0, "width", "vision.width", vision.width),
            (names::PATCHES, 2, "patch size", "patch_size", architecture.patch_size),
            ("vision_model.encoder.layers.0.mlp.fc1.weight", 0, "MLP width", "vision.mlp", vision.mlp),
            ("visual_projection.weight", 0, "embedding size", "embedding", architecture.embedding),
            (names::TOKENS, 0, "number of tokens", "vocabulary", architecture.vocabulary),
            (names::TOKENS, 1, "width", "text.width", text.width),
            (names::POSITIONS, 0, "number of positions", "context_length", architecture.context_length),
            ("text_model.encoder.layers.0.mlp.fc1.weight", 0, "MLP width", "text.mlp", text.mlp),
            ("text_projection.weight", 0, "embedding size", "embedding", architecture.embedding),
        ];
        for (canonical, axis, what, key, value) in sizes {
            let Some((in_file, shape)) = self.shape(canonical) else {
                continue;
            };
            if let Some(&found) = shape.get(axis).filter(|found| **found != value) {
                return self.file.refuse(format!("{in_file} has {what} {found}, but {} gives {value}", said(key)));
            }
        }
        for (tower, key, value) in [("vision", "vision.layers", vision.layers), ("text", "text.layers", text.layers)] {
            let found = self.layers(tower);
            if found != value {
                return self
                    .file
                    .refuse(format!("the {tower} tower has {found} layers, but {} gives {value}", said(key)));
            }
        }
        let side = architecture.image_size / architecture.patch_size;
        if let Some((_, shape)) = self.shape(names::GRID)
            && let Some(&positions) = shape.first()
            && positions != side * side + 1
        {
            let found = match grid(positions) {
                Some(side) => format!("{side}x{side} patches"),
                None => format!("{} patches", positions.saturating_sub(1)),
            };
            return self.file.refuse(format!(
                "the position embedding is for {found}, but image_size {} / patch_size {} gives {side}x{side}",
                architecture.image_size, architecture.patch_size
            ));
        }
        Ok(())
    }

    /// The architecture as OpenAI's own code infers it.
    fn infer(&self) -> Result<ClipArchitecture, WeightsError> {
        let mut differences = Differences::default();
        let mut shape = |canonical: &str, dimensions: usize| match self.shape(canonical) {
            Some((_, shape)) if shape.len() == dimensions && !shape.contains(&0) => shape,
            Some((in_file, shape)) => {
                differences.different.push(format!("{in_file} is {shape:?}, must have {dimensions} dimensions"));
                vec![1; dimensions]
            }
            None => {
                differences.missing.push(self.naming.of(canonical).0);
                vec![1; dimensions]
            }
        };
        let patches = shape(names::PATCHES, 4);
        let grid_positions = shape(names::GRID, 2)[0];
        let tokens = shape(names::TOKENS, 2);
        let context_length = shape(names::POSITIONS, 2)[0];
        let embedding = shape("text_projection.weight", 2)[0];
        let mut mlp = |tower: &str| shape(&format!("{tower}_model.encoder.layers.0.mlp.fc1.weight"), 2)[0];
        let (vision_mlp, text_mlp) = (mlp("vision"), mlp("text"));
        differences.check(self.file.path())?;
        let (width, patch_size, vocabulary) = (patches[0], patches[3], tokens[0]);
        let Some(side) = grid(grid_positions) else {
            let patches = grid_positions.saturating_sub(1);
            return self
                .file
                .refuse(format!("its position embedding is for {patches} patches, which is not a square number"));
        };
        let tower = |name: &str, width: usize, mlp| {
            if !width.is_multiple_of(HEAD_WIDTH) {
                return self.file.refuse(format!(
                    "the {name} tower has width {width}, not a multiple of the {HEAD_WIDTH} that every head of OpenAI's has"
                ));
            }
            Ok(Tower { width, layers: self.layers(name), heads: width / HEAD_WIDTH, mlp })
        };
        let Some(end_of_text) = u32::try_from(vocabulary - 1).ok() else {
            return self.file.refuse(format!("{vocabulary} tokens exceed any real vocabulary"));
        };
        let Some(image_size) = side.checked_mul(patch_size) else {
            return self.file.refuse("its image size is beyond any memory".to_owned());
        };
        let said = [("input_resolution", image_size), ("context_length", context_length), ("vocab_size", vocabulary)];
        for (name, inferred) in said {
            // Only files of OpenAI's have these.
            if self.file.info(name).is_some_and(|(_, shape)| shape.is_empty()) {
                let value = self.file.read(name)?.to_f32();
                if value != [inferred as f32] {
                    return self.file.refuse(format!("{name} is {value:?}, but its tensors are for {inferred}"));
                }
            }
        }
        Ok(ClipArchitecture {
            image_size,
            patch_size,
            vision: tower("vision", width, vision_mlp)?,
            text: tower("text", tokens[1], text_mlp)?,
            context_length,
            vocabulary,
            embedding,
            activation: Activation::QuickGelu,
            layer_norm_epsilon: config::EPSILON,
            mean: config::MEAN,
            deviation: config::DEVIATION,
            end_of_text,
        })
    }

    /// Checks all parameters, then reads those that are wanted by their canonical names.
    fn read(
        &self,
        architecture: &ClipArchitecture,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
        let mut left: BTreeSet<&str> = self.names.keys().map(String::as_str).collect();
        let mut differences = Differences::default();
        let mut found = Vec::new();
        for (canonical, shape) in architecture.parameters() {
            let (name, form) = self.naming.of(&canonical);
            left.remove(name.as_str());
            let Some(&in_file) = self.names.get(name.as_str()) else {
                differences.missing.push(name);
                continue;
            };
            let Some((dtype, stored)) = self.file.info(in_file) else {
                continue;
            };
            let expected = form.stored(&shape);
            // OpenCLIP can keep the scale as a vector of one.
            let is_scale = canonical == names::SCALE && stored == [1];
            if differences.compare(in_file, (dtype, stored), if is_scale { stored } else { &expected }) {
                found.push((canonical, shape, in_file, form));
            }
        }
        let unexpected = left.iter().filter_map(|name| self.names.get(*name));
        differences.unexpected = unexpected.map(|in_file| (*in_file).to_owned()).collect();
        // Query, key and value can be one tensor of the file, which is to be named once.
        for names in [&mut differences.missing, &mut differences.different] {
            names.sort();
            names.dedup();
        }
        differences.check(self.file.path())?;
        let mut weights = BTreeMap::new();
        for (canonical, shape, in_file, form) in found.into_iter().filter(|(canonical, ..)| is_wanted(canonical)) {
            let tensor = form.canonical(self.file.read_weight(in_file)?);
            let tensor =
                tensor.reshape(shape).map_err(|source| WeightsError::Tensor { name: in_file.to_owned(), source })?;
            weights.insert(canonical, tensor);
        }
        Ok(weights)
    }
}

/// Channels of an attention head in all of OpenAI's models.
const HEAD_WIDTH: usize = 64;
/// Widest of OpenCLIP's image towers whose heads have 64 channels; those of ViT-H, g and G have more.
const MOST_OF_64: usize = 1024;

/// The side of a square of patches that has these positions, one of them for the class.
fn grid(positions: usize) -> Option<usize> {
    let patches = positions.checked_sub(1).filter(|patches| *patches > 0)?;
    let side = patches.isqrt();
    (side * side == patches).then_some(side)
}
