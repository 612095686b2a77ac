//! Parity with transformers' `CLIPModel` and `CLIPTokenizer` on a small random CLIP: see `tests/fixtures/README.md`.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use checkpoints::{Activation, Clip, ClipArchitecture, WeightsFile, load_clip};

use super::preprocess::{preprocess, resample_weights, resize};
use super::{ClipTokenizer, ImageEncoder, TextEncoder, TokenizerError};
use crate::models::weights::{WeightReader, state_dict};

const ACTIVATIONS: [(&str, Activation); 2] = [("quick_gelu", Activation::QuickGelu), ("gelu", Activation::Gelu)];
/// Batches of the fixture, named by the size of their images relative to the model's input.
const BATCHES: [&str; 4] = ["large", "small", "wide", "tall"];
/// The fixture was computed in f64 and is stored in f32.
const F64_TOLERANCE: f64 = 1e-7;
const F32_TOLERANCE: f64 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/clip").join(name)
}

/// The fixture's CLIP with another activation.
fn clip(activation: Activation) -> Clip {
    let mut clip = load_clip(fixture("transformers")).unwrap();
    clip.architecture.activation = activation;
    clip
}

fn image_encoder(clip: &Clip, device: &Device, dtype: DType) -> ImageEncoder {
    ImageEncoder::read(&WeightReader::frozen(&clip.weights, device, dtype), &clip.architecture).unwrap()
}

struct Expected(WeightsFile);

