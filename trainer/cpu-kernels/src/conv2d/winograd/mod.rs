//! 3x3 convolutions of stride 1 by Winograd's algorithm F(4x4, 3x3): a quarter of the multiplications, and an error of
//! some 1e-6 in f32 (Lavin and Gray 2015, arXiv 1509.09308).
//!
//! An image is cut into tiles of 4x4 outputs. Tiles of the input, kernels and tiles of the output are transformed to 36
//! points each, at which a convolution is a product of matrices: tiles by input channels, times input channels by output
//! channels. Vectors run over channels, so pixels of a tile are transposed as they are read and as they are written.
//! The gradient at the input is the same convolution with channels exchanged and the kernel turned by 180 degrees, and
//! the gradient at the weights is a product over tiles at each point.

#![allow(
    clippy::manual_memcpy,
    clippy::needless_range_loop,
    reason = "loops over constant ranges: they are unrolled, and the closures of iterators are not always inlined"
)]

mod input_gradient;
mod panel;
mod tiles;
mod transform;
mod transpose;
mod weight_gradient;

pub use input_gradient::input_gradient;
pub use weight_gradient::weight_gradient;
