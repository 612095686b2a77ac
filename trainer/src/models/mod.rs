//! The networks.

pub mod architectures;
mod blocks;
pub mod clip;
mod decoder;
mod encoder;
pub mod initialize;
pub mod quantizer;
pub mod vqgan;
pub mod weights;

pub use vqgan::VqGan;

#[cfg(test)]
pub(crate) mod tests;
