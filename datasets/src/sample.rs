//! Samples, streams of samples, and batches.

use crate::error::{DataError, ImageError};

/// One image, ready for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The position of the sample in its stream.
    pub draw: u64,
    /// The index of the image in the source. If a bad image was replaced, the index of its replacement.
    pub index: usize,
    /// `resolution * resolution * 3` bytes: rows from the top, pixels from the left, red green blue.
    pub pixels: Vec<u8>,
    /// What the image shows, if the source knows it. Of several captions, one is drawn.
    pub caption: Option<String>,
}

/// The result of loading one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The sample, unless no usable image was found.
    pub sample: Option<Sample>,
    /// The bad images that were tried first, with their index in the source.
    pub bad: Vec<(usize, ImageError)>,
}

/// Samples by position. They are loaded on any thread in any order, and handed out in order.
pub trait SampleStream: Send + Sync {
    /// Width and height of every sample, in pixels.
    fn resolution(&self) -> u32;

    /// The name of the image at `index` of the source.
    fn name(&self, index: usize) -> String;

    /// Loads the sample at `draw`. The result depends on `draw` alone. Calls `reading` with the index of each image
    /// before reading it.
    fn attempt(&self, draw: u64, reading: &dyn Fn(usize)) -> Attempt;

    /// Hands out the sample of an attempt and records its bad images. `None` if this sample is skipped.
    ///
    /// # Errors
    /// There are too many bad images, or none that can be used.
    fn deliver(&self, attempt: Attempt) -> Result<Option<Sample>, DataError>;
}

/// Several samples, in the layout that a model takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The position of each sample in its stream, ascending.
    pub draws: Vec<u64>,
    /// Width and height of every sample, in pixels.
    pub resolution: u32,
    /// `len * resolution * resolution * 3` bytes: `[sample, row, column, channel]`, channels red green blue.
    pub pixels: Vec<u8>,
    /// What each sample shows, if the source knows it.
    pub captions: Vec<Option<String>>,
}

impl Batch {
    /// A batch without samples.
    pub fn empty(resolution: u32) -> Self {
        Self { draws: Vec::new(), resolution, pixels: Vec::new(), captions: Vec::new() }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.draws.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }

    /// Adds a sample with the batch's resolution.
    pub(crate) fn push(&mut self, sample: Sample) {
        self.draws.push(sample.draw);
        self.pixels.extend_from_slice(&sample.pixels);
        self.captions.push(sample.caption);
    }
}
