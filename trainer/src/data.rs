//! Opens the data of `[data]`, and converts between batches of bytes and images on a device.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use datasets::{
    Awaited, Batch, Crop, DataError, DataSource, Loader, Source, SourceSettings, Split, TrainingSet, Transform,
    Validation, ValidationSet,
};

use serde::{Deserialize, Serialize};

use crate::config::{Config, CropConfig};
use crate::engine::MicroBatch;
use crate::models::weights::fnv1a;
use crate::show::counted;

/// The images of a run.
pub struct Data {
    /// The images to train on.
    pub training: Arc<TrainingSet>,
    /// The images for validation, which are never trained on.
    pub validation: Arc<ValidationSet>,
    /// The set of images from which both were split.
    pub images: ImageSet,
    /// Images in the same place that cannot be read.
    pub skipped: usize,
    /// What the user should know of the images before the run starts, one line each.
    pub notes: Vec<String>,
    /// Why earlier versions of this program found other images in the same place, one line each.
    pub version_differences: Vec<String>,
}

impl Data {
    /// How many images have captions; `None` if `config` needs none, so that they are not read. Where a loss needs captions,
    /// every image to train on has to have one already.
    pub fn captioned(&self, config: &Config) -> Option<usize> {
        let training = || match config.losses.needs_captions() {
            true => self.training.len(),
            false => self.training.count_captioned(),
        };
        config.needs_captions().then(|| training() + self.validation.count_captioned())
    }
}

/// Numbers of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ImageCounts {
    /// Images to train on.
    pub training: usize,
    /// Images to validate on.
    pub validation: usize,
    /// How many of both have captions; `None` if nothing needs captions.
    pub captioned: Option<usize>,
    /// Images in the same place that cannot be read.
    pub skipped: usize,
}

impl ImageCounts {
    /// Counts the images of `data`, which are those of `config`.
    pub fn of(data: &Data, config: &Config) -> Self {
        Self {
            training: data.training.len(),
            validation: data.validation.len(),
            captioned: data.captioned(config),
            skipped: data.skipped,
        }
    }
}

impl fmt::Display for ImageCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { training, validation, captioned, skipped } = self;
        f.write_str(&counted((training + validation) as u64, "image"))?;
        if let Some(captioned) = captioned {
            write!(f, ", {captioned} captioned")?;
        }
        if *skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        write!(f, "; {training} to train on, {validation} to validate on")
    }
}

/// Identifies a set of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSet {
    /// The number of images.
    pub count: usize,
    /// 64-bit FNV-1a hash of their names in order, in hexadecimal. The names are relative to the folder, which may
    /// move.
    pub names: String,
}

impl ImageSet {
    fn of(source: &dyn Source, root: &Path) -> Self {
        let names = (0..source.len()).map(|index| source.name(index));
        let relative = |name: String| match Path::new(&name).strip_prefix(root) {
            Ok(path) => path.display().to_string(),
            Err(_) => name,
        };
        let hash = fnv1a(names.flat_map(|name| relative(name).into_bytes().into_iter().chain([0])));
        Self { count: source.len(), names: format!("{hash:016x}") }
    }
}

impl fmt::Display for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} named {}", self.count, self.names)
    }
}

/// Opens the source of `config` and splits it into training and validation.
///
/// # Errors
/// The source cannot be opened, or has no images.
pub fn open(config: &Config) -> Result<Data, DataError> {
    let data = &config.data;
    let source = data.source.open(&config.source_settings())?;
    let (mut notes, version_differences) = (source.notes(), source.version_differences());
    let skipped = source.skipped();
    let images = ImageSet::of(&*source, data.path.as_deref().unwrap_or(Path::new("")));
    let validation = data.validation.min(source.len() / 4);
    if validation < data.validation {
        notes.push(format!(
            "`data.validation` is {}, but {validation} are kept: at most a quarter of {} images",
            data.validation,
            source.len()
        ));
    }
    let split = Split::new(source.len(), Validation::Count(validation), config.run.seed)?;
    let crop = match data.crop {
        CropConfig::Random => Crop::Random,
        CropConfig::Center => Crop::Center,
    };
    let transform = Transform { crop, ..Transform::training(data.resolution, data.flip) };
    let validation = ValidationSet::new(source.clone(), split.validation, data.resolution, data.max_bad)?;
    let training = TrainingSet::new(source, split.train, transform, config.run.seed, data.max_bad)?;
    let (training, validation) = (Arc::new(training), Arc::new(validation));
    Ok(Data { training, validation, images, skipped, notes, version_differences })
}

/// The images of an evaluation.
pub struct EvaluationImages {
    /// The images, in their order.
    pub set: Arc<ValidationSet>,
    /// All images of the source.
    pub source: ImageSet,
    /// Whether every image has a caption.
    pub has_captions: bool,
    /// What the user should know of the images, one line each.
    pub notes: Vec<String>,
}

