//! Reads the configuration beside a CLIP's weights.

use std::path::Path;

use serde_json::Value as Json;

use super::names::Naming;
use super::{Activation, ClipArchitecture, Tower};
use crate::files::{WeightsError, WeightsFile};

/// OpenAI's: of the images that its models were trained on.
pub(super) const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
pub(super) const DEVIATION: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
/// torch's own, and every published CLIP's.
pub(super) const EPSILON: f64 = 1e-5;

/// Beyond any model's sizes, and small enough that the product of two fits.
const MAX_SIZE: u64 = 1 << 24;
/// The id that transformers wrote into its first configs for the end of the text, whatever the tokenizer's was.
const OLD_END_OF_TEXT: u64 = 2;

/// A configuration.
#[derive(Debug)]
pub(super) enum Source {
    /// `config.json`, and `preprocessor_config.json` if there is one.
    Transformers(Json, Option<Json>),
    /// `open_clip_config.json`.
    OpenClip(Json),
}

impl Source {
    /// The configuration that belongs to weights with these names; of OpenAI's names there may be none.
    pub fn beside(file: &WeightsFile, naming: Naming) -> Result<Option<Source>, WeightsError> {
        let weights = file.path();
        let refuse = |what: &str| Err(WeightsError::Unsupported { path: weights.to_owned(), what: what.to_owned() });
        let read = |name: &str| file.json_beside(name);
        match naming {
            Naming::Transformers => match read("config.json")? {
                Some(config) => Ok(Some(Source::Transformers(config, read("preprocessor_config.json")?))),
                None => refuse("config.json is not beside it, and only that file says how many heads it has"),
            },
            Naming::Original => Ok(read("open_clip_config.json")?.map(Source::OpenClip)),
        }
    }

    /// How the configuration calls a field of [`ClipArchitecture`].
    pub fn words(&self, field: &str) -> &'static str {
        match (self, field) {
            (Source::Transformers(..), "patch_size") => "vision_config.patch_size in config.json",
            (Source::Transformers(..), "vision.width") => "vision_config.hidden_size in config.json",
            (Source::Transformers(..), "vision.mlp") => "vision_config.intermediate_size in config.json",
            (Source::Transformers(..), "vision.layers") => "vision_config.num_hidden_layers in config.json",
            (Source::Transformers(..), "text.width") => "text_config.hidden_size in config.json",
            (Source::Transformers(..), "text.mlp") => "text_config.intermediate_size in config.json",
            (Source::Transformers(..), "text.layers") => "text_config.num_hidden_layers in config.json",
            (Source::Transformers(..), "vocabulary") => "text_config.vocab_size in config.json",
            (Source::Transformers(..), "context_length") => "text_config.max_position_embeddings in config.json",
            (Source::Transformers(..), "embedding") => "projection_dim in config.json",
            (Source::OpenClip(_), "patch_size") => "vision_cfg.patch_size in open_clip_config.json",
            (Source::OpenClip(_), "vision.width") => "vision_cfg.width in open_clip_config.json",
            (Source::OpenClip(_), "vision.mlp") => "vision_cfg.mlp_ratio in open_clip_config.json",
            (Source::OpenClip(_), "vision.layers") => "vision_cfg.layers in open_clip_config.json",
            (Source::OpenClip(_), "text.width") => "text_cfg.width in open_clip_config.json",
            (Source::OpenClip(_), "text.mlp") => "text_cfg.mlp_ratio in open_clip_config.json",
            (Source::OpenClip(_), "text.layers") => "text_cfg.layers in open_clip_config.json",
            (Source::OpenClip(_), "vocabulary") => "text_cfg.vocab_size in open_clip_config.json",
            (Source::OpenClip(_), "context_length") => "text_cfg.context_length in open_clip_config.json",
            (Source::OpenClip(_), "embedding") => "embed_dim in open_clip_config.json",
            (Source::Transformers(..), _) => "config.json",
            (Source::OpenClip(_), _) => "open_clip_config.json",
        }
    }

    /// The architecture, with the defaults of the library whose configuration it is.
    pub fn architecture(&self, weights: &Path) -> Result<ClipArchitecture, WeightsError> {
        let architecture = match self {
            Source::Transformers(config, preprocessor) => {
                let file = Section { weights, file: "config.json", name: "", levels: vec![config] };
                transformers(&file, preprocessor.as_ref())?
            }
            Source::OpenClip(config) => {
                open_clip(&Section { weights, file: "open_clip_config.json", name: "", levels: vec![config] })?
            }
        };
        let refuse = |what: String| Err(WeightsError::Unsupported { path: weights.to_owned(), what });
        for (name, Tower { width, heads, .. }) in [("image", &architecture.vision), ("text", &architecture.text)] {
            if !width.is_multiple_of(*heads) {
                return refuse(format!(
                    "the {name} tower has width {width}, which is not a multiple of its {heads} heads"
                ));
            }
        }
        let ClipArchitecture { image_size, patch_size, .. } = architecture;
        if !image_size.is_multiple_of(patch_size) {
            return refuse(format!("image_size {image_size} is not a multiple of patch_size {patch_size}"));
        }
        Ok(architecture)
    }
}

