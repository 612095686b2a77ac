//! Decodes the bytes of an image file to upright RGB pixels.

mod jpeg;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use self::jpeg::JpegFrame;
use crate::error::{ImageError, ImageProblem};
use crate::files;
use crate::text::{panic_message, shortened};

/// The largest size of a file, of its decoded pixels, and of its pixels as 8 bit RGB, in bytes. 170 megapixels fit; a
/// small file that claims to have more is refused.
pub const MAX_BYTES: u64 = 512 << 20;

/// Decodes a JPEG, PNG, WebP, GIF, TIFF or BMP file. The first bytes decide the format, not the file name.
///
/// Every colour type becomes 8 bit sRGB: 16 bit is rounded, grey and palette are expanded, CMYK is converted, and
/// transparent pixels are laid on white. The image is turned upright by its EXIF orientation. Colour profiles are not
/// applied. Of several images in a file, the first is taken.
///
/// # Errors
/// The bytes are empty, truncated, broken or in an unknown format, or the pixels exceed 512 MiB, as they are in the
/// file or as 8 bit RGB.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, ImageProblem> {
    Encoded::read_header(bytes)?.decode()
}

/// Reads and decodes an image file, as [`decode`] does.
///
/// # Errors
/// As for [`decode`], and if the file cannot be read or is not a regular file, such as a pipe.
pub fn read_image(path: &Path) -> Result<RgbImage, ImageError> {
    let image = files::read(path, MAX_BYTES).and_then(|bytes| decode(&bytes));
    image.map_err(|problem| problem.named(path.display().to_string()))
}

/// An image of which only the header was read.
pub struct Encoded<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    orientation: Orientation,
    /// The memory that the decoder takes beside the decoded pixels, in bytes.
    scratch: u64,
}

impl<'a> Encoded<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// As for [`decode`].
    pub fn read_header(bytes: &'a [u8]) -> Result<Self, ImageProblem> {
        if bytes.is_empty() {
            return Err(ImageProblem::Empty);
        }
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| ImageProblem::Unreadable(error.to_string()))?;
        let format = reader.format().filter(ImageFormat::reading_enabled);
        let format = format.ok_or(ImageProblem::UnknownFormat)?;
        let jpeg = (format == ImageFormat::Jpeg).then(|| JpegFrame::of(bytes));
        // The JPEG decoder fills missing pixels with grey and reports success.
        if jpeg.as_ref().is_some_and(|frame| !frame.has_end) {
            return Err(ImageProblem::Truncated);
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_BYTES);
        reader.limits(limits);
        let mut decoder = catch_panic(|| reader.into_decoder().map_err(problem))?;
        let (pixels, total) = (pixels(&decoder), decoder.total_bytes());
        let size = total.max(pixels.saturating_mul(3));
        if size > MAX_BYTES {
            return Err(ImageProblem::TooLarge { size, limit: MAX_BYTES });
        }
        let orientation = catch_panic(|| decoder.orientation().map_err(problem))?;
        let scratch = match format {
            // A copy of the file; if a component comes in several scans, 16 bit coefficients of all pixels.
            ImageFormat::Jpeg => {
                bytes.len() as u64 + if jpeg.is_some_and(|frame| frame.in_one_scan) { 0 } else { 8 * pixels }
            }
            // A canvas, a frame, and the frame with transparency.
            ImageFormat::WebP => 12 * pixels,
            // A frame that does not fill the canvas.
            ImageFormat::Gif => 4 * pixels,
            // All pixels before conversion, which have four channels in CMYK; a strip or tile as it is in the file.
            ImageFormat::Tiff => total + total / 3 + bytes.len() as u64,
            _ => 0,
        };
        Ok(Self { decoder: Box::new(decoder), orientation, scratch })
    }

    /// The largest memory that [`decode`](Self::decode) takes at a time, beside the encoded bytes; in bytes.
    pub fn peak_memory(&self) -> u64 {
        let (pixels, total) = (pixels(&self.decoder), self.decoder.total_bytes());
        let flat = 3 * pixels;
        let flattening = match self.decoder.color_type() {
            ColorType::Rgb8 => 0,
            ColorType::Rgba8 => total + flat,
            color if color.has_alpha() => 4 * pixels + total.max(flat),
            _ => total + flat,
        };
        let turning = if self.orientation == Orientation::NoTransforms { 0 } else { 2 * flat };
        (total + self.scratch).max(flattening).max(turning)
    }

    /// Decodes the pixels.
    ///
    /// # Errors
    /// As for [`decode`].
    pub fn decode(self) -> Result<RgbImage, ImageProblem> {
        catch_panic(|| {
            let decoded = DynamicImage::from_decoder(self.decoder).map_err(problem)?;
            let mut image = DynamicImage::ImageRgb8(flatten(decoded));
            image.apply_orientation(self.orientation);
            Ok(image.into_rgb8())
        })
    }
}

/// Reports a panic of a decoder as a broken file, so that it does not end the run.
fn catch_panic<T>(decode: impl FnOnce() -> Result<T, ImageProblem>) -> Result<T, ImageProblem> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| Err(ImageProblem::Broken(panic_message(panic))))
}

fn pixels(decoder: &impl ImageDecoder) -> u64 {
    let (width, height) = decoder.dimensions();
    u64::from(width) * u64::from(height)
}

/// Lays transparent pixels on white.
fn flatten(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let mut flat = RgbImage::new(image.width(), image.height());
    for (to, from) in flat.pixels_mut().zip(image.pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        to.0 = [red, green, blue].map(|channel| ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    flat
}

fn problem(error: image::ImageError) -> ImageProblem {
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageProblem::Truncated
        }
        error => ImageProblem::Broken(shortened(&error.to_string(), 200)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
