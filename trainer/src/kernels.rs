//! Where compiled kernels are kept between runs, and what was found out about which of them are fast.
//!
//! The first step on a GPU compiles some hundred kernels and tries several for each product and convolution, which takes minutes.
//! CubeCL would keep the findings in a folder of the project that it was built in, and not the kernels.

use std::sync::Once;

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::records::RecordLevel;

/// Has all of it kept in the user's cache folder, `vqgan-trainer/kernels`, in a file for each `gpu`: what is fast on one is not on
/// another. A `cubecl.toml` in or above the working folder and CubeCL's own environment variables go before. Only the first call
/// counts, which has to come before anything else asks for a GPU.
pub fn keep(gpu: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir();
        let environment = &mut config.environment;
        if let (CacheConfig::Target, Some(cache)) = (&environment.path, dirs::cache_dir()) {
            environment.path = CacheConfig::Directory(cache.join("vqgan-trainer/kernels"));
            environment.name = gpu.to_owned();
            environment.records.level = RecordLevel::Off;
            config.compilation.cache = true;
        }
        CubeClRuntimeConfig::try_set(config.override_from_env());
    });
}
