//! `train evaluate`: measures how well models reconstruct images.

mod networks;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::tensor::DType;
use checkpoints::Quantizer;
use checkpoints::run::atomic_write;
use clap::Args;
use datasets::{DataSource, SampleStream, SourceSettings};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::networks::NetworkArgs;
use super::signals::on_stop_signals;
use super::{CommandError, Json, parse_device, print_json, print_line};
use crate::config::Bytes;
use crate::data::{EvaluationImages, open_for_evaluation};
use crate::device::{Choice, Selected};
use crate::evaluation::evaluate::{Evaluated, EvaluationError, Pass, Progress, Protocol, RankedImage, Watch};
use crate::evaluation::{ImageJudge, Judges, grid_png};
use crate::losses::Losses;
use crate::memory::ForwardMicro;
use crate::models::VqGan;
use crate::models::weights::StateDict;
use crate::show::counter::Counter;
use crate::show::terminal::write_line_soon;
use crate::training::INTERRUPTED;
use crate::training::pretrained::{Initial, pretrained};

#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    /// A run's folder, a checkpoint, or a pretrained model as in model.pretrained; several get a column each
    #[arg(long, required = true, num_args = 1.., value_name = "RUN-OR-MODEL")]
    checkpoint: Vec<String>,
    /// A folder of images, or shapes or plain-shapes, which are drawn
    #[arg(long, value_name = "DIR-OR-SOURCE")]
    data: String,
    /// Number of images, evenly spread over a folder [default: all of a folder, 1000 drawn ones]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    images: Option<u64>,
    /// Seed of the images that are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side of the square that is cut out of an image, in pixels [default: that of the first checkpoint, else 256]
    #[arg(long)]
    resolution: Option<u32>,
    #[command(flatten)]
    networks: NetworkArgs,
    /// Images on the grids of the worst and the best reconstructions
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    samples: usize,
    /// Images that are in memory at a time [default: as many as fit, at most 32, or 8 on a CPU]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4096))]
    micro: Option<u64>,
    /// The memory that there is, as in 4GiB [default: most of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    limit: Option<Bytes>,
    /// Broken images that are skipped before the evaluation gives up
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    max_bad: usize,
    /// Folder for evaluation.json, the grids, and the progress, from which the same command goes on
    #[arg(long, value_name = "DIR", default_value = "evaluation")]
    output: PathBuf,
    /// Time between saves of the progress, as in 30s
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    save_every: Duration,
    /// auto, cpu, cuda:N, wgpu:N or wgpu:cpu
    #[arg(long, value_parser = parse_device, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    json: Json,
}

fn parse_size(text: &str) -> Result<Bytes, String> {
    text.parse()
}

/// Drawn images, where their number is not given.
const DRAWN: usize = 1000;

