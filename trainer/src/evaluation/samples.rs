//! Draws grids of reconstructions.

use std::io::Cursor;

use image::{ImageFormat, RgbImage, imageops};

/// Pixels between two images of a grid.
const GAP: u32 = 2;

/// Smaller images are enlarged by a whole factor to about this side, in pixels: 32 pixels are too small on a screen.
const SHOWN_SIDE: u32 = 96;

/// Encodes a PNG with originals in the upper row and their reconstructions below. Images are `side` x `side` RGB bytes.
///
/// # Errors
/// If the PNG cannot be encoded.
pub fn grid_png(samples: &[[Vec<u8>; 2]], side: u32) -> Result<Vec<u8>, image::ImageError> {
    let columns = samples.len().max(1) as u32;
    let shown = side * (SHOWN_SIDE / side.max(1)).max(1);
    let mut grid = RgbImage::from_pixel(columns * (shown + GAP) - GAP, 2 * shown + GAP, image::Rgb([255; 3]));
    for (column, pair) in samples.iter().enumerate() {
        for (row, pixels) in pair.iter().enumerate() {
            if let Some(image) = RgbImage::from_raw(side, side, pixels.clone()) {
                let image = imageops::resize(&image, shown, shown, imageops::FilterType::Nearest);
                let [x, y] = [column, row].map(|n| i64::from(n as u32 * (shown + GAP)));
                imageops::replace(&mut grid, &image, x, y);
            }
        }
    }
    let mut png = Cursor::new(Vec::new());
    grid.write_to(&mut png, ImageFormat::Png)?;
    Ok(png.into_inner())
}

/// Encodes a PNG with three rows: originals, their reconstructions before, and those after training; `before` and `after`
/// are PNGs of [`grid_png`] of the same images. Returns `None` if they have different sizes.
///
/// # Errors
/// If a PNG cannot be decoded or encoded.
pub fn before_and_after_png(before: &[u8], after: &[u8]) -> Result<Option<Vec<u8>>, image::ImageError> {
    let [before, after] =
        [before, after].map(|png| Ok::<_, image::ImageError>(image::load_from_memory(png)?.to_rgb8()));
    let (before, after) = (before?, after?);
    if before.dimensions() != after.dimensions() {
        return Ok(None);
    }
    let (width, height) = before.dimensions();
    let shown = (height - GAP) / 2;
    let mut grid = RgbImage::from_pixel(width, height + GAP + shown, image::Rgb([255; 3]));
    imageops::replace(&mut grid, &before, 0, 0);
    let last = imageops::crop_imm(&after, 0, shown + GAP, width, shown).to_image();
    imageops::replace(&mut grid, &last, 0, i64::from(height + GAP));
    let mut png = Cursor::new(Vec::new());
    grid.write_to(&mut png, ImageFormat::Png)?;
    Ok(Some(png.into_inner()))
}

/// Puts an original, on the left, beside its reconstruction. Both are `side` x `side` RGB bytes.
pub fn side_by_side(pair: [&[u8]; 2], side: u32) -> RgbImage {
    let mut both = RgbImage::from_pixel(2 * side + GAP, side, image::Rgb([255; 3]));
    for (pixels, x) in pair.into_iter().zip([0, side + GAP]) {
        if let Some(image) = RgbImage::from_raw(side, side, pixels.to_vec()) {
            imageops::replace(&mut both, &image, i64::from(x), 0);
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_row_has_the_reconstructions_after_training() {
        let image = |level: u8| vec![level; 40 * 40 * 3];
        let grid = |levels: [u8; 2]| grid_png(&[levels.map(image), levels.map(image)], 40).unwrap();
        let png = before_and_after_png(&grid([10, 20]), &grid([10, 30])).unwrap().unwrap();
        let all = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(all.dimensions(), (162, 244));
        let at = |x, y| all.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(161, 82), at(0, 163), at(0, 164), at(161, 243)], [10, 20, 255, 30, 30]);
        let other = grid_png(&[[image(1), image(2)]], 40).unwrap();
        assert!(before_and_after_png(&grid([10, 20]), &other).unwrap().is_none());
    }

    #[test]
    fn originals_stand_above_their_reconstructions() {
        let image = |level: u8| vec![level; 40 * 40 * 3];
        let png = grid_png(&[[image(10), image(20)], [image(30), image(40)]], 40).unwrap();
        let grid = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(grid.dimensions(), (162, 162));
        let at = |x, y| grid.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(79, 161), at(82, 0), at(161, 161), at(81, 80)], [10, 20, 30, 40, 255]);
    }
}
