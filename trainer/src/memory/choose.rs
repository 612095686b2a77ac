//! Chooses the memory settings that a run starts with: as configured, as saved in its checkpoint, or as the limit allows.

use super::advice::savings;
use super::cache::CacheEntry;
use super::fit::{Fit, MARGIN, with_margin};
use super::limit::{SHARE, address_space};
use super::{
    Children, Exhausted, Limit, Measurer, MemoryError, MemorySettings, Status, Stopped, Variant, depends_on_micro,
    would_help,
};
use crate::config::{Loaded, Micro, Problem};
use crate::device::{Choice, Selected};
use crate::memory::random_networks::Networks;
use crate::models::discriminator::DiscriminatorNorm;
use crate::show::readable;

/// Steps of each measurement; the first one warms up.
const STEPS: u64 = 3;

/// Bytes of addresses that a trial leaves to the run, at least: what glibc reserves when one more thread allocates. A run has
/// threads that a trial has not, and it validates.
const SPARE: u64 = 64 << 20;

/// What the system says where there are no addresses for a thread's stack.
const NO_THREAD: &str = "Resource temporarily unavailable";

/// The memory settings that a run starts with.
pub struct Chosen {
    /// The settings.
    pub settings: MemorySettings,
    /// Where they come from, if not from the configuration.
    pub origin: Option<String>,
    /// The choice, to be kept once a step has shown that it fits.
    pub unconfirmed: Option<CacheEntry>,
}

impl From<MemorySettings> for Chosen {
    fn from(settings: MemorySettings) -> Self {
        Self { settings, origin: None, unconfirmed: None }
    }
}

impl Chosen {
    /// What the configuration says, without measuring.
    ///
    /// # Errors
    /// If `batch.micro` is `"auto"`.
    pub fn as_configured(loaded: &Loaded) -> Result<Self, MemoryError> {
        match loaded.config.batch.micro {
            Micro::Samples(micro) => Ok(MemorySettings::of(&loaded.config, micro).into()),
            Micro::Auto => Err(wrong(loaded, "batch.micro", "is \"auto\": what is measured needs a number".to_owned())),
        }
    }
}

fn wrong(loaded: &Loaded, key: &'static str, message: String) -> MemoryError {
    loaded.locate(Problem { key, message }).into()
}

/// Chooses the settings of the first step. `resumed` are those of the checkpoint that the run resumes, with its step. `stopped`
/// ends a measurement.
///
/// # Errors
/// If nothing fits, or if nothing can be measured.
pub fn choose(
    loaded: &Loaded,
    resumed: Option<(MemorySettings, u64)>,
    device: &Selected,
    limit: Option<Limit>,
    stopped: &Stopped,
) -> Result<Chosen, MemoryError> {
    let config = &loaded.config;
    if let Some((settings, step)) = resumed {
        let is_configured =
            config.batch.micro.samples().is_some_and(|micro| settings == MemorySettings::of(config, micro));
        let origin = (!is_configured).then(|| format!("as of step {step}"));
        return Ok(Chosen { origin, ..settings.into() });
    }
    let mut chosen = match config.batch.micro {
        Micro::Samples(micro) => MemorySettings::of(config, micro).into(),
        Micro::Auto => largest_micro(loaded, device, limit, stopped)?,
    };
    if let Some(address_space) = address_space().filter(|_| device.choice == Choice::Cpu) {
        chosen.settings = within_address_space(loaded, chosen.settings, address_space, stopped)?;
    }
    Ok(chosen)
}

/// The largest micro-batch within the limit, from the cache or measured.
fn largest_micro(
    loaded: &Loaded,
    device: &Selected,
    limit: Option<Limit>,
    stopped: &Stopped,
) -> Result<Chosen, MemoryError> {
    let config = &loaded.config;
    let Some(Limit { bytes: limit, configured }) = limit.or_else(|| Limit::of_free_memory(device)) else {
        let message = "is \"auto\", and what is free on this device is not known: set memory.limit, as in \"4GiB\"";
        return Err(wrong(loaded, "batch.micro", message.to_owned()));
    };
    let of = if configured { "memory.limit" } else { "90 % of what is free" };
    let words = |peak: u64| format!("{} expected, {of} is {}", readable(peak), readable(limit));
    let key = CacheEntry::key(config, device);
    if let Some(CacheEntry { micro, peak, .. }) = CacheEntry::find(&key, limit) {
        let origin = Some(format!("auto, as measured before: {}", words(peak)));
        return Ok(Chosen { origin, ..MemorySettings::of(config, micro).into() });
    }
    note!("batch.micro = \"{}\": measuring a few steps at small micro-batches", Micro::Auto);
    let (micro, peak) = measuring(loaded, None, stopped, |measurer| measured_micro(measurer, limit))?
        .map_err(|message| wrong(loaded, "memory.limit", message))?;
    Ok(Chosen {
        settings: MemorySettings::of(config, micro),
        origin: Some(format!("auto: {}", words(peak))),
        unconfirmed: Some(CacheEntry { key, limit, micro, peak }),
    })
}

