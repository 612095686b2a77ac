//! Weights and run checkpoints.

pub mod hub;
pub mod run;
pub mod shipped;

mod clip;
mod discriminator;
mod disk;
mod family;
mod files;
#[cfg(test)]
mod fixtures;
mod inception;
mod lpips;
mod numpy;
mod tensor;

pub use clip::{Activation, CLIP_TOKENIZERS, Clip, ClipArchitecture, Tower, load_clip, load_clip_images, read_clip};
pub use discriminator::load_discriminator;
pub use family::{
    Architecture, ConfigFile, Export, Family, GumbelTraining, Quantizer, QuantizerKind, export_vqgan, family_name,
    load_vqgan, vqgan_notes,
};
pub use files::{PickleError, SafetensorsError, TorchError, WeightsError, WeightsFile, write_safetensors};
pub use inception::load_inception;
pub use lpips::{Convolution, LpipsNetwork, load_lpips_backbone, load_lpips_linear};
pub use numpy::{NpyHeader, Npz, NpzError, write_npz};
pub use safetensors::Dtype;
pub use tensor::{HostTensor, ShapeError};
