use std::fs::File;
use std::io::Write;

use safetensors::Dtype;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::files::write_torch;
use crate::fixtures::shared_fixture;
use crate::write_safetensors;

fn fixture(name: &str) -> PathBuf {
    shared_fixture("clip").join(name)
}

fn tensors(name: &str) -> BTreeMap<String, HostTensor> {
    let file = WeightsFile::open(fixture(name)).unwrap();
    let read = |name: &str| (name.to_owned(), file.read(name).unwrap());
    file.names().map(read).collect()
}

const TRANSFORMERS: [&str; 2] = ["transformers/model.safetensors", "transformers/config.json"];
const OPEN_CLIP: [&str; 2] = ["open_clip/open_clip_model.safetensors", "open_clip/open_clip_config.json"];

/// The model of a fixture with its weights and its configuration changed.
fn changed(
    [weights, config]: [&str; 2],
    tensors_: impl FnOnce(&mut BTreeMap<String, HostTensor>),
    edit: impl FnOnce(&mut Json),
) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(Path::new(name).file_name().unwrap());
    let mut all = tensors(weights);
    tensors_(&mut all);
    write_safetensors(&place(weights), &all, None).unwrap();
    let mut json: Json = serde_json::from_slice(&std::fs::read(fixture(config)).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(place(config), json.to_string()).unwrap();
    folder
}

fn fails(folder: &TempDir) -> String {
    let error = load_clip(folder.path()).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// That a change of the configuration, of this key and to this value, is refused in these words.
fn config_fails(model: [&str; 2], pointer: &str, value: Json, words: &str) {
    let folder = changed(
        model,
        |_| {},
        |config| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value.clone();
        },
    );
    let error = fails(&folder);
    assert!(error.contains(words), "{pointer} = {value}: {error}");
}

fn architecture() -> ClipArchitecture {
    let tower = Tower { width: 64, layers: 2, heads: 2, mlp: 256 };
    ClipArchitecture {
        image_size: 32,
        patch_size: 8,
        vision: tower.clone(),
        text: tower,
        context_length: 16,
        vocabulary: 600,
        embedding: 32,
        activation: Activation::QuickGelu,
        layer_norm_epsilon: 1e-5,
        mean: config::MEAN,
        deviation: config::DEVIATION,
        end_of_text: 599,
    }
}

/// As OpenAI's models have it: the shapes do not tell that there are two heads.
fn with_wide_heads() -> ClipArchitecture {
    let mut architecture = architecture();
    architecture.vision.heads = 1;
    architecture.text.heads = 1;
    architecture
}

#[test]
fn every_format_gives_the_same_weights() {
    let clip = load_clip(fixture("transformers")).unwrap();
    assert_eq!(clip.architecture, architecture());
    assert_eq!(clip.tokenizer, Some(fixture("transformers/tokenizer.json")));
    assert_eq!(clip.weights, tensors("transformers/model.safetensors"));
    assert_eq!(clip.weights.len(), architecture().parameters().len());

    let other = load_clip(fixture("open_clip/open_clip_model.safetensors")).unwrap();
    let (mean, deviation) = ([0.5, 0.4, 0.3], [0.25, 0.26, 0.27]);
    assert_eq!(other.architecture, ClipArchitecture { mean, deviation, ..architecture() });
    assert_eq!(other.tokenizer, Some(fixture("open_clip/vocab.json")));
    assert_eq!(other.weights, clip.weights);

    for name in ["openai/state-dict.pt", "openai/script.pt"] {
        let other = load_clip(fixture(name)).unwrap();
        assert_eq!(other.architecture, with_wide_heads(), "{name}");
        assert_eq!(other.tokenizer, None);
        assert_eq!(other.weights, clip.weights, "{name}");
    }
}

