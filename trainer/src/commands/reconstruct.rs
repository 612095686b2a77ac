//! `train reconstruct IMAGES…`: encodes and decodes images with a model, and measures how alike they are.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::tensor::{DType, Device, Tensor};
use checkpoints::{HostTensor, write_safetensors};
use clap::Args;
use datasets::{Batch, Crop, ImageError, SampleKey, Transform};
use image::RgbImage;
use serde_json::json;

use super::images::{ImageArgument, find_images, output_paths};
use super::{CommandError, Json, parse_device, print_json, print_line};
use crate::config::{ClipConfig, Config};
use crate::data::to_pixels;
use crate::device::Choice;
use crate::engine::MicroBatch;
use crate::evaluation::{ImageJudges, ImageScores, is_large_enough, lpips_networks, side_by_side};
use crate::losses::load::{LossError, is_here};
use crate::losses::{LoadContext, PerceptualConfig};
use crate::models::VqGan;
use crate::show::counted;
use crate::training::TrainError;
use crate::training::pretrained::{Initial, pretrained};

#[derive(Debug, Args)]
pub(super) struct ReconstructArgs {
    /// Images (jpg, png, webp, gif, tiff or bmp), folders that are searched for images, or patterns like 'photos/*.jpg'
    #[arg(required = true, value_name = "IMAGES")]
    images: Vec<PathBuf>,
    /// A run's folder, a checkpoint, or a pretrained model as in model.pretrained
    #[arg(long, value_name = "RUN-OR-MODEL")]
    checkpoint: String,
    /// Folder for the reconstructions
    #[arg(long, value_name = "DIR", default_value = "reconstructions")]
    output: PathBuf,
    /// Also write each image beside its reconstruction, as NAME-compare.png
    #[arg(long)]
    compare: bool,
    /// Measure LPIPS too, with these weights of VGG16 or AlexNet: a file or hf://owner/name, as in
    /// losses.perceptual.backbone [default: those of the run, if they are on this machine]
    #[arg(long, value_name = "WEIGHTS")]
    lpips: Option<String>,
    /// Measure the similarity to CLIP too, with this CLIP: a folder, a file, hf://owner/name or clip-shapes
    /// [default: that of the run, if it is on this machine]
    #[arg(long, value_name = "MODEL")]
    clip: Option<String>,
    /// Also write `input` and `reconstruction`, [N, 3, H, W] in -1..1, to this safetensors file
    #[arg(long, value_name = "FILE")]
    tensors: Option<PathBuf>,
    /// Side of the square that is cut out of an image, in pixels [default: that of the run, else 256]
    #[arg(long)]
    resolution: Option<u32>,
    /// auto, cpu, cuda:N, wgpu:N or wgpu:cpu
    #[arg(long, value_parser = parse_device, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &ReconstructArgs) -> Result<ExitCode, CommandError> {
    let images = find_images(&args.images, &args.output)?;
    let paths = output_paths(&images, &args.output, args.compare)?;
    let selected = args.device.open()?;
    let initial = pretrained(&args.checkpoint)?;
    let resolution = args.resolution.or(initial.resolution).unwrap_or(256);
    let factor = initial.architecture.downsampling() as u32;
    if resolution == 0 || !resolution.is_multiple_of(factor) {
        let message = format!("--resolution is {resolution}, must be a multiple of {factor} for this model");
        return Err(CommandError::Usage(message));
    }
    let model = VqGan::new(&initial.architecture, &initial.weights, &selected.device, DType::F32)?;
    note!("device: {}; model: {}", selected.description, initial.description);
    let judges = load_judges(args, &initial, resolution, &selected.device)?;

