//! Pictures of reconstructions.

use std::io::Cursor;

use image::{ImageFormat, RgbImage, imageops};

/// Pixels between two pictures of a grid.
const GAP: u32 = 2;

/// Smaller pictures are shown enlarged by a whole factor to about this side, in pixels: a screen shows nothing of 32.
const SHOWN_SIDE: u32 = 96;

/// A PNG with the originals in the upper row and their reconstructions below. Each picture is `side` x `side` RGB bytes.
///
/// # Errors
/// If the picture cannot be encoded.
pub fn grid_png(samples: &[[Vec<u8>; 2]], side: u32) -> Result<Vec<u8>, image::ImageError> {
    let columns = samples.len().max(1) as u32;
    let shown = side * (SHOWN_SIDE / side.max(1)).max(1);
    let mut grid = RgbImage::from_pixel(columns * (shown + GAP) - GAP, 2 * shown + GAP, image::Rgb([255; 3]));
    for (column, pair) in samples.iter().enumerate() {
        for (row, pixels) in pair.iter().enumerate() {
            if let Some(picture) = RgbImage::from_raw(side, side, pixels.clone()) {
                let picture = imageops::resize(&picture, shown, shown, imageops::FilterType::Nearest);
                let [x, y] = [column, row].map(|n| i64::from(n as u32 * (shown + GAP)));
                imageops::replace(&mut grid, &picture, x, y);
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
        let picture = |level: u8| vec![level; 40 * 40 * 3];
        let png = grid_png(&[[picture(10), picture(20)], [picture(30), picture(40)]], 40).unwrap();
        let grid = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(grid.dimensions(), (162, 162));
        let at = |x, y| grid.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(79, 161), at(82, 0), at(161, 161), at(81, 80)], [10, 20, 30, 40, 255]);
    }
}