#[test]
fn the_text_tower_can_be_left_unread_and_is_still_checked() {
    for name in ["transformers", "open_clip", "openai/state-dict.pt"] {
        let mut whole = load_clip(fixture(name)).unwrap();
        let images = load_clip_images(fixture(name)).unwrap();
        let all = whole.weights.len();
        whole.weights.retain(|name, _| !name.starts_with("text_"));
        assert!(whole.weights.len() < all && whole.weights.contains_key("logit_scale"), "{name}");
        assert_eq!(images, whole, "{name}");
    }
    let folder = changed(TRANSFORMERS, |all| drop(all.remove("text_model.final_layer_norm.bias")), |_| {});
    let error = load_clip_images(folder.path()).unwrap_err().to_string();
    assert!(error.contains("1 missing (text_model.final_layer_norm.bias)"), "{error}");
}

#[test]
fn wrappers_and_buffers_are_left_out() {
    let expected = load_clip(fixture("transformers")).unwrap();
    let ids = HostTensor { dtype: Dtype::I64, shape: vec![1], bytes: vec![0; 8] };

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(TRANSFORMERS[1]), folder.path().join("config.json")).unwrap();
    let mut all = tensors(TRANSFORMERS[0]);
    for tower in ["vision_model", "text_model"] {
        all.insert(format!("{tower}.embeddings.position_ids"), ids.clone());
    }
    let file = File::create(folder.path().join("pytorch_model.bin")).unwrap();
    write_torch(file, "state_dict", &all, None).unwrap();
    assert_eq!(load_clip(folder.path()).unwrap().weights, expected.weights);

    // A part of something larger.
    let wrapped = all.into_iter().map(|(name, tensor)| {
        (format!("model.{}", name.replacen("encoder.", "encoder._fsdp_wrapped_module.", 1)), tensor)
    });
    let file = File::create(folder.path().join("pytorch_model.bin")).unwrap();
    write_torch(file, "state_dict", &wrapped.collect(), None).unwrap();
    assert_eq!(load_clip(folder.path()).unwrap().weights, expected.weights);

    // A checkpoint of OpenCLIP's training; the scale as a vector of one.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(OPEN_CLIP[1]), folder.path().join("open_clip_config.json")).unwrap();
    let all = tensors(OPEN_CLIP[0]).into_iter();
    let mut all: BTreeMap<_, _> = all.map(|(name, tensor)| (format!("module.{name}"), tensor)).collect();
    all.insert("module.attn_mask".to_owned(), ids);
    all.get_mut("module.logit_scale").unwrap().shape = vec![1];
    let path = folder.path().join("epoch_1.pt");
    write_torch(File::create(&path).unwrap(), "state_dict", &all, None).unwrap();
    assert_eq!(load_clip(&path).unwrap().weights, expected.weights);
}