/// Opens all images of a source for an evaluation, or `count` of them, evenly spread over the source.
///
/// # Errors
/// The source cannot be opened, or has no images.
pub fn open_for_evaluation(
    source: DataSource,
    settings: &SourceSettings,
    count: Option<usize>,
    max_bad: usize,
) -> Result<EvaluationImages, DataError> {
    let images = source.open(settings)?;
    let (len, notes) = (images.len(), images.notes());
    let source = ImageSet::of(&*images, settings.path.unwrap_or(Path::new("")));
    let count = count.unwrap_or(len).min(len);
    let indices = (0..count).map(|at| at * len / count).collect();
    let set = Arc::new(ValidationSet::new(images, indices, settings.resolution, max_bad)?);
    let has_captions = settings.needs_captions && set.first_without_caption().is_none();
    Ok(EvaluationImages { set, source, has_captions, notes })
}

/// Returns the images of `batch` from `first` on, `count` of them at most.
pub fn part(batch: &Batch, first: usize, count: usize) -> Batch {
    let (resolution, range) = (batch.resolution, first..(first + count).min(batch.len()));
    let bytes = 3 * resolution as usize * resolution as usize;
    Batch {
        draws: batch.draws[range.clone()].to_vec(),
        resolution,
        pixels: batch.pixels[range.start * bytes..range.end * bytes].to_vec(),
        captions: batch.captions[range].to_vec(),
    }
}

/// A loader that waits longer than this for an image names it.
const LONG_WAIT: Duration = Duration::from_secs(30);

/// Returns the next `count` samples of `loader`, or `None` as soon as `proceed` returns false, also while it waits for
/// samples. Calls `say` with a line about each image that takes long.
///
/// # Errors
/// As for [`Loader::next_batch`].
pub fn next_batch(
    loader: &mut Loader,
    count: usize,
    proceed: impl FnMut() -> bool,
    say: impl FnMut(&str),
) -> Result<Option<Batch>, DataError> {
    next_batch_within(LONG_WAIT, loader, count, proceed, say)
}

