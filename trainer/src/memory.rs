//! Peak memory, measured: a counting allocator on the CPU, the device allocator's own figures on a GPU.

use std::cell::RefCell;
use std::fmt;

use burn::tensor::{Device, MemoryPoolUsage};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HOST: PeakAlloc = PeakAlloc;

/// A part of an optimizer step whose memory is measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before anything is computed: weights, optimizer state, average, losses' networks, pictures read ahead.
    Weights,
    /// The pass without a graph, with the losses that run in it.
    FirstPass,
    /// A micro-batch's way through the model.
    Forward,
    /// One loss with its gradient at the image; all of CLIP's are one.
    Loss(&'static str),
    /// Back through the codebook and the model.
    Backward,
    /// Norms, clipping, the optimizers and the average.
    Optimizer,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::FirstPass => "first_pass",
            Self::Forward => "forward",
            Self::Loss(name) => name,
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
        })
    }
}

/// Measures the peak between [`start`](Self::start) and [`peak`](Self::peak), and that of each phase in between.
#[derive(Debug, Clone)]
pub struct MemoryMeter {
    device: Device,
    phases: RefCell<Phases>,
}

/// The peak of each phase so far, in the order in which they came up, and the phase that is on.
#[derive(Debug, Clone)]
struct Phases {
    peaks: Vec<(Phase, u64)>,
    now: Phase,
}

impl MemoryMeter {
    /// For `device`.
    pub fn new(device: &Device) -> Self {
        let phases = Phases { peaks: Vec::new(), now: Phase::Weights };
        Self { device: device.clone(), phases: RefCell::new(phases) }
    }

    /// Forgets the peaks so far and begins with [`Phase::Weights`].
    pub fn start(&self) {
        *self.phases.borrow_mut() = Phases { peaks: Vec::new(), now: Phase::Weights };
        HOST.reset_peak_usage();
    }

    /// Another phase begins. [`Phase::FirstPass`] stays on through its losses, until the second pass goes forward.
    pub fn enter(&self, phase: Phase) {
        let now = self.phases.borrow().now;
        if now == phase || now == Phase::FirstPass && matches!(phase, Phase::Loss(_)) {
            return;
        }
        self.note();
        self.phases.borrow_mut().now = phase;
    }

    /// Runs `aside`, whose memory and phases do not count.
    pub fn apart<T>(&self, aside: impl FnOnce() -> T) -> T {
        self.note();
        let before = self.phases.borrow().clone();
        let result = aside();
        *self.phases.borrow_mut() = before;
        HOST.reset_peak_usage();
        result
    }

    /// Notes the peak of the phase that is on, and begins anew.
    fn note(&self) {
        let peak = match self.pools() {
            Some(usage) => usage.bytes_in_use,
            None => HOST.peak_usage() as u64,
        };
        let Phases { peaks, now } = &mut *self.phases.borrow_mut();
        match peaks.iter_mut().find(|(phase, _)| phase == now) {
            Some((_, most)) => *most = peak.max(*most),
            None => peaks.push((*now, peak)),
        }
        HOST.reset_peak_usage();
    }

    /// Bytes. On the CPU the most that the whole program had allocated at a time since the start; on a GPU what its memory
    /// pools have reserved, which does not shrink between steps.
    pub fn peak(&self) -> u64 {
        self.note();
        match self.pools() {
            Some(usage) => usage.bytes_reserved,
            None => self.phases.borrow().peaks.iter().map(|(_, peak)| *peak).max().unwrap_or(0),
        }
    }

    /// Bytes by phase, in the order in which the phases came up. On the CPU the most allocated while in it; on a GPU, whose
    /// pools keep no peak, the most in use at the end of it.
    pub fn phases(&self) -> Vec<(Phase, u64)> {
        self.phases.borrow().peaks.clone()
    }

    fn pools(&self) -> Option<MemoryPoolUsage> {
        self.device.memory_pool_usage()
    }
}

/// `1536 MiB` as people say it.
pub fn readable(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far more than all other tests of this process hold together.
    const MUCH: usize = 1 << 31;

    fn allocate_and_free(bytes: usize) {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(bytes)));
    }

    /// One test for all: the allocator's peak is the whole process's, and tests run side by side.
    #[test]
    fn a_peak_is_that_of_its_phase_and_counts_what_was_freed_again() {
        let meter = MemoryMeter::new(&Device::flex());
        meter.start();
        meter.enter(Phase::FirstPass);
        allocate_and_free(MUCH);
        meter.enter(Phase::Loss("pixel"));
        allocate_and_free(2 * MUCH);
        meter.enter(Phase::Forward);
        meter.enter(Phase::Loss("pixel"));
        allocate_and_free(MUCH);
        meter.enter(Phase::Forward);
        meter.apart(|| {
            allocate_and_free(8 * MUCH);
            meter.enter(Phase::Backward);
            allocate_and_free(8 * MUCH);
        });
        let whole = meter.peak();
        let phases: Vec<_> =
            meter.phases().iter().map(|(phase, peak)| (phase.to_string(), peak / MUCH as u64)).collect();
        let phases: Vec<_> = phases.iter().map(|(phase, peak)| (phase.as_str(), *peak)).collect();
        assert_eq!(phases, [("weights", 0), ("first_pass", 2), ("forward", 0), ("pixel", 1)]);
        assert_eq!(whole / MUCH as u64, 2);
        meter.start();
        assert!(meter.peak() < MUCH as u64);
    }

    /// A step has a few phases for each micro-batch and takes milliseconds at the very least.
    #[test]
    fn entering_a_phase_takes_microseconds() {
        let meter = MemoryMeter::new(&Device::flex());
        meter.start();
        let started = std::time::Instant::now();
        for _ in 0..50_000 {
            meter.enter(Phase::Forward);
            meter.enter(Phase::Backward);
        }
        let each = started.elapsed() / 100_000;
        println!("{each:?}");
        assert!(each < std::time::Duration::from_micros(10), "{each:?}");
    }
}
