//! The micro-batch of a pass without gradients: as large as the limit allows, by what its own first images take.

use super::fit::{Line, with_margin};
use super::recovery::clear_pools;
use super::{Exhausted, Limit, MemoryError, MemoryMeter};
use crate::device::panics::{catch_out_of_memory, out_of_memory};
use crate::device::{Choice, Selected};
use crate::show::readable;

/// Images at a time, at most. More make a GPU hardly faster, and a CPU not at all.
const MOST: usize = 32;
const MOST_ON_CPU: usize = 8;

/// Micro-batches 1, 2 and 3 are measured; see [`Fit`](super::fit).
const MEASURED: usize = 3;

/// Chooses the micro-batch of a pass, and lowers it when memory runs out. The results are the same.
pub struct ForwardMicro {
    micro: usize,
    most: usize,
    limit: Option<Limit>,
    /// The peaks of micro-batch 1, 2 and so on; `None` if nothing is to be measured, or no longer.
    seen: Option<Vec<f64>>,
    meter: MemoryMeter,
    device: Selected,
}

/// What became of a micro-batch.
pub enum Attempt<T> {
    /// It is done.
    Done(T),
    /// It is to be done again in parts of [`ForwardMicro::size`]; the line says why.
    TooLarge(String),
}

impl ForwardMicro {
    /// Takes `fixed` images at a time, or as many as `limit` bytes allow; without a limit it is most of what is free.
    pub fn new(device: &Selected, fixed: Option<usize>, limit: Option<u64>) -> Self {
        let configured = limit.map(|bytes| Limit { bytes, configured: true });
        let limit = configured.or_else(|| Limit::of_free_memory(device).filter(|_| fixed.is_none()));
        let most = fixed.unwrap_or(if device.choice == Choice::Cpu { MOST_ON_CPU } else { MOST });
        let seen = (fixed.is_none() && limit.is_some()).then(Vec::new);
        Self {
            micro: if seen.is_some() { 1 } else { most },
            most,
            limit,
            seen,
            meter: MemoryMeter::new(device),
            device: device.clone(),
        }
    }

    /// Images to take at a time.
    pub fn size(&self) -> usize {
        self.micro
    }

    /// Runs `work` on a micro-batch of `samples` images. It must not keep anything if it fails.
    ///
    /// # Errors
    /// If a single image takes too much, and else with the device's message.
    pub fn run<T>(
        &mut self,
        samples: usize,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<Attempt<T>, MemoryError> {
        self.meter.start(false);
        let message = match catch_out_of_memory(work) {
            Ok(Ok(done)) => {
                self.measured(samples, self.meter.peak())?;
                return Ok(Attempt::Done(done));
            }
            Ok(Err(message)) if out_of_memory(&message).is_none() => return Err(MemoryError::Device(message)),
            Ok(Err(message)) | Err(message) => message,
        };
        clear_pools(&self.device)?;
        if samples == 1 {
            return Err(exhausted(format!("out of memory ({message})")));
        }
        self.lower(samples);
        Ok(Attempt::TooLarge(format!("out of memory ({message}); {} images at a time", self.micro)))
    }

    fn lower(&mut self, samples: usize) {
        self.micro = (samples.min(self.micro) / 2).max(1);
        self.most = self.micro;
        self.seen = None;
    }

    /// Chooses the next size after a micro-batch of `samples` images took `peak` bytes.
    fn measured(&mut self, samples: usize, peak: u64) -> Result<(), MemoryError> {
        let Some(limit) = self.limit else { return Ok(()) };
        if peak > limit.bytes {
            if samples > 1 {
                self.lower(samples);
            } else if limit.configured {
                let [peak, limit] = [peak, limit.bytes].map(readable);
                return Err(exhausted(format!("one image takes {peak}, and --limit is {limit}")));
            }
            return Ok(());
        }
        let Some(seen) = self.seen.as_mut().filter(|seen| samples == seen.len() + 1) else { return Ok(()) };
        seen.push(peak as f64);
        self.micro = samples + 1;
        if samples == MEASURED {
            let line = Line::through(MEASURED - 1, seen[MEASURED - 2], seen[MEASURED - 1]);
            let fits = |micro: &usize| with_margin(line.at(*micro) as u64) <= limit.bytes;
            self.micro = (MEASURED..=self.most).rev().find(fits).unwrap_or(MEASURED - 1);
            self.seen = None;
        }
        self.micro = self.micro.min(self.most);
        Ok(())
    }
}

fn exhausted(cause: String) -> MemoryError {
    let [lowered, help] = ["one image at a time", "a smaller --resolution, or a device with more memory"];
    MemoryError::Exhausted(Exhausted { cause, lowered: lowered.to_owned(), help: help.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Option<u64> = Some(1000);

    fn chooser(fixed: Option<usize>, limit: Option<u64>) -> ForwardMicro {
        ForwardMicro::new(&Choice::Cpu.open().unwrap(), fixed, limit)
    }

    /// The sizes after micro-batches that take `fixed + each * size` bytes.
    fn sizes(mut micro: ForwardMicro, fixed: u64, each: u64) -> Vec<usize> {
        let mut sizes = vec![micro.size()];
        for _ in 0..5 {
            let size = micro.size();
            micro.measured(size, fixed + each * size as u64).unwrap();
            sizes.push(micro.size());
        }
        sizes
    }

    #[test]
    fn the_first_images_say_how_many_fit() {
        assert_eq!(sizes(chooser(None, SOME), 100, 10), [1, 2, 3, 8, 8, 8]);
        // 1000 / 1.05 leaves room for (952 - 200) / 150 images.
        assert_eq!(sizes(chooser(None, SOME), 200, 150), [1, 2, 3, 5, 5, 5]);
        assert_eq!(sizes(chooser(None, SOME), 100, 299), [1, 2, 3, 2, 2, 2]);
        assert_eq!(sizes(chooser(None, SOME), 500, 400), [1, 2, 1, 1, 1, 1]);
        assert_eq!(sizes(chooser(Some(6), None), 500, 400), [6; 6]);
        assert_eq!(sizes(chooser(Some(6), SOME), 500, 100), [6, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn a_single_image_beyond_the_limit_is_an_error_and_beyond_what_was_free_it_is_not() {
        assert!(matches!(chooser(None, SOME).measured(1, 1001), Err(MemoryError::Exhausted(_))));
        assert!(chooser(None, None).measured(1, u64::MAX).is_ok());
    }

    #[test]
    fn out_of_memory_halves_the_micro_batch_until_one_image_is_left() {
        let mut micro = chooser(Some(6), None);
        let fail = || -> Result<(), String> { panic!("memory allocation of 12 bytes failed") };
        assert!(matches!(micro.run(6, fail).unwrap(), Attempt::TooLarge(_)));
        assert_eq!(micro.size(), 3);
        let says = || Err::<(), _>("CUDA_ERROR_OUT_OF_MEMORY".to_owned());
        assert!(matches!(micro.run(2, says).unwrap(), Attempt::TooLarge(_)));
        assert_eq!(micro.size(), 1);
        assert!(matches!(micro.run(1, says), Err(MemoryError::Exhausted(_))));
        assert!(matches!(micro.run(1, || Ok(7)).unwrap(), Attempt::Done(7)));
        let other = || Err::<(), _>("an illegal address".to_owned());
        assert!(matches!(micro.run(1, other), Err(MemoryError::Device(_))));
    }
}
