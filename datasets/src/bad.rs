//! The bad images that were met: named once each, and counted against the limit.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::{DataError, ImageError};

/// Counts distinct bad images in the order in which their samples are handed out, never in that of the threads, so that a
/// run stops at the same sample whatever loads it.
#[derive(Debug)]
pub(crate) struct BadImages {
    limit: usize,
    met: Mutex<Met>,
}

#[derive(Debug, Default)]
struct Met {
    indices: HashSet<usize>,
    warnings: Vec<ImageError>,
}

impl BadImages {
    /// Allows `limit` distinct bad images.
    pub fn new(limit: usize) -> Self {
        Self { limit, met: Mutex::default() }
    }

    /// How many distinct bad images are allowed.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Records bad images, each the first time only.
    ///
    /// # Errors
    /// The limit is exceeded; says so again each time it is asked with a further bad image.
    pub fn record(&self, bad: &[(usize, ImageError)]) -> Result<(), DataError> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, error) in bad {
            if met.indices.insert(*index) {
                met.warnings.push(error.clone());
            }
            if met.indices.len() > self.limit {
                return Err(DataError::TooManyBad { count: met.indices.len(), limit: self.limit, last: error.clone() });
            }
        }
        Ok(())
    }

    /// The bad images met since the last call, in the order they were met.
    pub fn take_warnings(&self) -> Vec<ImageError> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut met.warnings)
    }
}
