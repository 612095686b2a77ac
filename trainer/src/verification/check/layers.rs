//! Compares every block, network and loss, forward and backward, on a device with the CPU in f32.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use checkpoints::{HostTensor, LpipsNetwork, QuantizerKind};
use datasets::{Batch, SampleKey};

use super::piece::{
    Piece, Place, SAMPLES, Values, attempt, images, numbers, random, read, tensor, through, through_module,
};
use super::sizes::Sizes;
use super::{CheckError, Part, Row, Scale};
use crate::config::{Compute, OptimizerConfig, OptimizerName};
use crate::device::Selected;
use crate::engine::MicroBatch;
use crate::losses::clip::contrastive::Contrastive;
use crate::losses::clip::cutouts::{CutoutSettings, Cutouts};
use crate::losses::clip::{direction, image, text};
use crate::losses::{
    EntropyCoupling, GanLoss, ImageLoss, LeCam, Losses, PerceptualLoss, divergence, sum_probabilities,
};
use crate::models::VqGan;
use crate::models::blocks::Block;
use crate::models::clip::{ImageEncoder, TextEncoder, preprocess};
use crate::models::discriminator::{DiscriminatorNorm, PatchGan, PatchGanConfig};
use crate::models::initialize::random_weights;
use crate::models::lpips::Lpips;
use crate::models::quantizer::gumbel::{Sampling, SeededNoise};
use crate::models::quantizer::{Quantizer, Terms};
use crate::models::random::{clip_weights, lpips_backbone, lpips_linear};
use crate::models::statistics_dtype;
use crate::models::weights::{ModelError, StateDict, WeightReader, state_dict};
use crate::optim::{GradientSum, ModelOptimizer};

