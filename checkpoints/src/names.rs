//! The same VQGAN under three families' names, brought in under the canonical ones and given out again.
//!
//! Canonical names are taming's. One function, [`family_name`], knows the other families; reading looks up what it
//! says, writing writes it, so the two cannot disagree.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::architecture::{Architecture, Family, GumbelTraining, MOVQ, QuantizerKind};
use crate::hub::enumerate;
use crate::safetensors_file::{write_safetensors, write_whole};
use crate::tensor::{HostTensor, is_float};
use crate::torch_file::write_torch;
use crate::weights::{WeightsError, WeightsFile};

/// Under which programs keep a VQGAN, the last being latent-diffusion, which has its diffusion model beside it.
const HOLDERS: [&str; 3] = ["model", "vqgan", "first_stage_model"];
/// The parts of a VQGAN. All else in a file is not the model's own.
const PARTS: [&str; 5] = ["encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"];
/// Which every VQGAN has, whoever made it.
const FIRST: &str = "encoder.conv_in.weight";
/// The quantizer's one parameter.
const CODEBOOK: &str = "quantize.embedding.weight";
/// What belongs to training alone: losses with their discriminator, and moving averages.
const TRAINING: [&str; 5] = ["loss.", "model_ema.", "discriminator.", "perceptual_loss.", "colorize"];
/// Length of the usage buffer that LlamaGen's strict loading wants.
const LLAMAGEN_USED: usize = 65536;

/// A canonical parameter's name in a family's files; `levels` is the number of resolutions.
///
/// The decoder's levels are numbered from the finest in taming and from the coarsest in the other two.
pub fn family_name(family: Family, levels: usize, canonical: &str) -> String {
    let parts: Vec<&str> = canonical.split('.').collect();
    let position = |side: &str, level: &str| match level.parse::<usize>() {
        Ok(level) if side == "decoder" => (levels.saturating_sub(level + 1)).to_string(),
        _ => level.to_owned(),
    };
    match (family, parts.as_slice()) {
        (Family::LlamaGen, &[side, "down" | "up", level, ref rest @ ..]) => {
            let level = position(side, level);
            let rest = rest.join(".").replacen("block.", "res.", 1);
            format!("{side}.conv_blocks.{level}.{rest}")
        }
        (Family::LlamaGen, &[side, "mid", part, ref rest @ ..]) => {
            let part = match part {
                "block_1" => "0",
                "attn_1" => "1",
                _ => "2",
            };
            format!("{side}.mid.{part}.{}", rest.join("."))
        }
        (Family::Diffusers, &[side, direction @ ("down" | "up"), level, ref rest @ ..]) => {
            let level = position(side, level);
            let rest = match *rest {
                ["block", block, leaf, kind] => {
                    format!("resnets.{block}.{}.{kind}", diffusers_leaf(leaf))
                }
                ["attn", block, leaf, kind] => {
                    format!("attentions.{block}.{}.{kind}", diffusers_leaf(leaf))
                }
                [_sample, "conv", kind] => format!("{direction}samplers.0.conv.{kind}"),
                _ => rest.join("."),
            };
            format!("{side}.{direction}_blocks.{level}.{rest}")
        }
        (Family::Diffusers, &[side, "mid", part, leaf, kind]) => {
            let part = match part {
                "block_1" => "resnets.0",
                "attn_1" => "attentions.0",
                _ => "resnets.1",
            };
            format!("{side}.mid_block.{part}.{}.{kind}", diffusers_leaf(leaf))
        }
        (Family::Diffusers, &[side, "norm_out", kind]) => format!("{side}.conv_norm_out.{kind}"),
        _ => canonical.to_owned(),
    }
}

fn diffusers_leaf(leaf: &str) -> &str {
    match leaf {
        "nin_shortcut" => "conv_shortcut",
        "norm" => "group_norm",
        "q" => "to_q",
        "k" => "to_k",
        "v" => "to_v",
        "proj_out" => "to_out.0",
        other => other,
    }
}

