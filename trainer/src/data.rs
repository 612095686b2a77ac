//! From `[data]` to samples, and from a batch of bytes to images on a device.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use datasets::{
    Batch, Crop, DataError, FolderSource, ShapesSource, Source, Split, TrainingSet, Transform, Validation,
    ValidationSet,
};

use serde::{Deserialize, Serialize};

use crate::config::{Config, CropConfig, DataSource};
use crate::engine::MicroBatch;
use crate::models::weights::fnv1a;

/// The two halves of a source.
pub struct Data {
    /// What is trained on.
    pub training: Arc<TrainingSet>,
    /// What is never trained on.
    pub validation: Arc<ValidationSet>,
    /// What both were split from.
    pub pictures: Pictures,
}

/// Tells one set of pictures from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pictures {
    /// How many there are.
    pub count: usize,
    /// 64-bit FNV-1a of their names in order, in hexadecimal; below the folder's own path, which may change.
    pub names: String,
}

impl Pictures {
    fn of(source: &dyn Source, root: &Path) -> Self {
        let names = (0..source.len()).map(|index| source.name(index));
        let below = |name: String| match Path::new(&name).strip_prefix(root) {
            Ok(path) => path.display().to_string(),
            Err(_) => name,
        };
        let hash = fnv1a(names.flat_map(|name| below(name).into_bytes().into_iter().chain([0])));
        Self { count: source.len(), names: format!("{hash:016x}") }
    }
}

impl fmt::Display for Pictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} named {}", self.count, self.names)
    }
}

/// Opens the source of `config` and splits it.
///
/// # Errors
/// If there is no such folder or no image in it.
pub fn open(config: &Config) -> Result<Data, DataError> {
    let data = &config.data;
    let source: Arc<dyn Source> = match (data.source, &data.path) {
        (DataSource::Folder, Some(path)) => Arc::new(FolderSource::open(path)?),
        _ => Arc::new(ShapesSource::new(config.run.seed, data.images, data.resolution)?),
    };
    let pictures = Pictures::of(&*source, data.path.as_deref().unwrap_or(Path::new("")));
    let validation = data.validation.min(source.len() / 4);
    let split = Split::new(source.len(), Validation::Count(validation), config.run.seed)?;
    let crop = match data.crop {
        CropConfig::Random => Crop::Random,
        CropConfig::Center => Crop::Center,
    };
    let transform = Transform { crop, ..Transform::training(data.resolution, data.flip) };
    let validation = ValidationSet::new(source.clone(), split.validation, data.resolution, data.max_bad)?;
    let training = TrainingSet::new(source, split.train, transform, config.run.seed, data.max_bad)?;
    Ok(Data { training: Arc::new(training), validation: Arc::new(validation), pictures })
}

impl MicroBatch for Batch {
    fn samples(&self) -> usize {
        self.len()
    }

    /// Uploaded as bytes where the device has them, a quarter of the size, and normalised on the device.
    fn images(&self, device: &Device, dtype: DType) -> Tensor<4> {
        let side = self.resolution as usize;
        let shape = [self.len(), side, side, 3];
        // WGSL has no 8-bit values.
        let levels = if device.supports_dtype(DType::U8) {
            let bytes = TensorData::new(self.pixels.clone(), shape);
            Tensor::<4, Int>::from_data(bytes, (device, DType::U8)).float().cast(dtype)
        } else {
            let levels: Vec<f32> = self.pixels.iter().map(|&level| f32::from(level)).collect();
            Tensor::from_data(TensorData::new(levels, shape), (device, dtype))
        };
        levels.permute([0, 3, 1, 2]) / 127.5 - 1.0
    }

    fn draws(&self) -> &[u64] {
        &self.draws
    }

    fn captions(&self) -> &[Option<String>] {
        &self.captions
    }
}

/// Images `[N, 3, H, W]` in -1..1 (beyond is clamped) to rows of RGB bytes, one vector a sample.
///
/// # Errors
/// What the device says, if it failed.
pub fn to_pixels(images: Tensor<4>) -> Result<Vec<Vec<u8>>, String> {
    let [n, c, h, w] = images.dims();
    let levels = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).permute([0, 2, 3, 1]);
    let values = levels.try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = values.into_iter().map(|level| level.round() as u8).collect();
    Ok(bytes.chunks_exact((c * h * w).max(1)).take(n).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_survive_the_way_to_the_device_and_back() {
        let pixels: Vec<u8> = (0..=255).cycle().take(2 * 8 * 8 * 3).collect();
        let batch = Batch { draws: vec![0, 1], resolution: 8, pixels: pixels.clone(), captions: vec![None, None] };
        let images = batch.images(&Device::flex(), DType::F32);
        assert_eq!(images.dims(), [2, 3, 8, 8]);
        let first: Vec<f32> =
            images.clone().slice([0..1, 0..3, 0..1, 0..1]).into_data_as::<f32>().try_to_vec().unwrap();
        let expected = [0.0, 1.0, 2.0].map(|level: f32| level / 127.5 - 1.0);
        assert!(first.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{first:?}");
        assert_eq!(to_pixels(images).unwrap().concat(), pixels);
    }
}
