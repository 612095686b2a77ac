//! Training images: where they come from, how they are cropped, in which order they are seen, and how they are
//! loaded ahead of the training step.
//!
//! ```text
//! Source        pictures by index                      FolderSource, ShapesSource
//! Split         which indices train, which validate
//! Sampler       draw -> index, without end             a pure function of (seed, draw)
//! Transform     picture -> resolution x resolution x 3 keyed by (seed, draw)
//! TrainingSet   the four together: draw -> Sample      ValidationSet: position -> Sample
//! Loader        a stream's samples, in order, ahead of time, by any number of threads
//! ```
//!
//! Every random choice is keyed by the seed and by the *draw*, the position of a sample in the endless training stream.
//! The same draw gives the same pixels however the stream is cut into batches and however many threads load it, so a run
//! resumes by starting at the draw where it stopped.

mod bad;
mod budget;
mod captions;
mod dataset;
mod decode;
mod error;
mod files;
mod folder;
mod identity;
mod key;
mod loader;
mod sampler;
mod shapes;
mod source;
mod split;
mod text;
mod transform;

pub use dataset::{Attempt, Sample, SampleStream, TrainingSet, ValidationSet};
pub use decode::{decode, read_image};
pub use error::{DataError, ImageError, ImageProblem};
pub use folder::{CaptionFiles, EXTENSIONS, FolderSource};
pub use key::{Purpose, SampleKey};
pub use loader::{Awaited, Batch, Loader};
pub use sampler::Sampler;
pub use shapes::ShapesSource;
pub use source::{Picture, Source};
pub use split::{Split, Validation};
pub use transform::{Crop, Transform};
