//! What the steps of a run begin with: the micro-batch and what else their memory goes by, as configured, as a checkpoint has it,
//! or as `memory.limit` allows.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::run::atomic_write;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Stop, TrainError};
use crate::config::{Bytes, Config, Loaded, Micro, Problem, Recompute};
use crate::device::{Choice, Selected};
use crate::memory::{address_space, readable};
use crate::models::discriminator::DiscriminatorNorm;
use crate::plan::{Choices, choose, fits};
use crate::run_state::{self, Footprint, depends_on_micro};
use crate::sweep::random::Networks;
use crate::sweep::{Children, Cut, Status, SweepError};

/// Steps of each measurement: the first one warms up.
const STEPS: u64 = 3;

/// Of a device's free memory, or of the addresses that a process may have, where nothing is configured.
const SHARE: f64 = 0.9;

/// Limits that differ by less than this are the same: what is free differs a little from start to start.
const SAME: f64 = 0.02;

/// Bytes of addresses that a step that is tried leaves to the run, at the least: what glibc reserves for what one more thread
/// allocates. A run has threads that a trial has not, and looks at validation pictures.
const SPARE: u64 = 64 << 20;

/// What the system says where a thread's stack finds no addresses.
const NO_THREAD: &str = "Resource temporarily unavailable";

/// Whether a process that ended like this met memory that is not there: SIGSEGV or SIGBUS.
fn of_memory(crash: &str) -> bool {
    ["signal 11:", "signal 7:"].iter().any(|signal| crash.starts_with(signal))
}

/// What a step keeps within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) bytes: u64,
    /// By `memory.limit`.
    pub(super) configured: bool,
}

impl Limit {
    /// `memory.limit`, or most of what is free on a GPU. It is called before anything is on the device.
    pub(super) fn of(config: &Config, device: &Selected) -> Option<Self> {
        let configured = config.memory.limit.map(|Bytes(bytes)| Self { bytes, configured: true });
        configured.or_else(|| Self::of_free(device).filter(|_| device.choice != Choice::Cpu))
    }

    fn of_free(device: &Selected) -> Option<Self> {
        let memory = device.memory()?;
        Some(Self { bytes: (memory.free as f64 * SHARE) as u64, configured: false })
    }
}

/// What a run begins with.
pub(super) struct Room {
    pub(super) footprint: Footprint,
    /// For the line about the batch: where the footprint is from, if not from the configuration.
    pub(super) origin: Option<String>,
    /// To be kept once a step was taken.
    pub(super) unconfirmed: Option<CacheEntry>,
}

impl Room {
    /// What the configuration says, and nothing that would have to be measured.
    pub(super) fn as_configured(loaded: &Loaded) -> Result<Self, TrainError> {
        let config = &loaded.config;
        let Some(micro) = config.batch.micro.samples() else {
            let message = "is \"auto\": what is measured needs a number".to_owned();
            return Err(loaded.locate(Problem { key: "batch.micro", message }).into());
        };
        Ok(Self { footprint: configured(config, micro), origin: None, unconfirmed: None })
    }
}

/// What `config` says.
fn configured(config: &Config, micro: usize) -> Footprint {
    Footprint {
        micro: micro.min(config.batch.effective),
        checkpoint: config.memory.checkpoint,
        cutouts_at_once: config.clip.cutouts_at_once,
    }
}

/// What the steps begin with. `checkpoint` is what the run goes on with, whose footprint stays unless a key that it goes by has
/// changed.
pub(super) fn first_room(
    loaded: &Loaded,
    checkpoint: Option<&Path>,
    device: &Selected,
    limit: Option<Limit>,
    stop: &Stop,
) -> Result<Room, TrainError> {
    let config = &loaded.config;
    if let Some((footprint, step)) = checkpoint.and_then(|path| kept(config, path)) {
        let as_configured = config.batch.micro.samples().is_some_and(|micro| footprint == configured(config, micro));
        let origin = (!as_configured).then(|| format!("as of step {step}"));
        return Ok(Room { footprint, origin, unconfirmed: None });
    }
    let mut room = match config.batch.micro {
        Micro::Samples(micro) => Room { footprint: configured(config, micro), origin: None, unconfirmed: None },
        Micro::Auto => chosen(loaded, device, limit, stop)?,
    };
    if let Some(address_space) = address_space().filter(|_| device.choice == Choice::Cpu) {
        room.footprint = tried(loaded, room.footprint, address_space, stop)?;
    }
    Ok(room)
}

fn kept(config: &Config, checkpoint: &Path) -> Option<(Footprint, u64)> {
    let state = run_state::read_state(checkpoint).ok()?;
    let then = &state.config;
    let unchanged = then.batch == config.batch
        && then.memory == config.memory
        && then.clip.cutouts_at_once == config.clip.cutouts_at_once
        && then.run.device == config.run.device;
    Some((state.footprint.filter(|_| unchanged)?, state.step))
}

