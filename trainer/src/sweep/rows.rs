//! The rows of a sweep, from what is varied to what came of each.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::bars::Bar;
use super::child::Children;
use super::gradient_file;
use super::measure::{Figures, Gradient};
use super::random::{Networks, RandomError};
use crate::config::{Compute, Config, ConfigError, Loaded, Micro, Recompute};

/// What one row has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// `batch.micro`
    pub micro: usize,
    /// `batch.effective`
    pub effective: usize,
    /// `precision.compute`
    pub precision: Compute,
    /// `data.resolution`, in pixels.
    pub resolution: u32,
    /// `memory.checkpoint`
    pub checkpoint: Recompute,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { micro, effective, precision, resolution, checkpoint } = self;
        write!(f, "micro {micro} of {effective}, {precision}, {resolution} px, checkpoint {checkpoint}")
    }
}

impl Cut {
    /// The cut that `config` itself has; a micro-batch that is chosen by a limit counts as 1.
    pub fn of(config: &Config) -> Self {
        Self {
            micro: config.batch.micro.samples().unwrap_or(1),
            effective: config.batch.effective,
            precision: config.precision.compute,
            resolution: config.data.resolution,
            checkpoint: config.memory.checkpoint,
        }
    }

    /// `config` with this row's values, and with every loss that is on counting from the first step, so that few steps show
    /// what the whole run takes.
    pub fn apply(&self, config: &Config) -> Config {
        let mut config = config.clone();
        // Room for steps that are skipped and taken again.
        config.run.steps = config.run.steps.max(1000);
        config.batch.micro = Micro::Samples(self.micro);
        config.memory.limit = None;
        config.batch.effective = self.effective;
        config.precision.compute = self.precision;
        config.data.resolution = self.resolution;
        config.memory.checkpoint = self.checkpoint;
        config.sweep = crate::config::SweepConfig::default();
        config.losses.all_from_the_first_step();
        config.discriminator.start = None;
        config
    }
}

/// What a row is compared with: the same effective batch in f32, one image at a time, recomputed or not as the row is.
pub fn reference_of(cut: Cut) -> Cut {
    Cut { micro: 1, precision: Compute::Fp32, ..cut }
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", content = "message", rename_all = "kebab-case")]
pub enum Status {
    /// It has figures.
    Ok,
    /// It asked for more memory than there is.
    OutOfMemory(String),
    /// It took too long.
    TimedOut(String),
    /// Its process was ended by a signal.
    Crashed(String),
    /// It ended with an error.
    Failed(String),
}

impl Status {
    /// In words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::OutOfMemory(_) => "out of memory",
            Self::TimedOut(_) => "timed out",
            Self::Crashed(_) => "crashed",
            Self::Failed(_) => "failed",
        }
    }

    /// More than the name says.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::OutOfMemory(text) | Self::TimedOut(text) | Self::Crashed(text) | Self::Failed(text) => Some(text),
        }
    }
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What it has of its own.
    #[serde(flatten)]
    pub cut: Cut,
    /// In a row that compares two references and has a deviation and a loss alone, how the other one recomputes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Recompute>,
    /// What became of it.
    #[serde(flatten)]
    pub status: Status,
    /// Bytes; nothing of the comparison with the reference is in it.
    pub peak_memory: Option<u64>,
    /// Of all steps but the first.
    pub images_per_second: Option<f64>,
    /// Of the first step's whole gradient from the reference's, `||a - b|| / ||b||`.
    pub deviation: Option<f64>,
    /// The same of the generator alone.
    pub deviation_generator: Option<f64>,
    /// The same of the discriminator alone.
    pub deviation_discriminator: Option<f64>,
    /// Of the first step.
    pub loss: Option<f64>,
    /// Steps that overflowed and were skipped, besides those that were asked for.
    pub skipped: Option<u64>,
    /// Bytes by phase.
    pub memory: Map<String, Value>,
    /// What the row took, with its start.
    pub seconds: f64,
}

impl Row {
    fn new(cut: Cut, measured: Result<Figures, Status>, took: Duration) -> Self {
        let (status, figures) = match measured {
            Ok(figures) => (Status::Ok, Some(figures)),
            Err(status) => (status, None),
        };
        let deviation = figures.as_ref().and_then(|figures| figures.deviation);
        Self {
            cut,
            against: None,
            status,
            peak_memory: figures.as_ref().map(|figures| figures.peak_memory),
            images_per_second: figures.as_ref().map(|figures| figures.images_per_second),
            deviation: deviation.and_then(|deviation| deviation.whole),
            deviation_generator: deviation.and_then(|deviation| deviation.generator),
            deviation_discriminator: deviation.and_then(|deviation| deviation.discriminator),
            loss: figures.as_ref().and_then(|figures| figures.loss),
            skipped: figures.as_ref().map(|figures| figures.skipped),
            memory: figures.map(|figures| figures.memory).unwrap_or_default(),
            seconds: took.as_secs_f64(),
        }
    }

