//! Parity with taming-transformers, LlamaGen and diffusers on small random models: see `tests/fixtures/README.md`.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::{GumbelTraining, QuantizerKind, WeightsFile, family_name};
use trainer::engine::{MicroBatch, Recompute, StepSettings, effective_batch_gradient};
use trainer::losses::{
    Codebook, CodebookLoss, GumbelLoss, Losses, NearestLoss, PixelLoss, PixelNorm, Weight, Weighted,
};
use trainer::models::VqGan;
use trainer::models::quantizer::Quantized;
use trainer::models::quantizer::gumbel::GumbelNoise;
use trainer::models::weights::param_id;
use trainer::training::pretrained::{Initial, pretrained};

use crate::command::fixture;

/// One image, and its place in the fixture.
struct Fixed(Tensor<4>, [u64; 1]);

impl MicroBatch for Fixed {
    fn samples(&self) -> usize {
        self.0.dims()[0]
    }

    fn images(&self, _device: &Device, _dtype: DType) -> Tensor<4> {
        self.0.clone()
    }

    fn draws(&self) -> &[u64] {
        &self.1
    }

    fn captions(&self) -> &[Option<String>] {
        &[]
    }
}

/// Noise that a fixture has, `[N, codes, h, w]`.
#[derive(Debug)]
struct StoredNoise {
    values: Vec<f32>,
    codes: usize,
    positions: usize,
}

impl StoredNoise {
    fn open(expected: &WeightsFile) -> Self {
        let shape = expected.info("noise").unwrap().1;
        Self { values: read(expected, "noise"), codes: shape[1], positions: shape[2] * shape[3] }
    }
}

impl GumbelNoise for StoredNoise {
    fn fill(&self, draw: u64, position: u64, values: &mut [f32]) {
        assert_eq!(values.len(), self.codes);
        for (code, value) in values.iter_mut().enumerate() {
            *value = self.values[(draw as usize * self.codes + code) * self.positions + position as usize];
        }
    }
}

fn read(expected: &WeightsFile, name: &str) -> Vec<f32> {
    expected.read(name).unwrap_or_else(|e| panic!("{name}: {e}")).to_f32()
}

fn codes(expected: &WeightsFile, name: &str) -> Vec<i64> {
    let tensor = expected.read(name).unwrap();
    tensor.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn deviation(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|d| d * d).sum::<f64>();
    let difference = squares(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / squares(&mut expected.iter().map(|b| f64::from(*b)))).sqrt()
}

/// The gradient at a parameter, of whatever rank.
fn gradient(gradients: &burn::optim::GradientsParams, name: &str, rank: usize) -> Vec<f32> {
    let id = param_id(name);
    let data = match rank {
        1 => gradients.get::<1>(id).map(|g| g.into_data()),
        2 => gradients.get::<2>(id).map(|g| g.into_data()),
        _ => gradients.get::<4>(id).map(|g| g.into_data()),
    };
    data.unwrap_or_else(|| panic!("no gradient for {name}")).try_into_vec().unwrap()
}

/// Loads `model` as a user would, and compares one training step with what the reference implementation computed. A file that
/// has it `partly` holds only what differs from `taming/expected.safetensors`.
fn check(model: &str, expected: &str, legacy: Option<bool>, partly: bool) {
    let initial = pretrained(&fixture(model).display().to_string()).unwrap();
    let expected = WeightsFile::open(fixture(expected)).unwrap();
    check_initial(&initial, &expected, legacy, partly);
}

