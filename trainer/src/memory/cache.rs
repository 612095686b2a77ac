//! The cache of micro-batches that were chosen for `batch.micro = "auto"`.

use std::fs;
use std::path::PathBuf;

use checkpoints::run::atomic_write;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{Config, RunConfig, SweepConfig};
use crate::device::Selected;

/// Limits that differ by less than this share count as the same: what is free differs a little from start to start.
const SAME: f64 = 0.02;

/// The micro-batch that was chosen for a configuration on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheEntry {
    pub(super) key: String,
    pub(super) limit: u64,
    pub(super) micro: usize,
    pub(super) peak: u64,
}

impl CacheEntry {
    /// All that the choice depends on but the limit.
    pub(super) fn key(config: &Config, device: &Selected) -> String {
        let mut config = config.clone();
        // None of these changes what a step needs.
        config.run = RunConfig::default();
        config.sweep = SweepConfig::default();
        config.checkpoints = Default::default();
        config.validation = Default::default();
        config.schedule = Default::default();
        config.memory.limit = None;
        let config = toml::to_string(&config).unwrap_or_default();
        format!("# {}, {}\n{config}", env!("CARGO_PKG_VERSION"), device.description)
    }

    /// In the user's cache folder, if there is one.
    fn path(key: &str) -> Option<PathBuf> {
        let hash: String = Sha256::digest(key).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Some(dirs::cache_dir()?.join("vqgan-trainer/micro").join(hash + ".json"))
    }

    pub(super) fn find(key: &str, limit: u64) -> Option<Self> {
        let text = fs::read_to_string(Self::path(key)?).ok()?;
        let found: Self = serde_json::from_str(&text).ok()?;
        (found.key == key && found.limit.abs_diff(limit) as f64 <= SAME * limit as f64).then_some(found)
    }

    /// Writes the entry, with the micro-batch that a step has shown to fit. Where it cannot be written, the next run measures
    /// again.
    pub fn keep(mut self, micro: usize) {
        self.micro = micro;
        let Some(path) = Self::path(&self.key) else { return };
        let made = path.parent().is_some_and(|folder| fs::create_dir_all(folder).is_ok());
        if let Some(text) = serde_json::to_string(&self).ok().filter(|_| made) {
            let _ = atomic_write(&path, text.as_bytes());
        }
    }
}
