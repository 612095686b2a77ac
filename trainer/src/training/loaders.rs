//! Loads the samples of each pass over an effective batch.

use datasets::{Batch, Loader};

use super::Training;
use super::error::StepError;
use crate::config::Config;
use crate::data::next_batch;

/// One loader for each pass over an effective batch. The second pass reads samples again, so they need not be kept.
pub(super) struct Loaders {
    /// `None` in steps in which no loss couples samples.
    pub(super) first_pass: Option<Loader>,
    pub(super) second_pass: Loader,
}

impl Loaders {
    /// How long steps have waited for samples so far, in seconds.
    pub(super) fn wait_seconds(&self) -> f64 {
        self.first_pass.iter().chain([&self.second_pass]).map(Loader::wait_seconds).sum()
    }

    /// Host memory of the images that are read ahead, in bytes.
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

/// Splits the next effective batch into micro-batches; the last may be smaller. `proceed` is called between two of them
/// and while samples are waited for; its error ends the iteration. `say` gets a line about each slow image.
pub(super) fn micro_batches<'a>(
    loader: &'a mut Loader,
    (effective, micro): (usize, usize),
    proceed: &'a dyn Fn() -> Result<(), StepError>,
    say: &'a dyn Fn(&str),
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
        let mut objection = StepError::Interrupted;
        let proceed = || proceed().map_err(|error| objection = error).is_ok();
        match next_batch(loader, count, proceed, say) {
            Ok(Some(batch)) => Some(Ok(batch)),
            Ok(None) => Some(Err(objection)),
            Err(error) => Some(Err(error.into())),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::data::tests::Stuck;

    #[test]
    fn an_objection_ends_the_waiting_for_samples() {
        let source = Arc::new(Stuck::default());
        let mut loader = source.loader();
        let began = Instant::now();
        let proceed = || match began.elapsed() < Duration::from_millis(300) {
            true => Ok(()),
            false => Err(StepError::OverLimit),
        };
        let mut batches = micro_batches(&mut loader, (4, 2), &proceed, &|_| ());
        assert!(matches!(batches.next(), Some(Err(StepError::OverLimit))));
        assert!((0.3..1.5).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    }
}