#[test]
fn a_checkpoint_of_openclips_training_asks_for_its_activation() {
    let expected = load_clip(fixture("openai/state-dict.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, key: &str, prefix: &str| {
        let all = tensors("openai/state-dict.pt").into_iter();
        let all = all.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
        let path = folder.path().join(name);
        write_torch(File::create(&path).unwrap(), key, &all, None).unwrap();
        path
    };
    let safetensors = |name: &str, prefix: &str| {
        let all = tensors("openai/state-dict.pt").into_iter();
        let path = folder.path().join(name);
        let all = all.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
        write_safetensors(&path, &all, None).unwrap();
        path
    };
    for path in [
        place("epoch_32.pt", "state_dict", "module."),
        place("epoch_1.pt", "state_dict", ""),
        place("latest.pt", "model", "_orig_mod."),
        safetensors("wrapped.safetensors", "module."),
        safetensors("open_clip_model.safetensors", ""),
    ] {
        let error = load_clip(&path).unwrap_err();
        assert!(matches!(&error, WeightsError::NoActivation { .. }), "{error}");
        assert!(matches!(load_clip_images(&path), Err(WeightsError::NoActivation { .. })));
        for activation in [Activation::Gelu, Activation::QuickGelu] {
            let clip = read_clip(&path, Some(activation), true).unwrap();
            assert_eq!(clip.weights, expected.weights);
            let architecture = ClipArchitecture { activation, ..expected.architecture.clone() };
            assert_eq!(clip.architecture, architecture);
        }
    }
    // OpenAI's own: a program, or nothing but a state dict.
    for path in [fixture("openai/script.pt"), fixture("openai/state-dict.pt"), safetensors("ViT-B-32.safetensors", "")]
    {
        assert_eq!(load_clip(&path).unwrap().architecture.activation, Activation::QuickGelu);
        let told = read_clip(&path, Some(Activation::Gelu), false).unwrap();
        assert_eq!(told.architecture.activation, Activation::Gelu);
    }
}

#[test]
fn the_heads_of_wide_openclip_models_are_not_guessed() {
    let wide = [("visual.conv1.weight", &[1280, 3, 4, 4][..]), ("visual.class_embedding", &[1280])];
    let mut tensors: BTreeMap<String, HostTensor> = BTreeMap::new();
    for (name, shape) in SIZES.into_iter().chain(wide) {
        let values = vec![0.5; shape.iter().product()];
        tensors.insert(format!("module.{name}"), HostTensor::from_f32(shape, &values));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.pt");
    write_torch(File::create(&path).unwrap(), "state_dict", &tensors, None).unwrap();
    let error = read_clip(&path, Some(Activation::Gelu), false).unwrap_err().to_string();
    assert!(error.contains("open_clip_config.json") && error.contains("1280"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let name = "text_model.final_layer_norm.bias";
    let broken = |all: &mut BTreeMap<String, HostTensor>| {
        let shape = all[name].shape.clone();
        let values = vec![f32::INFINITY; shape[0]];
        all.insert(name.to_owned(), HostTensor::from_f32(shape, &values));
    };
    let folder = changed(TRANSFORMERS, broken, |_| {});
    let error = load_clip(folder.path()).unwrap_err();
    assert!(matches!(&error, WeightsError::NotFinite { name: found, .. } if found == name), "{error}");
    // What is not read is not looked at.
    load_clip_images(folder.path()).unwrap();
}

#[test]
fn the_preprocessor_says_mean_and_deviation() {
    let folder = changed(TRANSFORMERS, |_| {}, |_| {});
    let path = folder.path().join("preprocessor_config.json");
    std::fs::write(&path, r#"{"image_mean": [0.5, 0.25, 0], "image_std": [0.5, 0.25, 1]}"#).unwrap();
    let clip = load_clip(folder.path()).unwrap();
    assert_eq!((clip.architecture.mean, clip.architecture.deviation), ([0.5, 0.25, 0.0], [0.5, 0.25, 1.0]));
    assert_eq!(clip.tokenizer, None);
    for wrong in [r#"{"image_std": [0.5, 0.5, 0]}"#, r#"{"image_std": 0.5}"#, r#"{"image_std": [1, 1, 1, 1]}"#] {
        std::fs::write(&path, wrong).unwrap();
        let error = fails(&folder);
        let words = "image_std in preprocessor_config.json must be three positive numbers, not ";
        assert!(error.contains(words), "{error}");
    }
    std::fs::write(&path, "{").unwrap();
    assert!(fails(&folder).contains("preprocessor_config.json: "));
}

#[test]
fn a_vocabulary_without_its_merges_is_no_tokenizer() {
    let folder = changed(OPEN_CLIP, |_| {}, |_| {});
    let tokenizer = || load_clip(folder.path()).unwrap().tokenizer;
    std::fs::write(folder.path().join("vocab.json"), "{}").unwrap();
    assert_eq!(tokenizer(), None);
    std::fs::write(folder.path().join("merges.txt"), "").unwrap();
    assert_eq!(tokenizer(), Some(folder.path().join("vocab.json")));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert_eq!(tokenizer(), Some(folder.path().join("tokenizer.json")));
}

#[test]
fn what_a_configuration_leaves_out_has_the_librarys_default() {
    let weights = Path::new("model.safetensors");
    let b32 = Source::Transformers(json!({"model_type": "clip"}), None).architecture(weights).unwrap();
    assert_eq!(
        b32,
        ClipArchitecture {
            image_size: 224,
            patch_size: 32,
            vision: Tower { width: 768, layers: 12, heads: 12, mlp: 3072 },
            text: Tower { width: 512, layers: 12, heads: 8, mlp: 2048 },
            context_length: 77,
            vocabulary: 49408,
            embedding: 512,
            end_of_text: 49407,
            ..architecture()
        }
    );
    let b16 = json!({"model_cfg": {"embed_dim": 512, "vision_cfg": {"image_size": 224, "layers": 12, "width": 768,
        "patch_size": 16}, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8,
        "layers": 12}}});
    let b16 = Source::OpenClip(b16).architecture(weights).unwrap();
    assert_eq!(b16, ClipArchitecture { patch_size: 16, activation: Activation::Gelu, ..b32.clone() });

    // Written by transformers 4.0: what its author gave, beside what it made of it.
    let l14 = json!({"text_config": {"hidden_size": 768}, "text_config_dict": {"hidden_size": 1, "num_attention_heads": 12},
        "vision_config_dict": null, "projection_dim": 768});
    let l14 = Source::Transformers(l14, None).architecture(weights).unwrap();
    assert_eq!(l14.text, Tower { width: 768, heads: 12, ..b32.text });
    assert_eq!((l14.embedding, l14.vision), (768, b32.vision));
}

#[test]
fn the_end_of_the_text_is_where_published_models_have_it() {
    let end = |id: Json| {
        let config = json!({"text_config": {"vocab_size": 600, "eos_token_id": id}});
        Source::Transformers(config, None).architecture(Path::new("model.safetensors"))
    };
    for (id, expected) in [(json!(2), 599), (json!(599), 599), (json!(597), 597), (json!(null), 599)] {
        assert_eq!(end(id.clone()).unwrap().end_of_text, expected, "{id}");
    }
    for id in [json!(600), json!(-1), json!("</s>")] {
        let error = end(id.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("eos_token_id is {id}, but there are only 600 tokens")), "{error}");
    }
}

#[test]
fn configuration_and_tensors_that_disagree_are_both_named() {
    let patches = "the position embedding is for 4x4 patches, but image_size 224 / patch_size 8 gives 28x28";
    config_fails(TRANSFORMERS, "/vision_config/image_size", json!(224), patches);
    config_fails(OPEN_CLIP, "/model_cfg/vision_cfg/image_size", json!([224, 224]), patches);
    for (pointer, value, words) in [
        (
            "/vision_config/patch_size",
            16,
            "patch_embedding.weight has patch size 8, but vision_config.patch_size in config.json gives 16",
        ),
        ("/vision_config/hidden_size", 128, "has width 64, but vision_config.hidden_size in config.json gives 128"),
        ("/vision_config/intermediate_size", 64, "has MLP width 256, but vision_config.intermediate_size in"),
        ("/text_config/intermediate_size", 64, "has MLP width 256, but text_config.intermediate_size in"),
        ("/text_config/hidden_size", 128, "has width 64, but text_config.hidden_size in config.json gives 128"),
        (
            "/text_config/vocab_size",
            49408,
            "number of tokens 600, but text_config.vocab_size in config.json gives 49408",
        ),
        ("/text_config/max_position_embeddings", 77, "has number of positions 16, but text_config.max_position_"),
        ("/projection_dim", 512, "visual_projection.weight has embedding size 32, but projection_dim in"),
        ("/vision_config/num_hidden_layers", 12, "the vision tower has 2 layers, but vision_config.num_hidden_layers"),
        ("/text_config/num_hidden_layers", 1, "the text tower has 2 layers, but text_config.num_hidden_layers in"),
    ] {
        config_fails(TRANSFORMERS, pointer, json!(value), words);
    }
    for (pointer, value, words) in [
        ("/model_cfg/embed_dim", json!(64), "visual.proj has embedding size 32, but embed_dim in"),
        ("/model_cfg/vision_cfg/mlp_ratio", json!(4.5), "c_fc.weight has MLP width 256, but vision_cfg.mlp_ratio in"),
        ("/model_cfg/text_cfg/layers", json!(3), "the text tower has 2 layers, but text_cfg.layers in open_clip_"),
    ] {
        config_fails(OPEN_CLIP, pointer, value, words);
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    for (pointer, value, words) in [
        (
            "/vision_config/num_attention_heads",
            json!(3),
            "the image tower has width 64, which is not a multiple of its 3 heads",
        ),
        (
            "/text_config/num_attention_heads",
            json!(3),
            "the text tower has width 64, which is not a multiple of its 3 heads",
        ),
        ("/vision_config/image_size", json!(4), "image_size 4 is not a multiple of patch_size 8"),
        // Its whole patches are as many as the position embedding has.
        ("/vision_config/image_size", json!(33), "image_size 33 is not a multiple of patch_size 8"),
        (
            "/vision_config/image_size",
            json!(0),
            "vision_config.image_size in config.json must be a whole number above 0",
        ),
        ("/vision_config/image_size", json!([32, 16]), "must be a whole number above 0, not [32,16]"),
        ("/vision_config/num_channels", json!(1), "number of channels is 1"),
        ("/projection_dim", json!("32"), "projection_dim in config.json must be a whole number above 0, not \"32\""),
        ("/vision_config/hidden_act", json!("gelu_new"), "hidden_act is \"gelu_new\"; only quick_gelu and gelu"),
        ("/vision_config/hidden_act", json!("gelu"), "hidden_act is Gelu in the image tower and QuickGelu in the text"),
        ("/text_config/layer_norm_eps", json!(1e-6), "layer_norm_eps is 1e-5 in the image tower and 1e-6 in the text"),
        ("/text_config/layer_norm_eps", json!(0), "layer_norm_eps in config.json must be a number above 0, not 0"),
        ("/model_type", json!("siglip"), "it is a siglip model; of transformers' models only clip is supported"),
    ] {
        config_fails(TRANSFORMERS, pointer, value, words);
    }
    for (pointer, value, words) in [
        ("/model_cfg/vision_cfg/head_width", json!(60), "vision_cfg.width 64 is not a multiple of head_width 60"),
        ("/model_cfg/vision_cfg/pool_type", json!("avg"), "vision_cfg.pool_type is \"avg\" in open_clip_config.json"),
        ("/model_cfg/text_cfg/pool_type", json!("last"), "text_cfg.pool_type is \"last\""),
        ("/model_cfg/vision_cfg/image_size", json!(39), "image_size 39 is not a multiple of patch_size 8"),
        ("/model_cfg/text_cfg/no_causal_mask", json!(true), "text_cfg.no_causal_mask is true"),
        ("/model_cfg/vision_cfg/act_kwargs", json!({"approximate": "tanh"}), "vision_cfg.act_kwargs is {"),
        ("/model_cfg/vision_cfg/norm_kwargs", json!({"eps": 1e-6}), "norm_kwargs.eps is 1e-6 in the image tower"),
        ("/model_cfg/vision_cfg/mlp_ratio", json!(1e12), "* mlp_ratio = "),
        ("/model_cfg/embed_dim", json!(null), "open_clip_config.json has no embed_dim"),
        ("/model_cfg", json!([]), "open_clip_config.json has no model_cfg"),
    ] {
        config_fails(OPEN_CLIP, pointer, value, words);
    }
}

#[test]
fn a_missing_configuration_is_named() {
    let folder = changed(TRANSFORMERS, |_| {}, |_| {});
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(fails(&folder).contains("config.json is not beside it"));
    let folder = changed(OPEN_CLIP, |_| {}, |_| {});
    std::fs::remove_file(folder.path().join("open_clip_config.json")).unwrap();
    assert!(fails(&folder).contains("open_clip_config.json is not beside it"));
}

#[test]
fn all_tensors_that_do_not_fit_are_named_as_in_the_file() {
    let mismatch = |model, edit: fn(&mut BTreeMap<String, HostTensor>)| fails(&changed(model, edit, |_| {}));
    let error = mismatch(TRANSFORMERS, |all| {
        let bias = all.remove("text_model.encoder.layers.1.mlp.fc1.bias").unwrap();
        all.insert("text_model.encoder.layers.1.mlp.fc1.scale".to_owned(), bias);
        all.get_mut("vision_model.post_layernorm.weight").unwrap().shape = vec![8, 8];
        let tokens = all.get_mut("text_model.final_layer_norm.bias").unwrap();
        tokens.dtype = Dtype::I16;
    });
    for words in [
        "model.safetensors does not fit the architecture: 1 missing (text_model.encoder.layers.1.mlp.fc1.bias); ",
        "1 unexpected (text_model.encoder.layers.1.mlp.fc1.scale); 2 different (",
        "text_model.final_layer_norm.bias is I16, must be floating-point",
        "vision_model.post_layernorm.weight is [8, 8], must be [64]",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let error = mismatch(OPEN_CLIP, |all| {
        all.remove("transformer.resblocks.1.attn.in_proj_weight");
        all.get_mut("visual.transformer.resblocks.0.attn.in_proj_weight").unwrap().shape = vec![64, 192];
        all.get_mut("visual.proj").unwrap().shape = vec![32, 64];
    });
    // The projection is seen first, for the configuration speaks of it.
    assert!(error.contains("visual.proj has embedding size 64, but embed_dim"), "{error}");
    let error = mismatch(OPEN_CLIP, |all| {
        all.remove("transformer.resblocks.1.attn.in_proj_weight");
        all.get_mut("visual.transformer.resblocks.0.attn.in_proj_weight").unwrap().shape = vec![64, 192];
    });
    let words = "1 missing (transformer.resblocks.1.attn.in_proj_weight); \
                 1 different (visual.transformer.resblocks.0.attn.in_proj_weight is [64, 192], must be [192, 64])";
    assert!(error.ends_with(words), "{error}");
}

/// What `load_clip` says of a file with these tensors alone.
fn of_tensors(tensors: &[(&str, &[usize])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let host = |shape: &[usize]| HostTensor {
        dtype: Dtype::F16,
        shape: shape.to_vec(),
        bytes: vec![0; 2 * shape.iter().product::<usize>()],
    };
    let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), host(shape))).collect();
    write_safetensors(&path, &tensors, None).unwrap();
    let error = load_clip(&path).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn other_models_are_named() {
    for (names, words) in [
        (
            &["visual.layer1.0.conv1.weight", "transformer.x"][..],
            "a ResNet (visual.layer1.0.conv1.weight); only vision",
        ),
        (&["visual.trunk.patch_embed.proj.weight", "text.x"], "tower is timm's (visual.trunk.patch_embed.proj.weight)"),
        (&["visual.conv1.weight", "text.transformer.embeddings.x"], "not CLIP's own (text.transformer.embeddings.x)"),
        (&["vision_model.pre_layrnorm.weight"], "the image tower of a CLIP alone"),
        (&["visual.conv1.weight", "visual.proj"], "the image tower of a CLIP alone"),
        (&["text_model.final_layer_norm.weight"], "the text tower of a CLIP alone"),
        (
            &["encoder.down.0.x", "quantize.embedding.weight"],
            "it is not a CLIP of transformers, OpenCLIP or OpenAI; its",
        ),
    ] {
        let tensors: Vec<(&str, &[usize])> = names.iter().map(|name| (*name, &[1][..])).collect();
        let error = of_tensors(&tensors);
        assert!(error.contains(words), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(fails(&folder).contains("there is no model.safetensors, open_clip_model.safetensors, pytorch_model.bin"));
    std::fs::write(folder.path().join("pytorch_model.bin.index.json"), "{}").unwrap();
    assert!(fails(&folder).contains("weight_map"));
    assert!(load_clip(folder.path().join("absent.pt")).unwrap_err().to_string().contains("absent.pt"));
}

/// The tensors that tell the sizes of an OpenAI model, three blocks deep.
const SIZES: [(&str, &[usize]); 8] = [
    ("visual.conv1.weight", &[128, 3, 4, 4]),
    ("visual.positional_embedding", &[10, 128]),
    ("token_embedding.weight", &[20, 64]),
    ("positional_embedding", &[7, 64]),
    ("text_projection", &[64, 24]),
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", &[512, 128]),
    ("transformer.resblocks.0.mlp.c_fc.weight", &[256, 64]),
    ("transformer.resblocks.2.mlp.c_fc.weight", &[256, 64]),
];

fn inferred(change: (&str, &[usize])) -> Result<ClipArchitecture, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let mut tensors: BTreeMap<String, HostTensor> = BTreeMap::new();
    for (name, shape) in SIZES.into_iter().chain([change]) {
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        tensors.insert(name.to_owned(), HostTensor { dtype: Dtype::F16, shape: shape.to_vec(), bytes });
    }
    write_safetensors(&path, &tensors, None).unwrap();
    Tensors::of(&WeightsFile::open(&path).unwrap())?.infer()
}

#[test]
fn openais_architecture_follows_from_the_shapes() {
    let found = inferred(("logit_scale", &[])).unwrap();
    let expected = ClipArchitecture {
        image_size: 12,
        patch_size: 4,
        vision: Tower { width: 128, layers: 1, heads: 2, mlp: 512 },
        text: Tower { width: 64, layers: 2, heads: 1, mlp: 256 },
        context_length: 7,
        vocabulary: 20,
        embedding: 24,
        end_of_text: 19,
        ..architecture()
    };
    assert_eq!(found, expected);
    let all = expected.parameters();
    assert!(all.contains(&(names::GRID.to_owned(), vec![10, 128])));

    for (change, words) in [
        (
            ("visual.positional_embedding", &[11, 128][..]),
            "its position embedding is for 10 patches, which is not a square number",
        ),
        (("visual.conv1.weight", &[96, 3, 4, 4]), "the vision tower has width 96, not a multiple of the 64"),
        (("token_embedding.weight", &[20]), "token_embedding.weight is [20], must have 2 dimensions"),
        (("input_resolution", &[]), "input_resolution is [0.0], but its tensors are for 12"),
        (("vocab_size", &[]), "vocab_size is [0.0], but its tensors are for 20"),
    ] {
        let error = inferred(change).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = of_tensors(&SIZES[..4]);
    assert!(error.contains("missing (text_projection, visual.transformer.resblocks.0.mlp.c_fc.weight, "), "{error}");
}

/// A TorchScript archive with this pickle.
fn script(pickle: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("m/data.pkl", pickle), ("m/constants.pkl", b"\x80\x02).")] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn opened(bytes: &[u8]) -> Result<WeightsFile, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    std::fs::write(&path, bytes).unwrap();
    WeightsFile::open(&path)
}

#[test]
fn programs_are_read_as_attributes() {
    let file = WeightsFile::open(fixture("openai/script.pt")).unwrap();
    let in_file: Vec<&str> = file.names().collect();
    let buffers = ["attn_mask", "context_length", "input_resolution", "vocab_size"];
    let mut expected: Vec<String> = tensors("openai/state-dict.pt").into_keys().collect();
    expected.extend(buffers.map(str::to_owned));
    expected.sort();
    assert_eq!(in_file, expected);
    assert_eq!(file.read("vocab_size").unwrap().to_f32(), [600.0]);
    let error = WeightsFile::open_with(fixture("openai/script.pt"), Some("model")).unwrap_err().to_string();
    assert!(error.contains("a TorchScript program has no top-level key model"), "{error}");

    let error = opened(&script(b"\x80\x02c__torch__\nM\n)\x81}X\x08\x00\x00\x00training\x89sb.")).unwrap_err();
    assert!(error.to_string().ends_with("it is a TorchScript program without parameters"), "{error}");
    // A module that contains itself.
    let error = opened(&script(b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.")).unwrap_err();
    assert!(error.to_string().ends_with("deeper than in any real TorchScript program"), "{error}");
    // One that contains itself twice, under names of no length.
    let twice = b"\x80\x02c__torch__\nM\n)\x81q\x00}(X\x00\x00\x00\x00h\x00X\x00\x00\x00\x00h\x00ub.";
    let error = opened(&script(twice)).unwrap_err().to_string();
    assert!(error.contains("any real TorchScript program"), "{error}");
}

#[test]
fn damaged_programs_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let whole = std::fs::read(fixture("openai/script.pt")).unwrap();
    // The pickle comes first, and the archive's directory last.
    let ends = whole.len() - 8000;
    for position in (0..9000).step_by(41).chain((ends..whole.len()).step_by(97)) {
        for flip in [0xff, 0x01, 0x80] {
            let mut damaged = whole.clone();
            damaged[position] ^= flip;
            std::fs::write(&path, &damaged).unwrap();
            let _ = load_clip(&path);
        }
    }
}