/// The largest micro-batch within `limit` bytes, and its expected peak. If none fits, what is wrong with the limit, and what
/// would fit.
fn measured_micro(measurer: Measurer, limit: u64) -> Result<Result<(usize, u64), String>, MemoryError> {
    let config = &measurer.loaded.config;
    let variant = Variant::of(config);
    let one = match measurer.peak(Variant { micro: 1, ..variant })? {
        Ok(one) if with_margin(one.peak_memory) <= limit => {
            let mut notes = Vec::new();
            let fit = Fit::measure(&one, variant, &measurer, &mut notes)?;
            notes.iter().for_each(|note| note!("{note}"));
            let micro = fit.largest(config.batch.effective, limit).unwrap_or(1);
            return Ok(Ok((micro, fit.peak(micro))));
        }
        Ok(one) => format!("{} and a margin of {:.0} %", readable(one.peak_memory), 100.0 * MARGIN),
        Err(failure) if matches!(failure.status, Status::OutOfMemory(_)) => "more than there is".to_owned(),
        Err(failure) => return Err(MemoryError::Nothing(failure.to_string())),
    };
    let mut fitting: Vec<String> = Vec::new();
    for saving in savings(config) {
        // All changes together are for where none of them is enough.
        if saving.changes.len() > 1 && !fitting.is_empty() {
            break;
        }
        let measured = measurer.peak(saving.variant)?.ok();
        if let Some(measured) = measured.filter(|measured| with_margin(measured.peak_memory) <= limit) {
            fitting.push(format!("{saving} ({})", readable(measured.peak_memory)));
        }
    }
    let help = match fitting.is_empty() {
        true => "even with recomputation, bf16 and half the resolution it would not fit".to_owned(),
        false => format!("what would fit: {}", fitting.join(", or ")),
    };
    Ok(Err(format!("is {}, and a single sample at a time takes {one}; {help}", readable(limit))))
}

/// Lowers `settings` until a step gets through with the addresses that `ulimit -v` allows. Each step is tried in a process of its
/// own, since a process that has no more addresses cannot go on.
fn within_address_space(
    loaded: &Loaded,
    mut settings: MemorySettings,
    allowed: u64,
    stopped: &Stopped,
) -> Result<MemorySettings, MemoryError> {
    let config = &loaded.config;
    let left = allowed.saturating_sub(SPARE).min((allowed as f64 * SHARE) as u64);
    note!("ulimit -v allows {}: trying a step with {} of it", readable(allowed), readable(left));
    // The discriminator may have BatchNorm in a file that is not read yet.
    let discriminator = &config.discriminator;
    let may_have_batch_norm = discriminator.norm == DiscriminatorNorm::Batch || discriminator.pretrained.is_some();
    let fixed_micro = depends_on_micro(config, may_have_batch_norm);
    measuring(loaded, Some(left), stopped, |measurer| {
        loop {
            let MemorySettings { micro, recompute, .. } = settings;
            let message = match measurer.succeeds(Variant { micro, recompute, ..Variant::of(config) })? {
                Err(Status::OutOfMemory(message)) => message,
                // How it ends where not even the stack can grow, or where there can be no thread.
                Err(Status::Crashed(message)) if is_bad_address(&message) => format!("a step crashed ({message})"),
                Err(Status::Failed(message)) if message.contains(NO_THREAD) => message,
                // The run itself says it better.
                Ok(()) | Err(_) => return Ok(settings),
            };
            let Some((lower, change)) = settings.lowered(fixed_micro, None) else {
                let [left, allowed] = [left, allowed].map(readable);
                return Err(MemoryError::Exhausted(Exhausted {
                    cause: format!("{message} with {left} for a step of the {allowed} that ulimit -v allows"),
                    lowered: settings.lowest(false, None),
                    help: would_help(config).join(", "),
                }));
            };
            note!("{message}; {change}");
            settings = lower;
        }
    })
}

/// Whether a process crashed because of memory that is not there: SIGSEGV or SIGBUS.
fn is_bad_address(crash: &str) -> bool {
    ["signal 11:", "signal 7:"].iter().any(|signal| crash.starts_with(signal))
}

/// Has `work` measure in other processes, on drawn images, with random weights for what is on the Hub.
fn measuring<T>(
    loaded: &Loaded,
    address_space: Option<u64>,
    stopped: &Stopped,
    work: impl FnOnce(Measurer) -> Result<T, MemoryError>,
) -> Result<T, MemoryError> {
    let mut drawn = loaded.clone();
    drawn.config.data.draw_shapes();
    // Memory depends on shapes alone. Where these are not known, the run needs the network in any case.
    let networks = Networks::random_for(&drawn.config, None).or_else(|_| Networks::as_configured())?;
    let children = Children { steps: STEPS, stopped: stopped.clone(), address_space, ..Children::default() };
    work(Measurer { loaded: &drawn, networks: &networks, children: &children })
}
