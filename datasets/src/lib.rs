//! Training images.
