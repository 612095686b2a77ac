use checkpoints::{Architecture, QuantizerKind};

use super::super::read::tests::load_text;
use super::super::*;
use crate::losses::Sees;
use crate::models::tests::tiny_architecture;

/// Returns the error of a file that holds `text`, which must be wrong.
fn error(text: &str) -> String {
    load_text(text, &[]).unwrap_err()
}

fn sound(text: &str) -> Config {
    load_text(text, &[]).unwrap()
}

/// Asserts that each line, alone in `table`, is refused at its place with a message that has these words.
fn refused(table: &str, lines: &[(&str, &str)]) {
    for (line, words) in lines {
        let error = error(&format!("[{table}]\n{line}\n"));
        let key = line.split(' ').next().unwrap();
        assert!(error.starts_with(&format!("mine.toml:2: `{table}.{key}` ")), "{line}: {error}");
        assert!(error.contains(words), "{line}: {error}");
    }
}

#[test]
fn every_new_table_has_sound_defaults_and_survives_being_written() {
    let text = r#"
        model.train = ["decoder", "quantize"]
        memory.recompute = "blocks"
        [losses.perceptual]
        weight = 1.0
        network = "alexnet"
        backbone = "alexnet-owt-7be5be79.pth"
        linear = "hf://owner/name/alex.pth"
        [losses.adversarial]
        weight = 0.8
        start = 100
        ramp = 10
        kind = "non-saturating"
        adaptive = "previous-step"
        lecam = 0.001
        lecam_decay = 0.99
        [discriminator]
        norm = "batch"
        channels = 32
        layers = 2
        pretrained = "hf://owner/name"
        start = 50
        [discriminator.optimizer]
        betas = [0.0, 0.99]
        [discriminator.schedule]
        kind = "linear"
        [clip]
        pretrained = "clip"
        tokenizer = "clip/tokenizer.json"
        whole = false
        cutouts_at_once = 2
        [losses.clip_image]
        weight = 0.5
        [losses.clip_text]
        weight = 0.5
        prompts = ["a photo:0.5", "a blurred photo:-1"]
        [losses.clip_contrastive]
        weight = 0.5
        against = ["captions", "originals"]
        temperature = 0.07
        [losses.clip_direction]
        weight = 0.5
        from = "photo"
        to = "sketch"
    "#;
    for config in [sound(""), sound(text)] {
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), config, "{written}");
        assert_eq!(load_text(&written, &[]).unwrap(), config, "{written}");
    }
    assert_ne!(sound(text), sound(""));
}

#[test]
fn the_discriminator_takes_what_it_leaves_open_from_the_model() {
    let config = sound(
        "[optimizer]\nname = \"adamw\"\nlearning_rate = 1e-3\n[schedule]\nwarmup = 7\n[losses.adversarial]\nstart = 9\n\
         [discriminator.optimizer]\nlearning_rate = 2e-3\n[discriminator.schedule]\nkind = \"cosine\"\nlast = 0.5\n",
    );
    let optimizer = OptimizerConfig { learning_rate: 2e-3, ..config.optimizer.clone() };
    assert_eq!(config.discriminator_optimizer(), optimizer);
    assert_eq!(optimizer.name, OptimizerName::AdamW);
    let schedule = ScheduleConfig { kind: ScheduleKind::Cosine, warmup: 7, last: Some(0.5) };
    assert_eq!(config.discriminator_schedule(), schedule);
    assert_eq!(config.discriminator.start(&config.losses.adversarial), 9);
    let plain = sound("");
    assert_eq!(plain.discriminator_optimizer(), plain.optimizer);
    assert_eq!(plain.discriminator_schedule(), plain.schedule);
    let earlier = sound("[discriminator]\nstart = 3\n");
    assert_eq!(earlier.discriminator.start(&earlier.losses.adversarial), 3);
}

