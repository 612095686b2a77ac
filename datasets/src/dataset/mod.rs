//! The samples of a source for training and for validation: in order, transformed, and without bad images.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use rand::RngExt;

use crate::bad_images::BadImages;
use crate::error::{DataError, ImageError, ImageProblem};
use crate::key::{Purpose, SampleKey};
use crate::sample::{Attempt, Batch, Sample, SampleStream};
use crate::sampler::Sampler;
use crate::source::Source;
use crate::transform::Transform;

/// The endless stream of training samples. A sample depends on (seed, draw) alone.
///
/// A bad image (broken, empty, tiny) is replaced by another image, drawn with the same key, so the stream has no gaps.
pub struct TrainingSet {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
    transform: Transform,
    seed: u64,
    sampler: Sampler,
    bad: BadImages,
}

impl TrainingSet {
    /// Draws from the images of `source` at `indices`. Allows `max_bad` distinct bad images.
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

    /// The number of different images. An epoch has as many draws.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Never true: a set has at least one image.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// How many epochs end before `draw`.
    pub fn epoch(&self, draw: u64) -> u64 {
        self.sampler.epoch(draw)
    }

    /// How many images have captions. Reads no images.
    pub fn count_captioned(&self) -> usize {
        self.indices.iter().filter(|index| !self.source.captions(**index).is_empty()).count()
    }

    /// The first image without a caption, and why it has none. Reads no images.
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

    /// The bad images found since the last call, in the order of the samples. Each is named once.
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
            // Delivering this attempt fails if the limit is exceeded, so there is no need to search on.
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

/// The validation samples: each image once, in the order of the indices. Bad images are skipped.
pub struct ValidationSet {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
    transform: Transform,
    bad: BadImages,
}

impl ValidationSet {
    /// The centre crops of the images of `source` at `indices`, which may be empty. Allows `max_bad` distinct bad
    /// images.
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

    /// Whether there are no images for validation.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// How many images have captions. Reads no images.
    pub fn count_captioned(&self) -> usize {
        self.indices.iter().filter(|index| !self.source.captions(**index).is_empty()).count()
    }

    /// The first image without a caption, and why it has none. Reads no images.
    pub fn first_without_caption(&self) -> Option<ImageError> {
        without_caption(&*self.source, &self.indices)
    }

    /// The name of the image at a position, which is below [`len`](Self::len).
    pub fn name_at(&self, position: usize) -> String {
        self.source.name(self.indices[position])
    }

    /// Loads the samples at these positions on this thread. Positions after the end are ignored. A
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

    /// The bad images found since the last call. Each is named once.
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
        // Nothing of a centre crop depends on the seed. Of several captions, an image always has the same one.
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
    let image = source.load(index)?;
    let pixels = transform.apply(&image.pixels, key).map_err(|problem| problem.named(source.name(index)))?;
    Ok(Sample { draw: key.draw, index, pixels, caption: caption(source, index, key) })
}

fn caption(source: &dyn Source, index: usize, key: SampleKey) -> Option<String> {
    let mut captions = source.captions(index);
    match captions.len() {
        0 | 1 => captions.pop(),
        several => Some(captions.swap_remove(key.rng(Purpose::Caption).random_range(0..several))),
    }
}

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
pub(crate) mod tests;