fn check_initial(initial: &Initial, expected: &WeightsFile, legacy: Option<bool>, partly: bool) {
    let architecture = &initial.architecture;
    let device = Device::flex();
    let model = VqGan::new(architecture, &initial.weights, &device.clone().autodiff(), DType::F32).unwrap();
    let input_file = if partly {
        WeightsFile::open(fixture("taming/expected.safetensors")).unwrap()
    } else {
        WeightsFile::open(expected.path()).unwrap()
    };
    let shape = input_file.info("input").unwrap().1.to_vec();
    let input = Tensor::<4>::from_data(TensorData::new(read(&input_file, "input"), shape), &device);

    let quantizer = &architecture.quantizer;
    let loss = match quantizer.kind {
        QuantizerKind::Nearest => CodebookLoss::Nearest(NearestLoss {
            beta: quantizer.beta,
            legacy: legacy.unwrap_or(quantizer.legacy_beta),
            entropy: quantizer.entropy_ratio,
        }),
        QuantizerKind::Gumbel => {
            let number = |name| f64::from(read(expected, name)[0]);
            let training = GumbelTraining {
                kl_weight: number("kl_weight"),
                temperature_start: number("temperature"),
                temperature_end: number("temperature"),
                ..GumbelTraining::PUBLISHED
            };
            CodebookLoss::Gumbel(GumbelLoss { training, noise: Arc::new(StoredNoise::open(expected)) })
        }
    };
    let samples = input.dims()[0];
    let near_tensor = |name: &str, found: Tensor<4>| {
        let found: Vec<f32> = found.without_autodiff().into_data().try_into_vec().unwrap();
        let deviation = deviation(&found, &read(expected, name));
        println!("{name}: {deviation:.1e}");
        assert!(deviation < 1e-4, "{name}: {deviation}");
    };
    let same_codes = |name: &str, quantized: &Quantized| {
        let found: Vec<i64> = quantized.codes.clone().into_data().convert::<i64>().try_into_vec().unwrap();
        assert_eq!(found, codes(expected, name), "{name}");
    };
    if !partly {
        let latent = model.encode(input.clone().autodiff());
        near_tensor("latent", latent.clone());
        let draws: Vec<u64> = (0..samples as u64).collect();
        let sampling = match &loss {
            CodebookLoss::Nearest(_) => None,
            CodebookLoss::Gumbel(loss) => Some(loss.sampling(0, &draws)),
        };
        if sampling.is_some() {
            let quantized = model.quantize(latent.clone());
            same_codes("largest.codes", &quantized);
            near_tensor("largest.quantized", quantized.latent.clone());
            near_tensor("largest.reconstruction", model.decode(quantized.latent));
        }
        let quantized = model.quantize_in_training(latent, sampling);
        same_codes("codes", &quantized);
        near_tensor("quantized", quantized.latent.clone());
        near_tensor("reconstruction", model.decode(quantized.latent));
    }

    let losses = Losses {
        pixel: Some(Weighted { weight: Weight::constant(1.0), loss: PixelLoss { norm: PixelNorm::L1, mix: 0.5 } }),
        codebook: Some(Codebook { weight: Weight::constant(1.0), loss }),
        ..Losses::default()
    };
    let images = || input.clone().chunk(samples, 0).into_iter().zip(0..);
    let batches = || images().map(|(image, index)| Ok::<_, Infallible>(Fixed(image, [index])));
    let settings = StepSettings { effective: samples, recompute: Recompute::Blocks, ..StepSettings::default() };
    let batch = effective_batch_gradient(&model, &losses, settings, batches(), batches(), |_| {}).unwrap();
    let figures = batch.read(Tensor::zeros([1], &device), None).unwrap();
    let loss = |name: &str| figures.values.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let near = |name: &str, found: f64| {
        let expected = f64::from(read(expected, name)[0]);
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(1e-3), "{name}: {found} against {expected}");
    };
    near("loss", figures.total);
    let entropy = loss("entropy").unwrap_or_default() * quantizer.entropy_ratio;
    near("codebook_loss", loss("codebook").unwrap() + entropy);
    if !partly {
        near("pixel_loss", loss("pixel").unwrap());
    }
    if quantizer.entropy_ratio > 0.0 {
        near("entropy_loss", entropy);
    }

    let (mut all_found, mut all_expected, mut compared) = (Vec::new(), Vec::new(), 0);
    for (name, shape) in architecture.parameters() {
        let key = format!("grad.{}", family_name(architecture.family, architecture.channels.len(), &name));
        if expected.info(&key).is_none() {
            assert!(partly, "the fixture lacks {key}");
            continue;
        }
        let (found, wanted) = (gradient(&batch.generator, &name, shape.len()), read(expected, &key));
        // A fixture may have one value of so many.
        let every = found.len().div_ceil(wanted.len());
        assert_eq!(found.len().div_ceil(every), wanted.len(), "{name}");
        all_found.extend(found.into_iter().step_by(every));
        all_expected.extend(wanted);
        compared += 1;
    }
    let in_file = expected.names().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(compared, in_file, "gradients that no parameter has");
    let deviation = deviation(&all_found, &all_expected);
    println!("gradient of {compared} parameters: {deviation:.1e}");
    assert!(deviation < 1e-4, "gradient: {deviation}");
}

#[test]
fn taming() {
    check("taming/model.ckpt", "taming/expected.safetensors", None, false);
}

#[test]
fn taming_from_a_checkpoint_of_before_2020() {
    check("taming/model-legacy.ckpt", "taming/expected.safetensors", None, false);
}

#[test]
fn taming_with_a_gumbel_quantizer() {
    let initial = pretrained(&fixture("gumbel/model.ckpt").display().to_string()).unwrap();
    assert_eq!(initial.architecture.quantizer.kind, QuantizerKind::Gumbel);
    check("gumbel/model.ckpt", "gumbel/expected.safetensors", None, false);
}

#[test]
fn taming_with_beta_where_it_belongs() {
    check("taming/model.ckpt", "taming/expected-legacy-false.safetensors", Some(false), true);
}

#[test]
fn llamagen_with_its_entropy_loss() {
    let initial = pretrained(&fixture("llamagen/model.pt").display().to_string()).unwrap();
    assert_eq!(initial.architecture.quantizer.entropy_ratio, 0.1);
    check("llamagen/model.pt", "llamagen/expected.safetensors", None, false);
}

#[test]
fn diffusers_with_attention_levels() {
    check("diffusers/attention", "diffusers/attention-expected.safetensors", None, false);
}

#[test]
fn diffusers_with_attention_in_the_middle_alone() {
    check("diffusers/middle", "diffusers/middle-expected.safetensors", None, false);
}

#[test]
fn diffusers_without_attention_and_with_codes_of_their_own_length() {
    check("diffusers/lookup", "diffusers/lookup-expected.safetensors", None, false);
}

/// The names that diffusers gave attention before 0.17.
#[test]
fn diffusers_with_old_names() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(fixture(from), Path::new(folder.path()).join(to)).unwrap();
    copy("diffusers/middle/config.json", "config.json");
    copy("diffusers/middle-old-names.bin", "diffusion_pytorch_model.bin");
    let initial = pretrained(&folder.path().display().to_string()).unwrap();
    let expected = WeightsFile::open(fixture("diffusers/middle-expected.safetensors")).unwrap();
    check_initial(&initial, &expected, None, false);
}
