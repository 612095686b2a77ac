//! Jitter of hue and saturation (kornia's `ColorJitter`) as one matrix on red, green and blue.
//!
//! kornia uses HSV for the hue and clips to 0..1. Here the hue is a rotation about the grey axis without clipping. This
//! is linear, so the gradient reaches every pixel, and it is the same in -1..1 as in 0..1, because grey stays grey.

use std::f64::consts::TAU;

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};

use super::uniform;

/// Largest change of hue, in turns.
const HUE: f64 = 0.1;

/// Largest deviation of the saturation's factor from 1.
const SATURATION: f64 = 0.1;

/// Share of red, green and blue in the luma (ITU-R BT.601), which is what remains without saturation.
const LUMA: [f64; 3] = [0.299, 0.587, 0.114];

/// Maps a pixel's red, green and blue to the new ones; each row sums to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ColourMatrix([[f64; 3]; 3]);

impl ColourMatrix {
    /// Draws, with `probability`, a change of hue and then of saturation.
    pub fn draw(rng: &mut impl Rng, probability: f64) -> Option<Self> {
        let chance: f64 = rng.random();
        let (hue, saturation) = (uniform(rng, -HUE, HUE), uniform(rng, 1.0 - SATURATION, 1.0 + SATURATION));
        (chance < probability).then(|| Self::new(hue, saturation))
    }

    fn new(turns: f64, saturation: f64) -> Self {
        let (sin, cos) = (turns * TAU).sin_cos();
        let (grey, side) = ((1.0 - cos) / 3.0, sin / 3f64.sqrt());
        // Rodrigues' rotation about (1, 1, 1).
        let hue = [
            [cos + grey, grey - side, grey + side],
            [grey + side, cos + grey, grey - side],
            [grey - side, grey + side, cos + grey],
        ];
        let luma: [f64; 3] = std::array::from_fn(|j| (0..3).map(|i| LUMA[i] * hue[i][j]).sum());
        Self(hue.map(|row| std::array::from_fn(|j| saturation * row[j] + (1.0 - saturation) * luma[j])))
    }
}

/// Changes the colours of each of `views` `[V, 3, S, S]`; a view without a matrix stays the same to the last bit.
pub(super) fn apply(views: Tensor<4>, matrices: &[Option<&ColourMatrix>]) -> Tensor<4> {
    if matrices.iter().all(Option::is_none) {
        return views;
    }
    let [v, c, h, w] = views.dims();
    let identity = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let values: Vec<f64> = matrices.iter().flat_map(|m| m.map_or(identity, |m| m.0)).flatten().collect();
    let place = (&views.device(), views.dtype());
    let matrices = Tensor::<3>::from_data(TensorData::new(values, [v, c, 3]), place);
    let pixels = views.reshape([v, c, h * w]);
    // Not a matrix product, which a GPU may compute with less precision.
    let part = |channel: usize| {
        let column = matrices.clone().slice([0..v, 0..c, channel..channel + 1]);
        pixels.clone().slice([0..v, channel..channel + 1, 0..h * w]) * column
    };
    (part(0) + part(1) + part(2)).reshape([v, c, h, w])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};
    use datasets::{Purpose, SampleKey};

    use super::*;

    fn colours(values: &[[f64; 3]], matrix: ColourMatrix) -> Vec<f64> {
        let data = TensorData::new(values.concat(), [values.len(), 3, 1, 1]);
        let views = Tensor::<4>::from_data(data, (&Device::flex(), DType::F64));
        let matrices = vec![Some(&matrix); values.len()];
        apply(views, &matrices).into_data().try_into_vec().unwrap()
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn a_third_of_a_turn_makes_red_green_and_green_blue() {
        let found = colours(&[[1., -1., -1.], [-1., 1., -1.], [-1., -1., 1.]], ColourMatrix::new(1.0 / 3.0, 1.0));
        assert_near(&found, &[-1., 1., -1., -1., -1., 1., 1., -1., -1.]);
    }

    #[test]
    fn without_saturation_the_luma_is_left() {
        let luma = 0.299 * 0.5 + 0.587 * -0.2 + 0.114 * 0.9;
        assert_near(&colours(&[[0.5, -0.2, 0.9]], ColourMatrix::new(0.0, 0.0)), &[luma; 3]);
    }

    #[test]
    fn grey_stays_grey() {
        for draw in 0..50 {
            let matrix = ColourMatrix::draw(&mut SampleKey { seed: 2, draw }.rng(Purpose::Augment), 1.0).unwrap();
            assert_near(&colours(&[[-1.0; 3], [0.25; 3]], matrix), &[-1.0, -1.0, -1.0, 0.25, 0.25, 0.25]);
        }
    }

    #[test]
    fn a_view_without_a_matrix_keeps_its_colours() {
        let values: Vec<f32> = (0..2 * 3 * 4).map(|i| (i as f32 * 0.37).sin()).collect();
        let views = Tensor::<4>::from_data(TensorData::new(values, [2, 3, 2, 2]), (&Device::flex(), DType::F32));
        let changed = apply(views.clone(), &[Some(&ColourMatrix::new(0.1, 0.9)), None]);
        let second = |t: Tensor<4>| t.narrow(0, 1, 1).into_data();
        assert_eq!(second(changed), second(views));
    }
}
