//! Embeds captions.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::models::clip::{ClipTokenizer, TextEncoder, TokenizerError};

/// Embeds captions, without a graph.
pub struct CaptionEncoder {
    tokenizer: ClipTokenizer,
    /// Maps tokens to embeddings, without autodiff.
    encoder: TextEncoder,
    device: Device,
    truncated: Mutex<Truncated>,
}

impl CaptionEncoder {
    /// `encoder`'s parameters are on `device`, without autodiff.
    pub fn new(tokenizer: ClipTokenizer, encoder: TextEncoder, device: Device) -> Self {
        Self { tokenizer, encoder, device, truncated: Mutex::default() }
    }

    /// Embeds texts, `[texts, E]`, not normalised. Texts longer than the context are truncated.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn embed<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<Tensor<2>, TokenizerError> {
        let (mut ids, mut rows) = (Vec::new(), 0);
        for text in texts {
            let tokens = self.tokenizer.encode(text)?;
            if tokens.truncated {
                self.note_truncated(text);
            }
            ids.extend(tokens.ids.iter().map(|&id| i64::from(id)));
            rows += 1;
        }
        let context = ids.len() / rows.max(1);
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, context]), &self.device);
        Ok(self.encoder.forward(ids))
    }

    fn note_truncated(&self, text: &str) {
        let mut truncated = self.truncated.lock().unwrap_or_else(PoisonError::into_inner);
        if *truncated == Truncated::None {
            *truncated = Truncated::Pending(text.to_owned());
        }
    }

    /// Returns the first text that was longer than the context, once.
    pub fn take_truncated(&self) -> Option<String> {
        let mut truncated = self.truncated.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *truncated, Truncated::Reported) {
            Truncated::Pending(text) => Some(text),
            Truncated::Reported => None,
            Truncated::None => {
                *truncated = Truncated::None;
                None
            }
        }
    }
}

/// Whether a text that is too long is to be reported.
#[derive(Debug, Default, PartialEq)]
enum Truncated {
    #[default]
    None,
    Pending(String),
    Reported,
}
