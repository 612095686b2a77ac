use std::io::Write;

use image::codecs::jpeg::JpegEncoder;
use image::{ImageBuffer, ImageEncoder, Luma, LumaA, Rgb, Rgba};
use rand::RngExt;

use super::*;

/// An image whose corners differ: red, green / blue, white quadrants.
pub(crate) fn quadrants(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| match (x < width / 2, y < height / 2) {
        (true, true) => Rgb([255, 0, 0]),
        (false, true) => Rgb([0, 255, 0]),
        (true, false) => Rgb([0, 0, 255]),
        (false, false) => Rgb([255, 255, 255]),
    })
}

pub(crate) fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
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
    let image = quadrants(32, 16);
    use ImageFormat::{Bmp, Gif, Png, Tiff, WebP};
    for format in [Bmp, Gif, Png, Tiff, WebP] {
        assert_eq!(decode(&encode(image.clone(), format)).unwrap(), image, "{format:?}");
    }
    let jpeg = decode(&encode(image.clone(), ImageFormat::Jpeg)).unwrap();
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
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let decoded = decode(&encode(deep.clone(), format)).unwrap();
        assert_eq!(decoded.get_pixel(0, 0).0, [0, 128, 255], "{format:?}");
    }
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
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let decoded = decode(&encode(glass.clone(), format)).unwrap();
        assert_eq!(decoded.get_pixel(0, 0).0, [255; 3]);
        assert_eq!(decoded.get_pixel(1, 0).0, [10, 20, 30]);
        assert_eq!(decoded.get_pixel(2, 0).0, [127, 177, 255]);
    }
    let deep: ImageBuffer<LumaA<u16>, _> = ImageBuffer::from_pixel(9, 9, LumaA([0, 0]));
    let decoded = decode(&encode(deep, ImageFormat::Png)).unwrap();
    assert_eq!(decoded.get_pixel(0, 0).0, [255; 3]);
    // A GIF's pixels are there or not.
    let cut_out: ImageBuffer<Rgba<u8>, _> =
        ImageBuffer::from_fn(9, 9, |x, _| Rgba([10, 20, 30, [0, 255][x as usize % 2]]));
    let decoded = decode(&encode(cut_out, ImageFormat::Gif)).unwrap();
    assert_eq!([0, 1].map(|x| decoded.get_pixel(x, 0).0), [[255; 3], [10, 20, 30]]);
}

#[test]
fn of_an_animation_the_first_frame_is_taken() {
    let mut gif = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut gif);
    let [first, second] =
        [quadrants(16, 16), RgbImage::new(16, 16)].map(|frame| DynamicImage::from(frame).into_rgba8());
    encoder.encode_frames([first, second].map(image::Frame::new)).unwrap();
    drop(encoder);
    assert_eq!(decode(&gif).unwrap(), quadrants(16, 16));
}

