use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::architecture::is_projection;
use super::*;
use crate::files::write_safetensors;
use crate::fixtures::{Shapes, place, published, shared_fixture};
use crate::hub::{self, FileChoice, HubSettings, Location};

/// A safetensors file with these tensors, and nothing but zeros in them.
fn sparse(shapes: &Shapes) -> WeightsFile {
    let folder = tempfile::tempdir().unwrap();
    WeightsFile::open(place(folder.path(), "model.safetensors", shapes)).unwrap()
}

fn infer(shapes: &Shapes) -> Result<Architecture, WeightsError> {
    Architecture::infer(&sparse(shapes), None)
}

fn llamagen_vq_16() -> Architecture {
    Architecture {
        family: Family::LlamaGen,
        in_channels: 3,
        out_channels: 3,
        base_channels: 128,
        channels: vec![128, 128, 256, 256, 512],
        res_blocks: 2,
        attention_levels: vec![4],
        mid_attention: true,
        latent_channels: 256,
        code_dim: 8,
        codes: 16384,
        groups: 32,
        quantizer: Quantizer::of(Family::LlamaGen),
        lookup_from_codebook: false,
        scaling_factor: None,
        diffusers: serde_json::Map::new(),
    }
}

#[test]
fn published_architectures_are_inferred_to_the_last_parameter() {
    let vq_16 = llamagen_vq_16();
    let taming = Architecture {
        family: Family::Taming,
        code_dim: 256,
        codes: 1024,
        quantizer: Quantizer::of(Family::Taming),
        ..vq_16.clone()
    };
    let amused = Architecture {
        family: Family::Diffusers,
        channels: vec![128, 256, 256, 512, 768],
        attention_levels: vec![],
        mid_attention: false,
        latent_channels: 64,
        code_dim: 64,
        codes: 8192,
        quantizer: Quantizer::of(Family::Diffusers),
        ..vq_16.clone()
    };
    let attending = Architecture {
        base_channels: 32,
        channels: vec![32, 64, 64],
        res_blocks: 1,
        attention_levels: vec![2],
        mid_attention: true,
        latent_channels: 4,
        code_dim: 4,
        codes: 16,
        ..amused.clone()
    };
    let models = [
        ("llamagen-vq-16.txt", vq_16),
        ("taming-f16-1024.txt", taming),
        ("diffusers-amused.txt", amused),
        ("diffusers-attention.txt", attending),
    ];
    for (name, expected) in models {
        let shapes = published(name);
        let inferred = infer(&shapes).unwrap();
        assert_eq!(inferred, expected, "{name}");
        let levels = expected.channels.len();
        let own = expected.parameters().into_iter().map(|(canonical, mut shape)| {
            if expected.family == Family::Diffusers && is_projection(&canonical) {
                shape.truncate(2);
            }
            (family_name(expected.family, levels, &canonical), shape)
        });
        let mut shapes = shapes;
        shapes.remove("quantize.codebook_used");
        assert_eq!(own.collect::<BTreeMap<_, _>>(), shapes, "{name}");
    }
}