/// The name that diffusers before 0.17 gave an attention's projection.
fn old_diffusers_name(name: &str) -> Option<String> {
    if !name.contains(".attentions.") {
        return None;
    }
    let pairs = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
    let (new, old) = pairs.iter().find(|(new, _)| name.contains(new))?;
    Some(name.replace(new, old))
}

/// Whether a canonical parameter is a 1x1 convolution that other families keep as a matrix.
fn is_projection(canonical: &str) -> bool {
    let parts: Vec<&str> = canonical.split('.').collect();
    canonical.contains(".attn") && matches!(parts[..], [.., "q" | "k" | "v" | "proj_out", "weight"])
}

/// What a family's quantizer keeps beside its codebook and what reconstructions do not depend on: the indices in use
/// (`remap` of taming and diffusers), the averages of taming's `EMAVectorQuantizer`, which looks codes up like any other,
/// and LlamaGen's record of used codes.
fn quantizer_buffers(family: Family) -> &'static [&'static str] {
    match family {
        Family::Taming => &["quantize.used", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg"],
        Family::LlamaGen => &["quantize.codebook_used"],
        Family::Diffusers => &["quantize.used"],
    }
}

/// The tensors of a VQGAN in a file, whatever was wrapped around it.
pub(crate) struct ModelNames<'a> {
    file: &'a WeightsFile,
    /// Name within the model -> name in the file.
    names: BTreeMap<String, &'a str>,
    /// What the file puts before the names of the model.
    around: String,
    /// The same, where it is nothing that is known to be around models.
    unknown_prefix: Option<String>,
    family: Family,
    quantizer: QuantizerKind,
}

impl<'a> ModelNames<'a> {
    /// Recognises the family, and refuses by name what only looks like a VQGAN.
    pub fn of(file: &'a WeightsFile) -> Result<ModelNames<'a>, WeightsError> {
        let Placed { names, around, unknown_prefix } = Placed::of(file)?;
        let refuse = |what: String| WeightsError::Unsupported { path: file.path().to_owned(), what };
        let starts = |prefix: &str| names.keys().any(|name| name.starts_with(prefix));
        let family = if starts("encoder.down_blocks.") || starts("decoder.up_blocks.") {
            Family::Diffusers
        } else if starts("encoder.conv_blocks.") || starts("decoder.conv_blocks.") {
            Family::LlamaGen
        } else if starts("encoder.down.") || starts("decoder.up.") {
            Family::Taming
        } else {
            let some: Vec<&str> = file.names().take(3).collect();
            let some = some.join(", ");
            return Err(refuse(format!(
                "it is no VQGAN of taming, LlamaGen or diffusers; its tensors are {some}, ..."
            )));
        };
        let quantizer = match starts("quantize.embed.") || starts("quantize.proj.") {
            true if family != Family::Taming => {
                let what = "it is a GumbelVQ (quantize.proj, quantize.embed), which only taming's format has";
                return Err(refuse(format!("{what}; its other names are those of {family}")));
            }
            true => QuantizerKind::Gumbel,
            false => QuantizerKind::Nearest,
        };
        let modulated = |name: &String| name.contains(".conv_y.") || name.contains(".norm_layer.");
        if names.keys().any(modulated) {
            return Err(refuse(MOVQ.to_owned()));
        }
        let own: &[&str] = match quantizer {
            QuantizerKind::Nearest => &[CODEBOOK],
            QuantizerKind::Gumbel => &["quantize.proj.weight", "quantize.proj.bias", "quantize.embed.weight"],
        };
        let is_foreign = |name: &str| {
            name.starts_with("quantize.") && !own.contains(&name) && !quantizer_buffers(family).contains(&name)
        };
        let foreign: Vec<&str> =
            names.iter().filter(|(name, _)| is_foreign(name)).map(|(_, in_file)| *in_file).collect();
        if !foreign.is_empty() {
            return Err(refuse(format!(
                "its quantizer is not a VQGAN's, which has no {}: SimVQ, LFQ, FSQ, residual quantizers and others that \
                 compute something else are not built here",
                enumerate(foreign.iter().map(|name| (*name).to_owned()))
            )));
        }
        if quantizer == QuantizerKind::Nearest && !names.contains_key(CODEBOOK) {
            return Err(refuse(format!("it has no codebook ({CODEBOOK}); a KL autoencoder, FSQ and LFQ have none")));
        }
        Ok(ModelNames { file, names, around, unknown_prefix, family, quantizer })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn quantizer(&self) -> QuantizerKind {
        self.quantizer
    }

    /// Shape of a canonical parameter, if the file has it.
    pub fn shape(&self, canonical: &str, levels: usize) -> Option<&'a [usize]> {
        let (_, in_file) = self.find(canonical, levels)?;
        Some(self.file.info(in_file)?.1)
    }

    /// What the file calls, or would call, a canonical parameter.
    pub fn in_file(&self, canonical: &str, levels: usize) -> String {
        if let Some((_, in_file)) = self.find(canonical, levels) {
            return in_file.to_owned();
        }
        format!("{}{}", self.around, family_name(self.family, levels, canonical))
    }

    fn find(&self, canonical: &str, levels: usize) -> Option<(&str, &'a str)> {
        let name = family_name(self.family, levels, canonical);
        let entry = self.names.get_key_value(name.as_str()).or_else(|| {
            let old = old_diffusers_name(&name)?;
            self.names.get_key_value(old.as_str())
        });
        entry.map(|(name, in_file)| (name.as_str(), *in_file))
    }

    /// Whether a name within the model is none of a VQGAN's weights and yet no surprise.
    fn is_of_no_use(&self, name: &str) -> bool {
        TRAINING.iter().any(|prefix| name.starts_with(prefix)) || quantizer_buffers(self.family).contains(&name)
    }
}

/// The names of the one model in a file.
struct Placed<'a> {
    names: BTreeMap<String, &'a str>,
    around: String,
    unknown_prefix: Option<String>,
}

