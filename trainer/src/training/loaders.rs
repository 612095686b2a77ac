//! Where the samples of each pass over an effective batch come from.

use datasets::{Batch, Loader};

use super::Training;
use super::step::StepError;
use crate::config::Config;

/// One for each pass over an effective batch: the second pass reads the samples again, so that they need not be kept.
pub(super) struct Loaders {
    /// Only in steps in which a loss couples samples.
    pub(super) first_pass: Option<Loader>,
    pub(super) second_pass: Loader,
}

impl Loaders {
    /// How long steps have waited for samples so far, in seconds.
    pub(super) fn wait_seconds(&self) -> f64 {
        self.first_pass.iter().chain([&self.second_pass]).map(Loader::wait_seconds).sum()
    }

    /// What pictures that are read ahead take of the host's memory now.
    pub(super) fn bytes_waiting(&self) -> usize {
        self.first_pass.iter().chain([&self.second_pass]).map(Loader::bytes_waiting).sum()
    }
}

impl Training {
    pub(super) fn start_loaders(&self) -> Loaders {
        Loaders { first_pass: None, second_pass: self.start_loader() }
    }

    pub(super) fn start_loader(&self) -> Loader {
        let Config { batch, data, run, .. } = &self.config;
        let (first, last) = (self.step * batch.effective as u64, run.steps * batch.effective as u64);
        let stream = self.data.training.clone();
        Loader::start(stream, first, Some(last - first), data.workers, data.prefetch)
    }
}

/// The micro-batches of one effective batch; the last may be smaller. What `proceed` objects to ends it between two of them.
pub(super) fn micro_batches<'a>(
    loader: &'a mut Loader,
    (effective, micro): (usize, usize),
    proceed: &'a dyn Fn() -> Result<(), StepError>,
) -> impl Iterator<Item = Result<Batch, StepError>> + 'a {
    let mut left = effective;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        if let Err(error) = proceed() {
            return Some(Err(error));
        }
        let count = micro.min(left);
        left -= count;
        Some(loader.next_batch(count).map_err(StepError::from))
    })
}
