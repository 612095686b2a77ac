//! CLIP (Radford et al. 2021, arXiv 2103.00020): maps images and captions to embeddings, which are close if they match.
//!
//! Losses have both networks frozen: gradients go through them to the image and never to a weight. Parameters have the names of
//! transformers' `CLIPModel`.

pub mod preprocess;
pub mod text;
pub mod tokenizer;
mod transformer;
pub mod vision;

pub use preprocess::{preprocess, to_clip};
pub use text::TextEncoder;
pub use tokenizer::{ClipTokenizer, TokenizerError, Tokens};
pub use vision::ImageEncoder;

#[cfg(test)]
mod tests;
