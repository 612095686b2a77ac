//! The exactness contract, and the gradient against finite differences.

use burn::module::{ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use checkpoints::Architecture;

use super::*;

mod all_losses;
mod gumbel;
mod half;
use crate::device::tested as device;
use crate::losses::{Codebook, CodebookLoss, NearestLoss, PixelLoss, PixelNorm, Weight, Weighted};
use crate::models::initialize::random_weights;
use crate::models::tests::tiny_architecture;
use crate::models::weights::{ParameterVisitor, is_enum, visit_parameters};
use crate::optim::relative_deviation;

const SIDE: usize = 8;

/// Images from a formula, `[samples, 3, SIDE, SIDE]` in -1..1; all samples differ.
struct Waves {
    first: usize,
    samples: usize,
}

impl MicroBatch for Waves {
    fn samples(&self) -> usize {
        self.samples
    }

    fn images(&self, device: &Device, dtype: DType) -> Tensor<4> {
        let per_sample = 3 * SIDE * SIDE;
        let value = |i: usize| {
            let (sample, pixel) = (self.first + i / per_sample, i % per_sample);
            (pixel as f64 * (0.13 + 0.029 * sample as f64) + sample as f64).sin() * 0.9
        };
        let values: Vec<f64> = (0..self.samples * per_sample).map(value).collect();
        Tensor::from_data(TensorData::new(values, [self.samples, 3, SIDE, SIDE]), (device, dtype))
    }

    fn draws(&self) -> &[u64] {
        &[]
    }

    fn captions(&self) -> &[Option<String>] {
        &[]
    }
}

fn batches(effective: usize, micro: usize) -> impl Iterator<Item = Result<Waves, String>> {
    (0..effective).step_by(micro).map(move |first| Ok(Waves { first, samples: micro.min(effective - first) }))
}

fn losses(entropy: f64) -> Losses {
    Losses {
        pixel: Some(Weighted { weight: Weight::constant(1.0), loss: PixelLoss { norm: PixelNorm::Mix, mix: 0.5 } }),
        codebook: Some(Codebook {
            weight: Weight::constant(0.7),
            loss: CodebookLoss::Nearest(NearestLoss { beta: 0.25, legacy: false, entropy }),
        }),
        ..Losses::default()
    }
}

/// Random weights with codes as widely spread as the latents, so that many codes are chosen.
fn model(architecture: &Architecture, dtype: DType) -> VqGan {
    model_of(architecture, 7, dtype)
}

fn model_of(architecture: &Architecture, seed: u64, dtype: DType) -> VqGan {
    let mut weights = random_weights(architecture, seed);
    let codebook = weights.get_mut("quantize.embedding.weight").unwrap();
    let spread: Vec<f32> = codebook.to_f32().iter().map(|v| v * architecture.codes as f32 * 0.3).collect();
    *codebook = checkpoints::HostTensor::from_f32(&codebook.shape, &spread);
    VqGan::new(architecture, &weights, &device().autodiff(), dtype).unwrap()
}

fn settings(effective: usize, recompute: Recompute) -> StepSettings<'static> {
    StepSettings { effective, recompute, ..StepSettings::default() }
}

fn gradient(model: &VqGan, losses: &Losses, effective: usize, micro: usize) -> EffectiveBatch {
    let settings = settings(effective, Recompute::None);
    effective_batch_gradient(model, losses, settings, batches(effective, micro), batches(effective, micro), |_| {})
        .unwrap()
}

fn largest_deviation(architecture: &Architecture, losses: &Losses, dtype: DType) -> f64 {
    let model = model(architecture, dtype);
    let reference = gradient(&model, losses, 8, 8);
    let deviation = |micro| {
        let split = gradient(&model, losses, 8, micro);
        assert_eq!(split.generator.len(), architecture.parameters().len());
        let deviation = relative_deviation(&model, &split.generator, &reference.generator);
        assert!(deviation.is_finite());
        deviation
    };
    [4, 3, 1].map(deviation).into_iter().fold(0.0, f64::max)
}

