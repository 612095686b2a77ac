//! Weights and run checkpoints.

pub mod hub;
pub mod run;

mod architecture;
mod clip;
mod discriminator;
#[cfg(test)]
mod fixtures;
mod lpips;
mod names;
mod pickle;
mod safetensors_file;
mod tensor;
mod torch_file;
mod weights;

pub use architecture::{Architecture, Family, GumbelTraining, Quantizer, QuantizerKind};
pub use clip::{Activation, CLIP_TOKENIZERS, Clip, ClipArchitecture, Tower, load_clip, load_clip_images, read_clip};
pub use discriminator::load_discriminator;
pub use lpips::{Convolution, LpipsNetwork, load_lpips_backbone, load_lpips_linear};
pub use names::{ConfigFile, Export, export_vqgan, family_name, load_vqgan, vqgan_notes};
pub use pickle::PickleError;
pub use safetensors::Dtype;
pub use safetensors_file::{SafetensorsError, write_safetensors};
pub use tensor::{HostTensor, ShapeError};
pub use torch_file::TorchError;
pub use weights::{WeightsError, WeightsFile};
