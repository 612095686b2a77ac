//! Embeds sample grids in a page. Their number and size are limited.

use std::fmt::Write;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageReader, imageops::FilterType};

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
}

/// The grids of all runs as HTML, and a line for each that cannot be shown. With a script, a slider selects the step;
/// without one, the grids are in a row.
pub(super) fn html(runs: &[(String, &Run)]) -> (String, Vec<String>) {
    let with_samples = runs.iter().filter(|(_, run)| !run.samples.is_empty()).count();
    let (mut html, mut problems, mut steps) = (String::new(), Vec::new(), Vec::new());
    for (number, (name, run)) in runs.iter().enumerate() {
        let kept = evenly(run.samples.len(), (MOST / with_samples.max(1)).max(2));
        let mut figures = String::new();
        for Sample { step, path } in kept.iter().map(|index| &run.samples[*index]) {
            match embed(path) {
                Err(error) => problems.push(format!("{name}: the samples of step {step} cannot be shown: {error}")),
                Ok(Embedded { width, height, url }) => {
                    steps.push(*step);
                    let alt = escape(&format!("{name}, step {step}: originals above, reconstructions below"));
                    let _ = write!(
                        figures,
                        r#"<figure data-step="{step}"><img src="{url}" width="{width}" height="{height}" alt="{alt}"><figcaption>step {step}</figcaption></figure>"#
                    );
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
            r#"<div class="grids run-{number}">{heading}<div class="row" tabindex="0" role="group" aria-label="samples of {}">{figures}</div></div>"#,
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

/// Embeds the file itself if it is small, and otherwise a scaled or compressed copy.
fn embed(path: &Path) -> Result<Embedded, String> {
    let file = fs::read(path).map_err(|error| error.to_string())?;
    let reader = ImageReader::new(Cursor::new(&file)).with_guessed_format().map_err(|error| error.to_string())?;
    let grid = reader.decode().map_err(|error| error.to_string())?;
    if file.len() <= LARGEST_PNG && grid.width() <= WIDEST {
        return Ok(Embedded::new(&grid, "png", &file));
    }
    let grid = match grid.width() {
        ..=WIDEST => grid,
        _ => grid.resize(WIDEST, u32::MAX, FilterType::CatmullRom),
    };
    let mut jpeg = Vec::new();
    grid.to_rgb8()
        .write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY))
        .map_err(|error| error.to_string())?;
    Ok(Embedded::new(&grid, "jpeg", &jpeg))
}

impl Embedded {
    fn new(grid: &DynamicImage, kind: &str, bytes: &[u8]) -> Self {
        let url = format!("data:image/{kind};base64,{}", STANDARD.encode(bytes));
        Self { width: grid.width(), height: grid.height(), url }
    }
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
            image::RgbImage::from_fn(width, 100, noise).save(&path).unwrap();
            path
        };
        let small = save("small.png", 60);
        let grid = embed(&small).unwrap();
        assert_eq!(grid.url, format!("data:image/png;base64,{}", STANDARD.encode(fs::read(&small).unwrap())));
        let grid = embed(&save("large.png", 2400)).unwrap();
        assert!(grid.url.starts_with("data:image/jpeg;base64,"));
        assert_eq!((grid.width, grid.height), (1200, 50));
    }

    #[test]
    fn a_broken_grid_is_named_and_the_number_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Run::default();
        for step in 0..200 {
            let path = folder.path().join(format!("step-{step:06}.png"));
            match step {
                199 => fs::write(&path, "not an image").unwrap(),
                _ => image::RgbImage::new(4, 4).save(&path).unwrap(),
            }
            run.samples.push(Sample { step, path });
        }
        let (html, problems) = html(&[("mine".into(), &run)]);
        assert_eq!(html.matches("<img").count(), MOST - 1);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("mine: the samples of step 199 cannot be shown: "), "{problems:?}");
    }
}
