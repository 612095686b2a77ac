//! The networks.

pub mod architectures;
pub mod blocks;
mod decoder;
mod encoder;
pub mod initialize;
pub mod quantizer;
pub mod vqgan;
pub mod weights;

pub use vqgan::VqGan;

#[cfg(test)]
pub(crate) mod tests;