#[test]
fn the_discriminators_optimizer_is_held_to_the_same_ranges_under_its_own_name() {
    let lines = [
        ("learning_rate = 0.0", "is 0, must be above 0"),
        ("betas = [0.5, 1.0]", "is 1, must be at least 0 and below 1"),
        ("epsilon = 1e-60", "must be above 0 in f32"),
        ("weight_decay = -1.0", "must be 0 or more"),
        ("clip_norm = nan", "must be 0 or more"),
    ];
    refused("optimizer", &lines);
    refused("discriminator.optimizer", &lines);
    let lines = [("last = 1.5", "must lie in 0 to 1"), ("warmup = 1000", "must be below run.steps = 1000")];
    refused("schedule", &lines);
    refused("discriminator.schedule", &lines);
    // A wrong value that the discriminator inherits is reported for the model.
    let error = error("[optimizer]\nlearning_rate = -1.0\n[discriminator.optimizer]\nclip_norm = 1.0\n");
    assert!(error.starts_with("mine.toml:2: `optimizer.learning_rate`"), "{error}");
    let error = self::error("[discriminator.optimizer]\nlerning_rate = 1.0\n");
    assert!(error.starts_with("mine.toml:2: unknown key `lerning_rate`, did you mean `learning_rate`?"), "{error}");
}

#[test]
fn a_weight_is_never_negative() {
    let losses = [
        "pixel",
        "codebook",
        "perceptual",
        "adversarial",
        "clip_image",
        "clip_text",
        "clip_contrastive",
        "clip_direction",
    ];
    for loss in losses {
        for value in ["-0.1", "nan", "inf"] {
            refused(&format!("losses.{loss}"), &[(&format!("weight = {value}"), "must be 0 or more")]);
        }
    }
    sound("[losses.clip_text]\nweight = 1.0\nprompts = [\"a photo:-0.5\"]\n");
}

#[test]
fn a_run_without_any_loss_has_nothing_to_train_for() {
    let none = "[losses.codebook]\nweight = 0\n[losses.pixel]\nweight = 0\n";
    let error = error(none);
    assert!(error.starts_with("mine.toml:4: `losses.pixel.weight` is 0"), "{error}");
    assert!(error.contains("nothing to train for"), "{error}");
    for loss in ["perceptual", "clip_image", "clip_text", "clip_contrastive"] {
        let config = sound(&format!("{none}[losses.{loss}]\nweight = 0.1\n"));
        assert!(config.losses.see_images(), "{loss}");
    }
    assert!(!sound("[losses.pixel]\nweight = 0\n").losses.see_images());
}

#[test]
fn what_learns_has_to_be_there_and_to_be_reached_by_a_loss() {
    refused(
        "model",
        &[
            ("train = []", "is empty"),
            ("train = [\"decoder\", \"\"]", "it is empty"),
            ("train = [\"decoder.[up\"]", "the pattern \"decoder.[up\" cannot be read: unclosed character class"),
        ],
    );
    let architecture: Architecture = tiny_architecture();
    let against =
        |text: &str| sound(text).check_against(&architecture).map_err(|problem| (problem.key, problem.message));
    assert_eq!(against(""), Ok(()));
    assert_eq!(against("model.train = [\"decoder\", \"quantize\"]"), Ok(()));
    let (key, message) = against("model.train = [\"decodr\"]").unwrap_err();
    assert_eq!(key, "model.train");
    assert!(message.contains("\"decodr\" matches nothing, did you mean \"decoder\"?"), "{message}");

    let codebook_alone = "losses.pixel.weight = 0\n";
    for train in ["*", "decoder.conv_out", "post_quant_conv"] {
        let (key, message) = against(&format!("{codebook_alone}model.train = [\"{train}\"]")).unwrap_err();
        assert_eq!(key, "losses.pixel.weight", "{train}");
        assert!(message.contains("does not reach the decoder"), "{message}");
    }
    let advised = "model.train = [\"encoder\", \"quant_conv\", \"quantize\"]";
    assert_eq!(against(&format!("{codebook_alone}{advised}")), Ok(()));
    assert_eq!(against(&format!("losses.codebook.weight = 0\n{advised}")), Ok(()));
    let (key, message) = against("losses.codebook.weight = 0\nmodel.train = [\"quantize\"]").unwrap_err();
    assert_eq!(key, "model.train");
    assert!(message.contains("losses.codebook.weight is 0"), "{message}");
}

