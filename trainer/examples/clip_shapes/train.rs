//! Trains the model.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use checkpoints::{Dtype, HostTensor, WeightsFile, write_safetensors};
use clap::Args;
use trainer::models::clip::ClipTokenizer;
use trainer::models::weights::StateDict;
use trainer::optim::{
    Ema, LrSchedule, ModelOptimizer, OptimizerConfig, OptimizerName, ScheduleConfig, ScheduleKind, global_norm,
    unscale_and_clip,
};

use crate::data::{Samples, WRONG_CAPTIONS};
use crate::network::{Network, architecture, random_weights};
use crate::step::Micro;
use crate::{Result, files};

const STATE: &str = "training.safetensors";
const PROGRESS: &str = "progress";

#[derive(Args)]
pub struct Settings {
    /// The folder that the model is written to.
    #[arg(long, default_value = "runs/clip-shapes")]
    output: PathBuf,
    /// Cycles of the schedule: each begins with the highest learning rate (Loshchilov, Hutter 2017, arXiv 1608.03983).
    #[arg(long, default_value_t = 2)]
    cycles: u64,
    /// Optimizer steps of a cycle, the first ones included.
    #[arg(long, default_value_t = 3200)]
    steps: u64,
    /// Steps of small batches, with which a cycle begins: a model needs many steps before it sees where something is.
    #[arg(long, default_value_t = 3080)]
    first_steps: u64,
    /// Images in an effective batch of the first steps.
    #[arg(long, default_value_t = 64)]
    first_effective: usize,
    /// Images in an effective batch.
    #[arg(long, default_value_t = 512)]
    effective: usize,
    /// Images in a micro-batch; the result is the same with any number.
    #[arg(long, default_value_t = 32)]
    micro: usize,
    /// Seed of weights and images.
    #[arg(long, default_value_t = 20)]
    seed: u64,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 50)]
    save_every: u64,
}

/// Everything that training goes on from.
struct Trained {
    network: Network,
    average: Ema<Network>,
    optimizer: ModelOptimizer,
    /// Steps taken.
    step: u64,
    /// The next image.
    next: usize,
    /// Time that the steps have taken, in milliseconds.
    milliseconds: u64,
}

