//! Kernels of the CPU backend, over plain slices.

pub mod conv2d;
mod element;
mod real;
mod scratch;
mod sum;

pub use element::Element;
pub use sum::sum;