#[test]
fn other_models_are_refused_by_name() {
    let says = |change: &dyn Fn(&mut Shapes), what: &str| {
        let mut shapes = published("diffusers-attention.txt");
        change(&mut shapes);
        let error = infer(&shapes).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    says(&|s| drop(s.insert("quantize.embed.weight".into(), vec![1])), "GumbelVQ");
    says(&|s| drop(s.insert("decoder.conv_norm_out.conv_y.weight".into(), vec![1])), "MoVQ");
    says(&|s| drop(s.remove("quantize.embedding.weight")), "no codebook");
    says(&|s| s.retain(|name, _| name.starts_with("quant")), "not a VQGAN of taming");
    says(&|s| drop(s.remove("encoder.conv_out.weight")), "no tensor named encoder.conv_out.weight");
    says(&|s| drop(s.remove("decoder.up_blocks.0.attentions.0.group_norm.weight")), "different levels");
}

#[test]
fn diffusers_configurations_are_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let file = sparse(&published("diffusers-attention.txt"));
    let with = |config: serde_json::Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        Architecture::infer(&file, Some(&path))
    };
    let inferred = with(json!({
        "_class_name": "VQModel", "act_fn": "silu", "norm_num_groups": 8, "scaling_factor": 0.5,
        "lookup_from_codebook": true,
    }));
    let inferred = inferred.unwrap();
    assert_eq!((inferred.groups, inferred.scaling_factor), (8, Some(0.5)));
    assert!(inferred.lookup_from_codebook);
    for (config, what) in [
        (json!({"norm_type": "spatial"}), "MoVQ"),
        (json!({"act_fn": "relu"}), "relu"),
        (json!({"_class_name": "AutoencoderKL"}), "AutoencoderKL"),
        (json!({"norm_num_groups": 7}), "7 groups"),
        (json!({"norm_num_groups": 0}), "groups must be"),
    ] {
        let error = with(config).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// That of OpenImages.
fn gumbel_f8_8192() -> Architecture {
    Architecture {
        family: Family::Taming,
        channels: vec![128, 128, 256, 512],
        attention_levels: vec![3],
        code_dim: 256,
        codes: 8192,
        quantizer: Quantizer { kind: QuantizerKind::Gumbel, ..Quantizer::of(Family::Taming) },
        ..llamagen_vq_16()
    }
}

#[test]
fn a_gumbel_quantizer_is_inferred_loaded_and_exported_to_taming_alone() {
    let published = gumbel_f8_8192();
    let mut shapes: Shapes = published.parameters().into_iter().collect();
    assert_eq!(shapes["quantize.proj.weight"], [8192, 256, 1, 1]);
    assert_eq!(shapes["quantize.proj.bias"], [8192]);
    assert_eq!(shapes["quantize.embed.weight"], [8192, 256]);
    assert_eq!(infer(&shapes).unwrap(), published);
    shapes.remove("quantize.embed.weight");
    let error = infer(&shapes).unwrap_err().to_string();
    assert!(error.contains("no tensor named quantize.embed.weight"), "{error}");

    let architecture =
        Architecture { base_channels: 32, channels: vec![32, 64], attention_levels: vec![1], codes: 8, ..published };
    let architecture = Architecture { latent_channels: 4, code_dim: 4, ..architecture };
    let weights = random(&architecture);
    let folder = tempfile::tempdir().unwrap();
    let export = export_vqgan(&weights, &architecture, Family::Taming).unwrap();
    let file = WeightsFile::open(export.write(folder.path()).unwrap()).unwrap();
    assert_eq!(Architecture::infer(&file, None).unwrap(), architecture);
    assert_eq!(load_vqgan(&file, &architecture).unwrap(), weights);
    let text = export.config.unwrap().text;
    assert!(text.contains("target: taming.models.vqgan.GumbelVQ\n"), "{text}");
    let number = |key: &str| -> f64 {
        let (_, rest) = text.split_once(&format!("        {key}: ")).unwrap();
        let value = rest.lines().next().unwrap();
        assert!(value.contains('.') || !value.contains('e'), "text to PyYAML: {value}");
        value.parse().unwrap()
    };
    let GumbelTraining { kl_weight, temperature_start, temperature_end, temperature_steps } = GumbelTraining::PUBLISHED;
    assert!(text.contains(&format!("\n    kl_weight: {kl_weight:.1e}\n")), "{text}");
    assert_eq!([number("lr_max"), number("lr_min")], [temperature_start, temperature_end]);
    assert_eq!(number("max_decay_steps"), temperature_steps as f64);

    for family in [Family::LlamaGen, Family::Diffusers] {
        let error = export_vqgan(&weights, &architecture, family).unwrap_err().to_string();
        assert!(error.contains("taming"), "{error}");
    }
    let narrow = Architecture { code_dim: 3, ..architecture };
    assert!(narrow.check().is_err());
}

/// As a checkpoint of a run was written before there was another kind.
#[test]
fn a_quantizer_without_a_kind_takes_the_nearest_code() {
    let mut old = serde_json::to_value(tiny()).unwrap();
    assert_eq!(old["quantizer"].as_object_mut().unwrap().remove("kind"), Some(json!("nearest")));
    assert_eq!(serde_json::from_value::<Architecture>(old).unwrap(), tiny());
}

fn tiny() -> Architecture {
    Architecture {
        base_channels: 32,
        channels: vec![32, 64, 64],
        res_blocks: 1,
        attention_levels: vec![2],
        latent_channels: 4,
        code_dim: 3,
        codes: 8,
        ..llamagen_vq_16()
    }
}

/// Weights that differ everywhere, exact in every element type.
fn random(architecture: &Architecture) -> BTreeMap<String, HostTensor> {
    let mut state = 1u32;
    let tensors = architecture.parameters().into_iter().map(|(name, shape)| {
        let count = shape.iter().product();
        let values: Vec<f32> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as f32 / 64. - 2.
        })
        .take(count)
        .collect();
        (name, HostTensor::from_f32(shape, &values))
    });
    tensors.collect()
}

