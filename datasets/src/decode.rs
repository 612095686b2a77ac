//! From the bytes of an image file to upright RGB pixels.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::ImageProblem;

/// The most bytes a file or its decoded pixels may have: room for 170 megapixels at 8 bit, and a stop for the
/// few bytes that claim to be more than that.
pub(crate) const MAX_BYTES: u64 = 512 << 20;

/// Decodes a JPEG, PNG, WebP or BMP file, told apart by its first bytes rather than by its name.
///
/// Any colour type becomes 8 bit sRGB: 16 bit is rounded, grey and palette are spread out, CMYK is converted, and what is
/// transparent lies on white. The picture is turned upright as its EXIF data say. Colour profiles are not applied.
///
/// # Errors
/// The bytes are empty, cut off, of no known format, broken, or would take more than 512 MiB of memory.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, ImageProblem> {
    if bytes.is_empty() {
        return Err(ImageProblem::Empty);
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| ImageProblem::Unreadable(error.to_string()))?;
    let format = reader.format().filter(ImageFormat::reading_enabled);
    let format = format.ok_or(ImageProblem::UnknownFormat)?;
    // The JPEG decoder paints what is missing grey and reports success.
    if format == ImageFormat::Jpeg && !jpeg_has_end(bytes) {
        return Err(ImageProblem::Truncated);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(problem)?;
    if decoder.total_bytes() > MAX_BYTES {
        return Err(ImageProblem::TooLarge { size: decoder.total_bytes(), limit: MAX_BYTES });
    }
    let orientation = decoder.orientation().map_err(problem)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(problem)?;
    picture.apply_orientation(orientation);
    Ok(flatten(picture))
}

/// Lays a picture on white.
fn flatten(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    let mut flat = RgbImage::new(picture.width(), picture.height());
    for (to, from) in flat.pixels_mut().zip(picture.pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        to.0 = [red, green, blue].map(|channel| ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    flat
}

/// Whether an end marker follows the start of the first scan. In a scan's data 0xFF is always followed by 0 or by a restart
/// marker, and a thumbnail's own end marker lies before the scan, so nothing else is taken for it.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    const WITHOUT_LENGTH: std::ops::RangeInclusive<u8> = 0xD0..=0xD8;
    let mut rest = bytes;
    loop {
        match *rest {
            [0xFF, 0xFF, ..] => rest = &rest[1..],
            [0xFF, marker, ..] if WITHOUT_LENGTH.contains(&marker) || marker == 0x01 => rest = &rest[2..],
            [0xFF, START_OF_SCAN, ..] => {
                return rest.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]);
            }
            [0xFF, _, high, low, ..] => {
                let Some(next) = rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..) else {
                    return false;
                };
                rest = next;
            }
            // Not a row of segments: the decoder has the better words for it.
            _ => return !rest.is_empty(),
        }
    }
}

