//! Compiles and tunes kernels for GPUs, and keeps them between runs.
//!
//! The first step on a GPU compiles about a hundred kernels and tries several for each product and convolution, which
//! takes minutes. CubeCL would keep tuning results in a folder of the project that it was built in, and no kernels.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::cache::CacheConfig;
use cubecl::config::compilation::CompilationLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::records::RecordLevel;

/// This process's file in the cache folder.
static KEPT: OnceLock<Kept> = OnceLock::new();

struct Kept {
    /// The file, if it did not exist when the program began.
    new: Option<PathBuf>,
    /// Held until the process ends.
    _lock: Option<File>,
}

/// Counts the kernels that CubeCL compiles, which CubeCL reports only in a log.
struct Watch {
    compiled: AtomicU64,
    show: RwLock<Option<Show>>,
}

type Show = Box<dyn Fn(u64) + Send + Sync>;

static WATCH: Watch = Watch { compiled: AtomicU64::new(0), show: RwLock::new(None) };

/// The target of CubeCL's log records about compilation.
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

/// Calls `show` with the number of kernels that this process has compiled, whenever it grows.
pub fn watch(show: impl Fn(u64) + Send + Sync + 'static) {
    *WATCH.show.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(show));
}

/// Maximum number of processes that keep kernels at the same time; a further one keeps none.
const SLOTS: usize = 8;

/// Keeps kernels and tuning results in the user's cache folder, `vqgan-trainer/kernels`, in one file per `gpu`, because
/// what is fast on one GPU is not on another. A `cubecl.toml` in or above the working folder and the libraries' own
/// environment variables take precedence. Only the first call has an effect; it must precede any other use of a GPU.
pub fn configure(gpu: &str) {
    KEPT.get_or_init(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir();
        let mut lock = None;
        if let (CacheConfig::Target, Some(cache)) = (&config.environment.path, dirs::cache_dir()) {
            let folder = cache.join("vqgan-trainer/kernels");
            config.environment.records.level = RecordLevel::Off;
            match reserve_file(&folder, gpu) {
                Some((name, held)) => {
                    lock = Some(held);
                    config.environment.name = name;
                    config.environment.path = CacheConfig::Directory(folder);
                    config.compilation.cache = true;
                }
                None => config.autotune.disable_cache = true,
            }
            // Tunes each size separately: a kernel that was chosen for one size cannot always be launched for a similar
            // one, which ends the run.
            config.autotune.level = AutotuneLevel::Full;
        }
        let logger = &mut config.compilation.logger;
        if matches!(logger.level, CompilationLogLevel::Disabled) && log::set_logger(&WATCH).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
            (logger.level, logger.log) = (CompilationLogLevel::Basic, Some(Default::default()));
        }
        CubeClRuntimeConfig::try_set(config.override_from_env());
        // Reading the configuration activates it.
        CubeClRuntimeConfig::get();
        Kept { new: Some(cubecl::environment::path()).filter(|path| !path.exists()), _lock: lock }
    });
}

/// Returns the name of a kernel file that no other process uses now, and the lock that reserves it. A run has failed
/// while another process had its file open: "reader slot released by non-owner".
fn reserve_file(folder: &Path, gpu: &str) -> Option<(String, File)> {
    std::fs::create_dir_all(folder).ok()?;
    let plain: String = gpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    (1..=SLOTS).find_map(|number| {
        let name = if number == 1 { plain.clone() } else { format!("{plain}-{number}") };
        let lock = File::create(folder.join(format!("{name}.lock"))).ok()?;
        lock.try_lock().ok()?;
        Some((name, lock))
    })
}

/// Where kernels will be kept, if there were none when the program began.
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
        let (first, lock) = reserve_file(folder.path(), "NVIDIA H200").unwrap();
        let (second, _other) = reserve_file(folder.path(), "NVIDIA H200").unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("NVIDIA_H200", "NVIDIA_H200-2"));
        drop(lock);
        assert_eq!(reserve_file(folder.path(), "NVIDIA H200").unwrap().0, "NVIDIA_H200");
    }
}