#[test]
fn exports_come_back_the_same() {
    let architecture = tiny();
    let weights = random(&architecture);
    for family in [Family::Taming, Family::LlamaGen, Family::Diffusers] {
        let folder = tempfile::tempdir().unwrap();
        let export = export_vqgan(&weights, &architecture, family).unwrap();
        let path = export.write(folder.path()).unwrap();
        let file = WeightsFile::open(&path).unwrap();
        let inferred = Architecture::infer(&file, None).unwrap();
        assert_eq!(inferred.family, family);
        assert_eq!(inferred.channels, architecture.channels);
        assert_eq!(inferred.quantizer.l2_norm, family == Family::LlamaGen);
        let mut back = load_vqgan(&file, &inferred).unwrap();
        let codebook = back.remove("quantize.embedding.weight").unwrap();
        let mut expected = weights.clone();
        let original = expected.remove("quantize.embedding.weight").unwrap();
        assert_eq!(back, expected, "{family}");
        if family == Family::LlamaGen {
            assert_eq!(codebook, original);
        } else {
            for row in codebook.to_f32().chunks(3) {
                assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.).abs() < 1e-5);
            }
        }
    }
}

/// What `model.pretrained` does with a path.
fn load(path: &Path) -> Result<(Architecture, BTreeMap<String, HostTensor>), String> {
    let location = Location::parse(path.to_str().unwrap()).unwrap();
    let fetched = hub::fetch(&location, FileChoice::Vqgan, &HubSettings::from_env(), &()).map_err(|e| e.to_string())?;
    let file = WeightsFile::open(&fetched.weights).map_err(|error| error.to_string())?;
    let architecture = Architecture::infer(&file, None).map_err(|error| error.to_string())?;
    let weights = load_vqgan(&file, &architecture).map_err(|error| error.to_string())?;
    Ok((architecture, weights))
}

#[test]
fn every_export_loads_as_a_file_and_as_a_folder() {
    let plain = Quantizer::of(Family::Taming);
    let architectures = [
        tiny(),
        Architecture { quantizer: plain.clone(), ..tiny() },
        Architecture { quantizer: plain.clone(), attention_levels: vec![], mid_attention: false, ..tiny() },
        Architecture { attention_levels: vec![0], mid_attention: false, ..tiny() },
        Architecture {
            quantizer: plain,
            groups: 8,
            channels: vec![32, 40, 64],
            attention_levels: vec![0, 1],
            ..tiny()
        },
    ];
    let mut loaded = 0;
    for architecture in &architectures {
        let weights = random(architecture);
        for family in [Family::Taming, Family::LlamaGen, Family::Diffusers] {
            let Ok(export) = export_vqgan(&weights, architecture, family) else {
                continue;
            };
            let folder = tempfile::tempdir().unwrap();
            let file = export.write(folder.path()).unwrap();
            for path in [folder.path(), &file] {
                let (inferred, mut back) = load(path).unwrap();
                assert_eq!((inferred.family, inferred.groups), (family, architecture.groups));
                assert_eq!(inferred.parameters(), architecture.parameters());
                let mut expected = weights.clone();
                if architecture.quantizer.l2_norm {
                    // Other families have it with its codes at length 1.
                    expected.remove("quantize.embedding.weight");
                    back.remove("quantize.embedding.weight");
                }
                assert_eq!(back, expected, "{family}");
                loaded += 1;
            }
        }
    }
    assert!(loaded >= 16, "{loaded}");
}

