//! The difference in meaning between a reconstruction and its original: the cosine distance of their CLIP embeddings
//! (Radford et al. 2021, arXiv 2103.00020).

use burn::tensor::Tensor;

use super::embedding::{dot, unit};
use crate::losses::loss::{Sees, Surroundings};
use crate::losses::table::{LossTable, loss_table};
use crate::problem::Problem;

loss_table! {
    /// `[losses.clip_image]`: pulls the reconstruction's CLIP embedding towards that of its original.
    clip_image: ClipImageConfig, weight = 0.0,
}

impl LossTable for ClipImageConfig {
    fn sees(&self) -> Sees {
        Sees::Clip
    }

    fn check(&self, _around: &Surroundings) -> Result<(), Problem> {
        Ok(())
    }
}

/// Returns `1 - cos(original, reconstruction)` of each row, `[V, E]` twice to `[V]`, in 0..2.
pub fn per_view(original: Tensor<2>, reconstruction: Tensor<2>) -> Tensor<1> {
    -dot(unit(reconstruction), unit(original)) + 1.0
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_finite_differences, read, rows, wave};
    use super::*;

    #[test]
    fn the_value_is_one_minus_the_cosine() {
        let original = rows(&[&[3.0, 0.0], &[0.0, 2.0], &[1.0, 1.0], &[1.0, 0.0]]);
        let reconstruction = rows(&[&[5.0, 0.0], &[0.0, -4.0], &[2.0, 0.0], &[3.0, 4.0]]);
        let found = read(per_view(original, reconstruction));
        let expected = [0.0, 2.0, 1.0 - 0.5f64.sqrt(), 0.4];
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let original = wave(3, 5, 0.3);
        assert_finite_differences(wave(3, 5, 1.1), 1e-6, 1e-8, |x| per_view(original.clone(), x));
        // At the minimum, and near it.
        assert_finite_differences(original.clone() * 2.0, 1e-6, 1e-8, |x| per_view(original.clone(), x));
        assert_finite_differences(original.clone() + 1e-5, 1e-6, 1e-8, |x| per_view(original.clone(), x));
    }

    #[test]
    fn a_vanishing_embedding_has_a_finite_gradient() {
        let leaf = rows(&[&[0.0, 0.0], &[1e-9, 0.0]]).autodiff().require_grad();
        let mut gradients = per_view(rows(&[&[1.0, 0.0], &[0.0, 1.0]]).autodiff(), leaf.clone()).sum().backward();
        let gradient = read(leaf.grad_remove(&mut gradients).unwrap());
        assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    }
}
