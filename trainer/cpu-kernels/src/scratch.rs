//! Memory that a thread keeps between calls, since the pages of new memory have to be cleared by the system.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

/// Aligned to a line of the cache, so that no vector crosses two.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `count` values of any contents.
pub(crate) fn with_scratch<V: Pod, T>(count: usize, work: impl FnOnce(&mut [V]) -> T) -> T {
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = (count * size_of::<V>()).div_ceil(size_of::<Line>());
    if scratch.len() < lines {
        scratch.resize(lines, Line::zeroed());
    }
    let result = work(&mut bytemuck::cast_slice_mut(&mut scratch[..lines])[..count]);
    SCRATCH.with_borrow_mut(|all| all.push(scratch));
    result
}
