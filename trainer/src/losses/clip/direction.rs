//! Whether a reconstruction moves in a direction of CLIP's space (StyleGAN-NADA, Gal et al. 2021, arXiv 2108.00946).

use burn::tensor::Tensor;

use super::embedding::{dot, length, unit};
use crate::losses::loss::{Sees, Surroundings};
use crate::losses::table::{LossKeys, LossTable, loss_table};
use crate::problem::{Problem, problem};

const TO: &str = "losses.clip_direction.to";

loss_table! {
    /// `[losses.clip_direction]`: aligns the step from image to reconstruction, in CLIP's space, with that from one
    /// text to another (Gal et al. 2021, arXiv 2108.00946).
    clip_direction: ClipDirectionConfig, weight = 0.0,
    /// What the images are, such as `photo`; has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String> = None,
    /// What the reconstructions are to become, such as `sketch`; has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String> = None,
}

impl LossTable for ClipDirectionConfig {
    fn sees(&self) -> Sees {
        Sees::Clip
    }

    fn check(&self, _around: &Surroundings) -> Result<(), Problem> {
        if !self.is_on() {
            return Ok(());
        }
        let (from, to) = (self.from.as_deref().map(str::trim), self.to.as_deref().map(str::trim));
        for (key, text) in [("losses.clip_direction.from", from), (TO, to)] {
            match text {
                None => return problem(key, "is missing: the direction is that from one text to another"),
                Some("") => return problem(key, "is empty, must be a text"),
                Some(_) => {}
            }
        }
        if from == to {
            return problem(TO, "is the same text as losses.clip_direction.from: there is no direction");
        }
        Ok(())
    }
}

/// A move shorter than this, between points of the unit sphere, counts as this long.
///
/// A reconstruction that equals its original has no direction. Below this length the loss is a plane that descends
/// along the direction: its value is 1 without a move, and no gradient at the move is longer than the inverse, 1000.
const SHORTEST_MOVE: f64 = 1e-3;

/// Returns `1 - cos(reconstruction / |reconstruction| - original / |original|, direction)` of each row, in 0..2:
/// `[V, E]` twice to `[V]`. `direction` `[E]`, of any length, is such as the difference of two texts' unit embeddings.
pub fn per_view(original: Tensor<2>, reconstruction: Tensor<2>, direction: Tensor<1>) -> Tensor<1> {
    let moved = unit(reconstruction) - unit(original);
    let direction = unit(direction.unsqueeze()).cast(moved.dtype());
    let length = length(moved.clone(), SHORTEST_MOVE);
    -dot(moved / length, direction) + 1.0
}

/// Returns the direction from the first to the second of two texts' embeddings, `[2, E]` to `[E]`.
pub fn between(texts: Tensor<2>) -> Tensor<1> {
    let texts = unit(texts);
    (texts.clone().narrow(0, 1, 1) - texts.narrow(0, 0, 1)).flatten(0, 1)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Expected, assert_finite_differences, assert_near, read, rows, wave};
    use super::*;

    fn vector(values: &[f64]) -> Tensor<1> {
        rows(&[values]).flatten(0, 1)
    }

    #[test]
    fn the_value_is_one_minus_the_cosine_of_the_move() {
        // From (1, 0) to (0, 1), so along (-1, 1); lengths do not matter.
        let (original, reconstruction) = (rows(&[&[2.0, 0.0]]), rows(&[&[0.0, 5.0]]));
        let along = |direction: &[f64]| read(per_view(original.clone(), reconstruction.clone(), vector(direction)))[0];
        assert!(along(&[-3.0, 3.0]).abs() < 1e-12);
        assert!((along(&[1.0, -1.0]) - 2.0).abs() < 1e-12);
        assert!((along(&[1.0, 1.0]) - 1.0).abs() < 1e-12);
        assert!((along(&[0.0, 1.0]) - (1.0 - 0.5f64.sqrt())).abs() < 1e-12);
    }

    #[test]
    fn value_and_gradient_are_those_of_pytorch() {
        let expected = Expected::open();
        let [original, reconstruction] = ["original", "reconstruction"].map(|name| expected.rows(name, 4));
        let leaf = reconstruction.autodiff().require_grad();
        let direction = vector(&expected.read("direction.direction"));
        let value = per_view(original.autodiff(), leaf.clone(), direction.autodiff());
        assert_near(&read(value.clone()), &expected.read("direction.value"), 1e-12);
        let gradient = leaf.grad_remove(&mut value.sum().backward()).unwrap();
        assert_near(&read(gradient), &expected.read("direction.gradient"), 1e-12);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let original = wave(3, 5, 0.3);
        let direction = vector(&[0.3, -0.2, 0.5, 0.1, -0.7]);
        let loss = |x| per_view(original.clone(), x, direction.clone());
        assert_finite_differences(wave(3, 5, 1.1), 1e-6, 1e-7, loss);
        // Without a move, with one below the shortest length, and with one just above it.
        assert_finite_differences(original.clone(), 1e-6, 1e-4, loss);
        let nudge = wave(3, 5, 2.0);
        assert_finite_differences(original.clone() + nudge.clone() * 2e-4, 1e-7, 1e-3, loss);
        assert_finite_differences(original.clone() + nudge * 1e-2, 1e-7, 1e-4, loss);
    }

    #[test]
    fn without_a_move_the_gradient_leads_along_the_direction() {
        let leaf = rows(&[&[2.0, 0.0, 0.0]]).autodiff().require_grad();
        let value = per_view(rows(&[&[1.0, 0.0, 0.0]]).autodiff(), leaf.clone(), vector(&[0.0, 1.0, 0.0]).autodiff());
        assert_eq!(read(value.clone()), [1.0]);
        let gradient = read(leaf.grad_remove(&mut value.sum().backward()).unwrap());
        // Half as long, because the embedding has length 2.
        assert_near(&gradient, &[0.0, -500.0, 0.0], 1e-9);
    }
}
