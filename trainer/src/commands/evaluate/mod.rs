//! `train evaluate`: measures how well models reconstruct images.

mod networks;
mod table;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use burn::tensor::DType;
use checkpoints::run::atomic_write;
use checkpoints::{Npz, Quantizer};
use clap::Args;
use datasets::{DataSource, SampleStream, SourceSettings};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::networks::{NetworkArgs, Networks};
use self::watch::{Watcher, stop_at_signals};
use super::{CommandError, Json, parse_device, print_json, print_line};
use crate::config::Bytes;
use crate::data::{EvaluationImages, open_for_evaluation};
use crate::device::{Choice, Selected};
use crate::evaluation::evaluate::{
    Evaluated, EvaluationError, InceptionJudge, ORIGINALS, PUBLISHED, Pass, Progress, Protocol, RankedImage,
    Statistics, read_reference,
};
use crate::evaluation::{ImageJudge, Judges, grid_png};
use crate::losses::Losses;
use crate::memory::ForwardMicro;
use crate::models::VqGan;
use crate::models::inception::WIDTH;
use crate::models::weights::StateDict;
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
    /// Print what the authors of well-known tokenizers report beside it
    #[arg(long)]
    published: bool,
    /// auto, cpu, cuda:N, wgpu:N or wgpu:cpu
    #[arg(long, value_parser = parse_device, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    json: Json,
}

fn parse_size(text: &str) -> Result<Bytes, String> {
    text.parse()
}

/// The file with the statistics that rFID compares with.
const REFERENCE: &str = "reference.npz";

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
    let networks = args.networks.load(&common, images.has_captions, &selected.device)?;
    if args.networks.clip.is_some() && !images.has_captions {
        note!("captions: not every image has one, so none is compared with");
    }
    let protocol = protocol(args, &images, common.resolution, &networks.losses)?;
    let (mut progress, note) = Progress::open(&args.output, json!(protocol), args.save_every)?;
    if let Some(note) = note {
        note!("{note}");
    }
    let mut micro = micro(args, &selected);
    let Some(reference) = reference(args, &networks, &selected, &mut micro, &progress, &stopped)? else {
        return Ok(interrupted());
    };
    let mut columns: Vec<Column> = Vec::new();
    for checkpoint in &args.checkpoint {
        let watch = Watcher::new(checkpoint, &stopped);
        let reference = reference.as_ref();
        let work = Evaluation {
            args,
            images: &images,
            networks: &networks,
            reference,
            selected: &selected,
            columns: &columns,
        };
        match work.column(checkpoint, &mut micro, &mut progress, &watch)? {
            Some(column) => columns.push(column),
            None => return Ok(interrupted()),
        }
    }
    let mut result = result(&protocol, &columns);
    if args.published {
        result["published"] = json!(PUBLISHED);
    }
    atomic_write(&args.output.join("evaluation.json"), format!("{result:#}\n").as_bytes())?;
    keep_statistics(&args.output, &progress)?;
    progress.remove()?;
    match args.json.json {
        true => print_json(&result),
        false => print_line(&table::text(&protocol, &columns, args.published)),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn interrupted() -> ExitCode {
    note!("stopped; the same command goes on from here");
    ExitCode::from(INTERRUPTED)
}

/// Reads the statistics of `--reference`, or takes them from its images; they are kept with the progress. Returns `None` if it
/// was stopped.
fn reference(
    args: &EvaluateArgs,
    networks: &Networks,
    selected: &Selected,
    micro: &mut ForwardMicro,
    progress: &Progress,
    stopped: &AtomicBool,
) -> Result<Option<Option<Statistics>>, CommandError> {
    let Some((path, network)) = args.networks.reference.as_ref().zip(networks.inception.as_ref()) else {
        return Ok(Some(None));
    };
    let kept = progress.folder().join(REFERENCE);
    let path = if kept.is_file() { &kept } else { path };
    let watch = Watcher::new("reference", stopped);
    let statistics = read_reference(path, network, &selected.device, micro, &watch)?;
    watch.finish();
    if let Some(statistics) = &statistics {
        statistics.write(&kept).map_err(EvaluationError::from)?;
    }
    Ok(statistics.map(Some))
}

/// Keeps the statistics of the originals in the folder `output`, for the `--reference` of other evaluations.
fn keep_statistics(output: &Path, progress: &Progress) -> Result<(), CommandError> {
    let (from, to) = (progress.folder().join(ORIGINALS), output.join(REFERENCE));
    match from.is_file() {
        true => {
            std::fs::rename(&from, &to).map_err(|source| CommandError::Io { path: to.display().to_string(), source })
        }
        false => Ok(()),
    }
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

fn protocol(
    args: &EvaluateArgs,
    images: &EvaluationImages,
    resolution: u32,
    losses: &Losses,
) -> Result<Protocol, CommandError> {
    let data = match source(args) {
        DataSource::Folder => args.data.clone(),
        _ => format!("{}, seed {}", args.data, args.seed),
    };
    let protocol = Protocol::new(data, images.source.clone(), images.set.len(), resolution, args.samples);
    let mut protocol = Protocol { lpips: args.networks.lpips_name(), ..protocol };
    if let Some((name, clip)) = args.networks.clip.as_ref().zip(losses.clip.as_ref()) {
        let side = clip.architecture.image_size;
        protocol = protocol.with_clip(format!("{name} at {side} pixels"), images.has_captions);
    }
    if let Some(weights) = &args.networks.inception {
        let reference = match &args.networks.reference {
            None => "their originals".to_owned(),
            Some(path) => {
                let failed = |source| CommandError::Io { path: format!("--reference: {}", path.display()), source };
                format!("{}, {} bytes", path.display(), std::fs::metadata(path).map_err(failed)?.len())
            }
        };
        protocol = protocol.with_inception(weights, args.networks.fid, reference);
        if images.set.len() <= WIDTH {
            note!(
                "rFID of {} images is too high: it needs far more images than its {WIDTH} features",
                images.set.len()
            );
        }
    }
    Ok(protocol)
}

fn micro(args: &EvaluateArgs, selected: &Selected) -> ForwardMicro {
    let fixed = args.micro.map(|micro| micro as usize);
    ForwardMicro::new(selected, fixed, args.limit.map(|Bytes(bytes)| bytes))
}

/// The work on one checkpoint.
struct Evaluation<'a> {
    args: &'a EvaluateArgs,
    images: &'a EvaluationImages,
    networks: &'a Networks,
    /// What rFID compares with, where it is not the originals.
    reference: Option<&'a Statistics>,
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
        let judge = ImageJudge::new(Judges::of(&self.networks.losses));
        let pass = Pass {
            model: &model,
            weights: &hash,
            judge: &judge,
            inception: self.inception(progress)?,
            set: &self.images.set,
            samples: self.args.samples,
        };
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

    /// Originals are measured by InceptionV3 once, in the pass of the first checkpoint.
    fn inception(&self, progress: &Progress) -> Result<Option<InceptionJudge<'_>>, CommandError> {
        let Some(network) = &self.networks.inception else { return Ok(None) };
        let originals = progress.folder().join(ORIGINALS);
        let mut reference = self.reference.cloned();
        if reference.is_none() && originals.is_file() {
            let read = Npz::open(&originals).and_then(|mut npz| Statistics::read(&mut npz, WIDTH));
            reference = Some(read.map_err(EvaluationError::from)?);
        }
        Ok(Some(InceptionJudge { network, reference }))
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
