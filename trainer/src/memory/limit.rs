//! How much memory a step may use: `memory.limit`, what is free on a GPU, or the system's limit on addresses.

use crate::config::{Bytes, Config};
use crate::device::{Choice, Selected};

/// The share of a device's free memory, or of a process's addresses, that a step may use where nothing is configured.
pub(super) const SHARE: f64 = 0.9;

/// The most memory that a step may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Whether it is `memory.limit`.
    pub configured: bool,
}

impl Limit {
    /// `memory.limit`, or most of what is free on a GPU. Call it before anything is on the device.
    pub fn of(config: &Config, device: &Selected) -> Option<Self> {
        let configured = config.memory.limit.map(|Bytes(bytes)| Self { bytes, configured: true });
        configured.or_else(|| Self::of_free_memory(device).filter(|_| device.choice != Choice::Cpu))
    }

    pub(super) fn of_free_memory(device: &Selected) -> Option<Self> {
        let memory = device.memory()?;
        Some(Self { bytes: (memory.free as f64 * SHARE) as u64, configured: false })
    }
}

/// The limit that `ulimit -v` sets on this process's addresses, in bytes, if there is one.
pub(super) fn address_space() -> Option<u64> {
    limit_of_address_space(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

/// Limits this process's addresses to this many bytes. Where the system refuses, nothing changes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_limit_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         2097152000           unlimited            bytes     \n";
        assert_eq!(limit_of_address_space(limits), Some(2_097_152_000));
        assert_eq!(limit_of_address_space(&limits.replace("2097152000", "unlimited ")), None);
    }
}
