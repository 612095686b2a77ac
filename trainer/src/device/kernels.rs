//! How kernels for GPUs are made, and where they are kept between runs.
//!
//! The first step on a GPU compiles some hundred kernels and tries several for each product and convolution, which takes minutes.
//! CubeCL would keep the findings in a folder of the project that it was built in, and not the kernels.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::cache::CacheConfig;
use cubecl::config::compilation::CompilationLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::records::RecordLevel;

/// What this process has of the folder.
static KEPT: OnceLock<Kept> = OnceLock::new();

struct Kept {
    /// The file, if there was none when the program began.
    new: Option<PathBuf>,
    /// Held until the process ends.
    _lock: Option<File>,
}

/// Counts the kernels that CubeCL compiles, of which it says nothing but in a log.
struct Watch {
    compiled: AtomicU64,
    show: RwLock<Option<Show>>,
}

type Show = Box<dyn Fn(u64) + Send + Sync>;

static WATCH: Watch = Watch { compiled: AtomicU64::new(0), show: RwLock::new(None) };

/// The name that CubeCL logs them by.
const COMPILATION: &str = "cubecl::compilation";

impl log::Log for Watch {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.target() == COMPILATION
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let compiled = self.compiled.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(show) = &*self.show.read().unwrap_or_else(PoisonError::into_inner) {
                show(compiled);
            }
        }
    }

    fn flush(&self) {}
}

/// Has `show` called with the number of kernels that this process has compiled, whenever that grows.
pub fn watch(show: impl Fn(u64) + Send + Sync + 'static) {
    *WATCH.show.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(show));
}

/// Processes that keep kernels at the same time; any further one keeps none.
const SLOTS: usize = 8;

/// Has all of it kept in the user's cache folder, `vqgan-trainer/kernels`, in a file for each `gpu`: what is fast on one is not on
/// another. A `cubecl.toml` in or above the working folder and the libraries' own environment variables go before.
/// Only the first call counts, which has to come before anything else asks for a GPU.
pub fn configure(gpu: &str) {
    KEPT.get_or_init(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir();
        let mut lock = None;
        if let (CacheConfig::Target, Some(cache)) = (&config.environment.path, dirs::cache_dir()) {
            let folder = cache.join("vqgan-trainer/kernels");
            config.environment.records.level = RecordLevel::Off;
            match slot(&folder, gpu) {
                Some((name, held)) => {
                    lock = Some(held);
                    config.environment.name = name;
                    config.environment.path = CacheConfig::Directory(folder);
                    config.compilation.cache = true;
                }
                None => config.autotune.disable_cache = true,
            }
            // Each size is tuned by itself: a kernel that was chosen for a size cannot always be launched for one near it, and
            // that ends the run.
            config.autotune.level = AutotuneLevel::Full;
        }
        let logger = &mut config.compilation.logger;
        if matches!(logger.level, CompilationLogLevel::Disabled) && log::set_logger(&WATCH).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
            (logger.level, logger.log) = (CompilationLogLevel::Basic, Some(Default::default()));
        }
        CubeClRuntimeConfig::try_set(config.override_from_env());
        // Reading it puts it in force.
        CubeClRuntimeConfig::get();
        Kept { new: Some(cubecl::environment::path()).filter(|path| !path.exists()), _lock: lock }
    });
}

/// A name for the file of kernels that no other process goes by at present, with the lock that says so. A run has failed while
/// another process had its file open: "reader slot released by non-owner".
fn slot(folder: &Path, gpu: &str) -> Option<(String, File)> {
    std::fs::create_dir_all(folder).ok()?;
    let plain: String = gpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    (1..=SLOTS).find_map(|number| {
        let name = if number == 1 { plain.clone() } else { format!("{plain}-{number}") };
        let lock = File::create(folder.join(format!("{name}.lock"))).ok()?;
        lock.try_lock().ok()?;
        Some((name, lock))
    })
}

/// Where kernels will be kept, if none were when the program began.
pub fn new_file() -> Option<PathBuf> {
    KEPT.get().and_then(|kept| kept.new.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use log::{Log, Record};

    use super::*;

    #[test]
    fn only_what_is_compiled_is_counted() {
        let seen = Arc::new(AtomicU64::new(0));
        let sink = seen.clone();
        let show: Show = Box::new(move |count| sink.store(count, Ordering::Relaxed));
        let watch = Watch { compiled: AtomicU64::new(0), show: RwLock::new(Some(show)) };
        for target in [COMPILATION, "wgpu", COMPILATION] {
            watch.log(&Record::builder().target(target).build());
        }
        assert_eq!(seen.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn no_two_processes_have_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let (first, lock) = slot(folder.path(), "NVIDIA H200").unwrap();
        let (second, _other) = slot(folder.path(), "NVIDIA H200").unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("NVIDIA_H200", "NVIDIA_H200-2"));
        drop(lock);
        assert_eq!(slot(folder.path(), "NVIDIA H200").unwrap().0, "NVIDIA_H200");
    }
}