impl Expected {
    fn open() -> Self {
        Self(WeightsFile::open(fixture("parity.safetensors")).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.0.read(name).unwrap().to_f32().into_iter().map(f64::from).collect()
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device, dtype: DType) -> Tensor<D> {
        let shape = self.0.read(name).unwrap().shape;
        Tensor::from_data(TensorData::new(self.values(name), shape), (device, dtype))
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.without_autodiff().cast(DType::F64).into_data().try_into_vec::<f64>().unwrap()
}

/// `|a - b| / |b|`.
fn deviation(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let deviation = deviation(found, expected);
    println!("{what}: {deviation:.1e}");
    assert!(deviation <= tolerance, "{what}: {deviation:e}");
}

/// Returns the embeddings of the images, and the gradient of `(embeddings * vector).sum()` at the images.
fn embed(clip: &Clip, images: Tensor<4>, vector: Tensor<1>) -> (Vec<f64>, Vec<f64>) {
    let encoder = image_encoder(clip, &images.device().autodiff(), images.dtype());
    let images = images.autodiff().require_grad();
    let embeddings = encoder.forward(preprocess(images.clone(), &clip.architecture));
    let scalar = (embeddings.clone() * vector.autodiff().unsqueeze::<2>()).sum();
    let mut gradients = scalar.backward();
    (read(embeddings), read(images.grad_remove(&mut gradients).unwrap()))
}

#[test]
fn the_names_are_those_of_transformers() {
    let clip = clip(Activation::QuickGelu);
    let device = Device::flex();
    let reader = WeightReader::frozen(&clip.weights, &device, DType::F32);
    let mut read = state_dict(&ImageEncoder::read(&reader, &clip.architecture).unwrap()).unwrap();
    read.extend(state_dict(&TextEncoder::read(&reader, &clip.architecture).unwrap()).unwrap());
    for (name, tensor) in &read {
        assert_eq!(tensor.to_f32(), clip.weights[name].to_f32(), "{name}");
        assert_eq!(tensor.shape, clip.weights[name].shape, "{name}");
    }
    let unread: Vec<_> = clip.weights.keys().filter(|name| !read.contains_key(*name)).collect();
    assert_eq!(unread, ["logit_scale"]);
}

#[test]
fn images_are_preprocessed_as_by_torch() {
    let (expected, architecture) = (Expected::open(), clip(Activation::QuickGelu).architecture);
    for (dtype, tolerance) in [(DType::F64, F64_TOLERANCE), (DType::F32, 1e-6)] {
        for batch in BATCHES {
            let images = expected.tensor::<4>(&format!("{batch}.images"), &Device::flex(), dtype);
            let found = read(preprocess(images, &architecture));
            let name = format!("{batch}.preprocessed");
            assert_close(&format!("{name} {dtype:?}"), &found, &expected.values(&name), tolerance);
        }
    }
}

#[test]
fn embeddings_and_gradients_at_the_image_are_those_of_transformers() {
    let expected = Expected::open();
    for (name, activation) in ACTIVATIONS {
        let clip = clip(activation);
        for (dtype, tolerance) in [(DType::F64, F64_TOLERANCE), (DType::F32, F32_TOLERANCE)] {
            for batch in BATCHES {
                let device = Device::flex();
                let images = expected.tensor::<4>(&format!("{batch}.images"), &device, dtype);
                let (embeddings, gradient) = embed(&clip, images, expected.tensor("vector", &device, dtype));
                let at = format!("{batch}.{name}");
                let check = |what: &str, found: &[f64]| {
                    let expected = expected.values(&format!("{at}.{what}"));
                    assert_close(&format!("{at}.{what} {dtype:?}"), found, &expected, tolerance);
                };
                check("embeddings", &embeddings);
                check("gradient", &gradient);
            }
        }
    }
}

/// Two layers of random weights: this measures the rounding of the type, not of a trained model.
#[test]
fn half_precision_is_near() {
    let expected = Expected::open();
    for (name, activation) in ACTIVATIONS {
        let clip = clip(activation);
        for (dtype, of_embeddings, of_gradient) in [(DType::F16, 3e-3, 6e-3), (DType::BF16, 2e-2, 5e-2)] {
            for batch in BATCHES {
                let device = Device::flex();
                let images = expected.tensor::<4>(&format!("{batch}.images"), &device, dtype);
                let (embeddings, gradient) = embed(&clip, images, expected.tensor("vector", &device, dtype));
                let at = format!("{batch}.{name}");
                let [values, slopes] = ["embeddings", "gradient"].map(|what| expected.values(&format!("{at}.{what}")));
                assert_close(&format!("{at} {dtype:?} embeddings"), &embeddings, &values, of_embeddings);
                assert_close(&format!("{at} {dtype:?} gradient"), &gradient, &slopes, of_gradient);
            }
            let found = embed_texts(&clip, dtype, |ids| ids);
            let values = expected.values(&format!("text.{name}.embeddings"));
            assert_close(&format!("text.{name} {dtype:?}"), &found, &values, of_embeddings);
        }
    }
}

#[test]
fn the_gradient_at_the_image_is_that_of_finite_differences() {
    let expected = Expected::open();
    let device = Device::flex();
    for (_, activation) in ACTIVATIONS {
        let clip = clip(activation);
        let encoder = image_encoder(&clip, &device, DType::F64);
        for batch in ["small", "tall"] {
            let images = expected.tensor::<4>(&format!("{batch}.images"), &device, DType::F64);
            let vector = expected.tensor::<1>("vector", &device, DType::F64);
            let (_, gradient) = embed(&clip, images.clone(), vector.clone());
            let (shape, values) = (images.dims(), read(images));
            let scalar = |index: usize, step: f64| {
                let mut values = values.clone();
                values[index] += step;
                let images = Tensor::<4>::from_data(TensorData::new(values, shape), (&device, DType::F64));
                let embeddings = encoder.forward(preprocess(images, &clip.architecture));
                read((embeddings * vector.clone().unsqueeze::<2>()).sum())[0]
            };
            let size = gradient.iter().map(|g| g * g).sum::<f64>().sqrt() / (gradient.len() as f64).sqrt();
            for index in [0, 7, values.len() / 2 + 5, values.len() - 1] {
                let step = 1e-4;
                let slope = (scalar(index, step) - scalar(index, -step)) / (2.0 * step);
                let error = (slope - gradient[index]).abs() / size;
                assert!(error < 1e-6, "{batch} at {index}: {} against {slope}", gradient[index]);
            }
        }
    }
}

#[test]
fn an_image_is_embedded_the_same_in_any_batch() {
    let (expected, device) = (Expected::open(), Device::flex());
    let clip = clip(Activation::QuickGelu);
    let encoder = image_encoder(&clip, &device, DType::F64);
    let images = preprocess(expected.tensor("small.images", &device, DType::F64), &clip.architecture);
    let both = read(encoder.forward(images.clone()));
    let apart: Vec<f64> = images.split(1, 0).into_iter().flat_map(|image| read(encoder.forward(image))).collect();
    assert!(deviation(&apart, &both) < 1e-12);
}

#[derive(serde::Deserialize)]
struct Caption {
    text: String,
    /// All tokens.
    whole: Vec<u32>,
    /// The tokens that fit the context.
    ids: Vec<u32>,
    truncated: bool,
}

fn captions() -> Vec<Caption> {
    let lines = std::fs::read_to_string(fixture("tokens.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Embeds the fixture's captions, with their ids changed by `changed`.
fn embed_texts(clip: &Clip, dtype: DType, changed: impl Fn(Vec<u32>) -> Vec<u32>) -> Vec<f64> {
    let device = Device::flex();
    let encoder = TextEncoder::read(&WeightReader::frozen(&clip.weights, &device, dtype), &clip.architecture).unwrap();
    let rows: Vec<Vec<u32>> = captions().into_iter().map(|caption| changed(caption.ids)).collect();
    let shape = [rows.len(), rows[0].len()];
    let ids: Vec<i64> = rows.into_iter().flatten().map(i64::from).collect();
    read(encoder.forward(Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device)))
}

#[test]
fn text_embeddings_are_those_of_transformers_whatever_the_padding() {
    let expected = Expected::open();
    for (name, activation) in ACTIVATIONS {
        let clip = clip(activation);
        let end = clip.architecture.end_of_text;
        let padded_with_0 = |mut ids: Vec<u32>| {
            let length = ids.iter().position(|&id| id == end).unwrap() + 1;
            ids[length..].fill(0);
            ids
        };
        let values = expected.values(&format!("text.{name}.embeddings"));
        for (dtype, tolerance) in [(DType::F64, F64_TOLERANCE), (DType::F32, F32_TOLERANCE)] {
            let found = embed_texts(&clip, dtype, |ids| ids);
            assert_close(&format!("text.{name} {dtype:?}"), &found, &values, tolerance);
            assert_eq!(embed_texts(&clip, dtype, padded_with_0), found);
        }
    }
}

#[test]
fn captions_embed_the_same_beside_a_graph() {
    let clip = clip(Activation::QuickGelu);
    let device = Device::flex().autodiff();
    let reader = WeightReader::frozen(&clip.weights, &device, DType::F32);
    let encoder = TextEncoder::read(&reader, &clip.architecture).unwrap();
    let caption = &captions()[0].ids;
    let ids: Vec<i64> = caption.iter().copied().map(i64::from).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, caption.len()]), &Device::flex());
    let embedding = encoder.forward(ids);
    assert!(embedding.is_autodiff());
    let expected = Expected::open().values("text.quick_gelu.embeddings");
    let found = read(embedding);
    assert_close("text", &found, &expected[..found.len()], F32_TOLERANCE);
}

#[test]
fn a_constant_image_stays_constant() {
    for (height, width) in [(48, 48), (20, 20), (9, 50), (33, 32), (1, 1)] {
        let images = Tensor::<4>::full([2, 3, height, width], 0.75, (&Device::flex(), DType::F64));
        let resized = resize(images, 32);
        assert_eq!(resized.dims(), [2, 3, 32, 32]);
        assert!(read(resized).iter().all(|value| (value - 0.75).abs() < 1e-14), "{height}x{width}");
    }
}

#[test]
fn the_whole_axis_at_its_own_size_is_the_identity() {
    for size in [1, 2, 3, 32] {
        let identity: Vec<f64> = (0..size * size).map(|i| if i / size == i % size { 1.0 } else { 0.0 }).collect();
        assert_eq!(resample_weights(size, (0.0, size as f64), size), identity);
    }
}

#[test]
fn a_window_is_a_part_of_the_whole() {
    for (input, output) in [(48, 32), (20, 32), (31, 7)] {
        let whole = resample_weights(input, (0.0, input as f64), output);
        let scale = input as f64 / output as f64;
        let (first, length) = (output / 4, output / 2);
        let window = resample_weights(input, (first as f64 * scale, length as f64 * scale), length);
        let part = &whole[first * input..(first + length) * input];
        assert!(window.iter().zip(part).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!(window.chunks(input).all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-14));
    }
}

/// Builds OpenAI's file from the fixture's merges, with another heading and with more merges than are used.
fn openai_file() -> String {
    let merges = std::fs::read_to_string(fixture("open_clip/merges.txt")).unwrap();
    let (_, merges) = merges.split_once('\n').unwrap();
    format!("\"bpe_simple_vocab_16e6.txt#version: 0.2\n{merges}beyond thelast\nno </w>\n")
}

fn gzip(text: &str) -> Vec<u8> {
    use std::io::Write;
    let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    file.write_all(text.as_bytes()).unwrap();
    file.finish().unwrap()
}

#[test]
fn captions_become_the_tokens_of_transformers_from_every_file() {
    let architecture = clip(Activation::QuickGelu).architecture;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("plain.txt"), openai_file()).unwrap();
    std::fs::write(at("bpe_simple_vocab_16e6.txt.gz"), gzip(&openai_file())).unwrap();
    let files = [
        fixture("transformers/tokenizer.json"),
        fixture("transformers"),
        fixture("open_clip/vocab.json"),
        fixture("open_clip"),
        fixture("open_clip/merges.txt"),
        at("plain.txt"),
        folder.path().to_owned(),
    ];
    let long = ClipArchitecture { context_length: 200, ..architecture.clone() };
    let captions = captions();
    assert_eq!(captions.iter().filter(|caption| caption.truncated).count(), 10);
    for file in files {
        let tokenizer = ClipTokenizer::open(&file, &architecture).unwrap();
        for caption in &captions {
            let tokens = tokenizer.encode(&caption.text).unwrap();
            let found = (&tokens.ids, tokens.truncated);
            assert_eq!(found, (&caption.ids, caption.truncated), "{}: {}", file.display(), caption.text);
        }
        let tokenizer = ClipTokenizer::open(&file, &long).unwrap();
        for caption in &captions {
            let tokens = tokenizer.encode(&caption.text).unwrap();
            assert!(!tokens.truncated);
            let (whole, padding) = tokens.ids.split_at(caption.whole.len());
            assert_eq!(whole, caption.whole, "{}: {}", file.display(), caption.text);
            assert!(padding.iter().all(|&id| id == architecture.end_of_text));
        }
    }
}

