//! `train reconstruct IMAGES…`: encodes and decodes images with a model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::tensor::{DType, Device, Tensor};
use checkpoints::{HostTensor, write_safetensors};
use clap::Args;
use datasets::{Batch, Crop, SampleKey, Transform};
use serde_json::json;

use super::{CommandError, Json, parse_device, print_json, print_line};
use crate::data::to_pixels;
use crate::device::Choice;
use crate::engine::MicroBatch;
use crate::models::VqGan;
use crate::training::pretrained::pretrained;

#[derive(Debug, Args)]
pub(super) struct ReconstructArgs {
    /// Images: files of type jpg, png, webp, gif, tiff or bmp
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
    note!("device: {}; model: {}", selected.description, initial.description);

    let in_output = |source| CommandError::Io { path: args.output.display().to_string(), source };
    std::fs::create_dir_all(&args.output).map_err(in_output)?;
    let (mut results, mut tensors) = (Vec::new(), Tensors::default());
    let outputs = output_paths(&args.images, &args.output)?;
    for (path, output) in args.images.iter().zip(outputs) {
        let pixels = read_square(path, resolution)?;
        let (original, reconstruction) = reconstruct(&model, &selected.device, pixels, resolution);
        let error = mean_absolute_error(&original, &reconstruction)?;
        let pixels = to_pixels(reconstruction.clone()).map_err(CommandError::Compute)?.concat();
        write_png(&output, pixels, resolution)?;
        if args.tensors.is_some() {
            tensors.push(original, reconstruction)?;
        }
        if !args.json.json {
            print_line(&format!("{}  {error:.4}  {}", path.display(), output.display()))?;
        }
        results.push(json!({ "image": path, "error": error, "reconstruction": output }));
    }
    if let Some(path) = &args.tensors {
        tensors.write(path, resolution)?;
    }
    if args.json.json {
        print_json(&json!({ "images": results, "resolution": resolution }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the middle square of an image, as RGB bytes.
fn read_square(path: &Path, resolution: u32) -> Result<Vec<u8>, CommandError> {
    let image = datasets::read_image(path)?;
    let named = |problem: datasets::ImageProblem| problem.named(path.display().to_string());
    let transform = Transform { crop: Crop::Center, min_side: 1, ..Transform::validation(resolution) };
    let key = SampleKey { seed: 0, draw: 0 };
    Ok(transform.apply(&image, key).map_err(named)?)
}

/// Returns the image as the model sees it and its reconstruction, both `[1, 3, H, W]` in -1..1.
fn reconstruct(model: &VqGan, device: &Device, pixels: Vec<u8>, resolution: u32) -> (Tensor<4>, Tensor<4>) {
    let batch = Batch { draws: vec![0], resolution, pixels, captions: vec![None] };
    let original = batch.images(device, DType::F32);
    let (reconstruction, _) = model.reconstruct(original.clone());
    (original, reconstruction)
}

/// Computes the mean absolute error of values in -1..1, with the reconstruction clamped to the range of an image.
fn mean_absolute_error(original: &Tensor<4>, reconstruction: &Tensor<4>) -> Result<f64, CommandError> {
    let error = (reconstruction.clone().clamp(-1.0, 1.0) - original.clone()).abs().mean();
    let error = error.try_into_vec_as::<f32>().map_err(|error| CommandError::Compute(error.to_string()))?;
    Ok(error.first().copied().map_or(f64::NAN, f64::from))
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

/// Returns the path of a PNG for each image, with the image's own name, and a number if that is taken.
///
/// # Errors
/// If a reconstruction would replace one of the images.
fn output_paths(images: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let inputs: BTreeSet<PathBuf> = images.iter().filter_map(|image| image.canonicalize().ok()).collect();
    let mut taken = BTreeSet::new();
    let mut path_of = |image: &PathBuf| {
        let stem = image.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let numbered = (2..).map(|number| format!("{stem}-{number}"));
        let mut names = std::iter::once(stem.clone()).chain(numbered);
        // Some file systems ignore case.
        let name = names.find(|name| taken.insert(name.to_lowercase())).unwrap_or(stem);
        let path = folder.join(format!("{name}.png"));
        match path.canonicalize().is_ok_and(|path| inputs.contains(&path)) {
            true => {
                let message = format!("--output {} would replace the image {}", folder.display(), path.display());
                Err(CommandError::Usage(message))
            }
            false => Ok(path),
        }
    };
    images.iter().map(&mut path_of).collect()
}

fn write_png(path: &Path, pixels: Vec<u8>, side: u32) -> Result<(), CommandError> {
    let failed = |source| CommandError::Io { path: path.display().to_string(), source };
    let image = image::RgbImage::from_raw(side, side, pixels).unwrap_or_else(|| image::RgbImage::new(side, side));
    image.save(path).map_err(|error| match error {
        image::ImageError::IoError(source) => failed(source),
        other => failed(std::io::Error::other(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_the_same_name_do_not_overwrite_each_other() {
        let images = ["a/x.jpg", "b/x-2.png", "c/X.bmp", "d/x.webp", "y.bmp"].map(PathBuf::from);
        let paths = output_paths(&images, Path::new("out")).unwrap();
        let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["x.png", "x-2.png", "X-3.png", "x-4.png", "y.png"]);
    }

    #[test]
    fn an_image_is_never_replaced_by_its_reconstruction() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("mine.png");
        std::fs::write(&image, "an image").unwrap();
        let error = output_paths(&[image], folder.path()).unwrap_err().to_string();
        assert!(error.contains("would replace"), "{error}");
    }
}
