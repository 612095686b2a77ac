//! Measures peak memory: by a counting allocator on the CPU, by the device allocator's own figures on a GPU.

use std::cell::RefCell;

use burn::tensor::MemoryPoolUsage;

use crate::device::{ProcessMemory, Selected};
use crate::losses::Phase;

/// Measures the peak between [`start`](Self::start) and [`peak`](Self::peak), and that of each phase in between.
///
/// On the CPU this costs nothing. To ask a GPU's pools is to wait until the GPU has done all its work. So they are asked for
/// the peak only, and for the phases of two micro-batches where the start says so: the second one meets the gradient of the
/// first.
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

/// The peak of each phase so far, in order of appearance, and the current phase.
#[derive(Debug, Clone)]
struct Phases {
    peaks: Vec<(Phase, u64)>,
    now: Phase,
    /// Whether a GPU is asked at the end of each phase.
    by_phase: bool,
    /// Micro-batches that the second pass has started.
    micro_batches: usize,
    /// The most that a GPU's pools have reserved so far.
    reserved: u64,
}

impl Phases {
    fn new(by_phase: bool) -> Self {
        Self { peaks: Vec::new(), now: Phase::Weights, by_phase, micro_batches: 0, reserved: 0 }
    }
}

impl MemoryMeter {
    /// Measures on this device, with what its driver says.
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

    /// Forgets the peaks so far and starts in [`Phase::Weights`]. `by_phase` says whether a GPU is asked at the end of each
    /// phase; the CPU always is.
    pub fn start(&self, by_phase: bool) {
        *self.phases.borrow_mut() = Phases::new(by_phase || self.on_host);
        host_memory::reset_peak();
    }

    /// Starts another phase. [`Phase::FirstPass`] includes its losses: it ends with the second pass's first forward pass.
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

    /// Runs `aside` without counting its memory and phases.
    pub fn apart<T>(&self, aside: impl FnOnce() -> T) -> T {
        self.note();
        let before = self.phases.borrow().clone();
        let result = aside();
        *self.phases.borrow_mut() = before;
        host_memory::reset_peak();
        result
    }

    /// Notes the peak of the current phase, and resets it.
    fn note(&self) {
        let pools = (self.pools)();
        let peak = match &pools {
            Some(usage) => usage.bytes_in_use,
            None => host_memory::peak() as u64,
        };
        let Phases { peaks, now, by_phase, reserved, .. } = &mut *self.phases.borrow_mut();
        *reserved = pools.map_or(0, |usage| usage.bytes_reserved).max(*reserved);
        match peaks.iter_mut().find(|(phase, _)| phase == now) {
            Some((_, most)) => *most = peak.max(*most),
            None if *by_phase => peaks.push((*now, peak)),
            None => {}
        }
        host_memory::reset_peak();
    }

    /// The peak since the start, in bytes. On the CPU it is the most that the whole program had allocated at a time, apart from
    /// the threads that load images. On a GPU, which is asked, it is what its pools have reserved, which does not shrink
    /// between steps.
    pub fn peak(&self) -> u64 {
        self.note();
        self.peak_so_far()
    }

    /// [`peak`](Self::peak) as far as it is known without asking a GPU.
    pub fn peak_so_far(&self) -> u64 {
        let phases = self.phases.borrow();
        match self.on_host {
            true => phases.peaks.iter().map(|(_, peak)| *peak).fold(host_memory::peak() as u64, u64::max),
            false => phases.reserved,
        }
    }

    /// The GPU memory in use by this process, in bytes, as its driver says. This includes what the pools do not know of, such
    /// as the code of kernels. `None` where the driver does not say.
    pub fn process(&self) -> Option<u64> {
        self.process.as_ref()?()
    }

    /// The size in bytes of the page that holds the largest tensor so far. A GPU's pools grow by pages; `None` on the CPU.
    pub fn page(&self) -> Option<u64> {
        (self.page)()
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.phases.borrow().now
    }

    /// Bytes by phase, in order of appearance; nothing where a GPU was not asked. On the CPU it is the most that was allocated
    /// during the phase; on a GPU, whose pools keep no peak, the most in use at its end.
    pub fn phases(&self) -> Vec<(Phase, u64)> {
        self.phases.borrow().peaks.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};

    use datasets::{ImageError, Loader, Source, SourceImage, TrainingSet, Transform};

    use super::*;
    use crate::device::Choice;
    use crate::show::readable;

    #[global_allocator]
    static ALLOCATOR: host_memory::CountingAllocator = host_memory::CountingAllocator;

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
}
