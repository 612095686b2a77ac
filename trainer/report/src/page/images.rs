//! Embeds sample grids in a page. Their number and size are limited.

use std::borrow::Cow;
use std::fmt::Write;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, ImageReader, RgbImage, imageops};

use super::escape;
use crate::curve::evenly;
use crate::run::{Run, Sample};

/// The largest number of grids on a page, for all runs together.
const MOST: usize = 48;

/// In pixels. A wider grid is scaled down.
const WIDEST: u32 = 1200;

/// In bytes. A larger PNG becomes a JPEG.
const LARGEST_PNG: usize = 100_000;

/// The quality of a JPEG, up to 100.
const QUALITY: u8 = 85;

/// A grid that is embedded in a page.
struct Embedded {
    width: u32,
    height: u32,
    /// `data:image/…`.
    url: String,
    /// Rows of images: 2, or 3 with the first reconstructions.
    rows: usize,
}

/// The grids of all runs as HTML, and a line for each that cannot be shown. With a script, a slider selects the step;
/// without one, the grids are in a row. Each shows the originals, their reconstructions by the first grid, and those of its
/// own step.
pub(super) fn html(runs: &[(String, &Run)]) -> (String, Vec<String>) {
    let with_samples = runs.iter().filter(|(_, run)| !run.samples.is_empty()).count();
    let (mut html, mut problems, mut steps) = (String::new(), Vec::new(), Vec::new());
    for (number, (name, run)) in runs.iter().enumerate() {
        let kept = evenly(run.samples.len(), (MOST / with_samples.max(1)).max(2));
        let (mut figures, mut first) = (String::new(), None);
        for Sample { step, path } in kept.iter().map(|index| &run.samples[*index]) {
            match read(path).and_then(|grid| embed(grid, first.as_ref().map(|(_, grid)| grid))) {
                Err(error) => problems.push(format!("{name}: the samples of step {step} cannot be shown: {error}")),
                Ok((Embedded { width, height, url, rows }, grid)) => {
                    steps.push(*step);
                    let before = first.as_ref().filter(|_| rows == 3).map(|(step, _)| format!("step {step}, "));
                    let rows = format!("originals, {}step {step}", before.unwrap_or_default());
                    let alt = escape(&format!("{name}, from above: {rows}"));
                    let _ = write!(
                        figures,
                        r#"<figure data-step="{step}"><img src="{url}" width="{width}" height="{height}" alt="{alt}"><figcaption>from above: {rows}</figcaption></figure>"#
                    );
                    first = first.or(Some((*step, grid)));
                }
            }
        }
        if figures.is_empty() {
            continue;
        }
        let heading = match runs.len() {
            1 => String::new(),
            _ => format!(r#"<h3 class="colour-{}"><span class="swatch"></span>{}</h3>"#, number % 8, escape(name)),
        };
        let _ = write!(
            html,
            r#"<div class="grids run-{number}">{heading}<div class="row" tabindex="0" role="group" aria-label="samples of {}">{figures}</div><p class="note hint">Swipe sideways to see all columns.</p></div>"#,
            escape(name)
        );
    }
    if html.is_empty() {
        return (html, problems);
    }
    steps.sort_unstable();
    steps.dedup();
    let last = steps.len() - 1;
    let list = steps.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let slider = format!(
        r#"<p class="slider" hidden><label for="step">step <output for="step">{}</output></label><input type="range" id="step" min="0" max="{last}" value="{last}" data-steps="{list}"></p>"#,
        steps[last]
    );
    (format!("{slider}{html}"), problems)
}

/// A grid with its file.
struct Grid {
    file: Vec<u8>,
    pixels: RgbImage,
}

fn read(path: &Path) -> Result<Grid, String> {
    let file = fs::read(path).map_err(|error| error.to_string())?;
    let reader = ImageReader::new(Cursor::new(&file)).with_guessed_format().map_err(|error| error.to_string())?;
    let pixels = reader.decode().map_err(|error| error.to_string())?.to_rgb8();
    Ok(Grid { file, pixels })
}

/// Embeds `grid`, with the lower half of `first` between its halves if both are of the same originals. Embeds its file if that
/// is small and all of it, and otherwise a scaled or compressed copy. Returns the grid's pixels as well.
fn embed(grid: Grid, first: Option<&RgbImage>) -> Result<(Embedded, RgbImage), String> {
    let three = first.and_then(|first| three_rows(first, &grid.pixels));
    let rows = if three.is_some() { 3 } else { 2 };
    let shown = three.as_ref().unwrap_or(&grid.pixels);
    let shown = match shown.width() {
        ..=WIDEST => Cow::Borrowed(shown),
        width => {
            let height = (u64::from(shown.height()) * u64::from(WIDEST) / u64::from(width)).max(1) as u32;
            Cow::Owned(imageops::resize(shown, WIDEST, height, imageops::FilterType::CatmullRom))
        }
    };
    let (width, height) = shown.dimensions();
    let (kind, bytes) = if rows == 2 && grid.file.len() <= LARGEST_PNG && width == grid.pixels.width() {
        ("png", grid.file)
    } else {
        let mut png = Cursor::new(Vec::new());
        shown.write_to(&mut png, ImageFormat::Png).map_err(|error| error.to_string())?;
        match png.into_inner() {
            png if png.len() <= LARGEST_PNG => ("png", png),
            _ => {
                let mut jpeg = Vec::new();
                let encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
                shown.write_with_encoder(encoder).map_err(|error| error.to_string())?;
                ("jpeg", jpeg)
            }
        }
    };
    let url = format!("data:image/{kind};base64,{}", STANDARD.encode(bytes));
    Ok((Embedded { width, height, url, rows }, grid.pixels))
}

/// `first` and the lower half of `grid` below it; `None` if their upper halves differ.
fn three_rows(first: &RgbImage, grid: &RgbImage) -> Option<RgbImage> {
    let (width, height) = grid.dimensions();
    let half = height / 2;
    let upper = |grid: &RgbImage| imageops::crop_imm(grid, 0, 0, width, half).to_image();
    if first.dimensions() != grid.dimensions() || upper(first) != upper(grid) {
        return None;
    }
    let lower = imageops::crop_imm(grid, 0, half, width, height - half).to_image();
    let mut all = RgbImage::new(width, height + lower.height());
    imageops::replace(&mut all, first, 0, 0);
    imageops::replace(&mut all, &lower, 0, i64::from(height));
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_grid_becomes_smaller_and_a_small_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let save = |name: &str, width: u32| {
            let noise = |x: u32, y: u32| image::Rgb([((x * 7919) ^ (y * 104_729)) as u8, (x * y) as u8, (x ^ y) as u8]);
            let path = folder.path().join(name);
            RgbImage::from_fn(width, 100, noise).save(&path).unwrap();
            path
        };
        let small = save("small.png", 60);
        let (grid, _) = embed(read(&small).unwrap(), None).unwrap();
        assert_eq!(grid.url, format!("data:image/png;base64,{}", STANDARD.encode(fs::read(&small).unwrap())));
        let (grid, _) = embed(read(&save("large.png", 2400)).unwrap(), None).unwrap();
        assert!(grid.url.starts_with("data:image/jpeg;base64,"));
        assert_eq!((grid.width, grid.height), (1200, 50));
    }

    #[test]
    fn a_later_grid_shows_the_first_reconstructions_too() {
        let grid = |original: u8, reconstruction: u8| {
            let pixels = RgbImage::from_fn(4, 6, |_, y| image::Rgb([if y < 3 { original } else { reconstruction }; 3]));
            Grid { file: vec![0; LARGEST_PNG + 1], pixels }
        };
        let (first, pixels) = embed(grid(1, 2), None).unwrap();
        assert_eq!((first.rows, first.height), (2, 6));
        let (later, _) = embed(grid(1, 3), Some(&pixels)).unwrap();
        assert_eq!((later.rows, later.height), (3, 9));
        let rows = three_rows(&pixels, &grid(1, 3).pixels).unwrap();
        assert_eq!([0, 3, 6].map(|y| rows.get_pixel(0, y).0[0]), [1, 2, 3]);
        // Other originals, after the data were changed.
        let (other, _) = embed(grid(9, 3), Some(&pixels)).unwrap();
        assert_eq!((other.rows, other.height), (2, 6));
    }

    #[test]
    fn a_broken_grid_is_named_and_the_number_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Run::default();
        for step in 0..200 {
            let path = folder.path().join(format!("step-{step:06}.png"));
            match step {
                199 => fs::write(&path, "not an image").unwrap(),
                _ => RgbImage::new(4, 4).save(&path).unwrap(),
            }
            run.samples.push(Sample { step, path });
        }
        let (html, problems) = html(&[("mine".into(), &run)]);
        assert_eq!(html.matches("<img").count(), MOST - 1);
        assert!(
            html.contains("from above: originals, step 0<") && html.contains("from above: originals, step 0, step 4<")
        );
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("mine: the samples of step 199 cannot be shown: "), "{problems:?}");
    }
}
