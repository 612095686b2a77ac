//! What a source of images is, and the settings that it is opened from.

use std::path::Path;

use image::RgbImage;

use crate::budget::Share;
use crate::error::{DataError, ImageError, SettingError};

/// One image as its source has it: any size, upright, without transparency.
#[derive(Debug)]
pub struct SourceImage {
    /// The pixels, 8 bit sRGB.
    pub pixels: RgbImage,
    /// The part of the memory budget that the pixels take, given back when they are dropped.
    _share: Option<Share>,
}

impl SourceImage {
    pub(super) fn within(mut share: Share, pixels: RgbImage) -> Self {
        share.resize(pixels.as_raw().len() as u64);
        Self { pixels, _share: Some(share) }
    }
}

impl From<RgbImage> for SourceImage {
    fn from(pixels: RgbImage) -> Self {
        Self { pixels, _share: None }
    }
}

/// Images by index. Loading an index gives the same image each time, on any thread.
pub trait Source: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the image at `index` in messages. `index` is below [`len`](Self::len).
    fn name(&self, index: usize) -> String;

    /// Loads the image at `index`, which is below [`len`](Self::len).
    ///
    /// # Errors
    /// The image cannot be read or decoded. Training takes another one instead.
    fn load(&self, index: usize) -> Result<SourceImage, ImageError>;

    /// All captions of the image at `index`, none of them empty. Does not load the image.
    fn captions(&self, _index: usize) -> Vec<String> {
        Vec::new()
    }

    /// Why the image at `index` has no captions: where they were looked for, and why nothing there was used.
    fn why_no_captions(&self, _index: usize) -> String {
        "its source has none".into()
    }

    /// How many images there are beside these that cannot be read.
    fn skipped(&self) -> usize {
        0
    }

    /// What the user should know of this source before a run starts, one line each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Why earlier versions of this program found other images in the same place, one line each.
    fn version_differences(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The settings of a run from which its source is opened.
#[derive(Clone, Copy, Debug)]
pub struct SourceSettings<'a> {
    /// `data.path`: where the images are, for sources that read files.
    pub path: Option<&'a Path>,
    /// `data.images`: how many images there are, for sources that make them.
    pub images: usize,
    /// `data.resolution`: width and height of a sample, in pixels.
    pub resolution: u32,
    /// `run.seed`.
    pub seed: u64,
    /// Whether a loss needs captions.
    pub needs_captions: bool,
}

/// A source that a configuration can name.
pub(super) trait FromSettings: Source + Sized + 'static {
    /// Checks the settings that matter to this source alone.
    fn check(settings: &SourceSettings) -> Result<(), SettingError>;

    /// Opens the source.
    fn from_settings(settings: &SourceSettings) -> Result<Self, DataError>;
}
