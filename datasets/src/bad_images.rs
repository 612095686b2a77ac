//! The bad images of a data set: each is named once, and they are counted against a limit.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::error::{DataError, ImageError};

/// Counts distinct bad images in the order in which their samples are handed out, not in that of the threads, so that a
/// run always stops at the same sample.
#[derive(Debug)]
pub struct BadImages {
    limit: usize,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    indices: HashSet<usize>,
    warnings: Vec<ImageError>,
}

impl BadImages {
    /// Allows `limit` distinct bad images.
    pub fn new(limit: usize) -> Self {
        Self { limit, found: Mutex::default() }
    }

    /// How many distinct bad images are allowed.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Records bad images, by their index in the source. Each counts once.
    ///
    /// # Errors
    /// The limit is exceeded.
    pub fn record(&self, bad: &[(usize, ImageError)]) -> Result<(), DataError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, error) in bad {
            if found.indices.insert(*index) {
                found.warnings.push(error.clone());
            }
            let count = found.indices.len();
            if count > self.limit {
                return Err(DataError::TooManyBad { count, limit: self.limit, last: error.clone() });
            }
        }
        Ok(())
    }

    /// The bad images found since the last call, in the order in which they were found.
    pub fn take_warnings(&self) -> Vec<ImageError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut found.warnings)
    }
}
