//! The exactness contract with every loss enabled, including those that couple samples.

use burn::module::ParamId;
use checkpoints::{LpipsNetwork, load_clip};

use super::*;
use crate::losses::clip::cutouts::{CutoutSettings, Cutouts};
use crate::losses::clip::{CaptionEncoder, ClipGuidance, ContrastiveTargets, TextTarget, Views, direction};
use crate::losses::{Adaptive, Adversarial, AdversarialState, Discriminator, GanLoss, LeCam, METRICS, PerceptualLoss};
use crate::models::clip::{ClipTokenizer, ImageEncoder, TextEncoder};
use crate::models::discriminator::{DiscriminatorNorm, PatchGan, PatchGanConfig};
use crate::models::lpips::Lpips;
use crate::models::weights::{ParameterVisitor, StateDict, WeightReader, visit_parameters};
use crate::optim::{Trainable, freeze};

const SIDE: usize = 16;
const EFFECTIVE: usize = 6;
const CUTOUTS: usize = 8;

/// Two samples have the same caption.
const CAPTIONS: [&str; 8] =
    ["a red circle", "a blue square", "two green stars", "a red circle", "nothing", "a cat", "a dog", "two cats"];

/// Some of the effective batch's samples.
struct Captioned {
    first: usize,
    draws: Vec<u64>,
    captions: Vec<Option<String>>,
}

impl Captioned {
    fn new(first: usize, samples: usize) -> Self {
        let captions = CAPTIONS[first..first + samples].iter().map(|caption| Some((*caption).to_owned()));
        Self { first, draws: (first..first + samples).map(|i| 40 + i as u64).collect(), captions: captions.collect() }
    }
}

impl MicroBatch for Captioned {
    fn samples(&self) -> usize {
        self.draws.len()
    }

    fn images(&self, device: &Device, dtype: DType) -> Tensor<4> {
        let per_sample = 3 * SIDE * SIDE;
        let value = |i: usize| {
            let (sample, pixel) = (self.first + i / per_sample, i % per_sample);
            (pixel as f64 * (0.13 + 0.029 * sample as f64) + sample as f64).sin() * 0.9
        };
        let values: Vec<f64> = (0..self.samples() * per_sample).map(value).collect();
        Tensor::from_data(TensorData::new(values, [self.samples(), 3, SIDE, SIDE]), (device, dtype))
    }

    fn draws(&self) -> &[u64] {
        &self.draws
    }

    fn captions(&self) -> &[Option<String>] {
        &self.captions
    }
}

fn batches(sizes: &[usize]) -> impl Iterator<Item = Result<Captioned, String>> {
    let firsts = sizes.iter().scan(0, |next, size| {
        let first = *next;
        *next += size;
        Some(first)
    });
    firsts.zip(sizes).map(|(first, size)| Ok(Captioned::new(first, *size))).collect::<Vec<_>>().into_iter()
}

/// LPIPS with weights from a formula, because the real ones are too large for a test. Each filter blurs one channel and
/// adds a little of the others: a deep network of random filters alone changes its gradient with each rounding.
fn lpips(network: LpipsNetwork, device: &Device, dtype: DType) -> Lpips {
    let mut weights = StateDict::new();
    let mut put = |name: String, shape: &[usize], value: &dyn Fn(usize, f64) -> f64| {
        let seed = name.bytes().map(f64::from).sum::<f64>();
        let values = (0..shape.iter().product()).map(|i| value(i, (i as f64 * 0.7310 + seed * 1.37).sin()) as f32);
        let values: Vec<f32> = values.collect();
        weights.insert(name, checkpoints::HostTensor::from_f32(shape, &values));
    };
    for (index, shape) in network.convolutions() {
        let [_, inputs, height, width] = *shape;
        let disturbance = 0.5 * ((inputs * height * width) as f64).powf(-0.5);
        let blur = 0.8 / (height * width) as f64;
        put(format!("features.{index}.weight"), shape, &|i, sine| {
            let (output, input) = (i / (inputs * height * width), i / (height * width) % inputs);
            disturbance * sine + if output % inputs == input { blur } else { 0.0 }
        });
        put(format!("features.{index}.bias"), &shape[..1], &|_, sine| 0.1 * sine);
    }
    let channels = match network {
        LpipsNetwork::Vgg16 => [64, 128, 256, 512, 512],
        LpipsNetwork::AlexNet => [64, 192, 384, 256, 256],
    };
    for (slice, channels) in channels.into_iter().enumerate() {
        put(format!("lin{slice}.weight"), &[1, channels, 1, 1], &|_, sine| 0.5 * sine.abs());
    }
    Lpips::read(&WeightReader::frozen(&weights, device, dtype), network).unwrap()
}