impl<'a> Placed<'a> {
    /// Takes off what is around the names of a VQGAN: [`HOLDERS`] wherever they stand, else one prefix that all its names
    /// have. What has another prefix is not the model's; in a file without any prefix, all is.
    fn of(file: &'a WeightsFile) -> Result<Placed<'a>, WeightsError> {
        let all = file.unwrapped()?.0;
        // The file's own name of each model's first tensor, by the model's prefix.
        let mut models: BTreeMap<String, &str> = BTreeMap::new();
        for (name, in_file) in all.iter().filter(|(name, _)| inside(name) == FIRST) {
            models.entry(prefix(name)).or_insert(in_file);
        }
        let prefix_of_model = match models.len() {
            _ if models.contains_key("") => "",
            0 | 1 => models.keys().next().map_or("", String::as_str),
            _ => {
                let prefixes = enumerate(models.keys().cloned());
                let what = "it holds several models, whose names begin with";
                return Err(WeightsError::Unsupported {
                    path: file.path().to_owned(),
                    what: format!("{what} {prefixes}; save the state dict of one alone"),
                });
            }
        };
        let around = models.get(prefix_of_model).and_then(|in_file| in_file.strip_suffix(FIRST)).unwrap_or_default();
        let nothing_around = all.contains_key(FIRST) || models.is_empty();
        let mut names = BTreeMap::new();
        for (name, in_file) in &all {
            let inside = inside(name);
            if !inside.is_empty() && prefix(name) == prefix_of_model {
                file.insert(&mut names, inside, in_file)?;
            } else if nothing_around {
                file.insert(&mut names, name.clone(), in_file)?;
            }
        }
        let unknown_prefix = (!prefix_of_model.is_empty()).then(|| prefix_of_model.to_owned());
        Ok(Placed { names, around: around.to_owned(), unknown_prefix })
    }
}

/// What a name has before the first part that is one of a VQGAN's, without [`HOLDERS`]; all of it if none is.
fn prefix(name: &str) -> String {
    let parts = name.split('.').take_while(|part| !PARTS.contains(part)).filter(|part| !HOLDERS.contains(part));
    parts.map(|part| format!("{part}.")).collect()
}

/// A name from the first part on that is one of a VQGAN's, without [`HOLDERS`]; empty if none is.
fn inside(name: &str) -> String {
    let parts = name.split('.').skip_while(|part| !PARTS.contains(part)).filter(|part| !HOLDERS.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

/// What a user should be told about the names in a file with a VQGAN, a line each.
///
/// # Errors
/// As [`Architecture::infer`].
pub fn vqgan_notes(file: &WeightsFile) -> Result<Vec<String>, WeightsError> {
    let names = ModelNames::of(file)?;
    let prefix = names.unknown_prefix.iter().map(|prefix| format!("its weights are those that begin with {prefix}"));
    let averaged = names.names.contains_key("quantize.embedding.embed_avg");
    let averaged =
        averaged.then(|| "its codebook was learnt by moving averages, and is trained by gradients here".to_owned());
    Ok(prefix.chain(averaged).collect())
}

/// Reads a VQGAN's weights under their canonical names and in their canonical shapes, in the file's element types.
///
/// What belongs to training (losses, discriminator, moving averages, counters) is left alone, as are wrappers'
/// prefixes and the rest of a latent-diffusion checkpoint.
///
/// # Errors
/// [`WeightsError::Mismatch`] names all tensors that are missing, unexpected or different at once; none is read then.
/// [`WeightsError::NotFinite`] names the first with an element that is infinite or not a number.
pub fn load_vqgan(
    file: &WeightsFile,
    architecture: &Architecture,
) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let names = ModelNames::of(file)?;
    let levels = architecture.channels.len();
    let mut left: BTreeMap<&str, &str> = names.names.iter().map(|(name, in_file)| (name.as_str(), *in_file)).collect();
    let mut found = Vec::new();
    let mut missing = Vec::new();
    let mut different = Vec::new();
    for (canonical, shape) in architecture.parameters() {
        let Some((name, in_file)) = names.find(&canonical, levels) else {
            missing.push(names.in_file(&canonical, levels));
            continue;
        };
        left.remove(name);
        let Some((dtype, stored)) = file.info(in_file) else {
            continue;
        };
        let as_matrix = is_projection(&canonical) && stored == &shape[..2];
        if stored != shape && !as_matrix {
            different.push(format!("{in_file} is {stored:?}, must be {shape:?}"));
        } else if !is_float(dtype) {
            different.push(format!("{in_file} is {dtype}, must be floating-point"));
        } else {
            found.push((canonical, shape, in_file));
        }
    }
    let unexpected = left.iter().filter(|(name, _)| !names.is_of_no_use(name));
    let unexpected: Vec<String> = unexpected.map(|(_, in_file)| (*in_file).to_owned()).collect();
    if !(missing.is_empty() && unexpected.is_empty() && different.is_empty()) {
        return Err(WeightsError::Mismatch { path: file.path().to_owned(), missing, unexpected, different });
    }
    let mut weights = BTreeMap::new();
    for (canonical, shape, in_file) in found {
        let tensor = file.read_weight(in_file)?;
        let tensor =
            tensor.reshape(shape).map_err(|source| WeightsError::Tensor { name: in_file.to_owned(), source })?;
        weights.insert(canonical, tensor);
    }
    Ok(weights)
}

/// A VQGAN as a family's own programs load it.
#[derive(Debug, Clone)]
pub struct Export {
    /// Whose it is.
    pub family: Family,
    /// The weights in the family's names and shapes.
    pub tensors: BTreeMap<String, HostTensor>,
    /// The configuration: `config.json` for diffusers, `config.yaml` for taming, none for LlamaGen, whose programs
    /// take it on the command line.
    pub config: Option<ConfigFile>,
    /// LlamaGen: the training arguments that belong to the model (`args`), without which a codebook of any length
    /// could not be told from one of length 1.
    pub args: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A configuration beside exported weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Name of the file.
    pub name: &'static str,
    /// Its whole text.
    pub text: String,
}

/// Gives canonical weights the names, shapes and configuration of a family.
///
/// taming and diffusers know no length-1 codes: there the codebook is written with its codes scaled to length 1,
/// which finds the same codes. Models without attention in the middle are latent-diffusion's, not taming's own, and so is
/// the class that their configuration names.
///
/// # Errors
/// [`WeightsError::Architecture`] when the family's programs would not load the same model without further arguments, or a
/// weight is missing or has another shape than the architecture says.
pub fn export_vqgan(
    weights: &BTreeMap<String, HostTensor>,
    architecture: &Architecture,
    family: Family,
) -> Result<Export, WeightsError> {
    architecture.check()?;
    expressible(architecture, family)?;
    let levels = architecture.channels.len();
    let mut tensors = BTreeMap::new();
    for (canonical, shape) in architecture.parameters() {
        let wrong = |what: String| WeightsError::Architecture(format!("{canonical} {what}"));
        let tensor = weights.get(&canonical).ok_or_else(|| wrong("is missing among the weights".to_owned()))?;
        if tensor.shape != shape {
            let found = &tensor.shape;
            return Err(wrong(format!("is {found:?}, must be {shape:?}")));
        }
        let mut tensor = tensor.clone();
        if family == Family::Diffusers && is_projection(&canonical) {
            tensor.shape.truncate(2);
        }
        if canonical == "quantize.embedding.weight" && architecture.quantizer.l2_norm && family != Family::LlamaGen {
            tensor = unit_rows(&tensor);
        }
        tensors.insert(family_name(family, levels, &canonical), tensor);
    }
    if family == Family::LlamaGen {
        let used = HostTensor {
            dtype: safetensors::Dtype::F32,
            shape: vec![LLAMAGEN_USED],
            bytes: vec![0; LLAMAGEN_USED * 4],
        };
        tensors.insert("quantize.codebook_used".to_owned(), used);
    }
    let config = match family {
        Family::Diffusers => {
            Some(ConfigFile { name: "config.json", text: format!("{:#}\n", diffusers_config(architecture)) })
        }
        Family::Taming => Some(ConfigFile { name: "config.yaml", text: taming_config(architecture) }),
        Family::LlamaGen => None,
    };
    Ok(Export { family, tensors, config, args: (family == Family::LlamaGen).then(|| llamagen_args(architecture)) })
}

impl Export {
    /// Writes the files that the family's programs load into `folder`, which is made if need be, and gives the
    /// weights' path: `diffusion_pytorch_model.safetensors` for `VQModel.from_pretrained`, `model.ckpt` with a
    /// `state_dict` for taming, `vqgan.pt` with a `model` for LlamaGen; the configuration lies beside it.
    ///
    /// # Errors
    /// When a file cannot be written. Files appear under their names only when they are whole.
    pub fn write(&self, folder: &Path) -> Result<std::path::PathBuf, WeightsError> {
        let failed = |path: &Path, source| WeightsError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        if let Some(config) = &self.config {
            let path = folder.join(config.name);
            std::fs::write(&path, &config.text).map_err(|source| failed(&path, source))?;
        }
        let (name, key) = match self.family {
            Family::Diffusers => ("diffusion_pytorch_model.safetensors", None),
            Family::Taming => ("model.ckpt", Some("state_dict")),
            Family::LlamaGen => ("vqgan.pt", Some("model")),
        };
        let path = folder.join(name);
        match key {
            None => {
                let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
                let written = write_safetensors(&path, &self.tensors, Some(&metadata));
                written.map_err(|source| WeightsError::Safetensors { path: path.clone(), source })?;
            }
            Some(key) => {
                let written = write_whole(&path, |output| write_torch(output, key, &self.tensors, self.args.as_ref()));
                written.map_err(|source| WeightsError::Torch { path: path.clone(), source })?;
            }
        }
        Ok(path)
    }
}

/// Refuses what a family's programs would not load as the same model, and says which other family's would.
fn expressible(architecture: &Architecture, family: Family) -> Result<(), WeightsError> {
    let Some(what) = obstacle(architecture, family) else {
        return Ok(());
    };
    let others = [Family::Taming, Family::LlamaGen, Family::Diffusers];
    let able = others.into_iter().filter(|family| obstacle(architecture, *family).is_none());
    let able: Vec<String> = able.map(|family| family.to_string()).collect();
    let able = if able.is_empty() { "no other format".to_owned() } else { able.join(" and ") };
    Err(WeightsError::Architecture(format!("{family} cannot have {what}; {able} can")))
}

/// What of an architecture a family's code cannot build, however the weights are named, or builds otherwise unless told.
fn obstacle(architecture: &Architecture, family: Family) -> Option<&'static str> {
    let Architecture { base_channels, channels, groups, attention_levels, mid_attention, quantizer, .. } = architecture;
    let is_gumbel = quantizer.kind == QuantizerKind::Gumbel;
    match family {
        Family::LlamaGen | Family::Diffusers if is_gumbel => Some("a Gumbel quantizer"),
        Family::Taming if is_gumbel && !mid_attention => Some("a Gumbel quantizer and no attention in the middle"),
        Family::Taming | Family::LlamaGen if *groups != 32 => Some("other than 32 groups"),
        Family::Taming | Family::LlamaGen if channels.iter().any(|c| c % base_channels != 0) => {
            Some("channels that are no multiple of base_channels")
        }
        Family::Diffusers if channels.first() != Some(base_channels) => {
            Some("a first level with other than base_channels")
        }
        // latent-diffusion's attn_type is that of all levels.
        Family::Taming if !mid_attention && !attention_levels.is_empty() => {
            Some("attention at a level and none in the middle")
        }
        Family::LlamaGen if *attention_levels != [channels.len() - 1] || !mid_attention => {
            Some("attention anywhere but at the coarsest level and in the middle")
        }
        // Its programs build every model with codebook_l2_norm; their option cannot even turn it off.
        Family::LlamaGen if !quantizer.l2_norm => {
            Some("a codebook of codes that are not compared at length 1 (codebook_l2_norm = False)")
        }
        _ => None,
    }
}

fn unit_rows(codebook: &HostTensor) -> HostTensor {
    let mut values = codebook.to_f32();
    let length = codebook.shape.last().copied().unwrap_or(1).max(1);
    for row in values.chunks_mut(length) {
        // The same lower bound as torch.nn.functional.normalize.
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x /= norm);
    }
    HostTensor::from_f32(&codebook.shape, &values)
}