/// CLIP's real vocabulary has tokens that are also keys of a `tokenizer.json`.
#[test]
fn a_vocabulary_may_have_any_word_for_a_token() {
    let architecture = clip(Activation::QuickGelu).architecture;
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("open_clip/vocab.json")).unwrap();
    let mut vocabulary: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let words = ["model", "version", "added_tokens", "normalizer"];
    for (word, id) in words.into_iter().zip(architecture.vocabulary..) {
        vocabulary.insert(word.to_owned(), id.into());
    }
    let larger = ClipArchitecture { vocabulary: architecture.vocabulary + words.len(), ..architecture };
    std::fs::write(folder.path().join("vocab.json"), serde_json::to_vec(&vocabulary).unwrap()).unwrap();
    std::fs::copy(fixture("open_clip/merges.txt"), folder.path().join("merges.txt")).unwrap();
    for path in [folder.path().to_owned(), folder.path().join("vocab.json")] {
        let tokenizer = ClipTokenizer::open(&path, &larger).unwrap();
        for caption in captions() {
            assert_eq!(tokenizer.encode(&caption.text).unwrap().ids, caption.ids, "{}", caption.text);
        }
    }
    std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
    let error = ClipTokenizer::open(&folder.path().join("vocab.json"), &larger).unwrap_err().to_string();
    assert!(error.contains("merges.txt: No such file"), "{error}");
}