fn fixture() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/clip/transformers")
}

/// All four CLIP losses on the small CLIP of the fixtures.
fn guidance(device: &Device, dtype: DType, at_once: usize) -> ClipGuidance {
    let clip = load_clip(fixture()).unwrap();
    let plain = device.clone().without_autodiff();
    let encoder = ImageEncoder::read(&WeightReader::frozen(&clip.weights, device, dtype), &clip.architecture).unwrap();
    let text = TextEncoder::read(&WeightReader::frozen(&clip.weights, &plain, dtype), &clip.architecture).unwrap();
    let tokenizer = ClipTokenizer::open(clip.tokenizer.as_deref().unwrap(), &clip.architecture).unwrap();
    let captions = CaptionEncoder::new(tokenizer, text, plain);
    let turn = direction::between(captions.embed(["a photo", "a sketch"].into_iter()).unwrap());
    let cutouts = CutoutSettings {
        count: CUTOUTS,
        power: 1.0,
        size: clip.architecture.image_size,
        affine: 0.7,
        perspective: 0.7,
        jitter: 0.7,
        erasing: 0.7,
        noise: 0.1,
    };
    ClipGuidance {
        encoder,
        architecture: clip.architecture,
        captions: Some(captions),
        views: Views { whole: true, cutouts: Cutouts::new(cutouts), at_once, seed: 3 },
        image: Some(Weight::constant(1.0)),
        text: Some((Weight::constant(0.3), TextTarget::Captions)),
        contrastive: Some((
            Weight::constant(0.5),
            ContrastiveTargets { captions: true, originals: true, logit_scale: 10.0 },
        )),
        direction: Some((Weight::constant(0.2), turn)),
        is_random: false,
    }
}

pub(super) fn all_losses(device: &Device, dtype: DType, adaptive: Adaptive, at_once: usize) -> Losses {
    let perceptual = PerceptualLoss::new(lpips(LpipsNetwork::Vgg16, device, dtype));
    let Losses { pixel, codebook, .. } = losses(0.1);
    let mut all = Losses::examples();
    (all.pixel, all.codebook) = (pixel, codebook);
    all.perceptual = Some(Weighted { weight: Weight::constant(0.8), loss: perceptual });
    all.adversarial = Some(adversarial(discriminator(device, dtype, DiscriminatorNorm::Group), adaptive));
    all.clip = Some(guidance(device, dtype, at_once));
    all
}

pub(super) fn adversarial(discriminator: PatchGan, adaptive: Adaptive) -> Adversarial {
    let lecam = LeCam { real: 0.4, fake: -0.2, decay: 0.9 };
    Adversarial {
        weight: Weight::constant(0.8),
        kind: GanLoss::Hinge,
        adaptive,
        lecam: 0.3,
        discriminator_start: 0,
        discriminator: Discriminator::untrained(discriminator, AdversarialState { adaptive_weight: None, lecam }),
    }
}

fn discriminator(device: &Device, dtype: DType, norm: DiscriminatorNorm) -> PatchGan {
    let config = PatchGanConfig { channels: 8, layers: 2, norm };
    // At taming's scale the logits hardly change; larger weights make every gradient matter.
    let weights = PatchGan::random_weights(&config, 5);
    let larger = |(name, tensor): (String, checkpoints::HostTensor)| {
        let scale = if tensor.shape.len() == 4 { 8.0 } else { 1.0 };
        let values: Vec<f32> = tensor.to_f32().iter().map(|v| v * scale).collect();
        (name, checkpoints::HostTensor::from_f32(&tensor.shape, &values))
    };
    let weights: StateDict = weights.into_iter().map(larger).collect();
    PatchGan::read(&WeightReader::new(&weights, device, dtype), &config).unwrap()
}

pub(super) struct Run {
    pub(super) vqgan: VqGan,
    pub(super) discriminator: PatchGan,
    pub(super) device: Device,
    dtype: DType,
}

impl Run {
    pub(super) fn new(dtype: DType) -> Self {
        let device = device().autodiff();
        let vqgan = model(&tiny_architecture(), dtype);
        let discriminator = discriminator(&device, dtype, DiscriminatorNorm::Group);
        Self { vqgan, discriminator, device, dtype }
    }

