//! Kernels of the CPU backend, over plain slices.

pub mod conv2d;
mod element;
mod real;
mod scratch;
mod sigmoid;
mod sum;
pub mod symmetric;

pub use element::Element;
pub use real::Real;
pub use sigmoid::sigmoid;
pub use sum::sum;