/// Trains, and writes the model of the averaged weights.
pub fn train(settings: &Settings) -> Result<()> {
    let samples = Samples::new(settings.seed, 64)?;
    let (tokenizer_json, vocabulary) = files::tokenizer(&samples);
    let architecture = architecture(vocabulary);
    fs::create_dir_all(&settings.output)?;
    let tokenizer_file = settings.output.join("tokenizer.json");
    fs::write(&tokenizer_file, serde_json::to_string_pretty(&tokenizer_json)?)?;
    let tokenizer = ClipTokenizer::open(&tokenizer_file, &architecture)?;
    let plain = Device::flex();
    let device = plain.clone().autodiff();

    let optimizer = OptimizerConfig {
        name: OptimizerName::AdamW,
        learning_rate: settings.learning_rate,
        betas: [0.9, 0.98],
        epsilon: 1e-6,
        weight_decay: 0.02,
        clip_norm: 1.0,
    };
    let schedule = ScheduleConfig { kind: ScheduleKind::Cosine, warmup: 100, last: Some(0.02) };
    let schedule = LrSchedule::new(&schedule, &optimizer, settings.steps);
    let weights = random_weights(&architecture, settings.seed);
    let new = |weights: &StateDict| Network::new(&architecture, weights, &device);
    let mut trained = match load(&settings.output.join(STATE), &optimizer, new)? {
        Some(trained) => trained,
        None => {
            let network = new(&weights)?;
            let average = Ema::new(network.valid(), 0.99);
            let optimizer = ModelOptimizer::new(&optimizer);
            Trained { network, average, optimizer, step: 0, next: 0, milliseconds: 0 }
        }
    };
    println!("{} parameters, {vocabulary} tokens", trained.network.num_params());
    let steps = settings.cycles * settings.steps;
    while trained.step < steps {
        let began = Instant::now();
        let (cycle, step) = (trained.step / settings.steps, trained.step % settings.steps);
        let effective = if step < settings.first_steps { settings.first_effective } else { settings.effective };
        let (indices, next) = samples.next(trained.next, effective, false);
        let micro = Micro {
            samples: &samples,
            tokenizer: &tokenizer,
            architecture: &architecture,
            cycle,
            size: settings.micro,
            device: plain.clone(),
        };
        let (gradients, judged) = micro.gradient(&trained.network, &indices)?;
        let norm = global_norm(&trained.network, &gradients).ok_or("there is no gradient")?;
        let norm = f64::from(norm.into_scalar::<f32>());
        let gradients = unscale_and_clip(&trained.network, gradients, 1.0, norm, optimizer.clip_norm);
        let network = trained.optimizer.step(schedule.at(step), trained.network, gradients);
        let average = trained.average.updated(&network, trained.step);
        let milliseconds = trained.milliseconds + began.elapsed().as_millis() as u64;
        trained =
            Trained { network, average, optimizer: trained.optimizer, step: trained.step + 1, next, milliseconds };
        if trained.step.is_multiple_of(25) {
            println!(
                "step {:4}/{steps}  loss {:.3}  own caption first of {}: {:4.1} %  attribute right: {:4.1} %  scale {:.1}  norm {norm:.2}  {:.1} s",
                trained.step,
                judged.loss,
                (1 + WRONG_CAPTIONS) * effective,
                100.0 * judged.top_1,
                100.0 * judged.attribute,
                judged.scale,
                milliseconds as f64 / 1000.0,
            );
        }
        if trained.step % settings.save_every == 0 || trained.step == steps {
            save(&settings.output.join(STATE), &trained)?;
            files::write(&settings.output, &architecture, &trained.average.model().weights()?, &tokenizer_json)?;
        }
    }
    println!("written to {} after {:.0} s of steps", settings.output.display(), trained.milliseconds as f64 / 1000.0);
    Ok(())
}

fn save(path: &Path, trained: &Trained) -> Result<()> {
    let mut all = StateDict::new();
    let mut put = |prefix: &str, weights: StateDict| {
        all.extend(weights.into_iter().map(|(name, host)| (format!("{prefix}.{name}"), host)));
    };
    put("model", trained.network.weights()?);
    put("average", trained.average.model().weights()?);
    put("optimizer", trained.optimizer.state_dict(&trained.network)?);
    let progress = [trained.step, trained.next as u64, trained.milliseconds];
    let bytes = progress.iter().flat_map(|number| number.to_le_bytes()).collect();
    all.insert(PROGRESS.to_owned(), HostTensor { dtype: Dtype::U64, shape: vec![progress.len()], bytes });
    write_safetensors(path, &all, None)?;
    Ok(())
}

fn load(
    path: &Path,
    optimizer: &OptimizerConfig,
    new: impl Fn(&StateDict) -> Result<Network>,
) -> Result<Option<Trained>> {
    if !path.exists() {
        return Ok(None);
    }
    let file = WeightsFile::open(path)?;
    let part = |prefix: &str| -> Result<StateDict> {
        let names = file.names().filter_map(|name| Some((name.strip_prefix(prefix)?, name)));
        names.map(|(inner, name)| Ok((inner.to_owned(), file.read(name)?))).collect()
    };
    let network = new(&part("model.")?)?;
    let mut restored = ModelOptimizer::new(optimizer);
    restored.load_state_dict(&network, &part("optimizer.")?)?;
    let progress: Vec<u64> =
        file.read(PROGRESS)?.bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let [step, next, milliseconds] = progress[..] else { return Err("the saved progress is damaged".into()) };
    let average = Ema::new(new(&part("average.")?)?.valid(), 0.99);
    Ok(Some(Trained { network, average, optimizer: restored, step, next: next as usize, milliseconds }))
}
