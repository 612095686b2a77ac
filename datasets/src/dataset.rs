//! Samples: a source's images in training order or in validation order, transformed, with bad images dealt with.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use rand::RngExt;

use crate::bad::BadImages;
use crate::{Batch, DataError, ImageError, ImageProblem, Purpose, SampleKey, Sampler, Source, Transform};

/// One image, ready for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The sample's position in its stream.
    pub draw: u64,
    /// The image's index in the source. For a substitute, that of the image that is seen.
    pub index: usize,
    /// `resolution * resolution * 3` bytes: rows from the top, pixels from the left, red green blue.
    pub pixels: Vec<u8>,
    /// What the image shows, where the source knows it; of several captions, one that the key chooses.
    pub caption: Option<String>,
}

/// What came of loading one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The sample, unless no usable image was found.
    pub sample: Option<Sample>,
    /// The bad images that were tried before, with their index in the source.
    pub bad: Vec<(usize, ImageError)>,
}

/// Samples by position. Loading is pure and may happen on any thread in any order; delivering happens in order.
pub trait SampleStream: Send + Sync {
    /// Width and height of every sample, in pixels.
    fn resolution(&self) -> u32;

    /// The name of the image at `index` of the source.
    fn name(&self, index: usize) -> String;

    /// Loads the sample at `draw`, the same each time, whatever happened before. `reading` is told the index of each image
    /// before it is read.
    fn attempt(&self, draw: u64, reading: &dyn Fn(usize)) -> Attempt;

    /// Records the bad images of an attempt that is handed out. `None` is a sample to be left out.
    ///
    /// # Errors
    /// There are too many bad images, or nothing could stand in for them.
    fn deliver(&self, attempt: Attempt) -> Result<Option<Sample>, DataError>;
}

/// The endless stream of training samples. Everything about a sample follows from (seed, draw).
///
/// A bad image (broken, empty, tiny) is replaced by another one that is drawn with the same key, so the stream has no gaps.
pub struct TrainingSet {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
    transform: Transform,
    seed: u64,
    sampler: Sampler,
    bad: BadImages,
}

impl TrainingSet {
    /// Draws from the images of `source` at `indices`. More than `max_bad` distinct bad images end the training.
    ///
    /// # Errors
    /// There are no indices, one of them is not in the source, or the resolution is impossible.
    pub fn new(
        source: Arc<dyn Source>,
        indices: Vec<usize>,
        transform: Transform,
        seed: u64,
        max_bad: usize,
    ) -> Result<Self, DataError> {
        check_indices(&*source, &indices)?;
        transform.check()?;
        Ok(Self {
            sampler: Sampler::new(indices.len(), seed)?,
            source,
            indices,
            transform,
            seed,
            bad: BadImages::new(max_bad),
        })
    }

    /// The number of different images: as many draws are an epoch.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Never true: a set without images cannot be made.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// How many whole epochs lie before `draw`.
    pub fn epoch(&self, draw: u64) -> u64 {
        self.sampler.epoch(draw)
    }

    /// The first image that has no caption, with the reason; no image is read for it.
    pub fn first_without_caption(&self) -> Option<ImageError> {
        without_caption(&*self.source, &self.indices)
    }

    /// Loads one sample on this thread.
    ///
    /// # Errors
    /// There are more than `max_bad` bad images, or no usable one at all.
    pub fn sample(&self, draw: u64) -> Result<Sample, DataError> {
        let attempt = self.attempt(draw, &|_| ());
        self.deliver_sample(attempt)
    }

    /// The bad images met since the last call, each only the first time that a sample met it, in the order of the samples.
    pub fn take_warnings(&self) -> Vec<ImageError> {
        self.bad.take_warnings()
    }

    fn deliver_sample(&self, attempt: Attempt) -> Result<Sample, DataError> {
        self.bad.record(&attempt.bad)?;
        match (attempt.sample, attempt.bad.into_iter().next_back()) {
            (Some(sample), _) => Ok(sample),
            (None, Some((_, last))) => Err(DataError::NoneUsable { len: self.indices.len(), last }),
            (None, None) => Err(DataError::EmptySet),
        }
    }
}

impl SampleStream for TrainingSet {
    fn resolution(&self) -> u32 {
        self.transform.resolution
    }

    fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    fn attempt(&self, draw: u64, reading: &dyn Fn(usize)) -> Attempt {
        let key = SampleKey { seed: self.seed, draw };
        let mut substitutes = key.rng(Purpose::Substitute);
        let mut position = self.sampler.position(draw);
        let mut tried = HashSet::new();
        let mut bad = Vec::new();
        loop {
            let index = self.indices[position];
            reading(index);
            match load(&*self.source, index, &self.transform, key) {
                Ok(sample) => {
                    let sample = Some(sample);
                    return Attempt { sample, bad };
                }
                Err(error) => bad.push((index, error)),
            }
            tried.insert(position);
            // Beyond the limit the delivery fails whatever is found, so the search may end.
            if bad.len() > self.bad.limit() || tried.len() == self.indices.len() {
                return Attempt { sample: None, bad };
            }
            while tried.contains(&position) {
                position = substitutes.random_range(0..self.indices.len());
            }
        }
    }

    fn deliver(&self, attempt: Attempt) -> Result<Option<Sample>, DataError> {
        self.deliver_sample(attempt).map(Some)
    }
}

/// The validation samples: each image once, in the order of the indices. Bad images are left out.
pub struct ValidationSet {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
    transform: Transform,
    bad: BadImages,
}

impl ValidationSet {
    /// The centre crops of the images of `source` at `indices`, which may be none. More than `max_bad` distinct bad images
    /// are an error.
    ///
    /// # Errors
    /// An index is not in the source, or the resolution is impossible.
    pub fn new(
        source: Arc<dyn Source>,
        indices: Vec<usize>,
        resolution: u32,
        max_bad: usize,
    ) -> Result<Self, DataError> {
        if !indices.is_empty() {
            check_indices(&*source, &indices)?;
        }
        let transform = Transform::validation(resolution);
        transform.check()?;
        Ok(Self { source, indices, transform, bad: BadImages::new(max_bad) })
    }

    /// The number of images, bad ones included.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether nothing is kept for validation.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The first image that has no caption, with the reason; no image is read for it.
    pub fn first_without_caption(&self) -> Option<ImageError> {
        without_caption(&*self.source, &self.indices)
    }

    /// Loads the samples at these positions on this thread; positions past the end are passed over. A
    /// [`Loader`](crate::Loader) over `0..len` does the same on several threads.
    ///
    /// # Errors
    /// There are more than `max_bad` bad images.
    pub fn batch(&self, positions: Range<usize>) -> Result<Batch, DataError> {
        let mut batch = Batch::empty(self.resolution());
        for position in positions.start..positions.end.min(self.len()) {
            if let Some(sample) = self.deliver(self.attempt(position as u64, &|_| ()))? {
                batch.push(sample);
            }
        }
        Ok(batch)
    }

    /// The bad images met since the last call, each named only once.
    pub fn take_warnings(&self) -> Vec<ImageError> {
        self.bad.take_warnings()
    }
}

impl SampleStream for ValidationSet {
    fn resolution(&self) -> u32 {
        self.transform.resolution
    }

    fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    fn attempt(&self, draw: u64, reading: &dyn Fn(usize)) -> Attempt {
        let position = usize::try_from(draw).ok();
        let Some(index) = position.and_then(|position| self.indices.get(position)) else {
            return Attempt { sample: None, bad: Vec::new() };
        };
        reading(*index);
        // A centre crop without mirroring takes nothing from the seed; of several captions, each image keeps one.
        match load(&*self.source, *index, &self.transform, SampleKey { seed: 0, draw }) {
            Ok(sample) => Attempt { sample: Some(sample), bad: Vec::new() },
            Err(error) => Attempt { sample: None, bad: vec![(*index, error)] },
        }
    }

    fn deliver(&self, attempt: Attempt) -> Result<Option<Sample>, DataError> {
        self.bad.record(&attempt.bad)?;
        Ok(attempt.sample)
    }
}

fn load(source: &dyn Source, index: usize, transform: &Transform, key: SampleKey) -> Result<Sample, ImageError> {
    let picture = source.load(index)?;
    let pixels = transform.apply(&picture.image, key).map_err(|problem| problem.named(source.name(index)))?;
    Ok(Sample { draw: key.draw, index, pixels, caption: caption(source, index, key) })
}

fn caption(source: &dyn Source, index: usize, key: SampleKey) -> Option<String> {
    let mut captions = source.captions(index);
    match captions.len() {
        0 | 1 => captions.pop(),
        several => Some(captions.swap_remove(key.rng(Purpose::Caption).random_range(0..several))),
    }
}

/// The first image without a caption.
fn without_caption(source: &dyn Source, indices: &[usize]) -> Option<ImageError> {
    let index = indices.iter().find(|index| source.captions(**index).is_empty())?;
    Some(ImageProblem::NoCaption(source.why_no_captions(*index)).named(source.name(*index)))
}

