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
    /// The most that a GPU's pools had reserved at the end of a phase.
    reserved: u64,
}

impl Default for Phases {
    fn default() -> Self {
        Self { peaks: Vec::new(), now: Phase::Weights, reserved: 0 }
    }
}

impl MemoryMeter {
    /// For `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), phases: RefCell::default() }
    }

    /// Forgets the peaks so far and begins with [`Phase::Weights`].
    pub fn start(&self) {
        *self.phases.borrow_mut() = Phases::default();
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
        let pools = self.pools();
        let peak = match &pools {
            Some(usage) => usage.bytes_in_use,
            None => HOST.peak_usage() as u64,
        };
        let Phases { peaks, now, reserved } = &mut *self.phases.borrow_mut();
        *reserved = pools.map_or(0, |usage| usage.bytes_reserved).max(*reserved);
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

    /// What [`peak`](Self::peak) would be as far as is known without asking a GPU: up to the newest border between phases.
    pub fn peak_so_far(&self) -> u64 {
        let phases = self.phases.borrow();
        match phases.reserved {
            0 => phases.peaks.iter().map(|(_, peak)| *peak).fold(HOST.peak_usage() as u64, u64::max),
            reserved => reserved,
        }
    }

    /// The phase that is on.
    pub fn phase(&self) -> Phase {
        self.phases.borrow().now
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

/// The line of an error's text that says that there is too little memory, in the words of Rust's allocator, the system,
/// CubeCL, CUDA or wgpu.
pub fn out_of_memory(text: &str) -> Option<&str> {
    const WORDS: [&str; 10] = [
        "memory allocation of",
        "out of memory",
        "out-of-memory",
        "out of device memory",
        "outofmemory",
        "out_of_memory",
        "not enough memory",
        "cannot allocate memory",
        "can't allocate",
        "buffertoobig",
    ];
    let says_so = |line: &&str| {
        let line = line.to_lowercase();
        WORDS.iter().any(|word| line.contains(word))
    };
    text.lines().map(str::trim).find(says_so)
}

/// What a process may allocate by `ulimit -v`, in bytes, where that is limited.
pub fn address_space() -> Option<u64> {
    limit_of_address_space(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

fn limit_of_address_space(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
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
        assert_eq!(meter.peak_so_far() / MUCH as u64, 2);
        let whole = meter.peak();
        let phases: Vec<_> =
            meter.phases().iter().map(|(phase, peak)| (phase.to_string(), peak / MUCH as u64)).collect();
        let phases: Vec<_> = phases.iter().map(|(phase, peak)| (phase.as_str(), *peak)).collect();
        assert_eq!(phases, [("weights", 0), ("first_pass", 2), ("forward", 0), ("pixel", 1)]);
        assert_eq!(whole / MUCH as u64, 2);
        meter.start();
        assert!(meter.peak() < MUCH as u64);
    }

    #[test]
    fn want_of_memory_is_told_from_other_errors_in_all_their_words() {
        for line in [
            "memory allocation of 274877906944 bytes failed",
            "out of device memory allocating 1048576 bytes",
            "An out-of-memory error happened during launch",
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "can't allocate buffer of size: 4294967296",
            "Can't allocate 512 bytes: every page size the memory tracks still holds live allocations",
            "Not enough memory left.",
            "Cannot allocate memory (os error 12)",
        ] {
            assert_eq!(
                out_of_memory(&format!("the device failed\nCaused by:\n  {line}\nBacktrace\n0: main")),
                Some(line)
            );
        }
        for text in
            ["CUDA_ERROR_ILLEGAL_ADDRESS", "the memory of a tensor", "No space left on device (os error 28)", ""]
        {
            assert_eq!(out_of_memory(text), None);
        }
    }

    #[test]
    fn the_systems_limit_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         2097152000           unlimited            bytes     \n";
        assert_eq!(limit_of_address_space(limits), Some(2_097_152_000));
        assert_eq!(limit_of_address_space(&limits.replace("2097152000", "unlimited ")), None);
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