/// A TIFF of one strip that is not compressed: small-endian, with as many tags as it takes.
pub(crate) fn tiff([width, height]: [u32; 2], tags: &[(u16, u16)], samples: u16, bits: u16, strip: &[u8]) -> Vec<u8> {
    let mut entries = vec![
        (0x100, 4, width),
        (0x101, 4, height),
        (0x103, 3, 1),
        (0x111, 4, 0),
        (0x115, 3, u32::from(samples)),
        (0x116, 4, height),
        (0x117, 4, strip.len() as u32),
    ];
    entries.extend(tags.iter().map(|(tag, value)| (*tag, 3, u32::from(*value))));
    entries.sort_unstable();
    let after = 8 + 2 + 12 * (entries.len() as u32 + 1) + 4;
    let mut tiff = b"II\x2a\0\x08\0\0\0".to_vec();
    tiff.extend((entries.len() as u16 + 1).to_le_bytes());
    let mut entry = |tag: u16, kind: u16, count: u32, value: u32| {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(count.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    };
    for (tag, kind, value) in entries {
        if tag == 0x103 {
            // The bits of each sample come before the compression; more than two do not fit into the entry.
            match samples {
                1 => entry(0x102, 3, 1, u32::from(bits)),
                _ => entry(0x102, 3, u32::from(samples), after),
            }
        }
        entry(tag, kind, 1, if tag == 0x111 { after + 2 * u32::from(samples) } else { value });
    }
    tiff.extend([0; 4]);
    tiff.extend((0..samples).flat_map(|_| bits.to_le_bytes()));
    tiff.extend(strip);
    tiff
}

#[test]
fn tiffs_of_printers_and_scanners_are_read() {
    let (cmyk, white_is_zero, black_is_zero, rgb) = ((0x106, 5), (0x106, 0), (0x106, 1), (0x106, 2));
    let ink = tiff([2, 1], &[cmyk], 4, 8, &[0, 255, 0, 0, 0, 0, 0, 255]);
    assert_eq!(decode(&ink).unwrap().into_raw(), [255, 0, 255, 0, 0, 0]);
    let ink: Vec<u8> = [0u16, 0xFFFF, 0, 0].into_iter().flat_map(u16::to_le_bytes).collect();
    assert_eq!(decode(&tiff([1, 1], &[cmyk], 4, 16, &ink)).unwrap().into_raw(), [255, 0, 255]);
    // A scanned page: ten pixels of a bit each.
    let page = decode(&tiff([10, 1], &[black_is_zero], 1, 1, &[0b1010_0000, 0b0100_0000])).unwrap();
    let levels: Vec<u8> = page.pixels().map(|pixel| pixel.0[0]).collect();
    assert_eq!(levels, [255, 0, 255, 0, 0, 0, 0, 0, 0, 255]);
    let page = decode(&tiff([3, 1], &[white_is_zero], 1, 8, &[0, 200, 255])).unwrap();
    assert_eq!(page.into_raw(), [255, 255, 255, 55, 55, 55, 0, 0, 0]);
    let deep: Vec<u8> = [0u16, 0x8080, 0xFFFF].into_iter().flat_map(u16::to_le_bytes).collect();
    assert_eq!(decode(&tiff([1, 1], &[rgb], 3, 16, &deep)).unwrap().into_raw(), [0, 128, 255]);
    for orientation in 1..=8 {
        let upright = decode(&tiff([2, 1], &[rgb, (0x112, orientation)], 3, 8, &[9, 9, 9, 0, 0, 0])).unwrap();
        let turned = if orientation < 5 { (2, 1) } else { (1, 2) };
        assert_eq!(upright.dimensions(), turned, "orientation {orientation}");
        let first = u8::from([1, 4, 5, 6].contains(&orientation)) * 9;
        assert_eq!(upright.get_pixel(0, 0).0, [first; 3], "orientation {orientation}");
    }
}

/// A chunk of a PNG.
fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
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
}

#[test]
fn palettes_are_resolved() {
    // A 2x1 PNG with two palette entries, the second one transparent, put together by hand.
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
        let image = quadrants(64, 32);
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.encode_image(&image).unwrap();
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
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    for format in [Bmp, Gif, Jpeg, Png, Tiff, WebP] {
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

// Decoders are used to broken files, but not each of them to every way of being broken.
#[test]
fn damaged_files_never_end_the_program() {
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    let mut random = crate::SampleKey { seed: 1, draw: 0 }.rng(crate::Purpose::Noise);
    let page = tiff([10, 3], &[(0x106, 1)], 1, 1, &[0x5A; 6]);
    let ink = tiff([4, 4], &[(0x106, 5)], 4, 8, &[7; 64]);
    let files = [Bmp, Gif, Jpeg, Png, Tiff, WebP].map(|format| encode(quadrants(12, 12), format));
    let mut outcomes = [0; 2];
    for file in files.iter().chain([&page, &ink]) {
        for _ in 0..400 {
            let mut damaged = file.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..damaged.len());
                damaged[at] = random.random();
            }
            outcomes[usize::from(decode(&damaged).is_ok())] += 1;
        }
    }
    assert!(outcomes.iter().all(|count| *count > 300), "{outcomes:?}");
    let panics = || -> Result<(), ImageProblem> { panic!("teeth") };
    assert_eq!(catch_panic(panics), Err(ImageProblem::Broken("teeth".into())));
}

#[test]
fn a_thumbnail_does_not_hide_a_cut() {
    let thumbnail = encode(quadrants(16, 16), ImageFormat::Jpeg);
    let image = encode(quadrants(64, 64), ImageFormat::Jpeg);
    let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xE1];
    jpeg.extend((thumbnail.len() as u16 + 2).to_be_bytes());
    jpeg.extend(&thumbnail);
    jpeg.extend(&image[2..]);
    assert!(decode(&jpeg).is_ok());
    assert_eq!(decode(&jpeg[..jpeg.len() - 20]), Err(ImageProblem::Truncated));
}

