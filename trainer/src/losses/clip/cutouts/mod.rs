//! Random cutouts of an image for CLIP (VQGAN-CLIP, Crowson et al. 2022, arXiv 2204.08583: `MakeCutouts`),
//! differentiable at the image.
//!
//! ```text
//! Cutout::draw   sample, index -> plan     on the host, a pure function
//! Cutouts::apply images, plans -> views    crop and resize, warp, colour, hole, noise
//! ```
//!
//! The plan holds all random choices, keyed by the sample and the cutout's index. So the views do not depend on the
//! order or the groups in which they are computed, and a plan treats an original and its reconstruction alike.

mod colour;
mod erasing;
mod noise;
mod warp;

use burn::tensor::{Tensor, TensorData};
use datasets::{Purpose, SampleKey};
use rand::{Rng, RngExt};

use self::colour::ColourMatrix;
use self::erasing::Hole;
use self::noise::Noise;
use self::warp::Homography;
use crate::models::clip::preprocess::resample_weights;
use crate::models::statistics_dtype;

/// How cutouts are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutoutSettings {
    /// Cutouts of each sample, at least 1.
    pub count: usize,
    /// Exponent of the uniform number that chooses a cutout's side (`cut_pow`): above 1 prefers small ones, 0 takes the
    /// whole shorter side.
    pub power: f64,
    /// Side of the views in pixels, which is that of CLIP's input.
    pub size: usize,
    /// Probability, 0..1, of a rotation by up to 15 degrees and a shift by up to 0.1 of the side.
    pub affine: f64,
    /// Probability, 0..1, of a perspective that moves each corner inwards by up to 0.35 of the side.
    pub perspective: f64,
    /// Probability, 0..1, of a change of hue by up to 0.1 of a turn and of saturation by up to 0.1.
    pub jitter: f64,
    /// Probability, 0..1, of a black rectangle over 0.1 to 0.4 of the area.
    pub erasing: f64,
    /// The largest standard deviation of the noise, for pixels in 0..1 as in the reference (0.1 there); 0 adds none.
    pub noise: f64,
}

/// The plan of one cutout, with all its random choices.
#[derive(Debug, Clone, PartialEq)]
pub struct Cutout {
    /// The square that is cut out.
    pub window: Window,
    warp: Option<Homography>,
    colour: Option<ColourMatrix>,
    hole: Option<Hole>,
    noise: Option<Noise>,
}

/// A square of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows and columns.
    pub side: usize,
}

impl Window {
    /// Anywhere, with `side = floor(u^power * (max - min) + min)`, `max = min(height, width)`, `min = min(max, size)`.
    fn draw(rng: &mut impl Rng, power: f64, size: usize, [height, width]: [usize; 2]) -> Self {
        let largest = height.min(width);
        let smallest = largest.min(size);
        let share = rng.random::<f64>().powf(power);
        let side = (share * (largest - smallest) as f64 + smallest as f64) as usize;
        Self { top: index_below(rng, height - side + 1), left: index_below(rng, width - side + 1), side }
    }
}

impl Cutout {
    /// Draws cutout number `index` of a sample of `height` x `width` pixels. A pure function: each index has its own
    /// random numbers, and those of one augmentation do not depend on whether the others are enabled.
    pub fn draw(settings: &CutoutSettings, key: SampleKey, index: usize, height: usize, width: usize) -> Self {
        let index = index as u64;
        let place = &mut key.rng_at(Purpose::Cutout, index);
        let augment = &mut key.rng_at(Purpose::Augment, index);
        Self {
            window: Window::draw(place, settings.power, settings.size, [height, width]),
            warp: Homography::draw(augment, settings.affine, settings.perspective),
            colour: ColourMatrix::draw(augment, settings.jitter),
            hole: Hole::draw(augment, settings.erasing, settings.size),
            noise: Noise::draw(augment, settings.noise, key, index),
        }
    }
}