/// Compares every piece on `device` whose name contains one of `names`, or every piece if there are none, with the CPU in f32,
/// in each of `precisions`. `show` sees each row as soon as it is there.
///
/// # Errors
/// If the pieces cannot be built. What a device does wrong is in the rows.
pub fn check(
    device: &Selected,
    precisions: &[Compute],
    scale: Scale,
    names: &[String],
    mut show: impl FnMut(&Row),
) -> Result<Vec<Row>, CheckError> {
    let sizes = Sizes::of(scale);
    let weights = random_weights(&sizes.architecture, 7);
    let inputs = BlockInputs::new(&sizes, &weights)?;
    let mut pieces = blocks(&sizes, &weights, &inputs);
    pieces.extend(codebook(&sizes, &weights, &inputs));
    pieces.extend(networks(&sizes));
    pieces.extend(losses(&sizes));
    pieces.extend(around(&sizes));
    pieces.retain(|piece| names.is_empty() || names.iter().any(|name| piece.name.contains(name)));

    let mut rows = Vec::new();
    let cpu = Place { device: Device::flex().autodiff(), dtype: DType::F32 };
    for piece in &pieces {
        let reference = attempt(|| (piece.run)(&cpu));
        for &precision in precisions {
            if precision != Compute::Fp32 && !piece.half {
                continue;
            }
            let started = Instant::now();
            let place = Place { device: device.device.clone().autodiff(), dtype: precision.dtype() };
            let found = attempt(|| (piece.run)(&place));
            let found = match (&reference, found) {
                (Ok(reference), Ok(found)) => Ok(found.deviations(reference)),
                (Err(error), _) => Err(format!("on the CPU: {error}")),
                (_, Err(error)) => Err(error),
            };
            let row = Row::new(Part::Layers, piece.name.clone(), precision, found, limit(precision), started);
            show(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The largest deviation that rounding may lead to, after several layers and where a GPU's f32 has 10 bits in products.
fn limit(precision: Compute) -> f64 {
    match precision {
        Compute::Fp32 => 2e-3,
        Compute::Fp16 => 3e-2,
        Compute::Bf16 => 0.2,
    }
}

/// Each block's input when two images go through the model.
struct BlockInputs {
    encoder: Vec<HostTensor>,
    latent: HostTensor,
    decoder: Vec<HostTensor>,
}

impl BlockInputs {
    fn new(sizes: &Sizes, weights: &StateDict) -> Result<Self, ModelError> {
        let place = Place { device: Device::flex(), dtype: DType::F32 };
        let model = VqGan::new(&sizes.architecture, weights, &place.device, DType::F32)?;
        let host = |x: &Tensor<4>| -> Result<HostTensor, ModelError> {
            let values = x.clone().try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))?;
            Ok(HostTensor::from_f32(x.dims(), &values))
        };
        let along = |blocks: &[Block], mut x: Tensor<4>| -> Result<(Vec<HostTensor>, Tensor<4>), ModelError> {
            let mut inputs = Vec::new();
            for block in blocks {
                inputs.push(host(&x)?);
                x = block.forward(x);
            }
            Ok((inputs, x))
        };
        let (encoder, latent) = along(&model.encoder_blocks(), images(1, sizes.side, &place))?;
        let [n, d, h, w] = latent.dims();
        // Spread among the codes, which random latents are not.
        let around = random(5, [n, d, h, w], &place.device, DType::F32);
        let (decoder, _) = along(&model.decoder_blocks(), around.clone())?;
        Ok(Self { encoder, latent: host(&around)?, decoder })
    }
}

fn from_host(host: &HostTensor, place: &Place) -> Tensor<4> {
    let shape = std::array::from_fn(|axis| host.shape.get(axis).copied().unwrap_or(1));
    tensor(&host.to_f32(), shape, &place.device, place.dtype)
}

fn kind(block: &Block) -> &'static str {
    match block {
        Block::Conv(_) => "convolution",
        Block::Resnet(_) => "residual block",
        Block::Attn(_) => "attention",
        Block::Downsample(_) => "downsampling",
        Block::Upsample(_) => "upsampling",
        Block::NormSilu(_) => "norm and SiLU",
    }
}

/// Every kind of block of the model with every number of channels that it has.
fn blocks<'a>(sizes: &'a Sizes, weights: &'a StateDict, inputs: &'a BlockInputs) -> Vec<Piece<'a>> {
    type Half = (&'static str, fn(&VqGan) -> Vec<Block<'_>>);
    let halves: [(Half, &[HostTensor]); 2] =
        [(("encoder", VqGan::encoder_blocks), &inputs.encoder), (("decoder", VqGan::decoder_blocks), &inputs.decoder)];
    let device = Device::flex();
    let Ok(model) = VqGan::new(&sizes.architecture, weights, &device, DType::F32) else { return Vec::new() };
    let (mut pieces, mut seen) = (Vec::new(), Vec::new());
    for ((_, half), inputs) in halves {
        let outputs = inputs.iter().skip(1).map(|next| next.shape[1]).chain([0]);
        for (index, (block, outputs)) in half(&model).iter().zip(outputs).enumerate() {
            let input = &inputs[index];
            let what = (kind(block), input.shape[1], outputs);
            if seen.contains(&what) {
                continue;
            }
            seen.push(what);
            let channels = if outputs == 0 { sizes.architecture.out_channels } else { outputs };
            let name = match kind(block) {
                kind @ ("convolution" | "residual block") => format!("{kind}, {} to {channels}", input.shape[1]),
                kind => format!("{kind}, {channels}"),
            };
            let run = move |place: &Place| {
                let model = VqGan::new(&sizes.architecture, weights, &place.device, place.dtype)?;
                let block = half(&model)[index];
                through(from_host(input, place), |x| block.forward(x), |taken| block.visit(taken))
            };
            pieces.push(Piece { name, half: true, run: Box::new(run) });
        }
    }
    pieces
}

/// Of the models that blocks are taken from.
const NEAREST: &str = "it takes the nearest code";