#[test]
fn what_is_no_image_says_so() {
    assert_eq!(decode(b""), Err(ImageProblem::Empty));
    assert_eq!(decode(b"<html>404</html>"), Err(ImageProblem::UnknownFormat));
    assert_eq!(decode(b"8BPS\0\x01\0\0"), Err(ImageProblem::UnknownFormat));
    assert!(decode(b"GIF89a\x01\0\x01\0").is_err());
    assert!(decode(b"II\x2a\0\x08\0\0\0").is_err());
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

#[test]
fn pixels_are_bounded_as_rgb_and_not_as_the_file_has_them() {
    let too_large = |bytes: &[u8], name: &str| {
        let problem = decode(bytes).err();
        assert!(matches!(problem, Some(ImageProblem::TooLarge { limit: MAX_BYTES, .. })), "{name}: {problem:?}");
    };
    let png = |side: u32, bits: u8, colour: u8| {
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        let side = side.to_be_bytes();
        png.extend(chunk(b"IHDR", &[&side[..], &side, &[bits, colour, 0, 0, 0]].concat()));
        png.extend(chunk(b"PLTE", &[200, 10, 20, 5, 5, 5]));
        png.extend(chunk(b"IDAT", &[0x78, 1, 1, 3, 0, 0xFC, 0xFF, 0, 0, 1, 0, 4, 0, 2]));
        png.extend(chunk(b"IEND", &[]));
        png
    };
    // 441 megapixels, of which each is a bit, a byte, or an index.
    for (bits, colour) in [(1, 0), (2, 0), (8, 0), (1, 3), (8, 3)] {
        too_large(&png(21_000, bits, colour), &format!("PNG of {bits} bits, colour type {colour}"));
    }
    assert!(!matches!(decode(&png(13_000, 1, 0)), Err(ImageProblem::TooLarge { .. })));

    let mut gif = b"GIF89a".to_vec();
    gif.extend([21_000u16, 21_000].map(u16::to_le_bytes).concat());
    gif.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    gif.extend([0x2C, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0, 0x3B]);
    too_large(&gif, "GIF");
    too_large(&tiff([21_000, 21_000], &[(0x106, 1)], 1, 1, &[0; 64]), "TIFF of a bit");
    too_large(&tiff([21_000, 21_000], &[(0x106, 1)], 1, 8, &[0; 64]), "grey TIFF");

    // An animation of one frame that is a pixel, on a canvas of 256 megapixels.
    let frame = encode(DynamicImage::new_rgb8(1, 1), ImageFormat::WebP);
    let frame = &frame[12..];
    let mut body = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\x3f\0\xff\x3f\0ANIM\x06\0\0\0\0\0\0\0\0\0ANMF".to_vec();
    body.extend((16 + frame.len() as u32).to_le_bytes());
    body.extend([0; 16]);
    body.extend(frame);
    let webp = [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat();
    too_large(&webp, "animated WebP");
}

#[global_allocator]
static ALLOCATOR: host_memory::CountingAllocator = host_memory::CountingAllocator;

/// What other tests may hold meanwhile, in bytes.
pub(crate) const OTHERS: u64 = 32 << 20;

/// Held by tests that measure.
pub(crate) static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The most bytes that `work` takes at a time.
pub(crate) fn peak_of(work: impl FnOnce()) -> u64 {
    let before = host_memory::current();
    host_memory::reset_peak();
    work();
    host_memory::peak().saturating_sub(before) as u64
}

#[test]
fn no_more_memory_is_taken_than_was_said() {
    let _alone = ALONE.lock();
    let side = 5000;
    let rgb = RgbImage::from_fn(side, side, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
    let photograph = |orientation| {
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 50);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.encode_image(&rgb).unwrap();
        jpeg
    };
    let plain = |format| encode(rgb.clone(), format);
    let grey = || DynamicImage::from(rgb.clone()).into_luma8();
    let ink = vec![9; 4 * (side * side) as usize];
    for (name, bytes) in [
        ("JPEG", photograph(1)),
        ("JPEG, turned", photograph(6)),
        ("PNG", plain(ImageFormat::Png)),
        ("grey PNG", encode(grey(), ImageFormat::Png)),
        ("PNG, 16 bit", encode(DynamicImage::from(rgb.clone()).into_rgba16(), ImageFormat::Png)),
        ("BMP", plain(ImageFormat::Bmp)),
        ("TIFF", plain(ImageFormat::Tiff)),
        ("TIFF, CMYK", tiff([side, side], &[(0x106, 5)], 4, 8, &ink)),
        ("WebP", encode(DynamicImage::from(rgb.clone()).into_rgba8(), ImageFormat::WebP)),
    ] {
        let encoded = Encoded::read_header(&bytes).unwrap();
        let said = encoded.peak_memory();
        let taken = peak_of(|| drop(encoded.decode().unwrap()));
        assert!(taken <= said + OTHERS, "{name} took {taken} bytes, not {said}");
        assert!(taken >= said / 3, "{name} took {taken} bytes, and {said} were kept for it");
    }
}
