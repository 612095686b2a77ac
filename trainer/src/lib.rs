//! Fine-tunes a VQGAN.