/// The largest micro-batch that keeps within the limit, from the cache or measured.
fn chosen(loaded: &Loaded, device: &Selected, limit: Option<Limit>, stop: &Stop) -> Result<Room, TrainError> {
    let config = &loaded.config;
    let Some(Limit { bytes: limit, configured: is_configured }) = limit.or_else(|| Limit::of_free(device)) else {
        let message = "is \"auto\", and what is free on this device is not known: set memory.limit, as in \"4GiB\"";
        return Err(loaded.locate(Problem { key: "batch.micro", message: message.to_owned() }).into());
    };
    let of = if is_configured { "memory.limit" } else { "90 % of what is free" };
    let words = |peak: u64| format!("{} expected, {of} is {}", readable(peak), readable(limit));
    let key = CacheEntry::key(config, device);
    if let Some(CacheEntry { micro, peak, .. }) = CacheEntry::find(&key, limit) {
        let origin = Some(format!("auto, as measured before: {}", words(peak)));
        return Ok(Room { footprint: configured(config, micro), origin, unconfirmed: None });
    }
    note!("batch.micro = \"{}\": measuring a few steps at small micro-batches", Micro::Auto);
    match measured(loaded, stop, |loaded, networks, children| {
        choose(loaded, networks, children, limit, |cut| note!("measuring {cut}"))
    })? {
        Choices::Micro { micro, peak, note } => {
            note.iter().for_each(|note| note!("{note}"));
            let unconfirmed = Some(CacheEntry { key, limit, micro, peak });
            Ok(Room {
                footprint: configured(config, micro),
                origin: Some(format!("auto: {}", words(peak))),
                unconfirmed,
            })
        }
        Choices::Nothing(message) => Err(loaded.locate(Problem { key: "memory.limit", message }).into()),
    }
}

/// Takes a step in a process of its own, since a process that may not allocate any more cannot be helped, and lowers `footprint`
/// until one gets through.
fn tried(loaded: &Loaded, mut footprint: Footprint, allowed: u64, stop: &Stop) -> Result<Footprint, TrainError> {
    let config = &loaded.config;
    let left = allowed.saturating_sub(SPARE).min((allowed as f64 * SHARE) as u64);
    note!("ulimit -v allows {}: trying a step with {} of it", readable(allowed), readable(left));
    measured(loaded, stop, |loaded, networks, children| {
        let children = &Children { address_space: Some(left), ..children.clone() };
        // The discriminator may have BatchNorm in a file that is not read yet.
        let discriminator = &config.discriminator;
        let may_have = discriminator.norm == DiscriminatorNorm::Batch || discriminator.pretrained.is_some();
        let bound = depends_on_micro(config, may_have);
        loop {
            let Footprint { micro, checkpoint, .. } = footprint;
            let cut = Cut { micro, checkpoint, ..Cut::of(config) };
            let message = match fits(loaded, cut, networks, children)? {
                Err(Status::OutOfMemory(message)) => message,
                // So it ends where not even the stack can grow, or where there can be no thread.
                Err(Status::Crashed(message)) if of_memory(&message) => format!("a step crashed ({message})"),
                Err(Status::Failed(message)) if message.contains(NO_THREAD) => message,
                // The run itself says it better.
                Ok(()) | Err(_) => return Ok(Ok(footprint)),
            };
            let change = match (micro, checkpoint) {
                (2.., _) if !bound => {
                    footprint.micro /= 2;
                    format!("batch.micro {micro} -> {}", footprint.micro)
                }
                (_, Recompute::None) => {
                    footprint.checkpoint = Recompute::Blocks;
                    "memory.checkpoint \"none\" -> \"blocks\"".to_owned()
                }
                _ => return Ok(Err(message)),
            };
            note!("{message}; {change}");
        }
    })?
    .map_err(|message| {
        let cause =
            format!("{message} with {} for a step of the {} that ulimit -v allows", readable(left), readable(allowed));
        super::recovery::nothing_left(config, footprint, cause)
    })
}

/// Has `what` measure in other processes, on drawn pictures, with random weights for what is on the Hub.
fn measured<T>(
    loaded: &Loaded,
    stop: &Stop,
    what: impl FnOnce(&Loaded, &Networks, &Children) -> Result<T, SweepError>,
) -> Result<T, TrainError> {
    let mut drawn = loaded.clone();
    drawn.config.data.draw_shapes();
    // Shapes alone say what memory is taken; where they are not known, the run needs the network in any case.
    let networks = Networks::random_for(&drawn.config, None).or_else(|_| Networks::as_configured());
    let networks = networks.map_err(SweepError::from).map_err(TrainError::Measuring)?;
    let stopped = stop.measuring_begins();
    let children = Children { steps: STEPS, timeout: None, weigh_by_micro_batch: false, stopped, address_space: None };
    let result = what(&drawn, &networks, &children);
    // Nothing of ours stays behind if this is the end.
    drop(networks);
    stop.measuring_ends();
    result.map_err(TrainError::Measuring)
}

/// What was chosen for a configuration on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CacheEntry {
    key: String,
    limit: u64,
    micro: usize,
    peak: u64,
}

impl CacheEntry {
    /// All that the choice depends on but the limit.
    fn key(config: &Config, device: &Selected) -> String {
        let mut config = config.clone();
        // These have nothing to do with what a step takes.
        config.run = crate::config::RunConfig::default();
        config.sweep = crate::config::SweepConfig::default();
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

    fn find(key: &str, limit: u64) -> Option<Self> {
        let text = fs::read_to_string(Self::path(key)?).ok()?;
        let found: Self = serde_json::from_str(&text).ok()?;
        (found.key == key && found.limit.abs_diff(limit) as f64 <= SAME * limit as f64).then_some(found)
    }

    /// Writes it with the micro-batch that a step has shown to keep within the limit; without a place for it, it is measured again
    /// the next time.
    pub(super) fn keep(mut self, micro: usize) {
        self.micro = micro;
        let Some(path) = Self::path(&self.key) else { return };
        let made = path.parent().is_some_and(|folder| fs::create_dir_all(folder).is_ok());
        if let Some(text) = serde_json::to_string(&self).ok().filter(|_| made) {
            let _ = atomic_write(&path, text.as_bytes());
        }
    }
}