#[test]
fn the_gradient_does_not_depend_on_the_micro_batch() {
    for l2_norm in [false, true] {
        let mut architecture = tiny_architecture();
        architecture.quantizer.l2_norm = l2_norm;
        for entropy in [0.0, 0.1] {
            let losses = losses(entropy);
            let f64 = largest_deviation(&architecture, &losses, DType::F64);
            let f32 = largest_deviation(&architecture, &losses, DType::F32);
            println!("l2_norm {l2_norm}, entropy {entropy}: f64 {f64:.1e}, f32 {f32:.1e}");
            assert!(f64 <= 1e-9, "{f64}");
            assert!(f32 <= 1e-5, "{f32}");
        }
    }
}

#[test]
fn recomputing_blocks_gives_the_same_gradient() {
    let losses = losses(0.1);
    for (dtype, limit) in [(DType::F64, 1e-13), (DType::F32, 1e-5)] {
        let model = model(&tiny_architecture(), dtype);
        let gradient = |recompute| {
            effective_batch_gradient(&model, &losses, settings(4, recompute), batches(4, 2), batches(4, 2), |_| {})
                .unwrap()
        };
        let (whole, recomputed) = (gradient(Recompute::None), gradient(Recompute::Blocks));
        assert_eq!(recomputed.generator.len(), tiny_architecture().parameters().len());
        let deviation = relative_deviation(&model, &recomputed.generator, &whole.generator);
        println!("{dtype:?}: {deviation:.1e}");
        assert!(deviation < limit, "{dtype:?}: {deviation}");
    }
}

/// The forward passes agree to the last bit, including attention, so a loss gets the same image from either.
#[test]
fn a_forward_pass_that_keeps_no_graph_gives_the_same_bits() {
    let architecture = Architecture { attention_levels: vec![1], mid_attention: true, ..tiny_architecture() };
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let model = model(&architecture, dtype);
        let images = Waves { first: 3, samples: 2 }.images(&device(), dtype);
        let latent = |recompute| {
            let (plain, tracked) = (model.valid(), &model);
            let (plain, tracked) = (plain.encoder_blocks(), tracked.encoder_blocks());
            let (_, latent) = chain::Chain::forward(&tracked, &plain, images.clone(), false, recompute, None);
            latent.cast(DType::F64).into_data()
        };
        assert_eq!(latent(Recompute::None), latent(Recompute::Blocks), "{dtype:?}");
    }
}

/// Recomputation only changes how f32 rounds, and f32 deviates by as much in any case.
#[test]
fn a_recomputed_gradient_in_f32_is_as_near_to_that_of_f64_as_a_kept_one() {
    struct Values<'a>(&'a GradientsParams, Vec<f64>);
    impl ParameterVisitor for Values<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            let gradient = self.0.get::<D>(id).unwrap().cast(DType::F64).into_data();
            self.1.extend(gradient.iter::<f64>());
        }
    }
    let losses = losses(0.1);
    for seed in [7, 8, 9] {
        let gradient = |dtype, recompute| {
            let model = model_of(&tiny_architecture(), seed, dtype);
            let settings = settings(4, recompute);
            let (first, second) = (batches(4, 2), batches(4, 2));
            let batch = effective_batch_gradient(&model, &losses, settings, first, second, |_| {}).unwrap();
            let mut values = Values(&batch.generator, Vec::new());
            visit_parameters(&model, &mut values);
            values.1
        };
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value.powi(2)).sum::<f64>().sqrt();
        let exact = gradient(DType::F64, Recompute::None);
        let off = |values: &[f64]| {
            norm(&mut values.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied())
        };
        let kept = off(&gradient(DType::F32, Recompute::None));
        let recomputed = off(&gradient(DType::F32, Recompute::Blocks));
        println!("seed {seed}: kept {kept:.1e}, recomputed {recomputed:.1e}");
        assert!(recomputed < 4.0 * kept, "{recomputed} {kept}");
    }
}

