//! Crops and scales an image of any size to a square of pixels.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{RgbImage, imageops};
use rand::RngExt;

use crate::error::{DataError, ImageProblem};
use crate::key::{Purpose, SampleKey};

/// The largest accepted resolution, in pixels.
const MAX_RESOLUTION: u32 = 8192;

/// Which square of an image is used. Its side is the shorter side of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// A random place along the longer side, which depends on the sample.
    Random,
    /// The centre.
    Center,
}

/// How an image becomes a square of `resolution` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Width and height of the result, in pixels.
    pub resolution: u32,
    /// Which square is used.
    pub crop: Crop,
    /// Whether half of the samples, chosen at random, are flipped left to right.
    pub flip: bool,
    /// Images whose shorter side has fewer pixels are refused.
    pub min_side: u32,
}

impl Transform {
    /// Random crop, and random flip if `flip`. Images are enlarged at most four times.
    pub fn training(resolution: u32, flip: bool) -> Self {
        Self { resolution, crop: Crop::Random, flip, min_side: (resolution / 4).max(8) }
    }

    /// The centre of each image, never flipped. Images are enlarged at most four times.
    pub fn validation(resolution: u32) -> Self {
        Self { crop: Crop::Center, ..Self::training(resolution, false) }
    }

    /// Checks the resolution.
    ///
    /// # Errors
    /// It is 0, or exceeds 8192.
    pub fn check(&self) -> Result<(), DataError> {
        if self.resolution == 0 || self.resolution > MAX_RESOLUTION {
            return Err(DataError::Resolution { resolution: self.resolution, limit: MAX_RESOLUTION });
        }
        Ok(())
    }

    /// Crops, scales and flips an image. Returns `resolution * resolution * 3` bytes: rows from the top, pixels from
    /// the left, red green blue.
    ///
    /// Cropping comes before scaling, so the memory does not grow with the aspect ratio. Scaling uses a Lanczos filter
    /// with three lobes, widened against aliasing when the image becomes smaller.
    ///
    /// # Errors
    /// The shorter side of the image is below `min_side`.
    pub fn apply(&self, image: &RgbImage, key: SampleKey) -> Result<Vec<u8>, ImageProblem> {
        let (width, height) = image.dimensions();
        let side = width.min(height);
        if side < self.min_side.max(1) {
            return Err(ImageProblem::Tiny { width, height, min_side: self.min_side });
        }
        let offset = |slack: u32| match self.crop {
            Crop::Center => slack / 2,
            Crop::Random => key.rng(Purpose::Crop).random_range(0..=slack),
        };
        // One of the two sides has no slack, so both can use the same random number.
        let (left, top) = (offset(width - side), offset(height - side));
        let mut square = if side == self.resolution {
            imageops::crop_imm(image, left, top, side, side).to_image()
        } else {
            resize(image, [left, top, side], self.resolution)
                .map_err(|reason| ImageProblem::Broken(reason.to_string()))?
        };
        if self.flip && key.rng(Purpose::Flip).random_bool(0.5) {
            imageops::flip_horizontal_in_place(&mut square);
        }
        Ok(square.into_raw())
    }
}

