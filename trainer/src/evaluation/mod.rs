//! Evaluates a model: validation on images that are not trained on, the best checkpoint by it, and sample grids. It
//! depends on data, losses and models, and not on a run.

mod best;
mod image_scores;
mod samples;
mod validation;

pub use self::best::Best;
pub use self::image_scores::{ImageJudges, ImageScores, is_large_enough, lpips_networks};
pub use self::samples::{before_and_after_png, grid_png, side_by_side};
pub use self::validation::{Extent, Judges, Scores, Validated, ValidationError, validate};
