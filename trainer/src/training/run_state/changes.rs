//! Which keys of the configuration may change when a run is resumed.

use std::fmt;

use crate::config::{Config, ScheduleKind};
use crate::memory::depends_on_micro;

/// Keys that may change when a run is resumed. They change neither what a step computes nor the order of steps, except
/// that schedules other than the constant one follow `run.steps`, and that some steps depend on `batch.micro`.
const FREE: [&str; 22] = [
    "run.name",
    "run.steps",
    "run.device",
    "batch.micro",
    "precision.max_skips",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.max_bad",
    "model.pretrained",
    "discriminator.pretrained",
    "clip.cutouts_at_once",
    "checkpoints.every_steps",
    "checkpoints.every_minutes",
    "checkpoints.best",
    "checkpoints.keep_last",
    "checkpoints.keep_every",
    "validation.every_steps",
    "validation.samples",
    "validation.patience",
    "run.tensorboard",
    "run.gradient_histograms",
];

/// Whether `key` may change. All of `[memory]` and `[sweep]` may.
fn is_free(key: &str) -> bool {
    FREE.contains(&key) || key.starts_with("memory.") || key.starts_with("sweep.")
}

/// A value that has changed since a run was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// A key of the configuration, or `images`.
    pub key: String,
    /// The old value.
    pub then: String,
    /// The new value.
    pub now: String,
}

impl Change {
    /// Whether `allowed` names the key or a table that it is in.
    pub fn is_named_by(&self, allowed: &str) -> bool {
        self.key.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.then, self.now)
    }
}

/// Returns the changes from `then` to `now` that make a resumed run another run. `batch_norm` says whether the run has
/// a discriminator with BatchNorm.
pub fn unsound_changes(then: &Config, now: &Config, batch_norm: bool) -> Vec<Change> {
    let fixed_micro = depends_on_micro(then, batch_norm);
    let is_free = |key: &str| is_free(key) && !(fixed_micro && key == "batch.micro");
    let flat = |config: &Config| {
        let mut keys = std::collections::BTreeMap::new();
        if let Ok(value) = toml::Value::try_from(config) {
            flatten("", &value, &mut keys);
        }
        // No learning rate depends on this key, and older runs wrote it even if it was not set.
        let schedules = [
            ("schedule.last", config.schedule.kind),
            ("discriminator.schedule.last", config.discriminator_schedule().kind),
        ];
        for (key, _) in schedules.iter().filter(|(_, kind)| *kind == ScheduleKind::Constant) {
            keys.remove(*key);
        }
        keys
    };
    let (then, now) = (flat(then), flat(now));
    let keys: std::collections::BTreeSet<_> = then.keys().chain(now.keys()).collect();
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".into());
    keys.into_iter()
        .filter(|key| !is_free(key) && then.get(*key) != now.get(*key))
        .map(|key| Change { key: key.clone(), then: shown(then.get(key)), now: shown(now.get(key)) })
        .collect()
}

fn flatten(path: &str, value: &toml::Value, into: &mut std::collections::BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, into);
            }
        }
        value => {
            into.insert(path.to_owned(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Adaptive, Against, Micro, Recompute};

    fn shown(then: &Config, now: &Config, batch_norm: bool) -> Vec<String> {
        unsound_changes(then, now, batch_norm).iter().map(Change::to_string).collect()
    }

    #[test]
    fn a_change_is_named_by_its_key_or_its_table() {
        let change = Change { key: "losses.pixel.weight".into(), then: "1.0".into(), now: "2.0".into() };
        assert!(["losses", "losses.pixel", "losses.pixel.weight"].iter().all(|name| change.is_named_by(name)));
        assert!(
            !["loss", "losses.pixel.w", "pixel", "losses.pixel.weight.x"].iter().any(|name| change.is_named_by(name))
        );
    }

    #[test]
    fn a_resumed_run_may_change_how_it_computes_and_not_what() {
        let then = Config::default();
        let mut now = then.clone();
        now.batch.micro = Micro::Samples(1);
        now.run.steps = 7;
        now.run.tensorboard = false;
        now.run.gradient_histograms = 1;
        now.memory.recompute = Recompute::Blocks;
        now.clip.cutouts_at_once = 2;
        now.discriminator.pretrained = Some("model.ckpt".into());
        assert!(unsound_changes(&then, &now, false).is_empty());
        now.optimizer.learning_rate = 1.0;
        now.losses.codebook.beta = Some(0.5);
        assert_eq!(
            shown(&then, &now, false),
            ["losses.codebook.beta: unset -> 0.5", "optimizer.learning_rate: 0.000072 -> 1.0"]
        );
    }

    #[test]
    fn what_learns_and_from_which_losses_may_not_change() {
        let then = Config::default();
        let mut now = then.clone();
        now.model.train = vec!["decoder".into()];
        now.losses.perceptual.weight = 1.0;
        now.losses.clip_contrastive.against.push(Against::Originals);
        now.losses.clip_direction.to = Some("sketch".into());
        now.discriminator.optimizer.learning_rate = Some(1e-4);
        now.clip.cutouts = 4;
        now.clip.pretrained = Some("clip".into());
        assert_eq!(
            shown(&then, &now, false),
            [
                "clip.cutouts: 8 -> 4",
                "clip.pretrained: unset -> \"clip\"",
                "discriminator.optimizer.learning_rate: unset -> 0.0001",
                "losses.clip_contrastive.against: [\"captions\"] -> [\"captions\", \"originals\"]",
                "losses.clip_direction.to: unset -> \"sketch\"",
                "losses.perceptual.weight: 0.0 -> 1.0",
                "model.train: [\"*\"] -> [\"decoder\"]",
            ]
        );
    }

    #[test]
    fn the_micro_batch_may_not_change_where_a_step_depends_on_it() {
        let change = |adaptive, weight, batch_norm| {
            let mut then = Config::default();
            then.losses.adversarial.adaptive = adaptive;
            then.losses.adversarial.weight = weight;
            let mut now = then.clone();
            now.batch.micro = Micro::Samples(1);
            now.discriminator.pretrained = Some("model.ckpt".into());
            shown(&then, &now, batch_norm)
        };
        assert_eq!(change(Adaptive::MicroBatch, 0.8, false), ["batch.micro: 4 -> 1"]);
        assert_eq!(change(Adaptive::EffectiveBatch, 0.8, true), ["batch.micro: 4 -> 1"]);
        for adaptive in [Adaptive::EffectiveBatch, Adaptive::PreviousStep, Adaptive::Off] {
            assert!(change(adaptive, 0.8, false).is_empty(), "{adaptive:?}");
        }
        assert!(change(Adaptive::MicroBatch, 0.0, false).is_empty());
    }

    /// A run that was saved before a table existed resumes with the table's defaults.
    #[test]
    fn a_configuration_without_the_newer_tables_is_the_default_one() {
        let mut saved = serde_json::to_value(Config::default()).unwrap();
        for table in ["memory", "clip", "discriminator"] {
            assert!(saved.as_object_mut().unwrap().remove(table).is_some(), "{table}");
        }
        let then: Config = serde_json::from_value(saved).unwrap();
        assert!(unsound_changes(&then, &Config::default(), false).is_empty());
    }
}