    let table = Table::new(&images, judges.measure());
    if !args.json.json {
        print_line(&table.header())?;
    }
    let (mut results, mut all, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    let mut tensors = Tensors::default();
    for (image, (path, comparison)) in images.iter().zip(paths) {
        let pixels = match read_square(image, resolution) {
            Ok(pixels) => pixels,
            Err(error) if image.is_named => return Err(error.into()),
            Err(error) => {
                note!("skipped {error}");
                skipped.push(json!({ "image": image.path, "error": error.problem.to_string() }));
                continue;
            }
        };
        let (original, reconstruction) = reconstruct(&model, &selected.device, pixels.clone(), resolution);
        let clamped = reconstruction.clone().clamp(-1.0, 1.0);
        let scores = judges.scores(&original, &clamped).map_err(CommandError::Compute)?;
        let reconstructed = to_pixels(clamped).map_err(CommandError::Compute)?.concat();
        if let Some(path) = &comparison {
            write_png(path, &side_by_side([&pixels, &reconstructed], resolution))?;
        }
        write_png(&path, &square(reconstructed, resolution))?;
        if args.tensors.is_some() {
            tensors.push(original, reconstruction)?;
        }
        if !args.json.json {
            print_line(&table.row(&image.path.display().to_string(), &scores, &path.display().to_string()))?;
        }
        let mut result = json!(scores);
        result["image"] = json!(image.path);
        result["reconstruction"] = json!(path);
        if let Some(path) = comparison {
            result["comparison"] = json!(path);
        }
        results.push(result);
        all.push(scores);
    }
    let Some(mean) = ImageScores::mean(&all) else {
        return Err(CommandError::Usage(format!("none of {} can be read", counted(images.len() as u64, "image"))));
    };
    if let Some(path) = &args.tensors {
        tensors.write(path, resolution)?;
    }
    match args.json.json {
        true => print_json(&json!({ "images": results, "mean": mean, "skipped": skipped, "resolution": resolution }))?,
        false => print_line(&table.row(&mean_of(all.len()), &mean, ""))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads the networks that the command line names, and those of the run that are on this machine.
fn load_judges(
    args: &ReconstructArgs,
    initial: &Initial,
    resolution: u32,
    device: &Device,
) -> Result<ImageJudges, CommandError> {
    let fallback = Config::default();
    let run = initial.config.as_deref();
    let config = run.unwrap_or(&fallback);
    let autodiff = device.clone().autodiff();
    let context = LoadContext {
        around: config.surroundings(),
        quantizer: &initial.architecture.quantizer,
        device: &autodiff,
        frozen: DType::F32,
        discriminator: None,
    };
    let mut judges = ImageJudges::default();
    let perceptual = &config.losses.perceptual;
    if let Some(weights) = &args.lpips {
        let named =
            |network| PerceptualConfig { network, backbone: Some(weights.clone()), ..PerceptualConfig::default() };
        // The file tells by its weights which network it is.
        let [first, second] = lpips_networks(config).map(named);
        let loaded = judges.load_lpips(&first, &context);
        let loaded = loaded.or_else(|error| judges.load_lpips(&second, &context).map_err(|_| error));
        loaded.map_err(|error| CommandError::Judge { option: "--lpips", source: Box::new(error) })?;
    } else if run.is_some()
        && perceptual.has_lpips()
        && !perceptual.is_random()
        && is_large_enough(perceptual.network, resolution)
    {
        match perceptual.files().all(|(key, spec)| is_here(key, spec)) {
            true => judges.load_lpips(perceptual, &context).map_err(of_run)?,
            false => note!("without LPIPS, since the run's network for it is not on this machine; --lpips fetches one"),
        }
    }
    if let Some(model) = &args.clip {
        let table = ClipConfig { pretrained: Some(model.clone()), ..Default::default() };
        let loaded = judges.load_clip(&table, device);
        loaded.map_err(|error| CommandError::Judge { option: "--clip", source: Box::new(error) })?;
    } else if run.is_some() && config.has_clip() && !config.clip.is_random() {
        match is_here("clip.pretrained", config.clip.location()) {
            true => judges.load_clip(&config.clip, device).map_err(of_run)?,
            false => {
                note!("without CLIP's similarity, since the run's CLIP is not on this machine; --clip fetches one")
            }
        }
    }
    Ok(judges)
}
/// Images and reconstructions on the host. They are not clamped, so that they can be compared to the last digit with
/// what other programs compute with the same weights.
#[derive(Default)]
struct Tensors {
    inputs: Vec<f32>,
    reconstructions: Vec<f32>,
    count: usize,
}

impl Tensors {
    fn push(&mut self, input: Tensor<4>, reconstruction: Tensor<4>) -> Result<(), CommandError> {
        for (values, tensor) in [(&mut self.inputs, input), (&mut self.reconstructions, reconstruction)] {
            let read = tensor.try_into_vec_as::<f32>().map_err(|error| CommandError::Compute(error.to_string()))?;
            values.extend(read);
        }
        self.count += 1;
        Ok(())
    }

    fn write(&self, path: &Path, side: u32) -> Result<(), CommandError> {
        let shape = [self.count, 3, side as usize, side as usize];
        let tensor = |values: &[f32]| HostTensor::from_f32(shape, values);
        let named = [("input", &self.inputs), ("reconstruction", &self.reconstructions)];
        let tensors = named.into_iter().map(|(name, values)| (name.to_owned(), tensor(values))).collect();
        write_safetensors(path, &tensors, None).map_err(CommandError::Tensors)?;
        Ok(())
    }
}

/// Why a network of the run cannot be used.
fn of_run(error: LossError) -> CommandError {
    TrainError::from(error).into()
}

/// Reads the middle square of an image, as RGB bytes.
fn read_square(image: &ImageArgument, resolution: u32) -> Result<Vec<u8>, ImageError> {
    let source = image.read()?;
    let transform = Transform { crop: Crop::Center, min_side: 1, ..Transform::validation(resolution) };
    let square = transform.apply(&source.pixels, SampleKey { seed: 0, draw: 0 });
    square.map_err(|problem| problem.named(image.path.display().to_string()))
}

/// Returns the image as the model sees it and its reconstruction, both `[1, 3, H, W]` in -1..1.
fn reconstruct(model: &VqGan, device: &Device, pixels: Vec<u8>, resolution: u32) -> (Tensor<4>, Tensor<4>) {
    let batch = Batch { draws: vec![0], resolution, pixels, captions: vec![None] };
    let original = batch.images(device, DType::F32);
    let (reconstruction, _) = model.reconstruct(original.clone());
    (original, reconstruction)
}

fn square(pixels: Vec<u8>, side: u32) -> RgbImage {
    RgbImage::from_raw(side, side, pixels).unwrap_or_else(|| RgbImage::new(side, side))
}

fn write_png(path: &Path, image: &RgbImage) -> Result<(), CommandError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| CommandError::Io { path, source }
    };
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    image.save(path).map_err(|error| match error {
        image::ImageError::IoError(source) => failed(path)(source),
        other => failed(path)(std::io::Error::other(other)),
    })
}

/// The result as text: a line for each image, and their means.
struct Table {
    /// Characters of the first column.
    width: usize,
    /// Whether there are columns for LPIPS and CLIP.
    measured: [bool; 2],
}

impl Table {
    fn new(images: &[ImageArgument], measured: [bool; 2]) -> Self {
        let widths = images.iter().map(|image| image.path.display().to_string().chars().count());
        let width = widths.chain([mean_of(images.len()).len()]).max().unwrap_or_default();
        Self { width, measured }
    }