    /// The deviation of a reference from the one of the same effective batch that recomputes otherwise.
    fn between(a: &Reference, b: &Reference) -> Self {
        let started = Instant::now();
        let failed = [a, b].into_iter().find(|reference| reference.status != Status::Ok);
        let (status, deviation) = match failed {
            Some(reference) => (reference.status.clone(), None),
            None => match gradient_file::between(&a.gradient, &b.gradient) {
                Ok(deviation) => (Status::Ok, Some(deviation)),
                Err(error) => (Status::Failed(error.to_string()), None),
            },
        };
        Self {
            against: Some(b.cut.checkpoint),
            status,
            deviation: deviation.and_then(|deviation| deviation.whole),
            deviation_generator: deviation.and_then(|deviation| deviation.generator),
            deviation_discriminator: deviation.and_then(|deviation| deviation.discriminator),
            loss: a.loss,
            ..Self::new(a.cut, Err(Status::Ok), started.elapsed())
        }
    }

    /// Names it among the rows of its sweep.
    pub fn name(&self) -> String {
        match self.against {
            Some(other) => format!("{} against {other}", self.cut),
            None => self.cut.to_string(),
        }
    }

    /// Whether it is the same row of another sweep.
    pub fn is_as(&self, other: &Row) -> bool {
        (self.cut, self.against) == (other.cut, other.against)
    }
}

/// What rows of one effective batch, resolution and way to recompute are compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// How it was computed.
    #[serde(flatten)]
    pub cut: Cut,
    /// Without `ok` its rows have no deviation.
    #[serde(flatten)]
    pub status: Status,
    /// Of the first step.
    pub loss: Option<f64>,
    /// The file of its gradient, as long as the sweep goes on.
    #[serde(skip)]
    gradient: PathBuf,
}

/// A whole sweep, as `sweep.json` has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sweep {
    /// The configuration's name.
    pub config: String,
    /// The device, in words, if any row got so far.
    pub device: Option<String>,
    /// Which networks had random weights, if any had.
    pub random_weights: Vec<String>,
    /// Optimizer steps of each row.
    pub steps: u64,
    /// What the rows were compared with.
    pub references: Vec<Reference>,
    /// By resolution, effective batch, precision, checkpoint and micro-batch, each in the order asked for; then, where rows with and
    /// without recomputation were asked for, how far these two are apart.
    pub rows: Vec<Row>,
    /// What each row was held to.
    #[serde(default)]
    pub bars: Vec<Bar>,
}

