use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use checkpoints::{Activation, Quantizer, WeightsError, WeightsFile, write_safetensors};
use serde_json::json;

use super::*;
use crate::config::{Config, LossesConfig};
use crate::losses::loss::{Images, Weight};
use crate::models::clip::TokenizerError;

fn clip(config: &Config) -> Result<ClipGuidance, LossError> {
    let device = Device::flex().autodiff();
    let quantizer = Quantizer::of(checkpoints::Family::Taming);
    let mut context = LoadContext {
        around: config.surroundings(),
        quantizer: &quantizer,
        device: &device,
        frozen: DType::F32,
        discriminator: None,
    };
    let losses = &config.losses;
    let tables = (&losses.clip_image, &losses.clip_text, &losses.clip_contrastive, &losses.clip_direction);
    Ok(ClipGuidance::load(tables, &mut context)?.expect("a CLIP loss is on"))
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/clip/transformers")
}

/// The CLIP losses of a configuration that names the CLIP in `folder`.
fn guidance(folder: &Path, edit: impl FnOnce(&mut LossesConfig)) -> Result<ClipGuidance, String> {
    let mut config = Config::default();
    config.clip.pretrained = Some(folder.display().to_string());
    edit(&mut config.losses);
    clip(&config).map_err(|error| error.to_string())
}

#[test]
fn texts_are_read_only_for_losses_that_need_them() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "config.json"] {
        std::fs::copy(fixture().join(name), folder.path().join(name)).unwrap();
    }
    let images = |losses: &mut LossesConfig| {
        losses.clip_image.weight = 0.5;
        losses.clip_contrastive.weight = 0.25;
        losses.clip_contrastive.against = vec![Against::Originals];
    };
    let guided = guidance(folder.path(), images).unwrap();
    assert_eq!(guided.image, Some(Weight::constant(0.5)));
    let (weight, targets) = guided.contrastive.unwrap();
    assert!(weight == Weight::constant(0.25) && targets.originals && !targets.captions);
    assert!(guided.captions.is_none() && guided.text.is_none() && guided.direction.is_none());

    let needs: [fn(&mut LossesConfig); 4] = [
        |losses| losses.clip_text.weight = 1.0,
        |losses| {
            losses.clip_text.weight = 1.0;
            losses.clip_text.prompts.push("a photo".into());
        },
        |losses| losses.clip_contrastive.weight = 1.0,
        |losses| losses.clip_direction.weight = 1.0,
    ];
    for edit in needs {
        let error = guidance(folder.path(), edit).map(drop).unwrap_err();
        assert!(error.starts_with("`clip.tokenizer` is not set, and there is none beside "), "{error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn clip_losses_are_as_their_tables_say() {
    let guided = guidance(&fixture(), |losses| {
        losses.clip_text.weight = 0.5;
        losses.clip_text.start = 3;
        losses.clip_text.prompts = vec!["a photo:0.5".into(), "a cat:-1".into()];
        losses.clip_direction.weight = 0.25;
        losses.clip_direction.from = Some("photo".into());
        losses.clip_direction.to = Some("sketch".into());
    })
    .unwrap();
    let Some((weight, TextTarget::Prompts(embeddings, weights))) = guided.text else { panic!("no prompts") };
    assert_eq!((weight, weights), (Weight { value: 0.5, start: 3, ramp: 0 }, vec![0.5, -1.0]));
    assert_eq!(embeddings.dims(), [2, guided.architecture.embedding]);
    assert_eq!(guided.direction.unwrap().1.dims(), [guided.architecture.embedding]);
    assert!(guided.image.is_none() && guided.contrastive.is_none());
    // Prompts are embedded once, and the text tower is dropped.
    assert!(guided.captions.is_none());

    let scale = |temperature| {
        let guided = guidance(&fixture(), |losses| {
            losses.clip_contrastive.weight = 1.0;
            losses.clip_contrastive.temperature = temperature;
        });
        let guided = guided.unwrap();
        assert!(guided.captions.is_some());
        guided.contrastive.unwrap().1.logit_scale
    };
    let learned = WeightsFile::open(fixture().join("model.safetensors")).unwrap().read("logit_scale").unwrap().to_f32();
    assert_eq!(scale(None), f64::from(learned[0]).exp().min(100.0));
    assert_eq!(scale(Some(0.5)), 2.0);
}

#[test]
fn a_checkpoint_of_openclips_training_is_told_its_activation() {
    let folder = tempfile::tempdir().unwrap();
    let openai = WeightsFile::open(fixture().join("../openai/state-dict.pt")).unwrap();
    let wrapped = openai.names().map(|name| (format!("module.{name}"), openai.read(name).unwrap())).collect();
    let path = folder.path().join("epoch_32.safetensors");
    write_safetensors(&path, &wrapped, None).unwrap();
    let mut config = Config::default();
    config.clip.pretrained = Some(path.display().to_string());
    // A folder, in which the tokenizer is found.
    config.clip.tokenizer = Some(fixture().join("../open_clip").display().to_string());
    config.losses.clip_text.weight = 1.0;
    config.losses.clip_text.prompts = vec!["a photo".into()];
    let error = clip(&config).map(drop).unwrap_err();
    assert!(matches!(&error, LossError::Weights { source: WeightsError::NoActivation { .. }, .. }), "{error}");
    assert!(error.is_wrong_usage() && error.to_string().contains("clip.activation"), "{error}");
    for activation in [Activation::Gelu, Activation::QuickGelu] {
        config.clip.activation = Some(activation);
        assert_eq!(clip(&config).unwrap().architecture.activation, activation);
    }
}

/// A tokenizer may know some captions and not others; a step does not go on as if there were none.
#[test]
fn a_caption_that_cannot_be_split_ends_the_step() {
    let end = checkpoints::load_clip(fixture()).unwrap().architecture.end_of_text;
    let special = |id: u32, text: &str| {
        json!({ "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    };
    let template = |text: &str, id: u32| json!({ "id": text, "ids": [id], "tokens": [text] });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(end - 1, "<s>"), special(end, "</s>")],
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                       { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
            "special_tokens": { "<s>": template("<s>", end - 1), "</s>": template("</s>", end) },
        },
        "model": { "type": "WordLevel", "unk_token": "[UNK]", "vocab": { "cat": 1, "<s>": end - 1, "</s>": end } },
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let mut config = Config::default();
    config.clip.pretrained = Some(fixture().display().to_string());
    config.clip.tokenizer = Some(path.display().to_string());
    config.losses.clip_text.weight = 1.0;
    config.losses.clip_contrastive.weight = 1.0;
    let guided = clip(&config).unwrap();
    let image = Tensor::<4>::zeros([1, 3, 16, 16], (&Device::flex(), DType::F32));
    let failed = |caption: &str| {
        let captions = [Some(caption.to_owned())];
        let images = Images {
            step: 0,
            per_sample: 1.0,
            loss_scale: 1.0,
            original: image.clone(),
            reconstruction: image.clone(),
            first: 0,
            draws: &[0],
            captions: &captions,
        };
        let first_pass = guided.embed(&images, &mut ClipEmbeddings::default());
        let second_pass = guided.gradient(&images, None, &mut |_, _, _| {}).map(drop);
        [first_pass, second_pass].map(|result| matches!(result, Err(TokenizerError::Text(_))))
    };
    assert_eq!(failed("cat"), [false, false]);
    assert_eq!(failed("dog"), [true, true]);
}
