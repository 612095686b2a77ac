//! Evaluates a model: validation on images that are not trained on, the best checkpoint by it, `train evaluate` on any
//! number of images, and sample grids. It depends on data, losses and models, and not on a run.

mod best;
mod captions;
pub mod evaluate;
mod image_scores;
mod metrics;
mod samples;
mod validation;

pub use self::best::Best;
pub use self::image_scores::{ImageJudges, ImageScores, is_large_enough, lpips_networks};
pub use self::metrics::{ImageJudge, Judges};
pub use self::samples::{before_and_after_png, grid_png, side_by_side};
pub use self::validation::{Extent, Scores, Validated, ValidationError, validate};