#[test]
fn what_lies_beside_weights_changes_nothing() {
    let clip = r#"{"model_type": "clip", "act_fn": "relu", "norm_num_groups": 8, "projection_dim": 512}"#;
    let yaml = "model:\n  target: taming.models.vqgan.VQModel\n  params: {embed_dim: 3}\n";
    let files: [(&str, &[u8]); 10] = [
        ("config.json", b"model:\n  target: x\n"),
        ("config.json", clip.as_bytes()),
        ("config.json", b"{\"_class_name\": \"AutoencoderKL\"}"),
        ("config.json", b"{\"architecture\": \"vgg16\", \"num_classes\": 1000}"),
        ("config.json", b"\xff\xfe"),
        ("config.yaml", yaml.as_bytes()),
        ("model.yaml", b"a: [unclosed"),
        ("weights.yml", b"- a list"),
        ("2021-project.yaml", b""),
        ("open_clip_config.json", b"{"),
    ];
    let architecture = tiny();
    let weights = random(&architecture);
    for family in [Family::Taming, Family::LlamaGen] {
        let folder = tempfile::tempdir().unwrap();
        let export = export_vqgan(&weights, &architecture, family).unwrap();
        let file = Export { config: None, ..export }.write(folder.path()).unwrap();
        let alone = load(&file).unwrap();
        let both = |what: &str| {
            for path in [folder.path(), &file] {
                assert_eq!(load(path).as_ref(), Ok(&alone), "{family} beside {what}");
            }
        };
        for (name, bytes) in files {
            let beside = folder.path().join(name);
            std::fs::write(&beside, bytes).unwrap();
            both(name);
            std::fs::remove_file(beside).unwrap();
        }
        let config = folder.path().join("config.json");
        std::fs::create_dir(&config).unwrap();
        both("a folder");
        std::fs::remove_dir(&config).unwrap();
        std::fs::File::create(&config).unwrap().set_len(2 << 30).unwrap();
        both("2 GiB");
        std::fs::remove_file(&config).unwrap();
        if std::process::Command::new("mkfifo").arg(&config).status().is_ok_and(|status| status.success()) {
            both("a pipe");
        }
    }
    // That of diffusers belongs to its weights, and is named if it is broken.
    let folder = tempfile::tempdir().unwrap();
    export_vqgan(&weights, &architecture, Family::Diffusers).unwrap().write(folder.path()).unwrap();
    for broken in ["model: {}", &"[".repeat(2 << 20)] {
        std::fs::write(folder.path().join("config.json"), broken).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.contains("config.json") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn arguments_of_the_quantizer_survive_an_export_to_llamagen() {
    let mut architecture = tiny();
    architecture.quantizer.l2_norm = true;
    architecture.quantizer.legacy_beta = false;
    (architecture.quantizer.beta, architecture.quantizer.entropy_ratio) = (0.5, 0.1);
    let folder = tempfile::tempdir().unwrap();
    let export = export_vqgan(&random(&architecture), &architecture, Family::LlamaGen).unwrap();
    let file = WeightsFile::open(export.write(folder.path()).unwrap()).unwrap();
    assert_eq!(Architecture::infer(&file, None).unwrap(), architecture);
}

#[test]
fn tamings_configuration_names_the_class_that_heeds_it() {
    let with = |attention_levels: Vec<usize>, mid_attention: bool| {
        let architecture = Architecture { attention_levels, mid_attention, ..tiny() };
        let export = export_vqgan(&random(&architecture), &architecture, Family::Taming).unwrap();
        export.config.unwrap().text
    };
    for levels in [vec![], vec![2]] {
        let text = with(levels, true);
        assert!(text.contains("  target: taming.models.vqgan.VQModel\n") && !text.contains("attn_type"), "{text}");
    }
    let text = with(vec![], false);
    assert!(text.contains("  target: ldm.models.autoencoder.VQModel\n"), "{text}");
    assert!(text.contains("\n      attn_type: none\n") && text.contains("attn_resolutions: []"), "{text}");
}

#[test]
fn diffusers_own_settings_survive() {
    let folder = shared_fixture("diffusers");
    let config = |path: &Path| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap()
    };
    for name in ["attention", "lookup", "middle"] {
        let (architecture, weights) = load(&folder.join(name)).unwrap();
        // As a run's checkpoint keeps it.
        let kept: Architecture = serde_json::from_str(&serde_json::to_string(&architecture).unwrap()).unwrap();
        let written = tempfile::tempdir().unwrap();
        export_vqgan(&weights, &kept, Family::Diffusers).unwrap().write(written.path()).unwrap();
        let mut expected = config(&folder.join(name));
        expected.remove("_diffusers_version");
        // Where nothing is said, codes are as long as latents have channels.
        if expected["vq_embed_dim"].is_null() {
            expected["vq_embed_dim"] = expected["latent_channels"].clone();
        }
        let found = config(written.path());
        for (key, value) in &expected {
            assert_eq!(found.get(key), Some(value), "{name}: {key}");
        }
    }
    // What a checkpoint of before has.
    let mut old = serde_json::to_value(tiny()).unwrap();
    assert!(old.as_object_mut().unwrap().remove("diffusers").is_none());
    assert_eq!(serde_json::from_value::<Architecture>(old).unwrap(), tiny());
    let export = export_vqgan(&random(&tiny()), &tiny(), Family::Diffusers).unwrap();
    assert!(export.config.unwrap().text.contains("\"sample_size\": 256"));
}

#[test]
fn what_a_family_cannot_express_is_refused() {
    let refused = |architecture: &Architecture, family| {
        let weights = random(architecture);
        export_vqgan(&weights, architecture, family).unwrap_err().to_string()
    };
    let plain = Architecture { attention_levels: vec![], ..tiny() };
    assert!(refused(&plain, Family::LlamaGen).contains("coarsest level"));
    let few = Architecture { groups: 8, ..tiny() };
    assert!(refused(&few, Family::Taming).contains("32 groups"));
    assert!(refused(&few, Family::Taming).ends_with("; diffusers can"));
    // LlamaGen's programs would compare codes at length 1.
    let euclidean = Architecture { quantizer: Quantizer::of(Family::Taming), ..tiny() };
    let error = refused(&euclidean, Family::LlamaGen);
    assert!(error.contains("codebook_l2_norm") && error.ends_with("; taming and diffusers can"), "{error}");
    // taming would put attention with random weights into the middle, and latent-diffusion leave all of it out.
    let half = Architecture { mid_attention: false, ..tiny() };
    let error = refused(&half, Family::Taming);
    assert!(error.contains("none in the middle") && error.ends_with("; diffusers can"), "{error}");
    let none = Architecture { groups: 8, channels: vec![64, 64, 64], ..tiny() };
    assert!(refused(&none, Family::Diffusers).ends_with("no other format can"));
    let wide = Architecture { channels: vec![64, 64, 64], ..tiny() };
    assert!(refused(&wide, Family::Diffusers).contains("base_channels"));
    let error = export_vqgan(&BTreeMap::new(), &tiny(), Family::Taming).unwrap_err();
    assert!(error.to_string().contains("encoder.conv_in.weight is missing"));
}

/// Writes `weights` in taming's names after `rename`, and opens the file.
fn renamed(
    weights: &BTreeMap<String, HostTensor>,
    rename: impl Fn(&str) -> String,
) -> (tempfile::TempDir, WeightsFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let weights = weights.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
    write_safetensors(&path, &weights, None).unwrap();
    let file = WeightsFile::open(&path).unwrap();
    (folder, file)
}

#[test]
fn wrappers_and_training_are_seen_through() {
    let architecture = Architecture { family: Family::Taming, quantizer: Quantizer::of(Family::Taming), ..tiny() };
    let weights = random(&architecture);
    let mut more = weights.clone();
    for name in ["loss.discriminator.main.0.weight", "quantize.used", "model_ema.decay"] {
        more.insert(name.to_owned(), HostTensor::from_f32([1], &[0.]));
    }
    for prefix in ["", "module.", "_orig_mod.module."] {
        let (_folder, file) = renamed(&more, |name| format!("{prefix}{name}"));
        assert_eq!(Architecture::infer(&file, None).unwrap(), architecture);
        assert_eq!(load_vqgan(&file, &architecture).unwrap(), weights);
    }
    // A whole latent diffusion model.
    let mut whole = weights.clone();
    whole.insert("model.diffusion_model.out.weight".to_owned(), HostTensor::from_f32([1], &[0.]));
    let (_folder, file) = renamed(&whole, |name| match name.starts_with("model.") {
        true => name.to_owned(),
        false => format!("first_stage_model.{name}"),
    });
    assert_eq!(load_vqgan(&file, &architecture).unwrap(), weights);
}

#[test]
fn wrappers_are_taken_off_wherever_they_stand() {
    let architecture = Architecture { family: Family::Taming, quantizer: Quantizer::of(Family::Taming), ..tiny() };
    let weights = random(&architecture);
    let inner = |name: &str, part: &str, wrapper: &str| name.replacen(part, &format!("{part}{wrapper}."), 1);
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let forms: [(&str, Rename); 8] = [
        ("first_stage_model.", &|name| format!("first_stage_model._orig_mod.{name}")),
        ("model.", &|name| format!("module.model.{name}")),
        ("vqgan.", &|name| format!("_forward_module.model.vqgan.{name}")),
        ("FSDP", &|name| format!("_fsdp_wrapped_module.{}", inner(name, "encoder.", "_fsdp_wrapped_module"))),
        ("activation checkpointing", &|name| inner(name, "decoder.mid.block_1.", "_checkpoint_wrapped_module")),
        ("compiled parts", &|name| inner(&inner(name, "encoder.", "_orig_mod"), "decoder.", "_orig_mod")),
        ("a model in the model", &|name| inner(name, "encoder.", "model")),
        ("all", &|name| format!("first_stage_model.module.{}", inner(name, "decoder.up.0.", "_orig_mod"))),
    ];
    for (what, rename) in forms {
        let (_folder, file) = renamed(&weights, rename);
        assert_eq!(Architecture::infer(&file, None).unwrap(), architecture, "{what}");
        assert_eq!(load_vqgan(&file, &architecture).unwrap(), weights, "{what}");
        assert!(vqgan_notes(&file).unwrap().is_empty(), "{what}");
    }
    for twin in ["module.encoder.conv_in.bias", "encoder._orig_mod.conv_in.bias", "vqgan.encoder.conv_in.bias"] {
        let mut twice = weights.clone();
        twice.insert(twin.to_owned(), HostTensor::from_f32([1], &[0.]));
        let (_folder, file) = renamed(&twice, str::to_owned);
        let error = Architecture::infer(&file, None).unwrap_err();
        let WeightsError::Twice { names, .. } = &error else { panic!("{error}") };
        assert!(names.contains(&twin.to_owned()) && names.contains(&"encoder.conv_in.bias".to_owned()), "{error}");
    }
}

#[test]
fn one_unknown_prefix_is_accepted_and_said() {
    let architecture = Architecture { family: Family::Taming, quantizer: Quantizer::of(Family::Taming), ..tiny() };
    let weights = random(&architecture);
    for prefix in ["tokenizer.", "vae.", "module.some.where._orig_mod.", "generator.model."] {
        let mut more = weights.clone();
        more.insert("quantize.used".to_owned(), HostTensor::from_f32([1], &[0.]));
        let (_folder, file) = renamed(&more, |name| format!("{prefix}{name}"));
        assert_eq!(Architecture::infer(&file, None).unwrap(), architecture, "{prefix}");
        assert_eq!(load_vqgan(&file, &architecture).unwrap(), weights, "{prefix}");
        let [note] = &vqgan_notes(&file).unwrap()[..] else { panic!("{prefix}") };
        let said = prefix.replace("module.", "").replace("_orig_mod.", "").replace("model.", "");
        assert!(note.ends_with(&said), "{note}");
    }
    // What is beside the model is not the model's; a part of the model that is unknown is.
    let beside = |name: &str| {
        let mut more = weights.clone();
        more.insert(name.to_owned(), HostTensor::from_f32([1], &[0.]));
        let (_folder, file) = renamed(&more, |name| match name.starts_with("transformer.") {
            true => name.to_owned(),
            false => format!("vae.{name}"),
        });
        load_vqgan(&file, &architecture)
    };
    assert_eq!(beside("transformer.encoder.layers.0.weight").unwrap(), weights);
    let error = beside("encoder.norm_in.weight").unwrap_err().to_string();
    assert!(error.contains("1 unexpected (vae.encoder.norm_in.weight)"), "{error}");

    let both: BTreeMap<String, HostTensor> = ["generator.", "average."]
        .iter()
        .flat_map(|prefix| weights.iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor.clone())))
        .collect();
    let (_folder, file) = renamed(&both, str::to_owned);
    let error = Architecture::infer(&file, None).unwrap_err().to_string();
    assert!(error.contains("average., generator."), "{error}");
}