#[test]
fn what_is_not_the_models_tokenizer_is_refused_in_one_line() {
    let architecture = clip(Activation::QuickGelu).architecture;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let refusal = |path: &Path, architecture: &ClipArchitecture| {
        let refused: TokenizerError = ClipTokenizer::open(path, architecture).unwrap_err();
        let message = refused.to_string();
        assert!(!message.contains('\n') && message.len() < 400, "{message}");
        message
    };
    let of = |name: &str, content: &[u8]| refusal(&write(name, content), &architecture);

    assert!(refusal(folder.path(), &architecture).contains("has none of tokenizer.json"));
    assert!(refusal(&folder.path().join("missing.json"), &architecture).contains("missing.json: No such file"));
    assert!(of("a.txt", b"a cat\nis no list\n").contains("neither JSON nor a list of merges"));
    assert!(of("b.txt", b"#version: 0.2\na b\nword\n").contains("not a pair of tokens: word"));
    assert!(of("c.txt", b"#version: 0.2\na b\n").contains("it has 1 merges"));
    assert!(of("d.txt", b"#version\n\xff\xfe").contains("not text"));
    assert!(of("e.json", b"{\"model\": 3}").contains("is not the tokenizer of this CLIP"));
    assert!(of("f.json", b"{\"a\": ").contains("EOF"));
    assert!(of("g.json", b"{\"a\": 0}").contains("merges.txt: No such file"));
    assert!(of("h.gz", b"\x1f\x8bnot a gzip").contains("h.gz"));

    let other = ClipArchitecture { end_of_text: 598, ..architecture.clone() };
    assert!(refusal(&fixture("transformers"), &other).contains("must be [start of text, 598]"));
    assert!(refusal(&fixture("open_clip"), &other).contains("is not number 598"));
    let other = ClipArchitecture { vocabulary: 599, ..architecture };
    assert!(refusal(&fixture("transformers"), &other).contains("token 599, but the model has only 599 tokens"));
}