fn diffusers_config(architecture: &Architecture) -> serde_json::Value {
    let levels = architecture.channels.len();
    let kinds = |plain: &str, attending: &str| -> Vec<String> {
        let kind = |level| match architecture.attention_levels.contains(&level) {
            true => attending.to_owned(),
            false => plain.to_owned(),
        };
        (0..levels).map(kind).collect()
    };
    let down = kinds("DownEncoderBlock2D", "AttnDownEncoderBlock2D");
    let mut up = kinds("UpDecoderBlock2D", "AttnUpDecoderBlock2D");
    up.reverse();
    let mut config = json!({
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": architecture.channels,
        "down_block_types": down,
        "in_channels": architecture.in_channels,
        "latent_channels": architecture.latent_channels,
        "layers_per_block": architecture.res_blocks,
        "lookup_from_codebook": architecture.lookup_from_codebook,
        "mid_block_add_attention": architecture.mid_attention,
        "norm_num_groups": architecture.groups,
        "norm_type": "group",
        "num_vq_embeddings": architecture.codes,
        "out_channels": architecture.out_channels,
        "sample_size": 256,
        "scaling_factor": architecture.scaling_factor.unwrap_or(0.18215),
        "up_block_types": up,
        "vq_embed_dim": architecture.code_dim,
    });
    for (key, value) in &architecture.diffusers {
        config[key] = value.clone();
    }
    config
}

