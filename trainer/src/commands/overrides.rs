//! `--set`, `--unset` and `--device`, which several verbs have.

use clap::Args;

use super::{parse_device, parse_override};
use crate::config::{ConfigError, Loaded, Override};
use crate::device::Choice;

#[derive(Debug, Args)]
pub(super) struct Overrides {
    /// Override a key of the configuration, as in batch.micro=2
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<Override>,
    /// Give a key or table of the configuration its default, as in model.train or losses.clip_text
    #[arg(long, value_name = "KEY", value_parser = Override::unset)]
    unset: Vec<Override>,
    /// auto, cpu, cuda:N, wgpu:N or wgpu:cpu; the same as --set run.device=...
    #[arg(long, value_parser = parse_device)]
    device: Option<Choice>,
}

impl Overrides {
    /// All of them, `--unset` first.
    pub(super) fn all(&self) -> Vec<Override> {
        let device = self.device.map(|device| Override::new("run.device", &device.to_string()));
        self.unset.iter().chain(&self.set).cloned().chain(device).collect()
    }
}

/// Says what the user should know of keys that exclude each other.
pub(super) fn with_notes(loaded: Result<Loaded, ConfigError>) -> Result<Loaded, ConfigError> {
    loaded.inspect(|loaded| loaded.notes().iter().for_each(|line| note!("{line}")))
}
