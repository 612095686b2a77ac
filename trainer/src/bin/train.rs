//! The command `train`.
fn main() {}
