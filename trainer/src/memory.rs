//! Peak memory, measured: a counting allocator on the CPU, the device allocator's own figures on a GPU.

use std::cell::RefCell;
use std::fmt;

use burn::tensor::MemoryPoolUsage;
use host_memory::HostMemory;

use crate::device::{ProcessMemory, Selected};

#[global_allocator]
static HOST: HostMemory = HostMemory::new();

/// A part of an optimizer step whose memory is measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before anything is computed: weights, optimizer state, average, losses' networks.
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
///
/// On the CPU this costs nothing. A GPU's pools are asked by waiting for all that the GPU has to do yet, so they are asked only
/// for the peak, and for the phases of two micro-batches where the start says so: the second one meets the gradient of the first.
pub struct MemoryMeter {
    /// `None` on the CPU.
    pools: Box<dyn Fn() -> Option<MemoryPoolUsage>>,
    page: Box<dyn Fn() -> Option<u64>>,
    process: Option<ProcessMemory>,
    on_host: bool,
    phases: RefCell<Phases>,
}

/// Micro-batches whose phases are measured on a GPU.
const MICRO_BATCHES: usize = 2;

/// The peak of each phase so far, in the order in which they came up, and the phase that is on.
#[derive(Debug, Clone)]
struct Phases {
    peaks: Vec<(Phase, u64)>,
    now: Phase,
    /// Whether a GPU is asked.
    by_phase: bool,
    /// Micro-batches that the second pass has begun.
    micro_batches: usize,
    /// The most that a GPU's pools were seen to have reserved.
    reserved: u64,
}

impl Phases {
    fn new(by_phase: bool) -> Self {
        Self { peaks: Vec::new(), now: Phase::Weights, by_phase, micro_batches: 0, reserved: 0 }
    }
}

impl MemoryMeter {
    /// For a device and what its driver says.
    pub fn new(selected: &Selected) -> Self {
        let [device, same] = [(); 2].map(|()| selected.device.clone());
        Self {
            process: selected.process_memory(),
            page: Box::new(move || {
                let pools = same.memory_pool_report()?;
                pools.iter().max_by_key(|pool| pool.largest_alloc).map(|pool| pool.page_size)
            }),
            ..Self::asking(move || device.memory_pool_usage())
        }
    }

    fn asking(pools: impl Fn() -> Option<MemoryPoolUsage> + 'static) -> Self {
        let on_host = pools().is_none();
        Self {
            pools: Box::new(pools),
            page: Box::new(|| None),
            process: None,
            on_host,
            phases: RefCell::new(Phases::new(true)),
        }
    }

    /// Forgets the peaks so far and begins with [`Phase::Weights`]. `by_phase` is whether a GPU is asked at borders between
    /// phases; the CPU always is.
    pub fn start(&self, by_phase: bool) {
        *self.phases.borrow_mut() = Phases::new(by_phase || self.on_host);
        HOST.reset_peak();
    }

    /// Another phase begins. [`Phase::FirstPass`] stays on through its losses, until the second pass goes forward.
    pub fn enter(&self, phase: Phase) {
        let Phases { now, by_phase, micro_batches, .. } = *self.phases.borrow();
        if now == phase || now == Phase::FirstPass && matches!(phase, Phase::Loss(_)) {
            return;
        }
        if self.on_host || by_phase && (micro_batches <= MICRO_BATCHES || phase == Phase::Optimizer) {
            self.note();
        }
        let mut phases = self.phases.borrow_mut();
        phases.now = phase;
        phases.micro_batches += usize::from(phase == Phase::Forward);
    }

    /// Runs `aside`, whose memory and phases do not count.
    pub fn apart<T>(&self, aside: impl FnOnce() -> T) -> T {
        self.note();
        let before = self.phases.borrow().clone();
        let result = aside();
        *self.phases.borrow_mut() = before;
        HOST.reset_peak();
        result
    }

    /// Notes the peak of the phase that is on, and begins anew.
    fn note(&self) {
        let pools = (self.pools)();
        let peak = match &pools {
            Some(usage) => usage.bytes_in_use,
            None => HOST.peak() as u64,
        };
        let Phases { peaks, now, by_phase, reserved, .. } = &mut *self.phases.borrow_mut();
        *reserved = pools.map_or(0, |usage| usage.bytes_reserved).max(*reserved);
        match peaks.iter_mut().find(|(phase, _)| phase == now) {
            Some((_, most)) => *most = peak.max(*most),
            None if *by_phase => peaks.push((*now, peak)),
            None => {}
        }
        HOST.reset_peak();
    }

    /// Bytes. On the CPU the most that the whole program, apart from the threads that load images, had allocated at a time since the
    /// start; on a GPU, which is asked, what
    /// its memory pools have reserved, which does not shrink between steps.
    pub fn peak(&self) -> u64 {
        self.note();
        self.peak_so_far()
    }

    /// What [`peak`](Self::peak) would be as far as is known without asking a GPU.
    pub fn peak_so_far(&self) -> u64 {
        let phases = self.phases.borrow();
        match self.on_host {
            true => phases.peaks.iter().map(|(_, peak)| *peak).fold(HOST.peak() as u64, u64::max),
            false => phases.reserved,
        }
    }

