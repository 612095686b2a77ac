//! The networks, and operations on images. They do not depend on the training code.

pub mod architectures;
pub mod blocks;
pub mod clip;
mod decoder;
pub mod discriminator;
mod encoder;
pub mod inception;
pub mod initialize;
pub mod lpips;
pub mod ops;
pub mod quantizer;
pub mod random;
pub mod ssim;
pub(crate) mod surrogate;
pub mod vqgan;
pub mod weights;

pub(crate) use blocks::statistics_dtype;
pub use vqgan::VqGan;

#[cfg(test)]
pub(crate) mod tests;