fn problem(error: image::ImageError) -> ImageProblem {
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageProblem::Truncated
        }
        error => ImageProblem::Broken(error.to_string().replace('\n', " ")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use image::codecs::jpeg::JpegEncoder;
    use image::{ImageBuffer, ImageEncoder, Luma, LumaA, Rgb, Rgba};

    use super::*;

    /// A picture whose corners differ: red, green / blue, white quadrants.
    pub(crate) fn quadrants(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| match (x < width / 2, y < height / 2) {
            (true, true) => Rgb([255, 0, 0]),
            (false, true) => Rgb([0, 255, 0]),
            (true, false) => Rgb([0, 0, 255]),
            (false, false) => Rgb([255, 255, 255]),
        })
    }

    pub(crate) fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// The smallest EXIF block there is: big-endian TIFF with the one tag 0x0112.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut block = b"MM\0\x2a\0\0\0\x08\0\x01".to_vec();
        block.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0]);
        block.extend([0; 4]);
        block
    }

    fn close(a: Rgb<u8>, b: [u8; 3]) -> bool {
        a.0.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 12)
    }

    #[test]
    fn every_format_gives_its_pixels() {
        let picture = quadrants(32, 16);
        for format in [ImageFormat::Bmp, ImageFormat::Png, ImageFormat::WebP] {
            assert_eq!(decode(&encode(picture.clone(), format)).unwrap(), picture, "{format:?}");
        }
        let jpeg = decode(&encode(picture.clone(), ImageFormat::Jpeg)).unwrap();
        assert_eq!(jpeg.dimensions(), (32, 16));
        assert!(close(*jpeg.get_pixel(4, 4), [255, 0, 0]));
        assert!(close(*jpeg.get_pixel(28, 12), [255, 255, 255]));
    }

    #[test]
    fn grey_and_16_bit_are_spread_to_8_bit_rgb() {
        let grey: ImageBuffer<Luma<u8>, _> = ImageBuffer::from_pixel(9, 9, Luma([77]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp] {
            let decoded = decode(&encode(grey.clone(), format)).unwrap();
            assert_eq!(decoded.get_pixel(8, 8).0, [77; 3], "{format:?}");
        }
        let deep: ImageBuffer<Rgb<u16>, _> = ImageBuffer::from_pixel(9, 9, Rgb([0, 0x8080, 0xFFFF]));
        let decoded = decode(&encode(deep, ImageFormat::Png)).unwrap();
        assert_eq!(decoded.get_pixel(0, 0).0, [0, 128, 255]);
        let deep_grey: ImageBuffer<Luma<u16>, _> = ImageBuffer::from_pixel(9, 9, Luma([0x4040]));
        let decoded = decode(&encode(deep_grey, ImageFormat::Png)).unwrap();
        assert_eq!(decoded.get_pixel(0, 0).0, [64; 3]);
    }

    #[test]
    fn what_is_transparent_lies_on_white() {
        let glass: ImageBuffer<Rgba<u8>, _> = ImageBuffer::from_fn(9, 9, |x, _| match x {
            0 => Rgba([10, 20, 30, 0]),
            1 => Rgba([10, 20, 30, 255]),
            _ => Rgba([0, 100, 255, 128]),
        });
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let decoded = decode(&encode(glass.clone(), format)).unwrap();
            assert_eq!(decoded.get_pixel(0, 0).0, [255; 3]);
            assert_eq!(decoded.get_pixel(1, 0).0, [10, 20, 30]);
            assert_eq!(decoded.get_pixel(2, 0).0, [127, 177, 255]);
        }
        let deep: ImageBuffer<LumaA<u16>, _> = ImageBuffer::from_pixel(9, 9, LumaA([0, 0]));
        let decoded = decode(&encode(deep, ImageFormat::Png)).unwrap();
        assert_eq!(decoded.get_pixel(0, 0).0, [255; 3]);
    }

    #[test]
    fn palettes_are_resolved() {
        // A 2x1 PNG with two palette entries, the second one transparent, put together by hand.
        let chunk = |name: &[u8; 4], data: &[u8]| {
            let mut bytes = (data.len() as u32).to_be_bytes().to_vec();
            bytes.extend(name);
            bytes.extend(data);
            let mut crc = !0u32;
            for byte in name.iter().chain(data) {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = (crc >> 1) ^ (0xEDB8_8320 * (crc & 1));
                }
            }
            bytes.extend((!crc).to_be_bytes());
            bytes
        };
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        png.extend(chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 1, 8, 3, 0, 0, 0]));
        png.extend(chunk(b"PLTE", &[200, 10, 20, 5, 5, 5]));
        png.extend(chunk(b"tRNS", &[255, 0]));
        // zlib with one stored block: filter byte 0, then the two indices; Adler-32 of [0, 0, 1] is 0x00040002.
        png.extend(chunk(b"IDAT", &[0x78, 1, 1, 3, 0, 0xFC, 0xFF, 0, 0, 1, 0, 4, 0, 2]));
        png.extend(chunk(b"IEND", &[]));
        let decoded = decode(&png).unwrap();
        assert_eq!(decoded.get_pixel(0, 0).0, [200, 10, 20]);
        assert_eq!(decoded.get_pixel(1, 0).0, [255; 3]);
    }

    /// An 8x8 baseline JPEG of one colour with four components, as Adobe programs write CMYK: inverted, 255 is no ink.
    fn cmyk_jpeg(ink: [u8; 4]) -> Vec<u8> {
        let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xEE, 0, 14];
        jpeg.extend(b"Adobe\0\x64\0\0\0\0\0");
        // All steps are 8, so that the DC coefficient of a flat block is its level less 128.
        jpeg.extend([0xFF, 0xDB, 0, 67, 0]);
        jpeg.extend([8; 64]);
        jpeg.extend([0xFF, 0xC0, 0, 20, 8, 0, 8, 0, 8, 4]);
        for component in 1..=4 {
            jpeg.extend([component, 0x11, 0]);
        }
        // DC: the nine categories 0..=8 as the 4-bit codes 0..=8. AC: end of block as the code 0.
        jpeg.extend([0xFF, 0xC4, 0, 28, 0x00, 0, 0, 0, 9]);
        jpeg.extend([0; 12]);
        jpeg.extend(0..=8);
        jpeg.extend([0xFF, 0xC4, 0, 20, 0x10, 1]);
        jpeg.extend([0; 15]);
        jpeg.push(0);
        jpeg.extend([0xFF, 0xDA, 0, 14, 4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]);
        let mut bits = String::new();
        for level in ink {
            let value = i32::from(255 - level) - 128;
            let category = (32 - value.unsigned_abs().leading_zeros()) as usize;
            bits += &format!("{category:04b}");
            if category > 0 {
                let code = if value < 0 { value + (1 << category) - 1 } else { value };
                bits += &format!("{code:0category$b}");
            }
            bits += "0";
        }
        while !bits.len().is_multiple_of(8) {
            bits += "1";
        }
        for byte in bits.as_bytes().chunks(8) {
            let byte = byte.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
            jpeg.push(byte);
            if byte == 0xFF {
                jpeg.push(0);
            }
        }
        jpeg.extend([0xFF, 0xD9]);
        jpeg
    }

    #[test]
    fn cmyk_becomes_rgb() {
        for (ink, rgb) in [
            ([0, 0, 0, 0], [255, 255, 255]),
            ([0, 0, 0, 255], [0, 0, 0]),
            ([255, 0, 0, 0], [0, 255, 255]),
            ([0, 255, 0, 0], [255, 0, 255]),
            ([0, 0, 255, 0], [255, 255, 0]),
            ([0, 128, 255, 0], [255, 127, 0]),
        ] {
            let decoded = decode(&cmyk_jpeg(ink)).unwrap();
            assert_eq!(decoded.dimensions(), (8, 8));
            assert!(close(*decoded.get_pixel(3, 3), rgb), "{ink:?} gave {:?}, not {rgb:?}", decoded.get_pixel(3, 3));
        }
    }

    // Where the red quadrant, stored at the top left, is to be seen for each of the eight EXIF orientations.
    #[test]
    fn exif_orientation_is_respected() {
        let corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0), (1, 1), (0, 1)];
        for (orientation, corner) in (1..).zip(corners) {
            let picture = quadrants(64, 32);
            let mut jpeg = Vec::new();
            let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.encode_image(&picture).unwrap();
            let decoded = decode(&jpeg).unwrap();
            let expected = if orientation < 5 { (64, 32) } else { (32, 64) };
            assert_eq!(decoded.dimensions(), expected, "orientation {orientation}");
            let (width, height) = expected;
            let at = (width / 4 + corner.0 * width / 2, height / 4 + corner.1 * height / 2);
            assert!(close(*decoded.get_pixel(at.0, at.1), [255, 0, 0]), "orientation {orientation}");
        }
    }

    #[test]
    fn cut_off_files_are_found_at_any_length() {
        let noise =
            RgbImage::from_fn(48, 48, |x, y| Rgb([(x * 97 + y * 31) as u8, (x * y) as u8, (x * 7 + y * 113) as u8]));
        for format in [ImageFormat::Bmp, ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let bytes = encode(noise.clone(), format);
            assert!(decode(&bytes).is_ok());
            for share in [1, 10, 50, 90, 99] {
                let cut = &bytes[..bytes.len() * share / 100];
                let problem = decode(cut).expect_err(&format!("{format:?} cut to {share} % was accepted"));
                let words = problem.to_string();
                assert!(!words.contains('\n'), "{words}");
            }
        }
    }

    #[test]
    fn a_thumbnail_does_not_hide_a_cut() {
        let thumbnail = encode(quadrants(16, 16), ImageFormat::Jpeg);
        let picture = encode(quadrants(64, 64), ImageFormat::Jpeg);
        let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xE1];
        jpeg.extend((thumbnail.len() as u16 + 2).to_be_bytes());
        jpeg.extend(&thumbnail);
        jpeg.extend(&picture[2..]);
        assert!(decode(&jpeg).is_ok());
        assert_eq!(decode(&jpeg[..jpeg.len() - 20]), Err(ImageProblem::Truncated));
    }

    #[test]
    fn what_is_no_picture_says_so() {
        assert_eq!(decode(b""), Err(ImageProblem::Empty));
        assert_eq!(decode(b"<html>404</html>"), Err(ImageProblem::UnknownFormat));
        assert_eq!(decode(b"GIF89a\x01\0\x01\0"), Err(ImageProblem::UnknownFormat));
        assert!(decode(b"\xFF\xD8\xFFgarbage").is_err());
    }

    #[test]
    fn a_decompression_bomb_is_not_unpacked() {
        // A BMP header of 54 bytes that claims 60,000 x 60,000 pixels.
        let mut bomb = b"BM".to_vec();
        bomb.extend([0; 8]);
        bomb.extend(54u32.to_le_bytes());
        bomb.extend(40u32.to_le_bytes());
        bomb.extend(60_000u32.to_le_bytes());
        bomb.extend(60_000u32.to_le_bytes());
        bomb.extend([1, 0, 24, 0]);
        bomb.extend([0; 24]);
        assert!(matches!(decode(&bomb), Err(ImageProblem::TooLarge { .. })));
        let mut png = Vec::new();
        png.write_all(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR").unwrap();
        png.extend([0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 8, 6, 0, 0, 0]);
        png.extend([0; 4]);
        assert!(decode(&png).is_err());
    }
}