    fn header(&self) -> String {
        let [lpips, clip] = self.measured;
        let [lpips, clip] =
            [(lpips, "   LPIPS"), (clip, "    CLIP")].map(|(there, name)| if there { name } else { "" });
        format!("{:<width$}   error   PSNR    SSIM{lpips}{clip}  reconstruction", "image", width = self.width)
    }

    fn row(&self, name: &str, scores: &ImageScores, path: &str) -> String {
        let optional = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
        let [lpips, clip] = self.measured;
        let columns = [(true, scores.ssim), (lpips, scores.lpips), (clip, scores.clip)].into_iter();
        let more: String =
            columns.filter(|(there, _)| *there).map(|(_, value)| format!("{:>8}", optional(value))).collect();
        let ImageScores { error, psnr, .. } = scores;
        let line = format!("{name:<width$}{error:>8.4}{psnr:>7.2}{more}  {path}", width = self.width);
        line.trim_end().to_owned()
    }
}

fn mean_of(images: usize) -> String {
    format!("{}{}", if images == 1 { "" } else { "mean of " }, counted(images as u64, "image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_names() {
        let scores = ImageScores { error: 0.0312, psnr: 24.5, ssim: None, lpips: Some(0.25), clip: Some(0.875) };
        let table = Table { width: 8, measured: [true, true] };
        assert_eq!(table.header(), "image      error   PSNR    SSIM   LPIPS    CLIP  reconstruction");
        assert_eq!(table.row("mine.png", &scores, "a.png"), "mine.png  0.0312  24.50       –  0.2500  0.8750  a.png");
        let table = Table { width: 8, measured: [false, true] };
        assert_eq!(table.header(), "image      error   PSNR    SSIM    CLIP  reconstruction");
        assert_eq!(table.row("1 image", &scores, ""), "1 image   0.0312  24.50       –  0.8750");
    }
}
