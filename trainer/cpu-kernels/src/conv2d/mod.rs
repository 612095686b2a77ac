//! Convolution in two dimensions and its gradients.
//!
//! The output is computed by [`correlation`]. For the gradients, [`algorithm`] chooses between [`correlation`] and
//! [`weight_gradient`] on one side and [`winograd`] on the other.

mod algorithm;
mod band;
mod correlation;
mod products;
#[cfg(test)]
mod tests;
mod weight_gradient;
mod winograd;

use num_traits::{Float, NumCast};
use pulp::Arch;
use rayon::prelude::*;

use self::algorithm::Algorithm;
use crate::{Element, sum};

/// The sizes of a convolution. Images are `[N, C, H, W]` and weights `[O, C, KH, KW]`, in the order of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels C.
    pub inputs: usize,
    /// Output channels O.
    pub outputs: usize,
    /// Height and width of the input.
    pub image: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Strides down and right.
    pub stride: [usize; 2],
    /// Zeros around the input: `[[top, bottom], [left, right]]`.
    pub padding: [[usize; 2]; 2],
}

impl Geometry {
    /// Height and width of the output; `None` where the padded image is smaller than the kernel.
    pub fn output(&self) -> Option<[usize; 2]> {
        let along = |i: usize| {
            let padded = self.image[i] + self.padding[i][0] + self.padding[i][1];
            padded.checked_sub(self.kernel[i]).map(|free| free / self.stride[i] + 1)
        };
        Some([along(0)?, along(1)?])
    }

    fn check<E>(&self, x: Option<&[E]>, weights: Option<&[E]>, gradient: Option<&[E]>) {
        let image = self.inputs * self.image[0] * self.image[1];
        let output = self.outputs * self.output().map_or(0, |[height, width]| height * width);
        let samples = [(x, image), (gradient, output)]
            .into_iter()
            .filter_map(|(values, of_sample)| values.map(|values| (values.len(), of_sample)))
            .map(|(count, of_sample)| count.checked_div(of_sample).filter(|samples| samples * of_sample == count))
            .collect::<Vec<_>>();
        assert!(samples.iter().all(|of_one| of_one.is_some() && *of_one == samples[0]), "whole images: {self:?}");
        let weights_fit = weights.is_none_or(|weights| weights.len() == self.outputs * self.inputs * self.taps());
        assert!(weights_fit, "weights of {self:?}");
    }

    /// Weights of a kernel.
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// The output, `[N, O, H', W']`, with `bias`, `[O]`, added. No sample's values depend on the other samples, and none on the number
/// of threads.
///
/// # Panics
/// If the slices are not as long as the sizes say.
pub fn forward<E: Element>(geometry: &Geometry, x: &[E], weights: &[E], bias: Option<&[E]>) -> Vec<E> {
    geometry.check(Some(x), Some(weights), None);
    let filtered = algorithm::filters_output(geometry);
    correlation::forward(Arch::new(), geometry, filtered, x, weights, bias)
}

/// The gradient at the input, `[N, C, H, W]`, from that at the output, `[N, O, H', W']`.
///
/// # Panics
/// If the slices are not as long as the sizes say.
pub fn input_gradient<E: Element>(geometry: &Geometry, weights: &[E], gradient: &[E]) -> Vec<E> {
    geometry.check(None, Some(weights), Some(gradient));
    match Algorithm::for_gradient::<E>(geometry) {
        Algorithm::Direct => correlation::input_gradient(Arch::new(), geometry, weights, gradient),
        Algorithm::Winograd => winograd::input_gradient(Arch::new(), geometry, weights, gradient),
    }
}

/// The gradient at the weights, `[O, C, KH, KW]`, summed over the samples.
///
/// # Panics
/// If the slices are not as long as the sizes say.
pub fn weight_gradient<E: Element>(geometry: &Geometry, x: &[E], gradient: &[E]) -> Vec<E> {
    geometry.check(Some(x), None, Some(gradient));
    match Algorithm::for_gradient::<E>(geometry) {
        Algorithm::Direct => weight_gradient::weight_gradient(Arch::new(), geometry, x, gradient),
        Algorithm::Winograd => winograd::weight_gradient(Arch::new(), geometry, x, gradient),
    }
}

/// The gradient at the bias, `[O]`, summed over samples and pixels.
///
/// # Panics
/// If the slice is not as long as the sizes say.
pub fn bias_gradient<E: Element>(geometry: &Geometry, gradient: &[E]) -> Vec<E> {
    geometry.check(None, None, Some(gradient));
    let pixels = geometry.output().map_or(0, |[height, width]| height * width);
    let of_channel = |channel: usize| {
        let samples = gradient.chunks(geometry.outputs * pixels);
        let sums = samples.map(|gradient| sum(&gradient[channel * pixels..][..pixels], |value| value.widen().into()));
        E::narrow(<E::Wide as NumCast>::from(sums.sum::<f64>()).unwrap_or_else(Float::nan))
    };
    (0..geometry.outputs).into_par_iter().map(of_channel).collect()
}
