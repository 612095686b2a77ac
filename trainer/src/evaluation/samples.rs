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

#[cfg(test)]
mod tests {
    use super::*;

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
