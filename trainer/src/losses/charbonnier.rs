//! The Charbonnier penalty of pixels (Charbonnier et al. 1994; Lai et al. 2017, arXiv 1704.03915, section 3.3): an L1
//! loss that is smooth where the images are nearly equal.

use burn::tensor::Tensor;

use super::load::LossError;
use super::loss::{ImageLoss, LoadContext, LoadImageLoss, Sees, Surroundings};
use super::table::{LossTable, loss_table};
use crate::problem::{Problem, positive};

loss_table! {
    /// `[losses.charbonnier]`: the difference of the pixels, smooth near 0.
    charbonnier: CharbonnierConfig, weight = 0.0,
    /// The difference of pixels, in -1..1, below which the loss is nearly quadratic; above 0.
    #[schemars(extend("exclusiveMinimum" = 0))]
    epsilon: f64 = 1e-3,
}

impl LossTable for CharbonnierConfig {
    fn sees(&self) -> Sees {
        Sees::Images
    }

    fn check(&self, _around: &Surroundings) -> Result<(), Problem> {
        positive("losses.charbonnier.epsilon", self.epsilon)
    }
}

/// The loss `charbonnier`.
#[derive(Debug, Clone, Copy)]
pub struct Charbonnier {
    /// See [`CharbonnierConfig::epsilon`].
    pub epsilon: f64,
}

impl ImageLoss for Charbonnier {
    fn name(&self) -> &'static str {
        "charbonnier"
    }

    /// `mean sqrt((reconstruction - original)^2 + epsilon^2)`
    fn per_sample(&self, original: Tensor<4>, reconstruction: Tensor<4>) -> Tensor<1> {
        let [n, c, h, w] = original.dims();
        let difference = (reconstruction - original).reshape([n, c * h * w]);
        (difference.square() + self.epsilon * self.epsilon).sqrt().mean_dim(1).reshape([n])
    }
}

impl LoadImageLoss for Charbonnier {
    type Table = CharbonnierConfig;

    const METRIC: (&'static str, &'static str) = ("charbonnier", "loss/charbonnier");

    fn load(table: &CharbonnierConfig, _context: &LoadContext<'_>) -> Result<Self, LossError> {
        Ok(Self { epsilon: table.epsilon })
    }

    fn example() -> Option<Self> {
        Some(Self { epsilon: 1e-3 })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;
    use crate::losses::loss::gradient_at;

    const SHAPE: [usize; 4] = [2, 1, 1, 3];

    fn images(values: &[f64]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values.to_vec(), SHAPE), (&Device::flex(), DType::F64))
    }

    fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn it_is_the_distance_from_afar_and_epsilon_at_equal_pixels() {
        let loss = Charbonnier { epsilon: 0.3 };
        let value = loss.per_sample(images(&[0.0; 6]), images(&[0.0, 0.4, -0.4, 0.0, 0.0, 0.0]));
        let expected = [(0.3 + 0.5 + 0.5) / 3.0, 0.3];
        assert!(read(value).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let loss = Charbonnier { epsilon: 1e-2 };
        let original = images(&[0.1, -0.2, 0.3, 0.4, -0.5, 0.6]);
        let values = [0.1, -0.195, 0.8, -0.4, -0.5 + 1e-4, 0.6];
        let gradient = read(gradient_at(&images(&values), |x| loss.per_sample(original.clone().autodiff(), x).sum()));
        for (index, gradient) in gradient.into_iter().enumerate() {
            let at = |amount: f64| {
                let mut values = values;
                values[index] += amount;
                read(loss.per_sample(original.clone(), images(&values)).sum())[0]
            };
            let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((difference - gradient).abs() < 1e-7, "[{index}]: {gradient} against {difference}");
        }
    }
}
