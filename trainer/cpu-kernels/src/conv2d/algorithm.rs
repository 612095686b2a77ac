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

/// Channels from which on, on one side at least, Winograd's algorithm is the faster one.
const WIDE: usize = 16;

impl Algorithm {
    /// The faster one, by the measurements in the benchmark `conv2d`. f64 is there to be exact, and is always direct.
    pub fn choose(geometry: &Geometry, is_f64: bool) -> Self {
        let Geometry { inputs, outputs, kernel, stride, padding, .. } = geometry;
        let fits = *kernel == [3, 3] && *stride == [1, 1] && padding.as_flattened().iter().all(|zeros| *zeros <= 2);
        if fits && !is_f64 && *inputs.max(outputs) >= WIDE { Self::Winograd } else { Self::Direct }
    }
}