#[test]
fn a_perceptual_loss_needs_weights_and_images_that_are_large_enough() {
    refused(
        "losses.perceptual",
        &[("backbone = \"hf://timm\"", "the name after the owner is missing"), ("linear = \"\"", "it is empty")],
    );
    let on = "[losses.perceptual]\nweight = 1.0\n";
    let error = error(&format!("{on}network = \"alexnet\"\n"));
    assert!(error.starts_with("mine.toml:1: `losses.perceptual.backbone` is missing"), "{error}");
    sound("[losses.perceptual]\nnetwork = \"alexnet\"\n");
    let alexnet = format!("{on}network = \"alexnet\"\nbackbone = \"a.pth\"\n");
    for (text, smallest) in [(on, 16), (alexnet.as_str(), 31)] {
        sound(&format!("{text}[data]\nresolution = {smallest}\n"));
        let error = self::error(&format!("{text}[data]\nresolution = {}\n", smallest - 1));
        assert!(error.starts_with("mine.toml:2: `losses.perceptual.weight` needs"), "{error}");
        assert!(error.contains(&format!("at least {smallest} pixels")), "{error}");
    }
    let (vgg16, alexnet) = (sound("").losses.perceptual, sound(&alexnet).losses.perceptual);
    assert_eq!(vgg16.backbone_location(), Some("hf://timm/vgg16.tv_in1k"));
    assert!(vgg16.linear_location().contains("_vgg-") && alexnet.linear_location().contains("_alex-"));
    assert_eq!(alexnet.backbone_location(), Some("a.pth"));
}

#[test]
fn an_adversarial_loss_needs_what_its_weight_adapts_to() {
    refused(
        "losses.adversarial",
        &[
            ("lecam = -1.0", "must be 0 or more"),
            ("lecam = 0.1", "needs losses.adversarial.weight above 0"),
            ("lecam_decay = 1.0", "must be at least 0 and below 1"),
        ],
    );
    let on = "losses.pixel.weight = 0\n[losses.adversarial]\nweight = 0.8\n";
    for adaptive in ["effective-batch", "micro-batch", "previous-step"] {
        let error = error(&format!("{on}adaptive = \"{adaptive}\"\n"));
        assert!(error.starts_with("mine.toml:4: `losses.adversarial.adaptive` must be \"off\""), "{error}");
        sound(&format!("{on}adaptive = \"{adaptive}\"\n[losses.perceptual]\nweight = 1.0\n"));
    }
    // The default is adaptive too: the error points at the table.
    let error = error(on);
    assert!(error.starts_with("mine.toml:2: `losses.adversarial.adaptive` must be \"off\""), "{error}");
    sound(&format!("{on}adaptive = \"off\"\n"));
    sound("[losses.adversarial]\nweight = 0.8\nlecam = 0.1\n");
    let error = self::error("[losses.adversarial]\nkind = \"hing\"\n");
    assert!(error.contains("did you mean `hinge`? (allowed: hinge, vanilla, non-saturating)"), "{error}");
}

#[test]
fn an_adversarial_loss_does_not_start_before_what_its_weight_adapts_to() {
    let starts = |adversarial: u64, pixel: u64, perceptual: Option<u64>| {
        let perceptual = perceptual.map(|start| format!("[losses.perceptual]\nweight = 1.0\nstart = {start}\n"));
        format!(
            "[losses.adversarial]\nweight = 0.8\nstart = {adversarial}\n[losses.pixel]\nstart = {pixel}\n{}",
            perceptual.unwrap_or_default()
        )
    };
    for (adversarial, pixel, perceptual) in [(5, 5, None), (5, 6, Some(5)), (5, 0, Some(9))] {
        sound(&starts(adversarial, pixel, perceptual));
    }
    for (adversarial, pixel, perceptual) in [(5, 6, None), (5, 6, Some(7)), (0, 6, None)] {
        let text = starts(adversarial, pixel, perceptual);
        let error = error(&text);
        let words = format!("mine.toml:3: `losses.adversarial.start` is {adversarial}, must be at least 6");
        assert!(error.starts_with(&words), "{error}");
        sound(&text.replace("[losses.pixel]", "adaptive = \"off\"\n[losses.pixel]"));
    }
    // A loss that is off is no reference, wherever it starts.
    let error =
        error("[losses.adversarial]\nweight = 0.8\n[losses.pixel]\nstart = 6\n[losses.perceptual]\nstart = 0\n");
    assert!(error.contains("`losses.adversarial.start` is 0, must be at least 6"), "{error}");
}