#[test]
fn the_metrics_do_not_depend_on_the_micro_batch_either() {
    let model = model(&tiny_architecture(), DType::F64);
    let losses = losses(0.1);
    let metrics = |micro| {
        let batch = gradient(&model, &losses, 8, micro);
        batch.read(Tensor::zeros([1], &Device::flex()), None).unwrap()
    };
    let (whole, split) = (metrics(8), metrics(3));
    assert_eq!(whole.code_counts, split.code_counts);
    assert_eq!(whole.code_counts.iter().sum::<f32>(), 8.0 * 16.0);
    assert!(whole.code_counts.iter().filter(|count| **count > 0.0).count() >= 5, "{:?}", whole.code_counts);
    assert!((whole.total - split.total).abs() < 1e-6);
    for ((name, a), (_, b)) in whole.values.iter().zip(&split.values) {
        assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
    }
}

/// Adds `amount` to one value of the parameter `name`.
fn nudged(model: &VqGan, name: &'static str, index: usize, amount: f64) -> VqGan {
    struct Nudge(Vec<String>, &'static str, usize, f64);
    impl ModuleMapper for Nudge {
        fn enter_module(&mut self, name: &str, container: &str) {
            if !is_enum(container) {
                self.0.push(name.to_owned());
            }
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            if !is_enum(container) {
                self.0.pop();
            }
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, mapper) = param.consume();
            if self.0.join(".") != self.1 {
                return Param::from_mapped_value(id, tensor, mapper);
            }
            let (device, shape) = (tensor.device(), tensor.dims());
            let mut values = tensor.into_data().try_into_vec::<f64>().unwrap();
            values[self.2] += self.3;
            let tensor = Tensor::from_data(TensorData::new(values, shape), (&device, DType::F64));
            Param::from_mapped_value(id, tensor.require_grad(), mapper)
        }
    }
    model.clone().map(&mut Nudge(Vec::new(), name, index, amount))
}

/// The straight-through estimator is not a derivative, so this compares only the parameters after it.
#[test]
fn the_gradient_is_that_of_finite_differences() {
    use crate::models::weights::param_id;
    let model = model(&tiny_architecture(), DType::F64);
    let losses = losses(0.1);
    let total = |model: &VqGan| -> f64 {
        gradient(model, &losses, 4, 3).read(Tensor::zeros([1], &Device::flex()), None).unwrap().total
    };
    let batch = gradient(&model, &losses, 4, 3);
    let check = |name: &'static str, index: usize, expected: f64| {
        let step = 1e-5;
        let (above, below) = (nudged(&model, name, index, step), nudged(&model, name, index, -step));
        let difference = (total(&above) - total(&below)) / (2.0 * step);
        let error = (difference - expected).abs() / difference.abs().max(1e-6);
        assert!(error < 1e-4, "{name}[{index}]: {expected} against {difference}");
    };
    let read = |data: TensorData| data.try_into_vec::<f64>().unwrap();
    let conv = |name: &'static str, index| {
        let gradient = batch.generator.get::<4>(param_id(name)).unwrap();
        check(name, index, read(gradient.into_data())[index]);
    };
    let norm = |name: &'static str, index| {
        let gradient = batch.generator.get::<1>(param_id(name)).unwrap();
        check(name, index, read(gradient.into_data())[index]);
    };
    conv("decoder.conv_out.weight", 5);
    conv("decoder.up.0.block.0.conv1.weight", 17);
    conv("decoder.up.1.attn.0.q.weight", 9);
    conv("decoder.up.1.upsample.conv.weight", 3);
    conv("post_quant_conv.weight", 2);
    norm("decoder.norm_out.weight", 1);
    norm("decoder.mid.block_1.norm2.bias", 4);
}

#[test]
fn an_error_of_a_micro_batch_ends_the_step() {
    let model = model(&tiny_architecture(), DType::F32);
    let batches = batches(4, 2).take(1).chain([Err("no more".to_owned())]);
    let result = effective_batch_gradient(
        &model,
        &losses(0.0),
        settings(4, Recompute::None),
        std::iter::empty(),
        batches,
        |_| {},
    );
    assert!(matches!(result.err(), Some(StepFailure::Batch(message)) if message == "no more"));
}