fn next_batch_within(
    long_wait: Duration,
    loader: &mut Loader,
    count: usize,
    mut proceed: impl FnMut() -> bool,
    mut say: impl FnMut(&str),
) -> Result<Option<Batch>, DataError> {
    let mut named: Option<Instant> = None;
    let batch = loader.next_batch_while(count, &mut |awaited: Option<&Awaited>| {
        if let Some(Awaited { name, since }) = awaited
            && named != Some(*since)
            && since.elapsed() >= long_wait
        {
            say(&format!("still waiting for {name} after {} s", since.elapsed().as_secs()));
            named = Some(*since);
        }
        proceed()
    });
    match batch {
        Ok(batch) => Ok(Some(batch)),
        Err(DataError::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

impl MicroBatch for Batch {
    fn samples(&self) -> usize {
        self.len()
    }

    fn images(&self, device: &Device, dtype: DType) -> Tensor<4> {
        let side = self.resolution as usize;
        to_images(&self.pixels, [self.len(), side, side], device, dtype)
    }

    fn draws(&self) -> &[u64] {
        &self.draws
    }

    fn captions(&self) -> &[Option<String>] {
        &self.captions
    }
}

/// Converts rows of RGB bytes of `[N, H, W]` pixels to images `[N, 3, H, W]` in -1..1.
///
/// Uploads bytes if the device supports them, which is a quarter of the size, and normalises them on the device.
pub fn to_images(pixels: &[u8], [n, height, width]: [usize; 3], device: &Device, dtype: DType) -> Tensor<4> {
    let shape = [n, height, width, 3];
    // WGSL has no 8-bit values.
    let levels = if device.supports_dtype(DType::U8) {
        let bytes = TensorData::new(pixels.to_vec(), shape);
        Tensor::<4, Int>::from_data(bytes, (device, DType::U8)).float().cast(dtype)
    } else {
        let levels: Vec<f32> = pixels.iter().map(|&level| f32::from(level)).collect();
        Tensor::from_data(TensorData::new(levels, shape), (device, dtype))
    };
    levels.permute([0, 3, 1, 2]) / 127.5 - 1.0
}

/// Converts images `[N, 3, H, W]` in -1..1 to rows of RGB bytes, one vector for each sample. Values outside are
/// clamped.
///
/// # Errors
/// The device's message, if it failed.
pub fn to_pixels(images: Tensor<4>) -> Result<Vec<Vec<u8>>, String> {
    let [n, c, h, w] = images.dims();
    let levels = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).permute([0, 2, 3, 1]);
    let values = levels.try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = values.into_iter().map(|level| level.round() as u8).collect();
    Ok(bytes.chunks_exact((c * h * w).max(1)).take(n).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicBool, Ordering};

    use datasets::{ImageError, SourceImage};
    use image::RgbImage;

    use super::*;
    use crate::config::{Override, load};

    /// Two images on a disk that does not answer until it is told to.
    #[derive(Default)]
    pub(crate) struct Stuck {
        pub answers: AtomicBool,
    }

    impl Source for Stuck {
        fn len(&self) -> usize {
            2
        }

        fn name(&self, index: usize) -> String {
            format!("/net/{index}.png")
        }

        fn load(&self, _: usize) -> Result<SourceImage, ImageError> {
            while !self.answers.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(RgbImage::new(8, 8).into())
        }
    }

    impl Stuck {
        pub fn loader(self: &Arc<Self>) -> Loader {
            let set = TrainingSet::new(self.clone(), vec![0, 1], Transform::training(8, false), 0, 0).unwrap();
            Loader::start(Arc::new(set), 0, None, 1, 4)
        }
    }

    #[test]
    fn a_file_that_is_waited_for_long_is_named_once_and_a_stop_ends_the_waiting() {
        let source = Arc::new(Stuck::default());
        let mut loader = source.loader();
        let (began, said) = (Instant::now(), RefCell::new(Vec::new()));
        let long = Duration::from_millis(300);
        let mut next = |seconds| {
            let proceed = || began.elapsed() < Duration::from_secs(seconds);
            next_batch_within(long, &mut loader, 2, proceed, |line| said.borrow_mut().push(line.to_owned()))
        };
        assert_eq!(next(1), Ok(None));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(
            matches!(&said.borrow()[..], [line] if line.starts_with("still waiting for /net/") && line.ends_with(" s")),
            "{said:?}"
        );
        source.answers.store(true, Ordering::SeqCst);
        assert_eq!(next(60).unwrap().unwrap().draws, [0, 1]);
    }

    fn folder(path: &Path, sets: &[(&str, &str)]) -> Result<Data, DataError> {
        let mut overrides: Vec<Override> = sets.iter().map(|(key, value)| Override::new(key, value)).collect();
        overrides.push(Override::new("data.source", "folder"));
        overrides.push(Override::new("data.path", path.to_str().unwrap()));
        open(&load("from-scratch-cpu.toml", &overrides).unwrap().config)
    }

    #[test]
    fn captions_are_read_where_a_loss_needs_them() {
        let root = tempfile::tempdir().unwrap();
        RgbImage::new(8, 8).save(root.path().join("a.png")).unwrap();
        std::fs::write(root.path().join("metadata.jsonl"), "{").unwrap();
        assert!(folder(root.path(), &[]).is_ok());
        let losses = [("losses.clip_contrastive.weight", "1"), ("losses.clip_contrastive.against", "[\"captions\"]")];
        assert!(matches!(folder(root.path(), &losses).err(), Some(DataError::Captions { .. })));
    }

    #[test]
    fn images_are_counted_with_captions_where_they_are_read() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            RgbImage::new(8, 8).save(root.path().join(format!("{name}.png"))).unwrap();
        }
        for name in ["a.txt", "c.txt"] {
            std::fs::write(root.path().join(name), "a caption").unwrap();
        }
        std::fs::write(root.path().join("e.heic"), "x").unwrap();
        let counts = |sets: &[(&str, &str)]| {
            let mut overrides: Vec<Override> = sets.iter().map(|(key, value)| Override::new(key, value)).collect();
            overrides.push(Override::new("data.source", "folder"));
            overrides.push(Override::new("data.path", root.path().to_str().unwrap()));
            let config = load("from-scratch-cpu.toml", &overrides).unwrap().config;
            ImageCounts::of(&open(&config).unwrap(), &config)
        };
        let read = counts(&[("validation.clip", "true"), ("data.validation", "1")]);
        assert_eq!(read, ImageCounts { training: 3, validation: 1, captioned: Some(2), skipped: 1 });
        assert_eq!(read.to_string(), "4 images, 2 captioned, 1 skipped; 3 to train on, 1 to validate on");
        let plain = counts(&[("data.validation", "0")]);
        assert_eq!(plain, ImageCounts { training: 4, validation: 0, captioned: None, skipped: 1 });
        let one = ImageCounts { training: 1, skipped: 0, ..plain };
        assert_eq!(one.to_string(), "1 image; 1 to train on, 0 to validate on");
    }

    #[test]
    fn what_the_user_should_know_of_the_images_is_noted() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png", "d.gif"] {
            RgbImage::new(8, 8).save(root.path().join(name)).unwrap();
        }
        let data = folder(root.path(), &[("data.validation", "1")]).unwrap();
        assert_eq!(data.notes, Vec::<String>::new());
        assert_eq!(data.version_differences.len(), 1, "a GIF: {:?}", data.version_differences);
        let data = folder(root.path(), &[("data.validation", "3")]).unwrap();
        assert_eq!((data.validation.len(), data.notes.len()), (1, 1));
        assert!(data.notes[0].starts_with("`data.validation` is 3, but 1 are kept"), "{:?}", data.notes);
        std::fs::write(root.path().join("e.heic"), "x").unwrap();
        std::fs::hard_link(root.path().join("a.png"), root.path().join("f.png")).unwrap();
        let data = folder(root.path(), &[("data.validation", "1")]).unwrap();
        assert_eq!(
            (data.images.count, data.notes.len(), data.version_differences.len()),
            (4, 2, 2),
            "{:?}",
            data.notes
        );
    }

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