#[test]
fn a_discriminator_has_to_fit_the_images_and_the_start_of_its_loss() {
    refused(
        "discriminator",
        &[
            ("channels = 0", "must lie in 1 to 1024"),
            ("channels = 1025", "must lie in 1 to 1024"),
            ("layers = 0", "must lie in 1 to 10"),
            ("layers = 11", "must lie in 1 to 10"),
            ("pretrained = \"hf:/name\"", "two slashes"),
        ],
    );
    let on = "[losses.adversarial]\nweight = 0.8\nstart = 5\n";
    let error = error(&format!("{on}[discriminator]\nstart = 6\n"));
    assert!(error.starts_with("mine.toml:5: `discriminator.start` is 6, must be at most"), "{error}");
    sound(&format!("{on}[discriminator]\nstart = 5\n"));
    sound(&format!("{on}[discriminator]\nstart = 6\npretrained = \"model.ckpt\"\n"));
    sound("[discriminator]\nstart = 6\n");

    let layers = |layers: u32, resolution: u32| {
        format!("[data]\nresolution = {resolution}\n{on}[discriminator]\nlayers = {layers}\n")
    };
    for (count, smallest) in [(2, 12), (3, 24), (5, 96)] {
        sound(&layers(count, smallest));
        let error = self::error(&layers(count, smallest - 1));
        assert!(error.starts_with(&format!("mine.toml:7: `discriminator.layers` is {count}, too many")), "{error}");
        assert!(error.contains(&format!("{smallest} or more")), "{error}");
    }
    sound("[data]\nresolution = 8\n[discriminator]\nlayers = 5\n");
}

#[test]
fn clip_has_to_see_something() {
    let clip: Vec<(String, &str)> = ["affine", "perspective", "jitter", "erasing"]
        .iter()
        .flat_map(|key| [format!("{key} = 1.1"), format!("{key} = -0.1")])
        .map(|line| (line, "must lie in 0 to 1"))
        .collect();
    let clip: Vec<(&str, &str)> = clip.iter().map(|(line, words)| (line.as_str(), *words)).collect();
    refused("clip", &clip);
    refused(
        "clip",
        &[
            ("noise = -0.1", "must be 0 or more"),
            ("cutout_power = 0.0", "must be above 0"),
            ("cutouts = 1025", "must be at most 1024"),
            ("pretrained = \"https://example.org/clip\"", "only hf:// is known"),
            ("tokenizer = \"\"", "it is empty"),
        ],
    );
    let blind = "[clip]\ncutouts = 0\nwhole = false\n";
    sound(blind);
    // This loss sees whole images, views or not.
    let contrastive = "[losses.clip_contrastive]\nweight = 0.1\n";
    assert!(sound(&format!("{blind}{contrastive}")).losses.has(Sees::Clip));
    let error = error(&format!("{blind}{contrastive}[losses.clip_image]\nweight = 0.1\n"));
    assert!(error.starts_with("mine.toml:2: `clip.cutouts` is 0 and clip.whole is false"), "{error}");
    for loss in ["clip_image", "clip_text", "clip_direction"] {
        let on = format!(
            "[losses.{loss}]\nweight = 0.1\n{}",
            if loss == "clip_direction" { "from = \"a\"\nto = \"b\"\n" } else { "" }
        );
        let error = self::error(&format!("{blind}{on}"));
        assert!(error.starts_with("mine.toml:2: `clip.cutouts` is 0 and clip.whole is false"), "{loss}: {error}");
        let config = sound(&on);
        assert!(config.losses.has(Sees::Clip), "{loss}");
        sound(&format!("[clip]\ncutouts = 0\n{on}"));
        sound(&format!("[clip]\nwhole = false\n{on}"));
    }
    assert!(!sound("").losses.has(Sees::Clip));
    assert_eq!(sound("").clip.location(), "hf://openai/clip-vit-base-patch32");
}

