//! Gaussian noise on a view, with a strength drawn for each view (`noise_fac` of VQGAN-CLIP's `MakeCutouts`).

use std::f32::consts::TAU;

use burn::tensor::{Tensor, TensorData};
use datasets::{Purpose, SampleKey};
use rand::Rng;
use rayon::prelude::*;

use super::uniform;

/// The normal numbers to add, and their strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noise {
    /// Standard deviation for pixels in -1..1.
    deviation: f64,
    key: SampleKey,
    index: u64,
}

impl Noise {
    /// Draws a deviation from 0 to `largest`, which is for pixels in 0..1; `None` if that is 0. The normal numbers are
    /// those of cutout `index` of the sample.
    pub fn draw(rng: &mut impl Rng, largest: f64, key: SampleKey, index: u64) -> Option<Self> {
        let deviation = 2.0 * uniform(rng, 0.0, largest);
        (deviation > 0.0).then_some(Self { deviation, key, index })
    }

    /// Draws two standard normal numbers at a time (Box and Muller 1958) and scales them.
    fn fill(&self, values: &mut [f32]) {
        /// 2^32, the number of values of a `u32`.
        const STEPS: f32 = 4_294_967_296.0;
        let mut rng = self.key.rng_at(Purpose::Noise, self.index);
        let deviation = self.deviation as f32;
        for pair in values.chunks_mut(2) {
            let radius = deviation * (-2.0 * ((rng.next_u32() as f32 + 1.0) / STEPS).ln()).sqrt();
            let (sin, cos) = (TAU * (rng.next_u32() as f32 / STEPS)).sin_cos();
            for (value, direction) in pair.iter_mut().zip([cos, sin]) {
                *value = radius * direction;
            }
        }
    }
}

/// Adds to each of `views` `[V, C, S, S]` its noise.
pub(super) fn apply(views: Tensor<4>, noises: &[Option<&Noise>]) -> Tensor<4> {
    if noises.iter().all(Option::is_none) {
        return views;
    }
    let shape = views.dims();
    let size: usize = shape[1..].iter().product();
    let mut values = vec![0.0; noises.len() * size];
    // Each view has its own numbers, so it does not matter which thread draws them.
    values.par_chunks_mut(size).zip(noises).for_each(|(values, noise)| {
        if let Some(noise) = noise {
            noise.fill(values);
        }
    });
    let noise = Tensor::<4>::from_data(TensorData::new(values, shape), (&views.device(), views.dtype()));
    views + noise
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn numbers(noises: &[Option<&Noise>], size: usize) -> Vec<f32> {
        let views = Tensor::<4>::zeros([noises.len(), 1, 1, size], &Device::flex());
        apply(views, noises).into_data().try_into_vec().unwrap()
    }

    #[test]
    fn the_numbers_are_normal() {
        let noise = Noise { deviation: 0.5, key: SampleKey { seed: 4, draw: 5 }, index: 2 };
        let count = 200_001;
        let values = numbers(&[Some(&noise)], count);
        let moment = |power: i32| values.iter().map(|&v| (f64::from(v) / 0.5).powi(power)).sum::<f64>() / count as f64;
        assert!(moment(1).abs() < 0.01, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!(moment(3).abs() < 0.05, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.15, "{}", moment(4));
        // Neighbours come from the same pair of uniform numbers.
        let together = values.chunks_exact(2).map(|p| f64::from(p[0] * p[1])).sum::<f64>() / count as f64 * 2.0;
        assert!(together.abs() < 0.005, "{together}");
    }

    #[test]
    fn a_view_has_its_numbers_in_any_company() {
        let key = SampleKey { seed: 4, draw: 5 };
        let noises: Vec<Noise> = (0..7).map(|index| Noise { deviation: 1.0, key, index }).collect();
        let all: Vec<Option<&Noise>> = noises.iter().map(Some).chain([None]).collect();
        let together = numbers(&all, 15);
        for (index, noise) in all.iter().enumerate() {
            assert_eq!(numbers(&[*noise], 15), together[index * 15..][..15]);
        }
        assert_ne!(together[..15], together[15..30]);
        assert_eq!(together[7 * 15..], [0.0; 15]);
    }

    #[test]
    fn the_deviation_is_uniform_and_twice_that_of_pixels_in_0_to_1() {
        let key = SampleKey { seed: 4, draw: 5 };
        let draw = |index| Noise::draw(&mut key.rng_at(Purpose::Augment, index), 0.1, key, index);
        let deviations: Vec<f64> = (0..2000).filter_map(draw).map(|noise| noise.deviation).collect();
        assert!(deviations.iter().all(|d| (0.0..0.2).contains(d)));
        let mean = deviations.iter().sum::<f64>() / 2000.0;
        assert!((mean - 0.1).abs() < 0.005, "{mean}");
        assert_eq!(Noise::draw(&mut key.rng(Purpose::Augment), 0.0, key, 0), None);
    }
}
