//! `train reconstruct IMAGES…`: what a model makes of pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::tensor::{DType, Device, Tensor};
use checkpoints::{HostTensor, write_safetensors};
use clap::Args;
use datasets::{Batch, Crop, SampleKey, Transform};
use serde_json::json;

use super::{CommandError, Json, parse_device, print_json};
use crate::data::to_pixels;
use crate::device::Choice;
use crate::engine::MicroBatch;
use crate::models::VqGan;
use crate::pretrained::pretrained;

#[derive(Debug, Args)]
pub(super) struct ReconstructArgs {
    /// Images: files of type jpg, png, webp or bmp
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// A run's folder, a checkpoint, or a pretrained model as in model.pretrained
    #[arg(long, value_name = "RUN-OR-MODEL")]
    checkpoint: String,
    /// Folder for the reconstructions
    #[arg(long, value_name = "DIR", default_value = "reconstructions")]
    output: PathBuf,
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
    let selected = args.device.open()?;
    let initial = pretrained(&args.checkpoint)?;
    let resolution = args.resolution.or(initial.resolution).unwrap_or(256);
    let factor = initial.architecture.downsampling() as u32;
    if resolution == 0 || !resolution.is_multiple_of(factor) {
        let message = format!("--resolution is {resolution}, must be a multiple of {factor} for this model");
        return Err(CommandError::Usage(message));
    }
    let model = VqGan::new(&initial.architecture, &initial.weights, &selected.device, DType::F32)?;
    eprintln!("device: {}; model: {}", selected.description, initial.description);

    let in_output = |source| CommandError::Io { path: args.output.display().to_string(), source };
    std::fs::create_dir_all(&args.output).map_err(in_output)?;
    let (mut results, mut pairs) = (Vec::new(), Vec::new());
    for (index, path) in args.images.iter().enumerate() {
        let pixels = read_square(path, resolution)?;
        let (original, reconstruction) = reconstruct(&model, &selected.device, pixels, resolution);
        let error = mean_absolute_error(&original, &reconstruction)?;
        let output = args.output.join(output_name(&args.images, index));
        let pixels = to_pixels(reconstruction.clone()).map_err(CommandError::Compute)?.concat();
        write_png(&output, pixels, resolution)?;
        pairs.push((original, reconstruction));
        if !args.json.json {
            println!("{}  {error:.4}  {}", path.display(), output.display());
        }
        results.push(json!({ "image": path, "error": error, "reconstruction": output }));
    }
    if let Some(path) = &args.tensors {
        write_tensors(path, pairs)?;
    }
    if args.json.json {
        print_json(&json!({ "images": results, "resolution": resolution }));
    }
    Ok(ExitCode::SUCCESS)
}

/// The middle square of an image, as RGB bytes.
fn read_square(path: &Path, resolution: u32) -> Result<Vec<u8>, CommandError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| CommandError::Io { path: name.clone(), source })?;
    let named = |problem: datasets::ImageProblem| problem.named(name.clone());
    let picture = datasets::decode(&bytes).map_err(named)?;
    let transform = Transform { crop: Crop::Center, min_side: 1, ..Transform::validation(resolution) };
    let key = SampleKey { seed: 0, draw: 0 };
    Ok(transform.apply(&picture, key).map_err(named)?)
}

/// The image as the model sees it, and what it makes of it, both `[1, 3, H, W]` in -1..1.
fn reconstruct(model: &VqGan, device: &Device, pixels: Vec<u8>, resolution: u32) -> (Tensor<4>, Tensor<4>) {
    let batch = Batch { draws: vec![0], resolution, pixels, captions: vec![None] };
    let original = batch.images(device, DType::F32);
    let (reconstruction, _) = model.reconstruct(original.clone());
    (original, reconstruction)
}

/// For values in -1..1, as a picture can hold them.
fn mean_absolute_error(original: &Tensor<4>, reconstruction: &Tensor<4>) -> Result<f64, CommandError> {
    let error = (reconstruction.clone().clamp(-1.0, 1.0) - original.clone()).abs().mean();
    let error = error.try_into_vec_as::<f32>().map_err(|error| CommandError::Compute(error.to_string()))?;
    Ok(error.first().copied().map_or(f64::NAN, f64::from))
}

/// Not clamped: what others compute with the same weights can be compared to the last digit.
fn write_tensors(path: &Path, pairs: Vec<(Tensor<4>, Tensor<4>)>) -> Result<(), CommandError> {
    let (inputs, reconstructions): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let mut tensors = BTreeMap::new();
    for (name, images) in [("input", inputs), ("reconstruction", reconstructions)] {
        let images = Tensor::cat(images, 0);
        let shape = images.dims();
        let values = images.try_into_vec_as::<f32>().map_err(|error| CommandError::Compute(error.to_string()))?;
        tensors.insert(name.to_owned(), HostTensor::from_f32(shape, &values));
    }
    write_safetensors(path, &tensors, None).map_err(CommandError::Tensors)
}

/// The image's own name as PNG, numbered where an earlier image has the same.
fn output_name(images: &[PathBuf], index: usize) -> String {
    let stem = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = stem(&images[index]);
    match images[..index].iter().filter(|earlier| stem(earlier) == name).count() {
        0 => format!("{name}.png"),
        earlier => format!("{name}-{}.png", earlier + 1),
    }
}

fn write_png(path: &Path, pixels: Vec<u8>, side: u32) -> Result<(), CommandError> {
    let failed = |source| CommandError::Io { path: path.display().to_string(), source };
    let picture = image::RgbImage::from_raw(side, side, pixels).unwrap_or_else(|| image::RgbImage::new(side, side));
    picture.save(path).map_err(|error| match error {
        image::ImageError::IoError(source) => failed(source),
        other => failed(std::io::Error::other(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_the_same_name_do_not_overwrite_each_other() {
        let images = ["a/x.jpg", "b/x.png", "y.bmp", "c/x.webp"].map(PathBuf::from);
        let names: Vec<String> = (0..4).map(|index| output_name(&images, index)).collect();
        assert_eq!(names, ["x.png", "x-2.png", "y.png", "x-3.png"]);
    }
}
