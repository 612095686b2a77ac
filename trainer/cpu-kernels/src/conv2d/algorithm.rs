//! Which algorithm computes a convolution and its gradients.

use super::{Geometry, correlation};
use crate::Element;

/// How to compute a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Product by product, as a convolution is defined.
    Direct,
    /// Winograd's F(4x4, 3x3), in f32; the output by F(2x2, 3x3).
    Winograd,
}

/// Channels from which on, on both sides, Winograd's algorithms are taken: with fewer, transforms take longer than they save.
const WIDE: usize = 32;
/// Outputs of a channel from which on they are filtered: with fewer, the points of the weights take longer than they save.
const MANY_OUTPUTS: usize = 32 * 32;

/// Whether the output is computed by minimal filtering, F(2x2, 3x3): with fewer products, and as exact.
pub fn filters_output(geometry: &Geometry) -> bool {
    let outputs = geometry.output().map_or(0, |[height, width]| height * width);
    correlation::can_filter(geometry) && is_wide(geometry) && outputs >= MANY_OUTPUTS
}

fn is_wide(geometry: &Geometry) -> bool {
    geometry.inputs.min(geometry.outputs) >= WIDE
}

impl Algorithm {
    /// Winograd's algorithm where it is faster.
    ///
    /// The output never is by it. Winograd's error of some 1e-6 is that of a whole tile, and losses enlarge it: LPIPS takes the
    /// difference of the features of two similar images, whose gradient was off by 5e-3, and the entropy of codes divides distances
    /// by 0.01. A gradient only goes through sums from there on. f64 is there to be exact, and is direct too.
    pub fn for_gradient<E: Element>(geometry: &Geometry) -> Self {
        let is_f64 = size_of::<E::Wide>() == size_of::<f64>();
        if !is_f64 && is_wide(geometry) && Self::winograd_can(geometry) { Self::Winograd } else { Self::Direct }
    }

    /// Whether Winograd's algorithm can compute it.
    pub fn winograd_can(geometry: &Geometry) -> bool {
        let Geometry { kernel, stride, padding, .. } = geometry;
        *kernel == [3, 3] && *stride == [1, 1] && padding.as_flattened().iter().all(|zeros| *zeros <= 2)
    }
}