    fn gradients(&self, adaptive: Adaptive, sizes: &[usize], at_once: usize, recompute: Recompute) -> EffectiveBatch {
        let mut losses = all_losses(&self.device, self.dtype, adaptive, at_once);
        losses.discriminator_mut().unwrap().state.adaptive_weight = Some(0.6);
        self.step(&losses, StepSettings { effective: EFFECTIVE, recompute, ..StepSettings::default() }, sizes)
    }

    pub(super) fn step(&self, losses: &Losses, settings: StepSettings, sizes: &[usize]) -> EffectiveBatch {
        self.observed_step(losses, settings, sizes, |_| {})
    }

    pub(super) fn observed_step(
        &self,
        losses: &Losses,
        settings: StepSettings,
        sizes: &[usize],
        observe: impl Fn(Event),
    ) -> EffectiveBatch {
        effective_batch_gradient(&self.vqgan, losses, settings, batches(sizes), batches(sizes), observe).unwrap()
    }

    /// Deviations of the generator's and the discriminator's gradient.
    fn deviation(&self, a: &EffectiveBatch, b: &EffectiveBatch) -> [f64; 2] {
        [
            relative_deviation(&self.vqgan, &a.generator, &b.generator),
            relative_deviation(&self.discriminator, &a.discriminator, &b.discriminator),
        ]
    }
}

pub(super) const SPLITS: [&[usize]; 3] = [&[3, 3], &[4, 2], &[1, 1, 1, 1, 1, 1]];

#[test]
fn no_gradient_depends_on_the_split_of_batch_and_cutouts() {
    for (dtype, limit) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
        let run = Run::new(dtype);
        let reference = run.gradients(Adaptive::EffectiveBatch, &[6], 0, Recompute::None);
        assert_eq!(reference.generator.len(), tiny_architecture().parameters().len());
        for (sizes, at_once) in [(SPLITS[0], 0), (SPLITS[1], 3), (SPLITS[2], 1), (&[6][..], 3)] {
            let split = run.gradients(Adaptive::EffectiveBatch, sizes, at_once, Recompute::None);
            let [generator, discriminator] = run.deviation(&split, &reference);
            println!("{dtype:?}, {sizes:?}, {at_once} cutouts: {generator:.1e}, discriminator {discriminator:.1e}");
            assert!(generator <= limit && discriminator <= limit, "{dtype:?} {sizes:?}: {generator} {discriminator}");
        }
        // The same split: f32 has no room for the errors of another split and another order of sums together.
        let kept = run.gradients(Adaptive::EffectiveBatch, SPLITS[1], 3, Recompute::None);
        let recomputed = run.gradients(Adaptive::EffectiveBatch, SPLITS[1], 3, Recompute::Blocks);
        let [generator, discriminator] = run.deviation(&recomputed, &kept);
        println!("{dtype:?}, recomputed: {generator:.1e}, discriminator {discriminator:.1e}");
        assert!(generator <= limit && discriminator <= limit, "{dtype:?}: {generator} {discriminator}");
    }
}

#[test]
fn every_metric_is_the_same_for_every_batch_split() {
    let run = Run::new(DType::F64);
    let metrics = |sizes: &[usize], at_once| {
        let batch = run.gradients(Adaptive::EffectiveBatch, sizes, at_once, Recompute::None);
        batch.read(Tensor::zeros([1], &Device::flex()), None).unwrap()
    };
    let (whole, pieces) = (metrics(&[6], 0), metrics(SPLITS[1], 3));
    let names: Vec<&str> = whole.values.iter().map(|(name, _)| *name).collect();
    let of_gumbel = ["kl", "temperature"];
    for (name, _) in METRICS.iter().filter(|(name, _)| !of_gumbel.contains(name)) {
        assert!(names.contains(name), "{name} is not in {names:?}");
        let (a, b) = (whole.get(name).unwrap(), pieces.get(name).unwrap());
        println!("{name}: {a}");
        assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{name}: {a} {b}");
        assert!(a != 0.0, "{name} is 0");
    }
    assert!((whole.total - pieces.total).abs() < 1e-9);
}

/// The other ways to weight the adversarial loss: one is exact too, and the one that other trainers use is not.
#[test]
fn an_adaptive_weight_per_micro_batch_is_seen_to_depend_on_it() {
    let run = Run::new(DType::F64);
    let deviation = |adaptive| {
        let gradients = |sizes| run.gradients(adaptive, sizes, 0, Recompute::None);
        run.deviation(&gradients(SPLITS[1]), &gradients(&[6]))[0]
    };
    assert!(deviation(Adaptive::PreviousStep) < 1e-9);
    assert!(deviation(Adaptive::Off) < 1e-9);
    let per_micro_batch = deviation(Adaptive::MicroBatch);
    println!("adaptive weight per micro-batch: {per_micro_batch:.1e}");
    assert!(per_micro_batch > 1e-4, "{per_micro_batch}");
}