/// Latents to codes and back, the entropy term, and a Gumbel quantizer with its divergence.
fn codebook<'a>(sizes: &'a Sizes, weights: &'a StateDict, inputs: &'a BlockInputs) -> Vec<Piece<'a>> {
    // As wide apart as the latents are: many codes are chosen, and none by a hair's breadth alone.
    let spread = move || {
        let mut weights = weights.clone();
        if let Some(codes) = weights.get_mut("quantize.embedding.weight") {
            *codes = HostTensor::from_f32(&codes.shape, &numbers(11, codes.shape.iter().product()));
        }
        weights
    };
    let quantize = move |place: &Place| {
        let model = VqGan::new(&sizes.architecture, &spread(), &place.device, place.dtype)?;
        let mut losses = Vec::new();
        let mut values = through_module(model.quantizer(), from_host(&inputs.latent, place), |quantizer, latent| {
            let quantized = quantizer.forward(latent);
            losses.push(quantized.codes);
            let Terms::Nearest(terms) = quantized.terms else { unreachable!("{NEAREST}") };
            terms.codebook + terms.commitment * 0.25
        })?;
        // One that differs is a deviation that no rounding makes.
        for codes in losses {
            values.output.extend(read(codes.float())?);
        }
        Ok(values)
    };
    let entropy = move |place: &Place| {
        let model = VqGan::new(&sizes.architecture, &spread(), &place.device.clone().without_autodiff(), place.dtype)?;
        let plain = Place { device: place.device.clone().without_autodiff(), dtype: place.dtype };
        let Quantizer::Nearest(quantizer) = model.quantizer() else { unreachable!("{NEAREST}") };
        let (vectors, codes) = quantizer.compared(from_host(&inputs.latent, &plain));
        let tokens = vectors.dims()[0];
        let coupling = EntropyCoupling::new(sum_probabilities(vectors.clone(), codes.clone()), tokens);
        let gradient = coupling.gradient(vectors, codes);
        Ok(Values {
            output: read(gradient.sample_entropy)?,
            gradients: vec![read(gradient.vectors)?, read(gradient.codebook)?],
        })
    };
    let gumbel = move |place: &Place| {
        let mut architecture = sizes.architecture.clone();
        architecture.quantizer.kind = QuantizerKind::Gumbel;
        let model = VqGan::new(&architecture, &random_weights(&architecture, 7), &place.device, place.dtype)?;
        let sampling = Sampling {
            noise: Arc::new(SeededNoise { seed: 3 }),
            draws: (0..SAMPLES as u64).collect(),
            temperature: 0.9,
        };
        let mut drawn = Vec::new();
        let mut values = through_module(model.quantizer(), from_host(&inputs.latent, place), |quantizer, latent| {
            let quantized = quantizer.forward_in_training(latent, Some(sampling));
            drawn.push(quantized.codes.clone());
            let Terms::Gumbel(terms) = &quantized.terms else { unreachable!("it was built so") };
            let (_, divergence) = divergence(terms);
            let at_latent = random(12, quantized.latent.dims(), &place.device.clone().without_autodiff(), DType::F32);
            divergence + quantized.surrogate(at_latent)
        })?;
        for codes in drawn {
            values.output.extend(read(codes.float())?);
        }
        Ok(values)
    };
    vec![
        Piece { name: "codebook".into(), half: false, run: Box::new(quantize) },
        Piece { name: "codebook's entropy".into(), half: false, run: Box::new(entropy) },
        Piece { name: "codebook by Gumbel".into(), half: false, run: Box::new(gumbel) },
    ]
}