/// A checkpoint with its results, and its grids in the folder of the evaluation.
struct Column {
    checkpoint: String,
    model: String,
    weights: String,
    evaluated: Evaluated,
    grids: Vec<(&'static str, PathBuf)>,
}

pub(super) fn run(args: &EvaluateArgs) -> Result<ExitCode, CommandError> {
    let stopped = stop_at_signals()?;
    let selected = args.device.open()?;
    note!("device: {}", selected.description);
    let common = Common::of(args)?;
    let images = open_images(args, common.resolution)?;
    images.notes.iter().for_each(|line| note!("data: {line}"));
    let losses = args.networks.load(&common, images.has_captions, &selected.device)?;
    if args.networks.clip.is_some() && !images.has_captions {
        note!("captions: not every image has one, so none is compared with");
    }
    let protocol = protocol(args, &images, common.resolution, &losses);
    let (mut progress, note) = Progress::open(&args.output, json!(protocol), args.save_every)?;
    if let Some(note) = note {
        note!("{note}");
    }
    let mut micro = micro(args, &selected);
    let mut columns: Vec<Column> = Vec::new();
    for checkpoint in &args.checkpoint {
        let watch = Watcher { name: checkpoint, stopped: &stopped, counter: std::cell::OnceCell::new() };
        let work = Evaluation { args, images: &images, losses: &losses, selected: &selected, columns: &columns };
        match work.column(checkpoint, &mut micro, &mut progress, &watch)? {
            Some(column) => columns.push(column),
            None => {
                note!("stopped; the same command goes on from here");
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
    }
    let result = result(&protocol, &columns);
    atomic_write(&args.output.join("evaluation.json"), format!("{result:#}\n").as_bytes())?;
    progress.remove()?;
    match args.json.json {
        true => print_json(&result),
        false => print_line(&table::text(&protocol, &columns)),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a flag that the first signal sets; the second one ends the process.
fn stop_at_signals() -> Result<Arc<AtomicBool>, CommandError> {
    let stopped = Arc::new(AtomicBool::new(false));
    let handle = stopped.clone();
    on_stop_signals(move |reason| {
        if handle.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED.into());
        }
        write_line_soon(format!("{reason}: the progress is saved first, Ctrl-C stops at once"));
    })?;
    Ok(stopped)
}

/// What all checkpoints have in common.
struct Common {
    /// Side of the images, in pixels.
    resolution: u32,
    /// The quantizer of the first one, which losses ask for; what is measured does not depend on it.
    quantizer: Quantizer,
}

impl Common {
    /// Reads all checkpoints once, so that a wrong one ends the evaluation before it begins.
    fn of(args: &EvaluateArgs) -> Result<Self, CommandError> {
        let (mut resolution, mut architectures) = (args.resolution, Vec::new());
        for checkpoint in &args.checkpoint {
            let initial = pretrained(checkpoint)?;
            resolution = resolution.or(initial.resolution);
            architectures.push((checkpoint, initial.architecture));
        }
        let resolution = resolution.unwrap_or(256);
        for (checkpoint, architecture) in &architectures {
            let factor = architecture.downsampling() as u32;
            if resolution == 0 || !resolution.is_multiple_of(factor) {
                let message = format!("--resolution is {resolution}, must be a multiple of {factor} for {checkpoint}");
                return Err(CommandError::Usage(message));
            }
        }
        let quantizer = architectures.into_iter().next().map(|(_, architecture)| architecture.quantizer);
        let none = || CommandError::Usage("--checkpoint names no model".to_owned());
        Ok(Self { resolution, quantizer: quantizer.ok_or_else(none)? })
    }
}

/// What `--data` names; a folder that is called as a source is named with its path, `./shapes`.
fn source(args: &EvaluateArgs) -> DataSource {
    serde_json::from_value(args.data.as_str().into()).unwrap_or(DataSource::Folder)
}

fn open_images(args: &EvaluateArgs, resolution: u32) -> Result<EvaluationImages, CommandError> {
    let source = source(args);
    let path = PathBuf::from(&args.data);
    let count = args.images.map(|count| count as usize);
    let settings = SourceSettings {
        path: (source == DataSource::Folder).then_some(&path),
        images: count.unwrap_or(DRAWN),
        resolution,
        seed: args.seed,
        needs_captions: args.networks.clip.is_some(),
    };
    Ok(open_for_evaluation(source, &settings, count, args.max_bad).map_err(EvaluationError::from)?)
}

fn protocol(args: &EvaluateArgs, images: &EvaluationImages, resolution: u32, losses: &Losses) -> Protocol {
    let data = match source(args) {
        DataSource::Folder => args.data.clone(),
        _ => format!("{}, seed {}", args.data, args.seed),
    };
    let protocol = Protocol::new(data, images.source.clone(), images.set.len(), resolution, args.samples);
    let protocol = Protocol { lpips: args.networks.lpips_name(), ..protocol };
    match (&args.networks.clip, &losses.clip) {
        (Some(name), Some(clip)) => {
            let side = clip.architecture.image_size;
            protocol.with_clip(format!("{name} at {side} pixels"), images.has_captions)
        }
        _ => protocol,
    }
}

fn micro(args: &EvaluateArgs, selected: &Selected) -> ForwardMicro {
    let fixed = args.micro.map(|micro| micro as usize);
    ForwardMicro::new(selected, fixed, args.limit.map(|Bytes(bytes)| bytes))
}

/// The work on one checkpoint.
struct Evaluation<'a> {
    args: &'a EvaluateArgs,
    images: &'a EvaluationImages,
    losses: &'a Losses,
    selected: &'a Selected,
    /// The checkpoints that are done.
    columns: &'a [Column],
}

impl Evaluation<'_> {
    /// Returns `None` if it was stopped.
    fn column(
        &self,
        checkpoint: &str,
        micro: &mut ForwardMicro,
        progress: &mut Progress,
        watch: &Watcher,
    ) -> Result<Option<Column>, CommandError> {
        let Initial { architecture, weights, description, .. } = pretrained(checkpoint)?;
        let hash = hash(&weights);
        let model = VqGan::new(&architecture, &weights, &self.selected.device, DType::F32)?;
        drop(weights);
        note!("model: {description}");
        let judge = ImageJudge::new(Judges::of(self.losses));
        let pass =
            Pass { model: &model, weights: &hash, judge: &judge, set: &self.images.set, samples: self.args.samples };
        let evaluated = match progress.result(&hash) {
            Some(done) => Some(done.clone()),
            None => pass.run(micro, progress, watch)?,
        };
        watch.finish();
        let Some(evaluated) = evaluated else { return Ok(None) };
        let mut grids = Vec::new();
        for (kind, list) in [("worst", &evaluated.worst), ("best", &evaluated.best)] {
            if let Some(path) = self.grid(&pass, kind, list)? {
                grids.push((kind, path));
            }
        }
        let checkpoint = checkpoint.to_owned();
        Ok(Some(Column { checkpoint, model: description, weights: hash, evaluated, grids }))
    }

    /// Writes a grid of originals above reconstructions.
    fn grid(&self, pass: &Pass, kind: &str, list: &[RankedImage]) -> Result<Option<PathBuf>, CommandError> {
        if list.is_empty() {
            return Ok(None);
        }
        let pairs = pass.reconstruct(list)?;
        let name = match self.args.checkpoint.len() {
            1 => format!("{kind}.png"),
            _ => format!("{}-{kind}.png", self.columns.len() + 1),
        };
        let path = self.args.output.join(name);
        let failed =
            |error| CommandError::Io { path: path.display().to_string(), source: std::io::Error::other(error) };
        let png = grid_png(&pairs, self.images.set.resolution()).map_err(failed)?;
        atomic_write(&path, &png)?;
        Ok(Some(path))
    }
}

/// SHA-256 of weights by name, in hexadecimal.
fn hash(weights: &StateDict) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in weights {
        hash.update(name);
        hash.update(format!("{:?}{:?}", tensor.dtype, tensor.shape));
        hash.update(&tensor.bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Shows a pass, and stops it at a signal.
struct Watcher<'a> {
    name: &'a str,
    stopped: &'a AtomicBool,
    counter: std::cell::OnceCell<Counter>,
}

impl Watcher<'_> {
    fn finish(&self) {
        self.counter.get().inspect(|counter| counter.finish());
    }
}

impl Watch for Watcher<'_> {
    fn begin(&self, done: u64, images: u64) {
        if done > 0 {
            note!("{}: {done} of {images} images are done already", self.name);
        }
        self.counter.get_or_init(|| Counter::new(self.name, done, images));
    }

    fn advance(&self, done: u64) {
        self.counter.get().inspect(|counter| counter.advance(done));
    }

    fn line(&self, text: &str) {
        match self.counter.get() {
            Some(counter) => counter.line(text),
            None => note!("{text}"),
        }
    }

    fn should_stop(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

fn result(protocol: &Protocol, columns: &[Column]) -> Value {
    let column = |column: &Column| {
        let mut value = json!(column.evaluated);
        value["checkpoint"] = json!(column.checkpoint);
        value["model"] = json!(column.model);
        value["weights"] = json!(column.weights);
        value["grids"] = column.grids.iter().map(|(kind, path)| (kind.to_string(), json!(path))).collect();
        value
    };
    json!({ "protocol": protocol, "checkpoints": columns.iter().map(column).collect::<Vec<_>>() })
}
