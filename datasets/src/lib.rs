//! Training images: where they come from, how they are cropped, in which order they are drawn, and how they are loaded
//! ahead of the training step.
//!
//! ```text
//! DataSource    the source that the configuration names
//! Source        images by index                        folder, shapes
//! Split         which indices are for training, which for validation
//! Sampler       draw -> index, without end             a pure function of (seed, draw)
//! Transform     image -> resolution x resolution x 3   depends on (seed, draw)
//! TrainingSet   the four together: draw -> Sample      ValidationSet: position -> Sample
//! Loader        the samples of a set, in order, loaded ahead by any number of threads
//! ```
//!
//! Every random choice depends on the seed and the *draw* alone. The draw is the position of a sample in the endless
//! training stream. The same draw gives the same pixels for every batch size and every number of threads, so a run
//! resumes at the draw where it stopped.

mod bad_images;
mod budget;
mod dataset;
mod decode;
mod error;
mod files;
mod key;
mod loader;
mod sample;
mod sampler;
mod source;
mod split;
mod text;
mod transform;

pub use dataset::{TrainingSet, ValidationSet};
pub use decode::{decode, read_image};
pub use error::{DataError, ImageError, ImageProblem, SettingError};
pub use key::{Purpose, SampleKey};
pub use loader::{Awaited, Loader};
pub use sample::{Attempt, Batch, Sample, SampleStream};
pub use sampler::Sampler;
pub use source::{Attribute, DataSource, ShapesSource, Source, SourceImage, SourceSettings, is_image};
pub use split::{Split, Validation};
pub use transform::{Crop, Transform};
