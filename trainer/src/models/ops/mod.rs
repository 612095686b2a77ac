//! The operations with kernels of our own, where Burn's would be too slow or would keep too much memory.

pub mod conv2d;
mod flex;
pub mod group_norm;
#[cfg(test)]
mod testing;
