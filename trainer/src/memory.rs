//! Peak memory, measured: a counting allocator on the CPU, the device allocator's own figure on a GPU.

use burn::tensor::Device;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HOST: PeakAlloc = PeakAlloc;

/// Measures the peak between [`start`](Self::start) and [`peak`](Self::peak).
#[derive(Debug, Clone)]
pub struct MemoryMeter {
    device: Device,
}

impl MemoryMeter {
    /// For `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone() }
    }

    /// Forgets the peak so far.
    pub fn start(&self) {
        HOST.reset_peak_usage();
    }

    /// Bytes. On the CPU the most that the whole program had allocated at a time since the start; on a GPU what its memory
    /// pools have reserved, which does not shrink between steps.
    pub fn peak(&self) -> u64 {
        match self.device.memory_pool_usage() {
            Some(usage) => usage.bytes_reserved,
            None => HOST.peak_usage() as u64,
        }
    }
}

/// `1536 MiB` as people say it.
pub fn readable(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_on_the_cpu_counts_what_was_freed_again() {
        // Far more than all other tests of this process hold together.
        let much = 1 << 31;
        let meter = MemoryMeter::new(&Device::flex());
        meter.start();
        drop(std::hint::black_box(Vec::<u8>::with_capacity(much)));
        assert!(meter.peak() >= much as u64);
        meter.start();
        assert!(meter.peak() < much as u64);
    }
}