    /// Bytes of a GPU's memory that this process has at present, by its driver: with what the pools do not know of, such as the
    /// code of kernels. `None` where the driver does not say.
    pub fn process(&self) -> Option<u64> {
        self.process.as_ref()?()
    }

    /// Bytes of the page that the largest tensor so far is in, by which a GPU's pools grow; `None` on the CPU.
    pub fn page(&self) -> Option<u64> {
        (self.page)()
    }

    /// The phase that is on.
    pub fn phase(&self) -> Phase {
        self.phases.borrow().now
    }

    /// Bytes by phase, in the order in which the phases came up; nothing where a GPU was not asked. On the CPU the most allocated
    /// while in it; on a GPU, whose pools keep no peak, the most in use at the end of it.
    pub fn phases(&self) -> Vec<(Phase, u64)> {
        self.phases.borrow().peaks.clone()
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

/// Lets this process allocate no more than so many bytes of addresses. Where that is refused, it may what it might before.
pub fn limit_address_space(bytes: u64) {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let now = getrlimit(Resource::As);
        let _ =
            setrlimit(Resource::As, Rlimit { current: Some(now.current.map_or(bytes, |now| now.min(bytes))), ..now });
    }
    #[cfg(not(unix))]
    let _ = bytes;
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
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};

    use datasets::{ImageError, Loader, Source, SourceImage, TrainingSet, Transform};

    use super::*;
    use crate::device::Choice;

    /// Far more than all other tests of this process hold together.
    const MUCH: usize = 1 << 31;

    fn allocate_and_free(bytes: usize) {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(bytes)));
    }

    /// The allocator's peak is the whole process's, and tests run side by side.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn a_peak_is_that_of_its_phase_and_counts_what_was_freed_again() {
        let _alone = ALONE.lock();
        let meter = MemoryMeter::new(&Choice::Cpu.open().unwrap());
        meter.start(true);
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
        meter.start(true);
        assert!(meter.peak() < MUCH as u64);
        assert_eq!(meter.process(), None);
    }

    /// Images that take much memory to decode, with captions that hold on to much.
    struct Vast;

    impl Source for Vast {
        fn len(&self) -> usize {
            8
        }

        fn name(&self, index: usize) -> String {
            index.to_string()
        }

        fn load(&self, _: usize) -> Result<SourceImage, ImageError> {
            allocate_and_free(2 * MUCH);
            Ok(image::RgbImage::new(8, 8).into())
        }

        fn captions(&self, _: usize) -> Vec<String> {
            let mut caption = String::with_capacity(MUCH);
            caption.push('x');
            vec![caption]
        }
    }

    #[test]
    fn what_is_read_ahead_is_no_memory_of_a_step() {
        let _alone = ALONE.lock();
        let meter = MemoryMeter::new(&Choice::Cpu.open().unwrap());
        meter.start(true);
        let transform = Transform::training(8, false);
        let set = TrainingSet::new(Arc::new(Vast), (0..8).collect(), transform, 0, 0).unwrap();
        let mut loader = Loader::start(Arc::new(set), 0, None, 2, 3);
        let batch = loader.next_batch(5).unwrap();
        assert_eq!(batch.captions[4].as_deref(), Some("x"));
        while loader.waiting() < 3 {
            std::thread::yield_now();
        }
        drop(loader);
        assert!(meter.peak() < MUCH as u64, "{}", readable(meter.peak()));
        // Had one side counted and not the other, the counter would be far from what there is.
        meter.start(true);
        allocate_and_free(2 * MUCH);
        assert_eq!(meter.peak() / MUCH as u64, 2);
    }

    #[test]
    fn a_gpu_is_asked_for_the_phases_of_two_micro_batches_where_that_is_wanted_and_for_the_peak() {
        let _alone = ALONE.lock();
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        let meter = MemoryMeter::asking(move || {
            count.update(|count| count + 1);
            let bytes_in_use = count.get();
            Some(MemoryPoolUsage { bytes_in_use, bytes_reserved: 10 * bytes_in_use, ..MemoryPoolUsage::default() })
        });
        let step = |by_phase: bool| {
            asked.set(0);
            meter.start(by_phase);
            meter.enter(Phase::FirstPass);
            for _ in 0..5 {
                meter.enter(Phase::Loss("pixel"));
            }
            for _ in 0..5 {
                [Phase::Forward, Phase::Loss("pixel"), Phase::Backward]
                    .into_iter()
                    .for_each(|phase| meter.enter(phase));
            }
            meter.enter(Phase::Optimizer);
            let before = asked.get();
            let peak = meter.peak();
            assert_eq!(asked.get(), before + 1);
            let phases: Vec<_> = meter.phases().iter().map(|(phase, peak)| (phase.to_string(), *peak)).collect();
            (before, peak, phases)
        };
        assert_eq!(step(false), (0, 10, Vec::new()));
        let (asked, peak, phases) = step(true);
        assert_eq!((asked, peak), (9, 100));
        let phases: Vec<_> = phases.iter().map(|(phase, peak)| (phase.as_str(), *peak)).collect();
        let expected =
            [("weights", 1), ("first_pass", 2), ("forward", 6), ("pixel", 7), ("backward", 9), ("optimizer", 10)];
        assert_eq!(phases, expected);
        meter.start(false);
        assert_eq!(meter.peak_so_far(), 0, "what the host takes is nothing to a GPU");
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
}