/// Scales the square of `side` pixels at (left, top) to `resolution`. Nine times as fast as `imageops::resize`, which
/// takes longer than decoding a photograph.
fn resize(
    image: &RgbImage,
    [left, top, side]: [u32; 3],
    resolution: u32,
) -> Result<RgbImage, Box<dyn std::error::Error>> {
    let from = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)?;
    let mut to = RgbImage::new(resolution, resolution);
    let mut view = Image::from_slice_u8(resolution, resolution, &mut to, PixelType::U8x3)?;
    let options = ResizeOptions::new()
        .crop(f64::from(left), f64::from(top), f64::from(side), f64::from(side))
        .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&from, &mut view, &options)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use image::Rgb;

    use super::*;

    fn key(draw: u64) -> SampleKey {
        SampleKey { seed: 9, draw }
    }

    /// Red tells the column, green the row.
    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 7]))
    }

    #[test]
    fn centre_crop_keeps_the_middle() {
        let transform = Transform::validation(8);
        let pixels = transform.apply(&ramp(24, 8), key(0)).unwrap();
        let expected = imageops::crop_imm(&ramp(24, 8), 8, 0, 8, 8).to_image();
        assert_eq!(pixels, expected.into_raw());
        let pixels = transform.apply(&ramp(8, 24), key(0)).unwrap();
        let expected = imageops::crop_imm(&ramp(8, 24), 0, 8, 8, 8).to_image();
        assert_eq!(pixels, expected.into_raw());
    }

    #[test]
    fn scaling_keeps_the_image_in_place() {
        for (width, height) in [(64, 64), (160, 128), (33, 50), (16, 17)] {
            let pixels = Transform::validation(32).apply(&ramp(width, height), key(1)).unwrap();
            assert_eq!(pixels.len(), 32 * 32 * 3);
            let side = width.min(height);
            for row in [4, 16, 27] {
                for column in [4, 16, 27] {
                    let at = (row * 32 + column) * 3;
                    let x = (width - side) as f32 / 2.0 + (column as f32 + 0.5) * side as f32 / 32.0;
                    let expected = (x - 0.5) * 255.0 / width as f32;
                    assert!(
                        (f32::from(pixels[at]) - expected).abs() < 6.0,
                        "{width}x{height} at {column}, {row}: {} is not {expected}",
                        pixels[at]
                    );
                    assert_eq!(pixels[at + 2], 7);
                }
            }
        }
    }

    // Without a filter that widens as it shrinks, one-pixel stripes come out as black or white instead of grey.
    #[test]
    fn shrinking_does_not_alias() {
        let stripes = RgbImage::from_fn(256, 256, |x, _| Rgb([(x % 2 * 255) as u8; 3]));
        let pixels = Transform::validation(32).apply(&stripes, key(0)).unwrap();
        assert!(pixels.iter().all(|value| value.abs_diff(128) < 12));
    }

    #[test]
    fn random_crops_reach_both_ends_and_follow_the_key() {
        let transform = Transform { flip: false, ..Transform::training(8, false) };
        let image = ramp(20, 8);
        let crops: Vec<Vec<u8>> = (0..300).map(|draw| transform.apply(&image, key(draw)).unwrap()).collect();
        let distinct: HashSet<&Vec<u8>> = crops.iter().collect();
        assert_eq!(distinct.len(), 13, "20 - 8 + 1 offsets");
        assert_eq!(crops[5], transform.apply(&image, key(5)).unwrap());
    }

    #[test]
    fn about_half_are_mirrored() {
        let image = ramp(8, 8);
        let mut mirrored = image.clone();
        imageops::flip_horizontal_in_place(&mut mirrored);
        let transform = Transform::training(8, true);
        let mut count = 0;
        for draw in 0..1000 {
            let pixels = transform.apply(&image, key(draw)).unwrap();
            assert!(pixels == *image.as_raw() || pixels == *mirrored.as_raw());
            count += usize::from(pixels == *mirrored.as_raw());
        }
        assert!((430..570).contains(&count), "{count} of 1000");
        let transform = Transform::training(8, false);
        assert!((0..50).all(|draw| transform.apply(&image, key(draw)).unwrap() == *image.as_raw()));
    }

    #[test]
    fn tiny_images_are_refused_and_small_ones_enlarged() {
        let transform = Transform::training(64, true);
        assert_eq!(transform.min_side, 16);
        for (width, height) in [(1, 1), (1, 10_000), (10_000, 15), (0, 0)] {
            let problem = transform.apply(&RgbImage::new(width, height), key(0));
            assert!(matches!(problem, Err(ImageProblem::Tiny { .. })), "{width}x{height}");
        }
        let pixels = transform.apply(&ramp(16, 16), key(0)).unwrap();
        assert_eq!(pixels.len(), 64 * 64 * 3);
    }

    #[test]
    fn extreme_aspect_ratios_cost_only_the_square() {
        let transform = Transform { min_side: 1, ..Transform::training(128, true) };
        // Scaled before it is cropped, this would be 128 x 3,840,000 pixels.
        let pixels = transform.apply(&RgbImage::new(1, 30_000), key(0)).unwrap();
        assert_eq!(pixels.len(), 128 * 128 * 3);
    }

    #[test]
    fn an_impossible_resolution_is_refused() {
        assert!(Transform::training(0, true).check().is_err());
        assert!(Transform::training(1 << 20, true).check().is_err());
        assert!(Transform::validation(256).check().is_ok());
    }
}
