//! A source of pictures.

use image::RgbImage;

use crate::ImageError;
use crate::budget::Share;

/// One picture as its source has it: any size, upright, without transparency.
#[derive(Debug)]
pub struct Picture {
    /// The pixels, 8 bit sRGB.
    pub image: RgbImage,
    /// What its pixels take of the source's memory, kept until they are dropped.
    _share: Option<Share>,
}

impl Picture {
    pub(crate) fn within(mut share: Share, image: RgbImage) -> Self {
        share.resize(image.as_raw().len() as u64);
        Self { image, _share: Some(share) }
    }
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Self {
        Self { image, _share: None }
    }
}

/// Pictures by index. Loading one must give the same picture each time, on any thread.
pub trait Source: Send + Sync {
    /// The number of pictures.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name by which messages call the picture at `index`, which is below [`len`](Self::len).
    fn name(&self, index: usize) -> String;

    /// Loads the picture at `index`, which is below [`len`](Self::len).
    ///
    /// # Errors
    /// The picture cannot be read or decoded. Training goes on with another one.
    fn load(&self, index: usize) -> Result<Picture, ImageError>;

    /// What the picture at `index` shows, in as many wordings as the source knows: none of them empty, and none at all
    /// where it knows nothing. Loads no picture.
    fn captions(&self, _index: usize) -> Vec<String> {
        Vec::new()
    }

    /// Why the image at `index` has no captions: what was looked at, and why it was not used.
    fn why_no_captions(&self, _index: usize) -> String {
        "its source knows none".into()
    }
}
