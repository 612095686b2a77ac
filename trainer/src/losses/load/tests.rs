use std::path::Path;

use checkpoints::{Activation, HostTensor, LpipsNetwork, WeightsFile, write_safetensors};

use super::*;

/// A whole AlexNet LPIPS, its linear layers of `linear`.
fn whole(linear: f32) -> StateDict {
    let network = LpipsNetwork::AlexNet;
    let mut weights = StateDict::new();
    let mut put = |name: String, shape: &[usize], value: f32| {
        weights.insert(name, HostTensor::from_f32(shape, &vec![value; shape.iter().product()]));
    };
    for (number, shape) in network.convolutions() {
        put(format!("features.{number}.weight"), shape, 0.5);
        put(format!("features.{number}.bias"), &shape[..1], 0.5);
    }
    for (layer, channels) in network.channels().into_iter().enumerate() {
        put(format!("lin{layer}.weight"), &[1, channels, 1, 1], linear);
    }
    weights
}

fn without_linear(mut weights: StateDict) -> StateDict {
    weights.retain(|name, _| !name.starts_with("lin"));
    weights
}

/// What `[losses.perceptual]` with these files gives; without the name of their folder.
fn lpips(network: LpipsNetwork, backbone: &StateDict, linear: Option<&StateDict>) -> Result<StateDict, String> {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, weights: &StateDict| {
        let path = folder.path().join(name);
        write_safetensors(&path, weights, None).unwrap();
        path.display().to_string()
    };
    let loss = PerceptualConfig {
        network,
        backbone: Some(place("backbone.safetensors", backbone)),
        linear: linear.map(|weights| place("linear.safetensors", weights)),
        ..Default::default()
    };
    let prefix = format!("{}/", folder.path().display());
    lpips_weights(&loss).map_err(|error| error.to_string().replace(&prefix, ""))
}

#[test]
fn a_whole_lpips_as_the_backbone_needs_no_other_file() {
    let alexnet = LpipsNetwork::AlexNet;
    assert!(lpips(alexnet, &whole(7.0), None) == Ok(whole(7.0)));
    // A file that is named is the one that is read.
    assert!(lpips(alexnet, &whole(7.0), Some(&whole(3.0))) == Ok(whole(3.0)));
    assert!(lpips(alexnet, &without_linear(whole(7.0)), Some(&whole(3.0))) == Ok(whole(3.0)));
}

#[test]
fn each_file_of_lpips_is_wrong_under_its_own_key() {
    let alexnet = LpipsNetwork::AlexNet;
    let error = lpips(alexnet, &whole(7.0), Some(&without_linear(whole(7.0)))).unwrap_err();
    assert!(error.starts_with("`losses.perceptual.linear`: linear.safetensors: it has no linear layers"), "{error}");
    let error = lpips(LpipsNetwork::Vgg16, &whole(7.0), None).unwrap_err();
    assert!(error.starts_with("`losses.perceptual.backbone`: backbone.safetensors: it is not VGG16"), "{error}");
    let mut broken = whole(7.0);
    broken.remove("lin3.weight");
    let error = lpips(alexnet, &broken, None).unwrap_err();
    assert!(error.starts_with("`losses.perceptual.backbone`: backbone.safetensors"), "{error}");
    assert!(error.contains("1 missing (lin3.weight)"), "{error}");
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/clip/transformers")
}

/// The CLIP losses of a configuration that names the CLIP in `folder`.
fn guidance(folder: &Path, edit: impl FnOnce(&mut LossesConfig)) -> Result<ClipGuidance, String> {
    let mut config = Config::default();
    config.clip.pretrained = Some(folder.display().to_string());
    edit(&mut config.losses);
    clip(&config, &Device::flex().autodiff()).map_err(|error| error.to_string())
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
        assert!(error.starts_with("`clip.tokenizer` is not set, and beside "), "{error}");
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
    // Prompts are embedded once, and the text tower is not kept.
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
    // A folder, whose tokenizer is found in it.
    config.clip.tokenizer = Some(fixture().join("../open_clip").display().to_string());
    config.losses.clip_text.weight = 1.0;
    config.losses.clip_text.prompts = vec!["a photo".into()];
    let device = Device::flex().autodiff();
    let error = clip(&config, &device).map(drop).unwrap_err();
    assert!(matches!(&error, LossError::Weights { source: WeightsError::NoActivation { .. }, .. }), "{error}");
    assert!(error.is_wrong_usage() && error.to_string().contains("clip.activation"), "{error}");
    for activation in [Activation::Gelu, Activation::QuickGelu] {
        config.clip.activation = Some(activation);
        assert_eq!(clip(&config, &device).unwrap().architecture.activation, activation);
    }
}
