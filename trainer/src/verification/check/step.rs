//! Compares the gradients of whole steps: a device with the CPU, and one batch split with another on the device.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{CheckError, Deviations, Part, Row};
use crate::config::{self, Compute, Loaded, Override, Recompute};
use crate::device::Selected;
use crate::memory::random_networks::Networks;
use crate::memory::{Children, Gradient, Measurer, MemoryError, Status, Stopped, Variant};
use crate::verification::sweep::gradient_file;

/// A step with every loss on, small enough for a CPU that plays a GPU.
const SMALL: &str = r#"
[run]
steps = 4
seed = 3

[batch]
effective = 6
micro = 1

[model]
architecture = "tiny"
channels = [16, 32]
attention_levels = [1]
mid_attention = true
latent_channels = 8
codes = 32

[data]
source = "shapes"
images = 100
resolution = 32
flip = false
validation = 0

[losses.pixel]
norm = "mix"

[losses.codebook]
entropy = 0.1

[losses.perceptual]
weight = 0.5
network = "alexnet"
backbone = "random"
linear = "random"

[losses.adversarial]
weight = 0.5
lecam = 0.1

[losses.clip_image]
weight = 1

[losses.clip_text]
weight = 0.3

[losses.clip_contrastive]
weight = 0.5
against = ["captions", "originals"]

[losses.clip_direction]
weight = 0.2
from = "photo"
to = "sketch"

[discriminator]
channels = 16
layers = 2

[clip]
pretrained = "random:tiny"
cutouts = 2

[ema]
decay = 0.9

[checkpoints]
every_steps = 2
keep_last = 9

[validation]
every_steps = 0
images = 0
"#;

/// Steps of each measurement; the first one has the gradient.
const STEPS: u64 = 2;

/// A configuration with random networks for all that it has on the Hub, and a folder for what is made with it.
pub struct Setting {
    pub(super) loaded: Loaded,
    pub(super) networks: Networks,
    /// Holds the configuration that is built in.
    _folder: tempfile::TempDir,
}

impl Setting {
    /// `name` is a configuration's, or `None` for a small one that has every loss on.
    ///
    /// # Errors
    /// If there is no such configuration, or no place for its networks.
    pub fn new(name: Option<&str>, overrides: &[Override]) -> Result<Self, CheckError> {
        let io = |what| move |source| CheckError::Io { what, source };
        let folder = tempfile::Builder::new().prefix("train-check-").tempdir().map_err(io("make a folder"))?;
        let is_small = name.is_none();
        let name = match name {
            Some(name) => name.to_owned(),
            None => {
                let path = folder.path().join("check.toml");
                fs::write(&path, SMALL).map_err(io("write a configuration"))?;
                path.display().to_string()
            }
        };
        let mut loaded = config::load(&name, overrides)?;
        if is_small {
            // What its text does not name is a loss that needs no files.
            loaded.config.losses.switch_on_images(0.5);
        }
        loaded.config.data.draw_shapes();
        let networks = Networks::random_for(&loaded.config, None)?;
        Ok(Self { loaded, networks, _folder: folder })
    }

    /// The same on another device.
    fn on(&self, device: &str) -> Loaded {
        let mut loaded = self.loaded.clone();
        loaded.config.run.device = device.to_owned();
        loaded
    }

    fn children(&self, stopped: &Stopped) -> Children {
        Children { steps: STEPS, stopped: stopped.clone(), ..Children::default() }
    }
}

/// How far the whole gradient may be from that of the CPU, or of f32 on the device. In half precision a latent near the border of
/// two codes takes the other code now and then, and the gradient jumps: this bar only tells noise from nonsense.
fn limit(precision: Compute) -> f64 {
    match precision {
        Compute::Fp32 => 1e-2,
        Compute::Fp16 | Compute::Bf16 => 0.5,
    }
}

/// The exactness contract in f32.
const BETWEEN_SPLITS: f64 = 1e-5;

