//! How kernels for GPUs are made, and where they are kept between runs.
//!
//! The first step on a GPU compiles some hundred kernels and tries several for each product and convolution, which takes minutes.
//! CubeCL would keep the findings in a folder of the project that it was built in, and not the kernels.

use std::path::PathBuf;
use std::sync::OnceLock;

use burn::BurnConfig;
use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::records::RecordLevel;

/// The file of kernels, if there was none when the program began.
static NEW: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Has all of it kept in the user's cache folder, `vqgan-trainer/kernels`, in a file for each `gpu`: what is fast on one is not on
/// another. A `cubecl.toml` or `burn.toml` in or above the working folder and the libraries' own environment variables go before.
/// Only the first call counts, which has to come before anything else asks for a GPU.
pub fn configure(gpu: &str) {
    NEW.get_or_init(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir();
        let environment = &mut config.environment;
        if let (CacheConfig::Target, Some(cache)) = (&environment.path, dirs::cache_dir()) {
            environment.path = CacheConfig::Directory(cache.join("vqgan-trainer/kernels"));
            environment.name = gpu.to_owned();
            environment.records.level = RecordLevel::Off;
            config.compilation.cache = true;
            // Sizes that differ by less than 2.5 times share what was found.
            config.autotune.level = AutotuneLevel::Minimal;
        }
        CubeClRuntimeConfig::try_set(config.override_from_env());
        BurnConfig::try_set(without_fusion(BurnConfig::from_current_dir()).override_from_env());
        // Reading it puts it in force.
        CubeClRuntimeConfig::get();
        Some(cubecl::environment::path()).filter(|path| !path.exists())
    });
}

/// Where kernels will be kept, if none were when the program began.
pub fn new_file() -> Option<PathBuf> {
    NEW.get().cloned().flatten()
}

/// Fused kernels of Burn 0.22.1 read wrong elements of a permuted tensor that has a dimension of 1, such as the gradient of a
/// convolution to one channel: its optimizer step, for one, ends in values that are not finite. Nothing is fused where nothing
/// else is configured.
fn without_fusion(config: BurnConfig) -> BurnConfig {
    if config.fusion().beam_search.max_explorations.is_some() {
        return config;
    }
    // Its fields can be read and not written.
    let fused = toml::Value::try_from(&config).ok().and_then(|mut value| {
        let search = value.get_mut("fusion")?.get_mut("beam_search")?.as_table_mut()?;
        search.insert("max_explorations".to_owned(), 0.into());
        value.try_into().ok()
    });
    fused.unwrap_or(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_fused_unless_that_is_configured() {
        let explorations = |config: BurnConfig| config.fusion().beam_search.max_explorations;
        assert_eq!(explorations(without_fusion(BurnConfig::default())), Some(0));
        let configured = toml::from_str("[fusion.beam_search]\nmax_explorations = 9").unwrap();
        assert_eq!(explorations(without_fusion(configured)), Some(9));
    }
}