/// Why there is no sweep, apart from what becomes of single rows.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Every combination has a micro-batch above its effective batch.
    #[error("no row is left: every micro-batch is above the effective batch")]
    NoRows,
    /// The networks that a row needs.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The configuration cannot be written for a row.
    #[error("the row's configuration cannot be written: {0}")]
    Toml(#[from] toml::ser::Error),
    /// The disk, or the system's processes.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A baseline that cannot be read.
    #[error("--baseline {}: {message}", path.display())]
    Baseline {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// No row has figures.
    #[error("nothing could be measured: {0}")]
    Nothing(String),
    /// A row's process was about to start another.
    #[error("a process that is measured does not measure ({0} is set)")]
    Nested(&'static str),
    /// A signal.
    #[error("interrupted")]
    Interrupted,
}

/// The rows of `loaded`'s `[sweep]`, and those left out because their micro-batch is above their effective batch.
///
/// # Errors
/// If a row's configuration is none, or if no row is left.
pub fn cuts(loaded: &Loaded) -> Result<(Vec<Cut>, Vec<Cut>), SweepError> {
    let own = Cut::of(&loaded.config);
    let sweep = &loaded.config.sweep;
    let mut all = Vec::new();
    for resolution in or_own(&sweep.resolution, own.resolution) {
        for effective in or_own(&sweep.effective, own.effective) {
            for precision in or_own(&sweep.precision, own.precision) {
                for checkpoint in or_own(&sweep.checkpoint, own.checkpoint) {
                    for micro in or_own(&sweep.micro, own.micro) {
                        let cut = Cut { micro, effective, precision, resolution, checkpoint };
                        if !all.contains(&cut) {
                            all.push(cut);
                        }
                    }
                }
            }
        }
    }
    let (rows, left_out): (Vec<_>, Vec<_>) = all.into_iter().partition(|cut| cut.micro <= cut.effective);
    for cut in &rows {
        cut.apply(&loaded.config).check().map_err(|problem| loaded.locate(problem))?;
    }
    if rows.is_empty() { Err(SweepError::NoRows) } else { Ok((rows, left_out)) }
}

fn or_own<T: Copy>(values: &[T], own: T) -> Vec<T> {
    if values.is_empty() { vec![own] } else { values.to_vec() }
}

/// Measures every row of `cuts`, one after another, each in a process of its own; `show` sees each when it is there.
///
/// # Errors
/// If processes or files cannot be had, or if a signal came. What becomes of a row is no error.
pub fn run(
    loaded: &Loaded,
    cuts: &[Cut],
    networks: &Networks,
    children: &Children,
    mut show: impl FnMut(&Row),
) -> Result<Sweep, SweepError> {
    let mut sweep = Sweep {
        config: loaded.name().to_owned(),
        device: None,
        random_weights: networks.random(),
        steps: children.steps,
        references: Vec::new(),
        rows: Vec::new(),
        bars: Vec::new(),
    };
    let measure = |cut: &Cut, what: &Gradient| measure_cut(loaded, cut, networks, children, what);
    for cut in cuts {
        let gradient = |number| networks.folder().join(format!("reference-{number}.safetensors"));
        let what = match sweep.reference_for(*cut, gradient, measure)? {
            Some(reference) => Gradient::Compare(reference),
            None => Gradient::Ignore,
        };
        let (measured, took) = measure(cut, &what)?;
        if let Ok(figures) = &measured {
            sweep.device = Some(figures.device.clone());
        }
        let row = Row::new(*cut, measured, took);
        show(&row);
        sweep.rows.push(row);
    }
    let modes = sweep.rows_between_modes(cuts);
    modes.iter().for_each(show);
    sweep.rows.extend(modes);
    Ok(sweep)
}

/// What is measured of a cut, and how long that took.
type MeasuredCut = (Result<Figures, Status>, Duration);

impl Sweep {
    /// The file with the reference gradient for `cut`, which is measured unless it is there. Where f32 without recomputation does
    /// not fit, the reference with recomputation serves; where that fails, too, there is none.
    fn reference_for(
        &mut self,
        cut: Cut,
        file: impl Fn(usize) -> PathBuf,
        measure: impl Fn(&Cut, &Gradient) -> Result<MeasuredCut, SweepError>,
    ) -> Result<Option<PathBuf>, SweepError> {
        let own = reference_of(cut);
        for cut in [own, Cut { checkpoint: Recompute::Blocks, ..own }] {
            if self.references.iter().all(|reference| reference.cut != cut) {
                let gradient = file(self.references.len());
                let (status, loss) = match measure(&cut, &Gradient::Write(gradient.clone()))?.0 {
                    Ok(figures) => (Status::Ok, figures.loss),
                    Err(status) => (status, None),
                };
                self.references.push(Reference { cut, status, loss, gradient });
            }
            let mut found = self.references.iter().filter(|reference| reference.cut == cut);
            if let Some(reference) = found.find(|reference| reference.status == Status::Ok) {
                return Ok(Some(reference.gradient.clone()));
            }
        }
        Ok(None)
    }

    /// How far apart the references with and without recomputation are, wherever `cuts` asks for rows of both.
    fn rows_between_modes(&self, cuts: &[Cut]) -> Vec<Row> {
        let is_asked_for = |reference: &&Reference| cuts.iter().any(|cut| reference_of(*cut) == reference.cut);
        let asked: Vec<&Reference> = self.references.iter().filter(is_asked_for).collect();
        let of = |kept: &Reference| {
            let cut = Cut { checkpoint: Recompute::Blocks, ..kept.cut };
            asked.iter().find(|reference| reference.cut == cut).copied()
        };
        let kept = asked.iter().filter(|reference| reference.cut.checkpoint == Recompute::None);
        kept.filter_map(|kept| Some(Row::between(kept, of(kept)?))).collect()
    }
}

/// Measures one cut in a process of its own. Returns its figures or what became of it, and how long it took.
///
/// # Errors
/// If processes or files cannot be had, or if a signal came.
pub(crate) fn measure_cut(
    loaded: &Loaded,
    cut: &Cut,
    networks: &Networks,
    children: &Children,
    gradient: &Gradient,
) -> Result<MeasuredCut, SweepError> {
    let io = |what: &'static str| move |source: io::Error| SweepError::Io { what, source };
    let folder = tempfile::tempdir_in(networks.folder()).map_err(io("make a row's folder"))?;
    let config = networks.config(cut.apply(&loaded.config));
    let path = folder.path().join("row.toml");
    fs::write(&path, toml::to_string(&config)?).map_err(io("write a row's configuration"))?;
    children.measure(&path, folder.path(), gradient)
}