fn check_indices(source: &dyn Source, indices: &[usize]) -> Result<(), DataError> {
    let len = source.len();
    match indices.iter().max() {
        None => Err(DataError::EmptySet),
        Some(&index) if index >= len => Err(DataError::OutOfRange { index, len }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::Picture;

    /// Pictures of one colour that tells the index; those in `bad` are broken or tiny in turn.
    pub(crate) struct Plain {
        pub len: usize,
        pub bad: HashSet<usize>,
    }

    impl Source for Plain {
        fn len(&self) -> usize {
            self.len
        }

        fn name(&self, index: usize) -> String {
            format!("plain {index}")
        }

        fn load(&self, index: usize) -> Result<Picture, ImageError> {
            let side = match (self.bad.contains(&index), index % 2) {
                (true, 0) => {
                    return Err(ImageProblem::Broken("test".into()).named(self.name(index)));
                }
                (true, _) => 1,
                (false, _) => 8,
            };
            Ok(RgbImage::from_pixel(side, side, Rgb([index as u8; 3])).into())
        }

        fn captions(&self, index: usize) -> Vec<String> {
            vec![format!("number {index}")]
        }
    }

    pub(crate) fn training(len: usize, bad: &[usize], max_bad: usize) -> TrainingSet {
        let bad = bad.iter().copied().collect();
        let source = Arc::new(Plain { len, bad });
        TrainingSet::new(source, (0..len).collect(), Transform::training(8, true), 7, max_bad).unwrap()
    }

    #[test]
    fn a_sample_is_its_image() {
        let source = Arc::new(Plain { len: 100, bad: HashSet::new() });
        let indices = vec![90, 3, 57];
        let set = TrainingSet::new(source, indices.clone(), Transform::training(8, true), 7, 0).unwrap();
        let mut seen: Vec<usize> = (0..3).map(|draw| set.sample(draw).unwrap().index).collect();
        for draw in 0..20 {
            let sample = set.sample(draw).unwrap();
            assert_eq!(sample.draw, draw);
            assert_eq!(sample.pixels, [sample.index as u8; 8 * 8 * 3]);
            assert_eq!(sample.caption, Some(format!("number {}", sample.index)));
        }
        seen.sort_unstable();
        assert_eq!(seen, [3, 57, 90]);
        assert_eq!((set.epoch(2), set.epoch(3)), (0, 1));
    }

    const FIRST_WORDINGS: [&str; 6] = ["4.0", "4.2", "4.3", "4.3", "4.0", "4.2"];

    /// Pictures with as many captions as their index says.
    struct Told;

    impl Source for Told {
        fn len(&self) -> usize {
            5
        }

        fn name(&self, index: usize) -> String {
            format!("told {index}")
        }

        fn load(&self, _: usize) -> Result<Picture, ImageError> {
            Ok(RgbImage::new(8, 8).into())
        }

        fn captions(&self, index: usize) -> Vec<String> {
            (0..index).map(|wording| format!("{index}.{wording}")).collect()
        }
    }

    #[test]
    fn one_of_several_captions_is_drawn_with_the_sample() {
        let set =
            |seed, indices| TrainingSet::new(Arc::new(Told), indices, Transform::training(8, true), seed, 0).unwrap();
        let drawn = |seed| -> Vec<Option<String>> {
            let set = set(seed, vec![4]);
            (0..400).map(|draw| set.sample(draw).unwrap().caption).collect()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        for wording in 0..4 {
            let times = drawn(1).iter().filter(|caption| **caption == Some(format!("4.{wording}"))).count();
            assert!((60..140).contains(&times), "wording {wording} came {times} times in 400");
        }
        // A resumed run must see what the interrupted one would have seen.
        let first: Vec<String> = drawn(1).into_iter().take(6).flatten().collect();
        assert_eq!(first, FIRST_WORDINGS);

        let one = set(1, vec![1]);
        assert!((0..9).all(|draw| one.sample(draw).unwrap().caption.as_deref() == Some("1.0")));
        assert_eq!(set(1, vec![0]).sample(0).unwrap().caption, None);
        let name = |error: Option<ImageError>| error.map(|error| error.name);
        assert_eq!(name(set(1, vec![3, 1, 0, 4]).first_without_caption()).as_deref(), Some("told 0"));
        assert_eq!(set(1, vec![3, 1, 4]).first_without_caption(), None);
        let validation = |indices| ValidationSet::new(Arc::new(Told), indices, 8, 0).unwrap();
        assert_eq!(name(validation(vec![4, 4, 0]).first_without_caption()).as_deref(), Some("told 0"));
        assert_eq!(validation(vec![4]).batch(0..1), validation(vec![4]).batch(0..1));
    }

    #[test]
    fn bad_images_are_replaced_the_same_way_in_any_order() {
        let bad = [0, 1, 4, 5, 9];
        let good = training(20, &[], 5);
        let straight = training(20, &bad, 5);
        let samples: Vec<Sample> = (0..60).map(|draw| straight.sample(draw).unwrap()).collect();
        let backwards = training(20, &bad, 5);
        for draw in (0..60).rev() {
            assert_eq!(backwards.sample(draw).unwrap(), samples[draw as usize]);
        }
        for sample in &samples {
            assert!(!bad.contains(&sample.index));
            let undisturbed = good.sample(sample.draw).unwrap();
            if !bad.contains(&undisturbed.index) {
                assert_eq!(*sample, undisturbed);
            }
        }
        // The substitutes are not always the same image.
        let substitutes: HashSet<usize> = (samples.iter())
            .filter(|sample| bad.contains(&good.sample(sample.draw).unwrap().index))
            .map(|sample| sample.index)
            .collect();
        assert!(substitutes.len() > 3, "{substitutes:?}");
    }

    #[test]
    fn each_bad_image_is_named_once() {
        let set = training(20, &[2, 3, 11], 3);
        for draw in 0..60 {
            set.sample(draw).unwrap();
        }
        let warnings = set.take_warnings();
        let mut names: Vec<&str> = warnings.iter().map(|warning| warning.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["plain 11", "plain 2", "plain 3"]);
        for draw in 60..100 {
            set.sample(draw).unwrap();
        }
        assert!(set.take_warnings().is_empty());
    }

    #[test]
    fn more_bad_images_than_allowed_end_it() {
        let set = training(20, &[2, 3, 11], 2);
        let error = (0..20).find_map(|draw| set.sample(draw).err()).unwrap();
        let DataError::TooManyBad { count: 3, limit: 2, last } = &error else {
            panic!("{error}");
        };
        assert!(error.to_string().contains(&last.name), "{error}");
        assert_eq!(set.take_warnings().len(), 3);
    }

    #[test]
    fn nothing_usable_is_an_error_and_not_an_endless_search() {
        let all: Vec<usize> = (0..5).collect();
        let error = training(5, &all, 100).sample(0).unwrap_err();
        assert!(matches!(error, DataError::NoneUsable { len: 5, .. }), "{error}");
        let error = training(1, &[0], 1).sample(3).unwrap_err();
        assert!(matches!(error, DataError::NoneUsable { len: 1, .. }), "{error}");
    }

    #[test]
    fn impossible_sets_are_refused() {
        let source = || -> Arc<dyn Source> { Arc::new(Plain { len: 3, bad: HashSet::new() }) };
        let transform = Transform::training(8, true);
        let error = TrainingSet::new(source(), vec![], transform, 0, 0).err();
        assert_eq!(error, Some(DataError::EmptySet));
        let error = TrainingSet::new(source(), vec![0, 3], transform, 0, 0).err();
        assert_eq!(error, Some(DataError::OutOfRange { index: 3, len: 3 }));
        let error = TrainingSet::new(source(), vec![0], Transform::training(0, true), 0, 0).err();
        assert!(matches!(error, Some(DataError::Resolution { .. })));
        assert!(ValidationSet::new(source(), vec![7], 8, 0).is_err());
        assert!(ValidationSet::new(source(), vec![], 8, 0).unwrap().batch(0..4).unwrap().is_empty());
    }

    #[test]
    fn validation_leaves_bad_images_out_and_names_them() {
        let source = Arc::new(Plain { len: 50, bad: [20, 31].into() });
        let set = ValidationSet::new(source, vec![10, 20, 30, 31, 40], 8, 2).unwrap();
        let batch = set.batch(0..99).unwrap();
        assert_eq!(batch.draws, [0, 2, 4]);
        assert_eq!(batch.pixels.len(), 3 * 8 * 8 * 3);
        assert_eq!(batch.captions[1].as_deref(), Some("number 30"));
        assert_eq!(set.batch(2..3).unwrap().draws, [2]);
        assert_eq!(set.take_warnings().len(), 2);
        set.batch(0..5).unwrap();
        assert!(set.take_warnings().is_empty());
    }
}
