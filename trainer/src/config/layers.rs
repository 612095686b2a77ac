//! What a key means for keys that were set before it. A layer is a file, or all options of the command line together; a
//! file lies over the one that it extends.

use datasets::DataSource;

use super::extends::Source;
use super::{Config, Micro, Override};

/// The layers of a configuration.
pub(super) struct Layers<'a> {
    /// The file, and those that it extends, each before its base.
    pub(super) sources: &'a [Source],
    pub(super) overrides: &'a [Override],
}

impl Layers<'_> {
    /// The height of the layer that decides `key`; `None` if it has its default.
    fn height(&self, key: &str) -> Option<usize> {
        if let Some(last) = self.overrides.iter().rev().find(|other| other.covers(key)) {
            return (!last.is_unset()).then_some(self.sources.len());
        }
        let place = self.sources.iter().position(|source| source.key(key).is_some())?;
        Some(self.sources.len() - 1 - place)
    }

    /// Whether `key` was set over `other`.
    fn is_over(&self, key: &str, other: &str) -> bool {
        self.height(key) > self.height(other)
    }

    /// Lets keys that were set before give way to those that were set over them and exclude them. Returns a line for
    /// each that did.
    pub(super) fn settle(&self, config: &mut Config) -> Vec<String> {
        [self.settle_source(config), self.settle_model(config), self.settle_sizes(config)].concat()
    }

    /// `data.path` over a source that reads no files stays: the user may have meant another source.
    fn settle_source(&self, config: &mut Config) -> Vec<String> {
        let data = &mut config.data;
        if data.source != DataSource::Shapes || data.path.is_none() || self.is_over("data.path", "data.source") {
            return Vec::new();
        }
        data.path = None;
        vec!["data.path is ignored: data.source = \"shapes\" reads no files".to_owned()]
    }

    fn settle_model(&self, config: &mut Config) -> Vec<String> {
        const PRETRAINED: &str = "model.pretrained";
        let model = &mut config.model;
        if model.pretrained.is_none() {
            return Vec::new();
        }
        if self.is_over("model.architecture", PRETRAINED) {
            model.pretrained = None;
            return vec!["model.pretrained is ignored: model.architecture replaces it".to_owned()];
        }
        let replaced = model.unset_architecture(|key| self.is_over(PRETRAINED, key));
        replaced.iter().map(|key| format!("{key} is ignored: {PRETRAINED} replaces it")).collect()
    }

    /// A short run has a short warm-up, and a small batch small micro-batches.
    fn settle_sizes(&self, config: &mut Config) -> Vec<String> {
        let mut notes = Vec::new();
        let steps = config.run.steps;
        let warmups = [
            ("schedule.warmup", Some(&mut config.schedule.warmup)),
            ("discriminator.schedule.warmup", config.discriminator.schedule.warmup.as_mut()),
        ];
        for (key, warmup) in warmups.into_iter().filter_map(|(key, warmup)| Some((key, warmup?))) {
            if *warmup >= steps && self.is_over("run.steps", key) {
                let shorter = steps.saturating_sub(1);
                notes.push(format!("{key} is {shorter} instead of {warmup}, since run.steps is {steps}"));
                *warmup = shorter;
            }
        }
        let batch = &mut config.batch;
        if let Micro::Samples(micro) = batch.micro
            && micro > batch.effective
            && self.is_over("batch.effective", "batch.micro")
        {
            let effective = batch.effective;
            batch.micro = Micro::Samples(effective);
            if self.height("batch.micro").is_some() {
                notes.push(format!("batch.micro is {effective} instead of {micro}, as batch.effective"));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Loaded, Override, load};

    /// Loads a file with `text` and these overrides.
    fn layers(text: &str, overrides: &[&str]) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, text).unwrap();
        let parse = |text: &&str| match text.strip_prefix("--unset ") {
            Some(key) => Override::unset(key).unwrap(),
            None => text.parse().unwrap(),
        };
        let overrides: Vec<Override> = overrides.iter().map(parse).collect();
        let file = path.display().to_string();
        load(&file, &overrides).map_err(|error| error.to_string().replace(&file, "mine.toml"))
    }

    #[test]
    fn a_path_is_ignored_where_the_source_was_set_over_it() {
        let folder = "[data]\nsource = \"folder\"\npath = \"images\"\n";
        let drawn = layers(folder, &["data.source=shapes"]).unwrap();
        assert_eq!((drawn.config.data.path.clone(), drawn.notes().len()), (None, 1));
        let both = layers("[data]\nsource = \"shapes\"\npath = \"images\"\n", &[]).unwrap();
        assert_eq!((both.config.data.path.clone(), both.notes().len()), (None, 1));
        // Here the user may have meant a folder.
        for (text, overrides) in
            [("[data]\nsource = \"shapes\"\n", &["data.path=images"][..]), ("[data]\npath = \"images\"\n", &[])]
        {
            let error = layers(text, overrides).unwrap_err();
            assert!(error.contains("did you mean \"folder\"?"), "{error}");
        }
        assert!(layers(folder, &[]).unwrap().notes().is_empty());
    }

    #[test]
    fn a_model_replaces_what_the_file_says_of_another() {
        let built = "[model]\narchitecture = \"tiny\"\ncodes = 32\ntrain = [\"decoder\"]\n";
        let pretrained = layers(built, &["model.pretrained=model.ckpt"]).unwrap();
        let model = &pretrained.config.model;
        assert_eq!((&model.architecture, model.codes, model.train.len()), (&None, None, 1));
        assert_eq!(pretrained.notes().len(), 2);
        let error = layers(built, &["model.pretrained=model.ckpt", "model.codes=64"]).unwrap_err();
        assert!(error.starts_with("--set model.codes=64: ") && error.contains("cannot be set beside"), "{error}");
        let loaded = "[model]\npretrained = \"model.ckpt\"\n";
        let random = layers(loaded, &["model.architecture=tiny"]).unwrap();
        assert_eq!((&random.config.model.pretrained, random.notes().len()), (&None, 1));
        let error = layers(&format!("{loaded}codes = 32\n"), &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:3: ") && error.contains("cannot be set beside"), "{error}");
        assert!(layers(loaded, &["model.codes=64"]).is_err());
    }

    #[test]
    fn a_short_run_has_a_short_warm_up() {
        let text = "[schedule]\nwarmup = 200\n[discriminator.schedule]\nwarmup = 50\n";
        for (steps, warmups) in [("1", [0, 0]), ("100", [99, 50])] {
            let loaded = layers(text, &[&format!("run.steps={steps}")]).unwrap();
            let config = &loaded.config;
            assert_eq!([config.schedule.warmup, config.discriminator_schedule().warmup], warmups);
            assert_eq!(loaded.notes().len(), warmups.iter().filter(|warmup| **warmup != 50).count());
        }
        let error = layers(&format!("[run]\nsteps = 100\n{text}"), &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:4: `schedule.warmup` is 200, must be below"), "{error}");
        let error = layers(text, &["run.steps=100", "schedule.warmup=100"]).unwrap_err();
        assert!(error.starts_with("--set schedule.warmup=100: "), "{error}");
    }

    #[test]
    fn a_small_batch_has_small_micro_batches() {
        let small = layers("[batch]\neffective = 8\nmicro = 4\n", &["batch.effective=2"]).unwrap();
        assert_eq!((small.config.batch.micro.samples(), small.notes().len()), (Some(2), 1));
        // The default gives way without a word.
        let small = layers("[batch]\neffective = 2\n", &[]).unwrap();
        assert_eq!((small.config.batch.micro.samples(), small.notes().len()), (Some(2), 0));
        assert!(layers("[batch]\neffective = 2\nmicro = 4\n", &[]).is_err());
    }

    #[test]
    fn a_key_or_table_that_is_unset_has_its_default() {
        let text = "[model]\ntrain = [\"decoder\"]\n[losses.clip_image]\nweight = 1.0\n[batch]\nmicro = 2\n";
        let config =
            layers(text, &["--unset model.train", "--unset losses.clip_image", "--unset batch.micro"]).unwrap().config;
        assert_eq!(config.model.train, ["*"]);
        assert_eq!((config.losses.clip_image.weight, config.batch.micro.samples()), (0.0, Some(4)));
        // A key that is not there is as it should be.
        assert!(layers("", &["--unset model.train", "model.train=[\"decoder\"]"]).is_ok());
        let error = layers(text, &["--unset model.trian"]).unwrap_err();
        assert!(error.starts_with("--unset model.trian: unknown key") && error.contains("`model.train`"), "{error}");
        let folder = "[data]\nsource = \"folder\"\npath = \"images\"\n";
        let error = layers(folder, &["--unset data.path"]).unwrap_err();
        assert!(error.starts_with("--unset data.path: `data.path` is missing"), "{error}");
    }
}