#[test]
fn captions_are_needed_by_losses_that_compare_with_them_alone() {
    let needs = |text: &str| sound(text).losses.needs_captions();
    assert!(!needs(""));
    assert!(needs("[losses.clip_text]\nweight = 1.0\n"));
    assert!(!needs("[losses.clip_text]\nweight = 1.0\nprompts = [\"a photo\"]\n"));
    assert!(needs("[losses.clip_contrastive]\nweight = 1.0\n"));
    assert!(!needs("[losses.clip_contrastive]\nweight = 1.0\nagainst = [\"originals\"]\n"));
    assert!(needs("[losses.clip_contrastive]\nweight = 1.0\nagainst = [\"originals\", \"captions\"]\n"));
    assert!(!needs("[losses.clip_image]\nweight = 1.0\n"));
}

#[test]
fn a_contrast_needs_something_to_contrast_with() {
    refused(
        "losses.clip_contrastive",
        &[("temperature = 0.0", "must be above 0"), ("against = [\"captions\", \"captions\"]", "names the same twice")],
    );
    let on = "[losses.clip_contrastive]\nweight = 1.0\n";
    let error = error(&format!("{on}against = []\n"));
    assert!(error.starts_with("mine.toml:3: `losses.clip_contrastive.against` is empty"), "{error}");
    sound("[losses.clip_contrastive]\nagainst = []\n");
    let error = self::error(&format!("{on}against = [\"caption\"]\n"));
    assert!(error.starts_with("mine.toml:3: unknown value `caption`, did you mean `captions`?"), "{error}");
    let error = self::error(&format!("{on}[batch]\neffective = 1\nmicro = 1\n"));
    assert!(error.starts_with("mine.toml:2: `losses.clip_contrastive.weight` needs at least 2 images"), "{error}");
}

#[test]
fn texts_are_not_empty_and_a_direction_has_two() {
    let error = error("[losses.clip_text]\nweight = 1.0\nprompts = [\"a photo\", \" \"]\n");
    assert!(error.starts_with("mine.toml:3: `losses.clip_text.prompts` has an empty text"), "{error}");
    let on = "[losses.clip_direction]\nweight = 1.0\n";
    for (text, place) in [
        ("", "1: `losses.clip_direction.from` is missing"),
        ("from = \"photo\"\n", "1: `losses.clip_direction.to` is missing"),
        ("to = \"sketch\"\n", "1: `losses.clip_direction.from` is missing"),
        ("from = \"photo\"\nto = \" \"\n", "4: `losses.clip_direction.to` is empty"),
        ("from = \"photo\"\nto = \"photo \"\n", "4: `losses.clip_direction.to` is the same text"),
    ] {
        let error = self::error(&format!("{on}{text}"));
        assert!(error.starts_with(&format!("mine.toml:{place}")), "{error}");
    }
    sound(&format!("{on}from = \"photo\"\nto = \"sketch\"\n"));
    sound("[losses.clip_direction]\nfrom = \"photo\"\n");
}

#[test]
fn the_best_checkpoint_is_known_by_a_metric_that_validations_have() {
    refused(
        "checkpoints",
        &[("best = \"lpips\"", "needs the loss `perceptual`"), ("best = \"clip\"", "needs one of the CLIP losses")],
    );
    refused("checkpoints", &[("every_minutes = -1", "must be 0 or more")]);
    refused("validation", &[("patience = 3", "checkpoints.best does not say which metric")]);
    let never = error("[checkpoints]\nbest = \"l1\"\n[validation]\nevery_steps = 0\n");
    assert!(never.starts_with("mine.toml:2: `checkpoints.best` is set, but no validation takes place"), "{never}");
    let small = error("[checkpoints]\nbest = \"ssim\"\n[data]\nresolution = 8\n");
    assert!(small.contains("needs images of 11 pixels or more"), "{small}");
    let misspelt = error("[checkpoints]\nbest = \"pnsr\"\n");
    assert!(misspelt.contains("did you mean `psnr`?"), "{misspelt}");
    assert_eq!(sound("[checkpoints]\nbest = \"\"\n").checkpoints.best, Metric::None);
    let early = sound("[checkpoints]\nbest = \"psnr\"\n[validation]\npatience = 3\n");
    assert_eq!((early.checkpoints.best, early.validation.patience), (Metric::Psnr, 3));
}

