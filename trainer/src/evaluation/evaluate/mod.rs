//! Evaluates models on any number of images: metrics of single images, of captions and of the whole set.
//!
//! Images and embeddings are streamed, so memory does not grow with their number, and what is done is saved, so that an
//! evaluation goes on after it was stopped or killed.

mod cmmd;
mod embeddings;
mod frechet;
mod inception_pass;
mod inception_score;
mod pass;
mod progress;
mod protocol;
mod published;
mod ranking;
mod reference;

use std::io;

use checkpoints::NpzError;
use checkpoints::run::RunError;
use datasets::DataError;
use serde::{Deserialize, Serialize};

pub use self::frechet::Statistics;
pub use self::inception_pass::{InceptionJudge, ORIGINALS};
pub use self::inception_score::InceptionScore;
pub use self::pass::Pass;
pub use self::progress::Progress;
pub use self::protocol::Protocol;
pub use self::published::{PUBLISHED, Published};
pub use self::ranking::RankedBy;
pub use self::reference::read_reference;
use super::metrics::null_is_nan;
use super::validation::Scores;
use crate::memory::MemoryError;

/// The result for one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The metrics that validations have too.
    #[serde(flatten)]
    pub scores: Scores,
    /// CMMD of originals and reconstructions, if there is a CLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmmd: Option<f64>,
    /// FID of the reconstructions and the reference, if there is an InceptionV3; `None` too if it is no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rfid: Option<f64>,
    /// The Inception Score of the reconstructions, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<InceptionScore>,
    /// The metric that ranks images.
    pub ranked_by: RankedBy,
    /// The images with the worst reconstructions, the worst first.
    pub worst: Vec<RankedImage>,
    /// The images with the best reconstructions, the best first.
    pub best: Vec<RankedImage>,
}

/// An image among the worst or best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedImage {
    /// Its name; the path of a file.
    pub image: String,
    /// Its position among the images of the evaluation.
    pub position: u64,
    /// LPIPS, or PSNR in dB.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
}

/// Why an evaluation has no result.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Too little memory, or a device that failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The folder of the evaluation.
    #[error(transparent)]
    Folder(#[from] RunError),
    /// The embeddings on the disk.
    #[error("the embeddings of the evaluation cannot be kept: {0}")]
    Embeddings(#[from] io::Error),
    /// Statistics of features: `--reference`, or those of the evaluation.
    #[error(transparent)]
    Statistics(#[from] NpzError),
    /// The device.
    #[error("the device failed: {0}")]
    Device(String),
    /// Every image is broken.
    #[error("none of the {0} images can be read")]
    NoImages(usize),
}

/// Who waits for an evaluation.
pub trait Watch {
    /// A pass begins, of which `done` of `images` images are done already.
    fn begin(&self, done: u64, images: u64);

    /// So many images are done.
    fn advance(&self, done: u64);

    /// Says a line to the user.
    fn line(&self, text: &str);

    /// Whether to stop.
    fn should_stop(&self) -> bool;
}