fn llamagen_args(architecture: &Architecture) -> serde_json::Map<String, serde_json::Value> {
    let quantizer = &architecture.quantizer;
    let args = [
        ("codebook_size", json!(architecture.codes)),
        ("codebook_embed_dim", json!(architecture.code_dim)),
        ("codebook_l2_norm", json!(quantizer.l2_norm)),
        ("commit_loss_beta", json!(quantizer.beta)),
        ("entropy_loss_ratio", json!(quantizer.entropy_ratio)),
    ];
    args.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

fn taming_config(architecture: &Architecture) -> String {
    // taming says at which resolutions there is attention; any resolution that all levels divide will do.
    let resolution = architecture.downsampling().max(256);
    let attended = architecture.attention_levels.iter();
    let attended: Vec<usize> = attended.map(|level| resolution >> level).collect();
    let multiples = architecture.channels.iter();
    let multiples: Vec<usize> = multiples.map(|c| c / architecture.base_channels).collect();
    // taming has attention in the middle of every model and ignores `attn_type`; the class of latent-diffusion is the
    // same but for that.
    let (target, attention) = match (architecture.quantizer.kind, architecture.mid_attention) {
        (QuantizerKind::Gumbel, _) => ("taming.models.vqgan.GumbelVQ", None),
        (QuantizerKind::Nearest, true) => ("taming.models.vqgan.VQModel", None),
        (QuantizerKind::Nearest, false) => ("ldm.models.autoencoder.VQModel", Some("      attn_type: none".to_owned())),
    };
    let mut lines = vec![
        "model:".to_owned(),
        format!("  target: {target}"),
        "  params:".to_owned(),
        format!("    embed_dim: {}", architecture.code_dim),
        format!("    n_embed: {}", architecture.codes),
        "    ddconfig:".to_owned(),
        "      double_z: false".to_owned(),
        format!("      z_channels: {}", architecture.latent_channels),
        format!("      resolution: {resolution}"),
        format!("      in_channels: {}", architecture.in_channels),
        format!("      out_ch: {}", architecture.out_channels),
        format!("      ch: {}", architecture.base_channels),
        format!("      ch_mult: {multiples:?}"),
        format!("      num_res_blocks: {}", architecture.res_blocks),
        format!("      attn_resolutions: {attended:?}"),
        "      dropout: 0.0".to_owned(),
    ];
    lines.extend(attention);
    if architecture.quantizer.kind == QuantizerKind::Gumbel {
        let GumbelTraining { kl_weight, temperature_start, temperature_end, temperature_steps } =
            GumbelTraining::PUBLISHED;
        // PyYAML takes a power of ten for text unless there is a point before it.
        lines.extend([
            format!("    kl_weight: {kl_weight:.1e}"),
            "    temperature_scheduler_config:".to_owned(),
            "      target: taming.lr_scheduler.LambdaWarmUpCosineScheduler".to_owned(),
            "      params:".to_owned(),
            "        warm_up_steps: 0".to_owned(),
            format!("        max_decay_steps: {temperature_steps}"),
            format!("        lr_start: {temperature_start:?}"),
            format!("        lr_max: {temperature_start:?}"),
            format!("        lr_min: {temperature_end:.1e}"),
        ]);
    }
    lines.push("    lossconfig:".to_owned());
    lines.push("      target: taming.modules.losses.DummyLoss".to_owned());
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests;
