//! The command `train`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use host_memory::CountingAllocator;

/// Counts what `memory.limit` is about on the CPU.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    trainer::commands::main()
}