fn transformers(config: &Section, preprocessor: Option<&Json>) -> Result<ClipArchitecture, WeightsError> {
    if let Some(kind) = config.get("model_type").and_then(Json::as_str).filter(|kind| *kind != "clip") {
        return config.refuse(format!("it is a {kind} model; of transformers' models only clip is supported"));
    }
    // Old files have a second section with what its author wrote.
    let text = config.section("text_config", &["text_config", "text_config_dict"]);
    let vision = config.section("vision_config", &["vision_config", "vision_config_dict"]);
    let tower = |section: &Section, width, mlp, heads| {
        Ok::<_, WeightsError>(Tower {
            width: section.size("hidden_size", width)?,
            layers: section.size("num_hidden_layers", 12)?,
            heads: section.size("num_attention_heads", heads)?,
            mlp: section.size("intermediate_size", mlp)?,
        })
    };
    let vocabulary = text.size("vocab_size", 49408)?;
    let last = vocabulary as u64 - 1;
    let end_of_text = match text.get("eos_token_id").map(|id| (id, id.as_u64())) {
        None | Some((_, Some(OLD_END_OF_TEXT))) => last,
        Some((_, Some(id))) if id <= last => id,
        Some((id, _)) => {
            return text.refuse(format!("text_config.eos_token_id is {id}, but there are only {vocabulary} tokens"));
        }
    };
    let activation = |section: &Section| match section.get("hidden_act").map(|name| (name, name.as_str())) {
        None | Some((_, Some("quick_gelu"))) => Ok(Activation::QuickGelu),
        Some((_, Some("gelu"))) => Ok(Activation::Gelu),
        Some((other, _)) => section.refuse(format!("hidden_act is {other}; only quick_gelu and gelu are supported")),
    };
    let (mean, deviation) = match preprocessor {
        None => (MEAN, DEVIATION),
        Some(preprocessor) => {
            let file = Section { file: "preprocessor_config.json", levels: vec![preprocessor], ..*config };
            (file.colour("image_mean", MEAN)?, file.colour("image_std", DEVIATION)?)
        }
    };
    let channels = vision.size("num_channels", 3)?;
    if channels != 3 {
        return config.refuse(format!("its number of channels is {channels}, must be 3: red, green and blue"));
    }
    Ok(ClipArchitecture {
        image_size: vision.size("image_size", 224)?,
        patch_size: vision.size("patch_size", 32)?,
        vision: tower(&vision, 768, 3072, 12)?,
        text: tower(&text, 512, 2048, 8)?,
        context_length: text.size("max_position_embeddings", 77)?,
        vocabulary,
        embedding: config.size("projection_dim", 512)?,
        activation: config.both("hidden_act", activation(&vision)?, activation(&text)?)?,
        layer_norm_epsilon: config.both(
            "layer_norm_eps",
            vision.positive("layer_norm_eps", EPSILON)?,
            text.positive("layer_norm_eps", EPSILON)?,
        )?,
        mean,
        deviation,
        end_of_text: end_of_text as u32,
    })
}

fn open_clip(config: &Section) -> Result<ClipArchitecture, WeightsError> {
    let model = config.section("model_cfg", &["model_cfg"]);
    if model.levels.is_empty() {
        return config.refuse("open_clip_config.json has no model_cfg".to_owned());
    }
    let vision = model.section("vision_cfg", &["vision_cfg"]);
    let text = model.section("text_cfg", &["text_cfg"]);
    plain(&vision, &[("pool_type", "tok"), ("pos_embed_type", "learnable")])?;
    plain(&text, &[("pool_type", "argmax")])?;
    let mlp = |section: &Section, width: usize| {
        // Python's int() rounds towards zero, too.
        let mlp = width as f64 * section.positive("mlp_ratio", 4.0)?;
        if mlp >= 1.0 && mlp <= MAX_SIZE as f64 {
            return Ok(mlp as usize);
        }
        section.refuse(format!("an MLP cannot have {width} * mlp_ratio = {mlp} channels"))
    };
    let epsilon = |section: &Section| section.section("norm_kwargs", &["norm_kwargs"]).positive("eps", EPSILON);
    let width = vision.size("width", 768)?;
    let head_width = vision.size("head_width", 64)?;
    if !width.is_multiple_of(head_width) {
        return config.refuse(format!("vision_cfg.width {width} is not a multiple of head_width {head_width}"));
    }
    let vision_tower =
        Tower { width, layers: vision.size("layers", 12)?, heads: width / head_width, mlp: mlp(&vision, width)? };
    let width = text.size("width", 512)?;
    let text_tower =
        Tower { width, layers: text.size("layers", 12)?, heads: text.size("heads", 8)?, mlp: mlp(&text, width)? };
    let preprocess = config.section("preprocess_cfg", &["preprocess_cfg"]);
    let vocabulary = text.size("vocab_size", 49408)?;
    if model.get("embed_dim").is_none() {
        return config.refuse("open_clip_config.json has no embed_dim".to_owned());
    }
    Ok(ClipArchitecture {
        image_size: vision.size("image_size", 224)?,
        patch_size: vision.size("patch_size", 16)?,
        vision: vision_tower,
        text: text_tower,
        context_length: text.size("context_length", 77)?,
        vocabulary,
        embedding: model.size("embed_dim", 512)?,
        activation: if model.get("quick_gelu") == Some(&Json::Bool(true)) {
            Activation::QuickGelu
        } else {
            Activation::Gelu
        },
        layer_norm_epsilon: config.both("norm_kwargs.eps", epsilon(&vision)?, epsilon(&text)?)?,
        mean: preprocess.colour("mean", MEAN)?,
        deviation: preprocess.colour("std", DEVIATION)?,
        // The text's embedding is where the highest id is.
        end_of_text: (vocabulary - 1) as u32,
    })
}

