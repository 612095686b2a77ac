//! Which algorithm computes a convolution.

use super::Geometry;

/// How to compute a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// A product of matrices.
    Direct,
    /// Winograd's F(4x4, 3x3), in f32.
    Winograd,
}

/// Channels from which on, on one side at least, Winograd's algorithm is taken: with fewer its panels of 32 channels are mostly
/// empty.
const WIDE: usize = 16;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Output,
    /// The gradient at the input or at the weights.
    Gradient,
}

impl Algorithm {
    /// Winograd's algorithm where it is exact enough and has enough channels.
    ///
    /// The output is always direct. Winograd's error of some 1e-6 is that of a whole tile, and losses enlarge it: LPIPS takes the
    /// difference of the features of two similar images, whose gradient was off by 5e-3, and the entropy of codes divides distances
    /// by 0.01. A gradient only goes through sums from there on. f64 is there to be exact, and is direct in all passes.
    pub fn choose(geometry: &Geometry, pass: Pass, is_f64: bool) -> Self {
        let wide = geometry.inputs.max(geometry.outputs) >= WIDE;
        if pass == Pass::Gradient && !is_f64 && wide && Self::winograd_can(geometry) {
            Self::Winograd
        } else {
            Self::Direct
        }
    }

    /// Whether Winograd's algorithm can compute it.
    pub fn winograd_can(geometry: &Geometry) -> bool {
        let Geometry { kernel, stride, padding, .. } = geometry;
        *kernel == [3, 3] && *stride == [1, 1] && padding.as_flattened().iter().all(|zeros| *zeros <= 2)
    }
}