/// A key of the other quantizer is an error; it is not ignored.
#[test]
fn a_quantizer_has_its_own_keys() {
    refused(
        "losses.codebook",
        &[
            ("kl_weight = -1.0", "must be 0 or more"),
            ("temperature_start = 0.0", "must be above 0"),
            ("temperature_end = nan", "must be above 0"),
            ("temperature_steps = 0", "must be at least 1"),
        ],
    );
    let nearest = tiny_architecture();
    let mut gumbel = Architecture { code_dim: nearest.latent_channels, ..nearest.clone() };
    gumbel.quantizer.kind = QuantizerKind::Gumbel;
    let key = |text: &str, architecture| {
        sound(&format!("losses.codebook.{text}")).check_against(architecture).map_err(|problem| problem.key)
    };
    for line in ["kl_weight = 1e-8", "temperature_start = 0.9", "temperature_end = 0.1", "temperature_steps = 1000"] {
        assert_eq!(key(line, &gumbel), Ok(()), "{line}");
        assert_eq!(key(line, &nearest), Err(full(line)), "{line}");
    }
    for line in ["beta = 0.25", "legacy = true", "entropy = 0.0"] {
        assert_eq!(key(line, &nearest), Ok(()), "{line}");
        assert_eq!(key(line, &gumbel), Err(full(line)), "{line}");
    }

    // The codes of a Gumbel quantizer learn from the image alone, its projection from both.
    let alone = |weight: &str, train: &str| {
        let text = format!("losses.{weight}.weight = 0\nmodel.train = [\"{train}\"]");
        sound(&text).check_against(&gumbel).map_err(|problem| problem.key)
    };
    assert_eq!(alone("codebook", "quantize"), Ok(()));
    assert_eq!(alone("pixel", "quantize.proj"), Ok(()));
    assert_eq!(alone("pixel", "quantize"), Err("losses.pixel.weight"));
}

fn full(line: &str) -> &'static str {
    const KEYS: [&str; 7] = [
        "losses.codebook.kl_weight",
        "losses.codebook.temperature_start",
        "losses.codebook.temperature_end",
        "losses.codebook.temperature_steps",
        "losses.codebook.beta",
        "losses.codebook.legacy",
        "losses.codebook.entropy",
    ];
    let name = line.split(' ').next().unwrap();
    KEYS.into_iter().find(|key| key.ends_with(name)).unwrap()
}

#[test]
fn what_never_begins_is_said() {
    let named = |text: &str| -> Vec<String> {
        let lines = sound(text).losses_that_never_count().into_iter();
        lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    };
    let text = "run.steps = 10\n[losses.adversarial]\nweight = 1.0\nstart = 10\n[losses.codebook]\nstart = 11\n\
                [losses.clip_image]\nstart = 99\n[discriminator]\nstart = 10\n";
    assert_eq!(named(text), ["losses.adversarial.start", "losses.codebook.start", "discriminator.start"]);
    assert_eq!(named(&text.replace("steps = 10", "steps = 12")), Vec::<String>::new());
    // Without its loss there is no discriminator.
    assert_eq!(named("run.steps = 10\n[discriminator]\nstart = 10\n"), Vec::<String>::new());
}

#[test]
fn more_threads_and_images_than_any_machine_has_are_refused() {
    refused("data", &[("workers = 513", "at most 512"), ("prefetch = 65537", "at most 65536")]);
    sound("[data]\nworkers = 512\nprefetch = 65536\n");
}