/// All CLIP losses at the image, including the contrastive coupling.
#[test]
fn the_gradient_of_the_clip_losses_at_the_image_is_that_of_finite_differences() {
    let device = Device::flex().autodiff();
    let clip = guidance(&device, DType::F64, 3);
    let batch = Captioned::new(0, 3);
    let original = batch.images(&Device::flex(), DType::F64);
    let values: Vec<f64> = (original.clone() * 0.8 + 0.05).into_data().try_into_vec().unwrap();
    let images = |values: Vec<f64>| Images {
        step: 0,
        per_sample: 1.0 / 3.0,
        loss_scale: 1.0,
        original: original.clone(),
        reconstruction: Tensor::from_data(TensorData::new(values, [3, 3, SIDE, SIDE]), (&Device::flex(), DType::F64)),
        first: 0,
        draws: batch.draws(),
        captions: batch.captions(),
    };
    let evaluate = |values: Vec<f64>| {
        let images = images(values);
        let mut embeddings = Default::default();
        clip.embed(&images, &mut embeddings).unwrap();
        let coupling = clip.couple(embeddings, 0).unwrap();
        let read = |value: Tensor<1>| value.into_data().try_into_vec::<f64>().unwrap()[0];
        let mut total = read(coupling.value.clone()) * coupling.weight;
        let gradient = clip.gradient(&images, Some(&coupling), &mut |_, value, weight| total += read(value) * weight);
        let gradient = gradient.unwrap().unwrap();
        (total, gradient.into_data().try_into_vec::<f64>().unwrap())
    };
    let (_, gradient) = evaluate(values.clone());
    for index in [5, 130, 400, 777, 1200, 1700, 2300] {
        let step = 1e-6;
        let nudged = |amount: f64| {
            let mut values = values.clone();
            values[index] += amount;
            evaluate(values).0
        };
        let difference = (nudged(step) - nudged(-step)) / (2.0 * step);
        let error = (difference - gradient[index]).abs() / difference.abs().max(1e-4);
        assert!(error < 1e-5, "[{index}]: {} against {difference}", gradient[index]);
    }
}

/// A frozen part has no gradient, and a trained part has the same gradient as when everything is trained.
#[test]
fn freezing_changes_no_gradient_of_what_is_trained() {
    let whole = Run::new(DType::F64);
    let reference = whole.gradients(Adaptive::EffectiveBatch, &[6], 0, Recompute::None);
    for patterns in [
        &["quantize"][..],
        &["encoder"],
        &["decoder"],
        &["decoder.conv_out"],
        &["decoder.up.0"],
        &["encoder.conv_in"],
        &["decoder.up.1.block.0.conv2.*", "quant_conv"],
    ] {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let parameters = tiny_architecture().parameters();
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        let trained = Trainable::new(&patterns, &names).unwrap();
        let count = names.iter().filter(|name| trained.is_trained(name)).count();
        let mut run = Run::new(DType::F64);
        run.vqgan = freeze(run.vqgan, &trained);
        for (sizes, recompute) in [(&[6][..], Recompute::None), (SPLITS[1], Recompute::Blocks)] {
            let found = run.gradients(Adaptive::EffectiveBatch, sizes, 0, recompute);
            assert_eq!(found.generator.len(), count, "{patterns:?}");
            let deviation = deviation_of_trained(&run.vqgan, &found.generator, &reference.generator);
            assert!(deviation <= 1e-9, "{patterns:?} {recompute:?}: {deviation}");
        }
    }
}

/// Like [`relative_deviation`], over the parameters that have a gradient in `a`.
pub(super) fn deviation_of_trained(model: &VqGan, a: &GradientsParams, b: &GradientsParams) -> f64 {
    struct Keep<'a>(&'a GradientsParams, &'a GradientsParams, GradientsParams);
    impl ParameterVisitor for Keep<'_> {
        fn parameter<const D: usize>(&mut self, _name: &str, id: ParamId, _value: Tensor<D>) {
            if let (Some(_), Some(b)) = (self.0.get::<D>(id), self.1.get::<D>(id)) {
                self.2.register(id, b);
            }
        }
    }
    let mut keep = Keep(a, b, GradientsParams::new());
    visit_parameters(model, &mut keep);
    relative_deviation(model, a, &keep.2)
}
