//! What a user sees of a run while it goes on: progress bars, dashboard, TensorBoard, lines on stderr. It knows nothing of what it
//! shows but names and numbers.

#[macro_use]
pub mod terminal;
pub mod download;
pub mod progress;
pub mod reporting;

/// Bytes as people write them: `1.50 GiB`.
pub fn readable(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