#[test]
fn another_quantizer_is_no_vqgans() {
    let tensor = HostTensor::from_f32([1], &[0.]);
    let with = |family, extra: &[&str], without: Option<&str>| {
        let architecture = Architecture { family, quantizer: Quantizer::of(family), ..tiny() };
        let mut weights = random(&architecture);
        weights.extend(extra.iter().map(|name| ((*name).to_owned(), tensor.clone())));
        without.map(|name| weights.remove(name));
        let (_folder, file) = renamed(&weights, |name| family_name(family, 3, name));
        let inferred = Architecture::infer(&file, None)?;
        load_vqgan(&file, &inferred)
    };
    for (family, names) in [
        (Family::Taming, &["quantize.embedding_proj.weight", "quantize.embedding_proj.bias"][..]),
        (Family::Taming, &["quantize.layers.0.embedding.weight"]),
        (Family::Diffusers, &["quantize.mask", "quantize.zero"]),
        (Family::LlamaGen, &["quantize.project_in.weight", "quantize._levels"]),
        (Family::LlamaGen, &["quantize.embedding.cluster_size"]),
        (Family::Taming, &["quantize.codebook_used"]),
        (Family::Taming, &["quantize.embedding.bias"]),
    ] {
        let error = with(family, names, None).unwrap_err();
        assert!(matches!(&error, WeightsError::Unsupported { .. }), "{error}");
        assert!(names.iter().all(|name| error.to_string().contains(name)), "{error}");
    }
    let error = with(Family::Taming, &["quantize.project_in.weight"], Some("quantize.embedding.weight")).unwrap_err();
    assert!(error.to_string().contains("quantize.project_in.weight"), "{error}");
    for name in ["quant_conv.weight_scale", "post_quant_conv.1.weight", "encoder.extra", "decoder.mid.attn_2.q.weight"]
    {
        let error = with(Family::Taming, &[name], None).unwrap_err();
        let WeightsError::Mismatch { unexpected, .. } = &error else { panic!("{error}") };
        assert_eq!(unexpected, &[name]);
    }
    for (family, buffers) in [
        (Family::Taming, &["quantize.used", "loss.discriminator.main.0.weight", "model_ema.decay", "colorize"][..]),
        (Family::Taming, &["quantize.embedding.cluster_size", "quantize.embedding.embed_avg"]),
        (Family::LlamaGen, &["quantize.codebook_used"]),
        (Family::Diffusers, &["quantize.used"]),
    ] {
        with(family, buffers, None).unwrap();
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let architecture = Architecture { family: Family::Taming, quantizer: Quantizer::of(Family::Taming), ..tiny() };
    let weights = random(&architecture);
    let with = |tensor: HostTensor| {
        let mut weights = weights.clone();
        weights.insert("decoder.norm_out.weight".to_owned(), tensor);
        let (_folder, file) = renamed(&weights, |name| format!("module.{name}"));
        load_vqgan(&file, &architecture)
    };
    let mut values = [1.0; 32];
    (values[3], values[7]) = (f32::NAN, f32::NEG_INFINITY);
    let huge: Vec<u8> = [1e300f64; 32].iter().flat_map(|value| value.to_le_bytes()).collect();
    for (tensor, expected) in [
        (HostTensor::from_f32([32], &values), 2),
        (HostTensor { dtype: safetensors::Dtype::F64, shape: vec![32], bytes: huge }, 32),
    ] {
        let error = with(tensor).unwrap_err();
        let WeightsError::NotFinite { name, count, of, .. } = &error else { panic!("{error}") };
        assert_eq!((name.as_str(), *count, *of), ("module.decoder.norm_out.weight", expected, 32));
    }
    // What is not the model's may be what it is.
    let mut more = weights.clone();
    more.insert("loss.logvar".to_owned(), HostTensor::from_f32([1], &[f32::NAN]));
    let (_folder, file) = renamed(&more, str::to_owned);
    assert_eq!(load_vqgan(&file, &architecture).unwrap(), weights);
}

#[test]
fn everything_that_does_not_fit_is_named_at_once() {
    let architecture = tiny();
    let mut weights = random(&architecture);
    weights.remove("encoder.mid.attn_1.q.bias");
    weights.remove("decoder.up.2.block.0.conv1.weight");
    weights.insert("decoder.extra.weight".to_owned(), HostTensor::from_f32([1], &[0.]));
    weights.insert("quant_conv.bias".to_owned(), HostTensor::from_f32([5], &[0.; 5]));
    let (_folder, file) = renamed(&weights, |name| format!("module.{}", family_name(Family::LlamaGen, 3, name)));
    let error = load_vqgan(&file, &architecture).unwrap_err().to_string();
    let expected = "does not fit the architecture: 2 missing (module.encoder.mid.1.q.bias, \
        module.decoder.conv_blocks.0.res.0.conv1.weight); 1 unexpected (module.decoder.extra.weight); \
        1 different (module.quant_conv.bias is [5], must be [3])";
    assert!(error.ends_with(expected), "{error}");
}

/// The parity fixtures of the whole program: real files of all three families, made by their own code.
#[test]
fn files_of_every_family_load() {
    let folder = shared_fixture("");
    for name in [
        "taming/model.ckpt",
        "taming/model-legacy.ckpt",
        "gumbel/model.ckpt",
        "llamagen/model.pt",
        "diffusers/attention",
        "diffusers/middle",
        "diffusers/lookup",
    ] {
        let file = WeightsFile::open(folder.join(name)).unwrap();
        let architecture = Architecture::infer(&file, None).unwrap();
        let weights = load_vqgan(&file, &architecture).unwrap();
        assert_eq!(weights.len(), architecture.parameters().len(), "{name}");
    }
    let middle = |name: &str| {
        let file = WeightsFile::open(folder.join(name)).unwrap();
        let config = folder.join("diffusers/middle/config.json");
        let architecture = Architecture::infer(&file, Some(&config)).unwrap();
        load_vqgan(&file, &architecture).unwrap()
    };
    assert_eq!(middle("diffusers/middle"), middle("diffusers/middle-old-names.bin"));
}