/// Takes the first step of `setting` on the CPU and on `device`, there at several batch splits and in each of
/// `precisions`. `show` sees each row as soon as it is measured.
///
/// # Errors
/// If processes or files cannot be had, or if a signal came.
pub fn check(
    device: &Selected,
    precisions: &[Compute],
    setting: &Setting,
    stopped: &Stopped,
    mut show: impl FnMut(&Row),
) -> Result<Vec<Row>, CheckError> {
    let (cpu, loaded) = (setting.on("cpu"), setting.on(&device.choice.to_string()));
    let children = setting.children(stopped);
    let file = |name: &str| setting.networks.folder().join(name);
    let (of_cpu, of_device) = (file("cpu.safetensors"), file("device.safetensors"));
    let measure = |loaded: &Loaded, variant: Variant, gradient: Gradient| {
        let measurer = Measurer { loaded, networks: &setting.networks, children: &children };
        measurer.measure(&variant, &gradient).map(|(found, _)| found)
    };
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        show(&row);
        rows.push(row);
    };

    let reference = Variant { recompute: Recompute::Blocks, ..Variant::of(&loaded.config).reference() };
    let on_cpu = measure(&cpu, reference, Gradient::Write(of_cpu.clone()))?;
    let started = Instant::now();
    let on_device = measure(&loaded, reference, Gradient::Write(of_device.clone()))?;
    let words = |status: &Status| format!("{}: {}", status.name(), status.message().unwrap_or_default());
    let found = match (&on_cpu, &on_device) {
        (Ok(_), Ok(_)) => between(&of_device, &of_cpu),
        (Err(status), _) => Err(format!("on the CPU: {}", words(status))),
        (_, Err(status)) => Err(words(status)),
    };
    let name = format!("gradient against the CPU's, {reference}");
    add(Row::new(Part::Step, name, Compute::Fp32, found, limit(Compute::Fp32), started));
    if on_device.is_err() {
        return Ok(rows);
    }

    for (variant, limit) in variants(reference, precisions) {
        let started = Instant::now();
        let found = match measure(&loaded, variant, Gradient::Compare(of_device.clone()))? {
            Ok(measured) => {
                let whole = measured.deviation.and_then(|deviation| deviation.whole);
                Ok(Deviations { gradient: Some(whole.unwrap_or(f64::NAN)), ..Deviations::default() })
            }
            Err(status) => Err(words(&status)),
        };
        add(Row::new(
            Part::Step,
            format!("gradient against {}, {variant}", reference.micro),
            variant.precision,
            found,
            limit,
            started,
        ));
    }
    Ok(rows)
}

fn between(a: &Path, b: &Path) -> Result<Deviations, String> {
    let deviation = gradient_file::between(a, b).map_err(|error| error.to_string())?;
    Ok(Deviations { gradient: Some(deviation.whole.unwrap_or(f64::NAN)), ..Deviations::default() })
}

/// Batch splits that are held to the contract, and one variant in each half precision.
fn variants(reference: Variant, precisions: &[Compute]) -> Vec<(Variant, f64)> {
    let effective = reference.effective;
    // One more than half of it, if there are as many: the last micro-batch is a ragged one.
    let ragged = (effective / 2 + 1).min(effective);
    let mut variants = Vec::new();
    for (micro, recompute) in [(effective, Recompute::None), (ragged, Recompute::Blocks)] {
        let variant = Variant { micro, recompute, ..reference };
        if variant != reference && precisions.contains(&Compute::Fp32) {
            variants.push((variant, BETWEEN_SPLITS));
        }
    }
    for &precision in precisions.iter().filter(|precision| **precision != Compute::Fp32) {
        let variant = Variant { precision, micro: effective, recompute: Recompute::None, ..reference };
        variants.push((variant, limit(precision)));
    }
    variants
}

/// Writes `setting`'s configuration with its random networks into `folder`, for this program to run on `device`.
pub(super) fn write_config(
    setting: &Setting,
    device: &Selected,
    folder: &Path,
    change: impl FnOnce(&mut config::Config),
) -> Result<PathBuf, CheckError> {
    let mut config = setting.networks.config(setting.on(&device.choice.to_string()).config);
    config.losses.all_from_the_first_step();
    config.discriminator.start = None;
    change(&mut config);
    let path = folder.join("check-run.toml");
    let text = toml::to_string(&config).map_err(MemoryError::from)?;
    fs::write(&path, text).map_err(|source| CheckError::Io { what: "write a configuration", source })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_differs_from_the_reference() {
        let reference = |effective| Variant {
            micro: 1,
            effective,
            precision: Compute::Fp32,
            resolution: 32,
            recompute: Recompute::Blocks,
        };
        for effective in [1, 2, 6] {
            let reference = reference(effective);
            let variants = variants(reference, &Compute::ALL);
            assert!(variants.iter().all(|(other, _)| *other != reference && other.micro <= effective), "{variants:?}");
            assert!(variants.iter().filter(|(variant, _)| variant.precision != Compute::Fp32).count() == 2);
        }
    }

    #[test]
    fn the_small_setting_is_a_configuration_with_every_loss_on() {
        let setting = Setting::new(None, &[]).unwrap();
        let config = setting.networks.config(setting.loaded.config.clone());
        assert_eq!(config.check(), Ok(()));
        assert!(setting.networks.random().is_empty(), "all of its networks have random weights already");
        for table in config.losses.tables() {
            assert!(table.is_on(), "{}", table.name());
        }
    }
}