/// Refuses settings of OpenCLIP that change the computation and not the tensors.
fn plain(section: &Section, usual: &[(&str, &str)]) -> Result<(), WeightsError> {
    let refuse = |key: &str, value: &Json| {
        section.refuse(format!("{}.{key} is {value} in {}, which is not supported", section.name, section.file))
    };
    for (key, usual) in usual {
        if let Some(value) = section.get(key).filter(|value| value.as_str() != Some(usual)) {
            return refuse(key, value);
        }
    }
    for key in ["final_ln_after_pool", "global_average_pool", "no_causal_mask", "act_kwargs"] {
        let is_off = |value: &Json| *value == Json::Bool(false) || value.as_object().is_some_and(|map| map.is_empty());
        if let Some(value) = section.get(key).filter(|value| !is_off(value)) {
            return refuse(key, value);
        }
    }
    Ok(())
}

/// A part of a configuration.
struct Section<'a> {
    weights: &'a Path,
    file: &'static str,
    name: &'static str,
    /// Where a key is looked up, in this order.
    levels: Vec<&'a Json>,
}

impl<'a> Section<'a> {
    fn section(&self, name: &'static str, keys: &[&str]) -> Section<'a> {
        let levels = self.levels.iter().flat_map(|level| keys.iter().filter_map(|key| level.get(*key)));
        Section {
            weights: self.weights,
            file: self.file,
            name,
            levels: levels.filter(|level| level.is_object()).collect(),
        }
    }

    /// The value of a key; a null is none.
    fn get(&self, key: &str) -> Option<&'a Json> {
        self.levels.iter().filter_map(|level| level.get(key)).find(|value| !value.is_null())
    }

    fn refuse<T>(&self, what: String) -> Result<T, WeightsError> {
        Err(WeightsError::Unsupported { path: self.weights.to_owned(), what })
    }

    fn wrong<T>(&self, key: &str, must: &str, value: &Json) -> Result<T, WeightsError> {
        let dot = if self.name.is_empty() { "" } else { "." };
        self.refuse(format!("{}{dot}{key} in {} must be {must}, not {value}", self.name, self.file))
    }

    /// A number of things, or the side of a square.
    fn size(&self, key: &str, default: usize) -> Result<usize, WeightsError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let single = match value.as_array().map(Vec::as_slice) {
            Some([height, width]) if height == width => height,
            _ => value,
        };
        match single.as_u64().filter(|size| (1..=MAX_SIZE).contains(size)) {
            Some(size) => Ok(size as usize),
            None => self.wrong(key, "a whole number above 0", value),
        }
    }

    fn positive(&self, key: &str, default: f64) -> Result<f64, WeightsError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_f64().filter(|number| *number > 0.0) {
            Some(number) => Ok(number),
            None => self.wrong(key, "a number above 0", value),
        }
    }

    /// One number each for red, green and blue.
    fn colour(&self, key: &str, default: [f64; 3]) -> Result<[f64; 3], WeightsError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let numbers: Option<Vec<f64>> = value.as_array().and_then(|all| all.iter().map(Json::as_f64).collect());
        let sensible = |number: &f64| *number >= 0.0 && (*number > 0.0 || key.ends_with("mean"));
        match numbers.as_deref() {
            Some(&[red, green, blue]) if [red, green, blue].iter().all(sensible) => Ok([red, green, blue]),
            _ => self.wrong(key, "three positive numbers", value),
        }
    }

    /// What must be the same in both towers.
    fn both<T: PartialEq + std::fmt::Debug>(&self, what: &str, vision: T, text: T) -> Result<T, WeightsError> {
        if vision == text {
            return Ok(vision);
        }
        self.refuse(format!(
            "{what} is {vision:?} in the image tower and {text:?} in the text tower; both must be equal"
        ))
    }
}