/// Draws and takes cutouts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cutouts {
    settings: CutoutSettings,
}

impl Cutouts {
    /// Creates them from the user's settings.
    pub fn new(settings: CutoutSettings) -> Self {
        Self { settings }
    }

    /// The settings.
    pub fn settings(&self) -> &CutoutSettings {
        &self.settings
    }

    /// Draws the plans of the cutouts `indices` of one sample; see [`Cutout::draw`].
    pub fn draw(
        &self,
        key: SampleKey,
        indices: impl IntoIterator<Item = usize>,
        height: usize,
        width: usize,
    ) -> Vec<Cutout> {
        indices.into_iter().map(|index| Cutout::draw(&self.settings, key, index, height, width)).collect()
    }

    /// Cuts `plans`, k >= 1 for each image, out of `images` `[n, 3, H, W]` in -1..1, whose size must be the one that
    /// the plans were drawn for: `[n * k, 3, size, size]`, sample by sample. In the images' type and on their device;
    /// differentiable at the images.
    ///
    /// Values stay in -1..1 except for overshoot of the cubic resampling, colours at the edge of the gamut, and noise.
    pub fn apply(&self, images: Tensor<4>, plans: &[Vec<Cutout>]) -> Tensor<4> {
        fn each<T>(plans: &[Vec<Cutout>], part: impl Fn(&Cutout) -> Option<&T>) -> Vec<Option<&T>> {
            plans.iter().flatten().map(part).collect()
        }
        let views = crop_and_resize(images, plans, self.settings.size);
        let views = warp::apply(views, &each(plans, |cutout| cutout.warp.as_ref()));
        let views = colour::apply(views, &each(plans, |cutout| cutout.colour.as_ref()));
        let views = erasing::apply(views, &each(plans, |cutout| cutout.hole.as_ref()));
        noise::apply(views, &each(plans, |cutout| cutout.noise.as_ref()))
    }
}

/// Resamples each window to `size` x `size`, `[n, C, H, W]` to `[n * k, C, size, size]`, with one matrix product along
/// each axis, in f32 at least. Pixels around a window contribute to its edge too.
fn crop_and_resize(images: Tensor<4>, plans: &[Vec<Cutout>], size: usize) -> Tensor<4> {
    let [n, c, h, w] = images.dims();
    let k = plans.first().map_or(0, Vec::len);
    let windows = || plans.iter().flatten().map(|cutout| cutout.window);
    let weights = |input, start: fn(Window) -> usize| -> Vec<f64> {
        windows().flat_map(|at| resample_weights(input, (start(at) as f64, at.side as f64), size)).collect()
    };
    let dtype = images.dtype();
    let wide = statistics_dtype(dtype);
    let place = (&images.device(), wide);
    let columns = Tensor::<3>::from_data(TensorData::new(weights(w, |at| at.left), [n, k * size, w]), place);
    let rows = Tensor::<3>::from_data(TensorData::new(weights(h, |at| at.top), [n * k, size, h]), place);

    // One product along the width serves all cutouts of a sample, so the image is never repeated.
    let rows_of_pixels = images.cast(wide).reshape([n, c * h, w]);
    let narrowed = rows_of_pixels.matmul(columns.swap_dims(1, 2)).reshape([n, c, h, k, size]);
    let narrowed = narrowed.permute([0, 3, 2, 1, 4]).reshape([n * k, h, c * size]);
    rows.matmul(narrowed).reshape([n * k, size, c, size]).permute([0, 2, 1, 3]).cast(dtype)
}

/// Draws a uniform integer from 0 to `count - 1`.
fn index_below(rng: &mut impl Rng, count: usize) -> usize {
    ((rng.random::<f64>() * count as f64) as usize).min(count.saturating_sub(1))
}

/// Draws a uniform number.
fn uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + rng.random::<f64>() * (high - low)
}

#[cfg(test)]
mod tests;
