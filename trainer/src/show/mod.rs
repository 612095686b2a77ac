//! Shows a run to the user while it trains: progress bars, dashboard, TensorBoard, lines on stderr. It knows only names
//! and numbers, not what they mean.

#[macro_use]
pub mod terminal;
pub mod counter;
pub mod download;
pub mod log_file;
pub mod progress;
pub mod reporting;

/// Formats a number of things for people: `1 image`, `2 images`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Formats bytes for people: `1.50 GiB`.
pub fn readable(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
