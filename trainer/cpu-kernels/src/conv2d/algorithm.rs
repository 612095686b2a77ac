//! Which algorithm computes the gradients of a convolution.

use super::Geometry;
use crate::Element;

/// How to compute a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Product by product, as a convolution is defined.
    Direct,
    /// Winograd's F(4x4, 3x3), in f32.
    Winograd,
}

/// Channels from which on, on both sides, Winograd's algorithm is taken: with fewer its panels of 32 channels are mostly empty.
const WIDE: usize = 32;

impl Algorithm {
    /// Winograd's algorithm where it is faster.
    ///
    /// The output is always direct. Winograd's error of some 1e-6 is that of a whole tile, and losses enlarge it: LPIPS takes the
    /// difference of the features of two similar images, whose gradient was off by 5e-3, and the entropy of codes divides distances
    /// by 0.01. A gradient only goes through sums from there on. f64 is there to be exact, and is direct too.
    pub fn for_gradient<E: Element>(geometry: &Geometry) -> Self {
        let is_f64 = size_of::<E::Wide>() == size_of::<f64>();
        let is_wide = geometry.inputs.min(geometry.outputs) >= WIDE;
        if !is_f64 && is_wide && Self::winograd_can(geometry) { Self::Winograd } else { Self::Direct }
    }

    /// Whether Winograd's algorithm can compute it.
    pub fn winograd_can(geometry: &Geometry) -> bool {
        let Geometry { kernel, stride, padding, .. } = geometry;
        *kernel == [3, 3] && *stride == [1, 1] && padding.as_flattened().iter().all(|zeros| *zeros <= 2)
    }
}
