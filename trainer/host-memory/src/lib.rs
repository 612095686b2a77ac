//! A global allocator that counts: what the program has allocated now, and the most that it had at a time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

thread_local! {
    /// Whether this thread works aside. Without a destructor and without a first use, both of which would allocate.
    static ASIDE: Cell<bool> = const { Cell::new(false) };
}

/// Bytes; of memory that is allocated in [`aside`] and freed elsewhere it could fall below 0.
static CURRENT: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, counted. A program that makes it its global allocator can ask [`current`] and [`peak`]; in others
/// both are 0.
#[derive(Debug)]
pub struct CountingAllocator;

/// Bytes that are allocated now.
pub fn current() -> usize {
    CURRENT.load(Ordering::Relaxed).max(0) as usize
}

/// The most bytes that were allocated at a time since [`reset_peak`].
pub fn peak() -> usize {
    PEAK.load(Ordering::Relaxed).max(0) as usize
}

/// Has the peak begin anew, from what is allocated now.
pub fn reset_peak() {
    PEAK.store(CURRENT.load(Ordering::Relaxed), Ordering::Relaxed);
}

fn count(bytes: isize) {
    if ASIDE.get() {
        return;
    }
    let now = CURRENT.fetch_add(bytes, Ordering::Relaxed) + bytes;
    if bytes > 0 {
        PEAK.fetch_max(now, Ordering::Relaxed);
    }
}

/// Runs `work`, of whose allocations and frees on this thread nothing is counted. What it allocates has to be freed in another such
/// call, on any thread.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASIDE.set(self.0);
        }
    }
    let _restore = Restore(ASIDE.replace(true));
    work()
}

/// No allocation is larger than `isize::MAX`, says [`Layout`].
fn bytes(layout: Layout) -> isize {
    layout.size() as isize
}

// SAFETY: every call goes to the system's allocator unchanged, and counting neither allocates nor panics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller of this function promises.
        let memory = unsafe { System.alloc(layout) };
        if !memory.is_null() {
            count(bytes(layout));
        }
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller of this function promises.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            count(bytes(layout));
        }
        memory
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller of this function promises.
        let moved = unsafe { System.realloc(memory, layout, size) };
        if !moved.is_null() {
            count(size as isize - bytes(layout));
        }
        moved
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller of this function promises.
        unsafe { System.dealloc(memory, layout) };
        count(-bytes(layout));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    const MUCH: usize = 1 << 28;

    /// Tests run side by side, and the counters are the process's.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn what_is_allocated_counts_and_so_does_what_was_freed_again() {
        let _alone = ALONE.lock();
        reset_peak();
        let mut held = Vec::<u8>::with_capacity(MUCH);
        drop(std::hint::black_box(vec![0u8; MUCH]));
        held.reserve_exact(2 * MUCH);
        assert_eq!((current() / MUCH, peak() / MUCH), (2, 2));
        drop(std::hint::black_box(held));
        reset_peak();
        assert_eq!((current() / MUCH, peak() / MUCH), (0, 0));
    }

    #[test]
    fn what_is_allocated_and_freed_aside_does_not_count() {
        let _alone = ALONE.lock();
        let before = current();
        reset_peak();
        let mut held = std::thread::spawn(|| aside(|| Vec::<u8>::with_capacity(MUCH))).join().unwrap();
        aside(|| {
            held.reserve_exact(3 * MUCH);
            aside(|| drop(std::hint::black_box(vec![0u8; MUCH])));
            drop(held);
        });
        assert!(peak() < MUCH && current().abs_diff(before) < MUCH / 16);
        // Afterwards all counts again, after a panic as well.
        let panicked = std::panic::catch_unwind(|| aside(|| panic!("on purpose")));
        assert!(panicked.is_err());
        let counted = std::hint::black_box(Vec::<u8>::with_capacity(MUCH));
        assert_eq!(current() / MUCH, 1);
        drop(counted);
    }
}
