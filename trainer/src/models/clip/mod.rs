//! CLIP (Radford et al. 2021, arXiv 2103.00020): images and captions to embeddings that lie close when they belong together.
//!
//! Both networks are frozen: gradients go through them to the image and never to a weight. Names are those of
//! transformers' `CLIPModel`.

pub mod preprocess;
pub mod text;
pub mod tokenizer;
mod transformer;
pub mod vision;

pub use preprocess::{preprocess, to_clip};
pub use text::TextEncoder;
pub(crate) use tokenizer::byte_vocabulary;
pub use tokenizer::{ClipTokenizer, TokenizerError, Tokens};
pub use vision::ImageEncoder;

#[cfg(test)]
mod tests;
