//! Makes a rectangle of a view black (Zhong et al. 2017, arXiv 1708.04896; kornia's `RandomErasing`).

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};

use super::{index_below, uniform};

/// Smallest and largest share of the area.
const AREA: [f64; 2] = [0.1, 0.4];

/// Smallest ratio of height to width; the largest is its inverse.
const RATIO: f64 = 0.3;

/// The rectangle, in pixels of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

impl Hole {
    /// Draws, with `probability`, a rectangle in a view of `side` pixels: upright as often as lying, anywhere inside.
    pub fn draw(rng: &mut impl Rng, probability: f64, side: usize) -> Option<Self> {
        let chance: f64 = rng.random();
        let area = uniform(rng, AREA[0], AREA[1]) * (side * side) as f64;
        let lying = rng.random::<f64>() < 0.5;
        let ratio = if lying { uniform(rng, RATIO, 1.0) } else { uniform(rng, 1.0, 1.0 / RATIO) };
        let whole = |length: f64| (length.round() as usize).clamp(1, side.max(1));
        let (height, width) = (whole((area * ratio).sqrt()), whole((area / ratio).sqrt()));
        let left = index_below(rng, side - width.min(side) + 1);
        let top = index_below(rng, side - height.min(side) + 1);
        (chance < probability).then_some(Self { top, left, height, width })
    }
}

/// Sets the hole of each of `views` `[V, C, S, S]` to -1.
pub(super) fn apply(views: Tensor<4>, holes: &[Option<&Hole>]) -> Tensor<4> {
    if holes.iter().all(Option::is_none) {
        return views;
    }
    let [v, _, h, w] = views.dims();
    let place = (&views.device(), views.dtype());
    let span = |length: usize, of: fn(&Hole) -> (usize, usize)| -> Vec<f32> {
        let inside = |hole: &Option<&Hole>, at: usize| {
            hole.map(of).is_some_and(|(first, count)| (first..first + count).contains(&at))
        };
        holes.iter().flat_map(|hole| (0..length).map(move |at| f32::from(u8::from(inside(hole, at))))).collect()
    };
    let rows = TensorData::new(span(h, |hole| (hole.top, hole.height)), [v, 1, h, 1]);
    let columns = TensorData::new(span(w, |hole| (hole.left, hole.width)), [v, 1, 1, w]);
    let hole = Tensor::<4>::from_data(rows, place) * Tensor::<4>::from_data(columns, place);
    views * (-hole.clone() + 1.0) - hole
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use datasets::{Purpose, SampleKey};

    use super::*;

    #[test]
    fn the_hole_is_black_and_the_rest_is_as_it_was() {
        let views = Tensor::<4>::full([2, 1, 3, 4], 0.3, &Device::flex());
        let hole = Hole { top: 1, left: 2, height: 2, width: 1 };
        let found: Vec<f32> = apply(views, &[None, Some(&hole)]).into_data().try_into_vec().unwrap();
        let mut expected = vec![0.3; 24];
        expected[12 + 4 + 2] = -1.0;
        expected[12 + 8 + 2] = -1.0;
        assert_eq!(found, expected);
    }

    #[test]
    fn holes_have_the_area_and_the_ratio_asked_for_and_lie_inside() {
        let side = 200;
        let (mut areas, mut upright) = (0.0, 0);
        for draw in 0..2000 {
            let hole = Hole::draw(&mut SampleKey { seed: 3, draw }.rng(Purpose::Augment), 1.0, side).unwrap();
            assert!(hole.top + hole.height <= side && hole.left + hole.width <= side, "{hole:?}");
            let area = (hole.height * hole.width) as f64 / (side * side) as f64;
            let ratio = hole.height as f64 / hole.width as f64;
            assert!((0.097..0.403).contains(&area), "{hole:?}");
            // A hole that would be longer than the view is limited to it.
            assert!((0.29..3.45).contains(&ratio), "{hole:?}");
            areas += area;
            upright += usize::from(hole.height > hole.width);
        }
        assert!((areas / 2000.0 - 0.25).abs() < 0.01, "{areas}");
        assert!((900..1100).contains(&upright), "{upright} of 2000");
    }
}