/// The networks of the losses, as a whole.
fn networks(sizes: &Sizes) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for (name, norm) in [("GroupNorm", DiscriminatorNorm::Group), ("BatchNorm", DiscriminatorNorm::Batch)] {
        let config = PatchGanConfig { channels: sizes.discriminator, layers: 2, norm };
        let weights = PatchGan::random_weights(&config, 5);
        let run = move |place: &Place| {
            let network = PatchGan::read(&WeightReader::new(&weights, &place.device, place.dtype), &config)?;
            through_module(&network, images(2, sizes.side, place), |network, images| network.forward(images))
        };
        pieces.push(Piece { name: format!("PatchGAN with {name}"), half: true, run: Box::new(run) });
    }
    for (name, network) in [("VGG16", LpipsNetwork::Vgg16), ("AlexNet", LpipsNetwork::AlexNet)] {
        let mut weights = lpips_backbone(network, 0);
        weights.extend(lpips_linear(network));
        let run = move |place: &Place| {
            let lpips = Lpips::read(&WeightReader::frozen(&weights, &place.device, place.dtype), network)?;
            let loss = PerceptualLoss::new(lpips);
            let original = images(3, sizes.lpips_side, place);
            // A mean over many pixels has a gradient that vanishes in half precision without a loss scale.
            let scaled = |images| loss.per_sample(original, images) * 1024.0;
            through(images(4, sizes.lpips_side, place), scaled, |_| {})
        };
        pieces.push(Piece { name: format!("LPIPS on {name}"), half: true, run: Box::new(run) });
    }
    let weights = clip_weights(&sizes.clip, 0);
    let image_tower = move |place: &Place| {
        let network = ImageEncoder::read(&WeightReader::frozen(&weights, &place.device, place.dtype), &sizes.clip)?;
        let forward = |images| network.forward(preprocess(images, &sizes.clip)).cast(statistics_dtype(place.dtype));
        through(images(6, sizes.side, place), forward, |_| {})
    };
    pieces.push(Piece { name: "CLIP's image tower".into(), half: true, run: Box::new(image_tower) });
    let weights = clip_weights(&sizes.clip, 0);
    let text_tower = move |place: &Place| {
        let device = place.device.clone().without_autodiff();
        let network = TextEncoder::read(&WeightReader::frozen(&weights, &device, place.dtype), &sizes.clip)?;
        let id = |i: usize| if i % 77 == 20 { 513 } else { (i * 7 % 500) as i64 };
        let ids = TensorData::new((0..SAMPLES * 77).map(id).collect::<Vec<_>>(), [SAMPLES, 77]);
        let embeddings = network.forward(Tensor::<2, Int>::from_data(ids, &device));
        Ok(Values { output: read(embeddings)?, gradients: Vec::new() })
    };
    pieces.push(Piece { name: "CLIP's text tower".into(), half: true, run: Box::new(text_tower) });
    pieces
}

