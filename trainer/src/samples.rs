//! Pictures of reconstructions.

use std::io::Cursor;

use image::{ImageFormat, RgbImage, imageops};

/// Pixels between two pictures of a grid.
const GAP: u32 = 2;

/// A PNG with the originals in the upper row and their reconstructions below. Each picture is `side` x `side` RGB bytes.
///
/// # Errors
/// If the picture cannot be encoded.
pub fn grid_png(samples: &[[Vec<u8>; 2]], side: u32) -> Result<Vec<u8>, image::ImageError> {
    let columns = samples.len().max(1) as u32;
    let mut grid = RgbImage::from_pixel(columns * (side + GAP) - GAP, 2 * side + GAP, image::Rgb([255; 3]));
    for (column, pair) in samples.iter().enumerate() {
        for (row, pixels) in pair.iter().enumerate() {
            if let Some(picture) = RgbImage::from_raw(side, side, pixels.clone()) {
                let [x, y] = [column, row].map(|n| i64::from(n as u32 * (side + GAP)));
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
        let picture = |level: u8| vec![level; 4 * 4 * 3];
        let png = grid_png(&[[picture(10), picture(20)], [picture(30), picture(40)]], 4).unwrap();
        let grid = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(grid.dimensions(), (10, 10));
        let at = |x, y| grid.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(0, 6), at(6, 0), at(6, 6), at(5, 5)], [10, 20, 30, 40, 255]);
    }
}
