//! Mixed precision (Micikevicius et al. 2018, arXiv 1710.03740): networks compute in half precision; sums and decisions
//! are in f32. It depends on models only.
//!
//! With `compute = "fp16"` or `"bf16"` these stay in f32:
//!
//! | what | why |
//! |---|---|
//! | master weights, optimizer state, EMA | an update is smaller than the distance between two half-precision values |
//! | sums of gradients over micro-batches | the exactness contract, and f16 ends at 65,504 |
//! | statistics, scale and shift of GroupNorm, LayerNorm and BatchNorm | sums over a group's pixels |
//! | softmax of attention | a sum of exponentials |
//! | the codebook: codes, latents as compared, distances or logits, their softmax, argmin or argmax, its loss and entropy | near codes differ by less than a rounding |
//! | images: originals, reconstructions, cutouts, resampling, the gradient of all losses at the image | they meet all networks, of whichever type |
//! | LPIPS' unit lengths and distances, CLIP's cosines, the contrastive loss | squares overflow, differences of near numbers vanish |
//! | logits of the discriminator, every loss value, all norms | means over many values |
//!
//! The networks take images in f32 and convert to their own type inside, so frozen networks may have another type than
//! the model. [`compute_copy`] makes the model's copy in half precision, once per optimizer step. Its parameters have
//! the master's ids, under which their gradients are summed.

mod config;
mod copy;
mod probe;
mod range;

pub use config::{Compute, LossScaleConfig, PrecisionConfig, ScalerConfig};
pub use copy::compute_copy;
pub use probe::{Found, Probe};
pub use range::Range;