/// What is computed in f32 whatever the networks are in.
fn losses(sizes: &Sizes) -> Vec<Piece<'_>> {
    let views = move |place: &Place| {
        let settings = CutoutSettings {
            count: 4,
            power: 1.0,
            size: sizes.clip.image_size.min(64),
            affine: 1.0,
            perspective: 1.0,
            jitter: 1.0,
            erasing: 1.0,
            noise: 0.1,
        };
        let cutouts = Cutouts::new(settings);
        let plan = |draw| cutouts.draw(SampleKey { seed: 3, draw }, 0..settings.count, sizes.side, sizes.side);
        let plans: Vec<_> = (0..SAMPLES as u64).map(plan).collect();
        through(images(7, sizes.side, place), |images| cutouts.apply(images, &plans), |_| {})
    };
    let comparing = Losses::examples()
        .image_losses()
        .into_iter()
        .map(|loss| loss.name())
        .map(move |name| Piece {
            name: format!("{name} loss"),
            half: false,
            run: Box::new(move |place: &Place| {
                let losses = Losses::examples();
                let loss = losses.image_losses().into_iter().find(|loss| loss.name() == name);
                let loss = loss.expect("the list of losses is always the same");
                let original = images(8, sizes.side, place);
                through(images(9, sizes.side, place), |images| loss.per_sample(original, images), |_| {})
            }),
        })
        .collect::<Vec<_>>();
    let adversarial = |place: &Place| {
        let logits = random(12, [SAMPLES, 1, 14, 14], &place.device, DType::F32) * 3.0;
        let lecam = LeCam { real: 0.4, fake: -0.2, decay: 0.9 };
        let all = |logits: Tensor<4>| {
            let kinds = [GanLoss::Hinge, GanLoss::Vanilla, GanLoss::NonSaturating];
            let each = kinds.into_iter().enumerate().map(|(index, kind)| {
                (kind.generator(logits.clone()) * 0.3 + kind.discriminator(logits.clone(), -logits.clone()))
                    * (index + 1) as f64
            });
            each.fold(lecam.per_sample(logits.clone(), logits.clone()), |sum, value| sum + value)
        };
        through(logits, all, |_| {})
    };
    let embeddings = |place: &Place| {
        let rows = |seed| random::<2>(seed, [8, 64], &place.device, DType::F32);
        let (original, texts) = (rows(13), rows(14));
        let turn = direction::between(rows(15).slice([0..2, 0..64]).without_autodiff()).autodiff();
        let all = |embeddings: Tensor<2>| {
            image::per_view(original.clone(), embeddings.clone())
                + text::per_view_paired(embeddings.clone(), texts.clone())
                + text::per_view(embeddings.clone(), texts, &[1.0, -0.2, 0.3, 0.1, 0.4, 0.6, -0.1, 0.2])
                + direction::per_view(original, embeddings, turn)
        };
        through(rows(16), all, |_| {})
    };
    let contrastive = |place: &Place| {
        let device = place.device.clone().without_autodiff();
        let rows = |seed| random::<2>(seed, [8, 64], &device, DType::F32);
        let groups = [0, 1, 2, 0, 3, 4, 5, 6];
        let loss = Contrastive::new(rows(17), rows(18), 20.0, Some(&groups));
        Ok(Values { output: read(loss.value)?, gradients: vec![read(loss.gradient)?] })
    };
    let piece = |name: &str, run| Piece { name: name.into(), half: false, run };
    let mut pieces = vec![
        piece("cutouts, all augmentations", Box::new(views)),
        piece("adversarial losses and LeCam", Box::new(adversarial)),
        piece("CLIP losses of single images", Box::new(embeddings)),
        piece("contrastive loss", Box::new(contrastive)),
    ];
    pieces.extend(comparing);
    pieces
}

/// What comes before the losses and after them.
fn around(sizes: &Sizes) -> Vec<Piece<'_>> {
    let upload = |place: &Place| {
        let pixels: Vec<u8> = (0..=255).cycle().take(SAMPLES * sizes.side * sizes.side * 3).collect();
        let captions = vec![None; SAMPLES];
        let batch = Batch { draws: vec![0, 1], resolution: sizes.side as u32, pixels, captions };
        let images = batch.images(&place.device.clone().without_autodiff(), DType::F32);
        Ok(Values { output: read(images)?, gradients: Vec::new() })
    };
    let optimizer = |name| {
        move |place: &Place| {
            let config = PatchGanConfig { channels: 16, layers: 2, norm: DiscriminatorNorm::Group };
            let weights = PatchGan::random_weights(&config, 5);
            let mut network = PatchGan::read(&WeightReader::new(&weights, &place.device, DType::F32), &config)?;
            let mut optimizer = ModelOptimizer::new(&OptimizerConfig { name, ..OptimizerConfig::default() });
            for step in 0..3 {
                let logits = network.forward(images(20 + step, 32, place));
                let weights = random(30 + step, logits.dims(), &place.device, DType::F32);
                let mut gradients = (logits * weights).sum().backward();
                let mut sum = GradientSum::default();
                sum.add_module(&mut gradients, &network);
                let gradients = sum.into_gradients(&network);
                network = optimizer.step(1e-2, network, gradients);
            }
            let parameters = state_dict(&network)?;
            let values = parameters.into_values().flat_map(|tensor| tensor.to_f32());
            Ok(Values { output: values.collect(), gradients: Vec::new() })
        }
    };
    vec![
        Piece { name: "images copied to the device".into(), half: false, run: Box::new(upload) },
        Piece { name: "three steps of Adam".into(), half: false, run: Box::new(optimizer(OptimizerName::Adam)) },
        Piece { name: "three steps of AdamW".into(), half: false, run: Box::new(optimizer(OptimizerName::AdamW)) },
    ]
}
