//! One pass of a model over all images of an evaluation, without a graph, a micro-batch at a time.

use std::io;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use checkpoints::run::RunError;
use datasets::{Batch, Loader, ValidationSet};
use serde::{Deserialize, Serialize};

use super::cmmd::cmmd;
use super::embeddings::EmbeddingFile;
use super::inception_pass::{InceptionJudge, InceptionMeasured, InceptionState, InceptionSums};
use super::progress::Progress;
use super::ranking::{Ranked, RankedBy, Ranking};
use super::{Evaluated, EvaluationError, RankedImage, Watch};
use crate::data::{next_batch, part, to_pixels};
use crate::engine::MicroBatch;
use crate::evaluation::captions::CaptionMatches;
use crate::evaluation::metrics::{Embeddings, ImageJudge, ImageMetrics, MetricSums};
use crate::evaluation::validation::Scores;
use crate::memory::{Attempt, ForwardMicro};
use crate::models::VqGan;
use crate::models::quantizer::{CodebookUse, count_codes};
use crate::models::statistics_dtype;

/// Threads that read images, and images that they read ahead.
const WORKERS: usize = 2;
const READ_AHEAD: usize = 32;

/// Rows of embeddings that are on the device at a time.
const ROWS: usize = 1024;

/// How far a pass is. It goes on from here as if it had never stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassState {
    /// Position of the next image.
    next: u64,
    sums: MetricSums,
    /// How often each code occurred.
    codes: Vec<f64>,
    ranking: Ranking,
    /// What InceptionV3 has measured, if it does.
    #[serde(default)]
    inception: Option<InceptionState>,
}

/// A model and what it is measured with.
pub struct Pass<'a> {
    /// The model, without autodiff.
    pub model: &'a VqGan,
    /// The hash of its weights.
    pub weights: &'a str,
    /// The networks that measure.
    pub judge: &'a ImageJudge<'a>,
    /// InceptionV3, if it measures too.
    pub inception: Option<InceptionJudge<'a>>,
    /// The images.
    pub set: &'a Arc<ValidationSet>,
    /// Images in the lists of the worst and the best.
    pub samples: usize,
}

/// What was measured of a micro-batch.
struct Measured {
    images: Vec<ImageMetrics>,
    embeddings: Option<Embeddings>,
    inception: Option<InceptionMeasured>,
    codes: Vec<f32>,
}

/// What a pass adds to beside its state.
struct Sums {
    files: Option<EmbeddingFiles>,
    inception: Option<InceptionSums>,
}

/// What CLIP makes of the originals, the reconstructions and the captions.
struct EmbeddingFiles {
    originals: EmbeddingFile,
    reconstructions: EmbeddingFile,
    captions: Option<EmbeddingFile>,
}

impl Pass<'_> {
    /// Evaluates the model, from where `progress` has it. Returns `None` if `watch` says stop.
    ///
    /// # Errors
    /// Too many bad images, too little memory, a device or a disk that fails.
    pub fn run(
        &self,
        micro: &mut ForwardMicro,
        progress: &mut Progress,
        watch: &dyn Watch,
    ) -> Result<Option<Evaluated>, EvaluationError> {
        let (mut state, mut sums) = self.resume(progress)?;
        let images = self.set.len() as u64;
        watch.begin(state.next, images);
        let left = images.saturating_sub(state.next);
        let mut loader = Loader::start(self.set.clone(), state.next, Some(left), WORKERS, READ_AHEAD);
        loop {
            let proceed = || !watch.should_stop();
            let batch = match proceed() {
                true => next_batch(&mut loader, micro.size(), proceed, |line| watch.line(line))?,
                false => None,
            };
            let Some(batch) = batch else {
                self.save(progress, &mut state, &mut sums)?;
                return Ok(None);
            };
            self.set.take_warnings().iter().for_each(|warning| watch.line(&format!("skipped {warning}")));
            if batch.is_empty() {
                break;
            }
            self.measure_in_memory(&batch, micro, watch, |draws, measured| state.add(&mut sums, draws, measured))?;
            state.next = loader.next_draw();
            watch.advance(state.next);
            if progress.is_due() {
                self.save(progress, &mut state, &mut sums)?;
            }
        }
        if state.sums.images == 0 {
            return Err(EvaluationError::NoImages(self.set.len()));
        }
        let evaluated = self.result(&state, &mut sums, progress.folder())?;
        progress.finish(self.weights, &evaluated)?;
        Ok(Some(evaluated))
    }

    /// The state that was saved, with the embeddings that belong to it, or that of the beginning.
    fn resume(&self, progress: &Progress) -> Result<(PassState, Sums), EvaluationError> {
        let by = if self.judge.has_lpips() { RankedBy::Lpips } else { RankedBy::Psnr };
        let new = || PassState {
            next: 0,
            sums: MetricSums::default(),
            codes: vec![0.0; self.model.quantizer().codes()],
            ranking: Ranking::new(by, self.samples),
            inception: None,
        };
        let state = progress.pass(self.weights).cloned().unwrap_or_else(new);
        let rows = state.sums.images;
        let files = self.judge.embedding_width().map(|width| {
            let open = |name: &str| {
                let path = progress.folder().join(name);
                EmbeddingFile::open(&path, width, rows).map_err(RunError::io("open", &path))
            };
            let captions = self.judge.reads_captions().then(|| open("captions.f32")).transpose()?;
            let (originals, reconstructions) = (open("originals.f32")?, open("reconstructions.f32")?);
            Ok::<_, RunError>(EmbeddingFiles { originals, reconstructions, captions })
        });
        let inception = self.inception.as_ref();
        let inception = inception.map(|judge| judge.resume(progress.folder(), state.inception.as_ref())).transpose()?;
        Ok((state, Sums { files: files.transpose()?, inception }))
    }

    fn save(&self, progress: &mut Progress, state: &mut PassState, sums: &mut Sums) -> Result<(), EvaluationError> {
        sums.files.as_ref().map(EmbeddingFiles::sync).transpose()?;
        state.inception = sums.inception.as_mut().map(|sums| sums.save(progress.folder())).transpose()?;
        Ok(progress.save(self.weights, state)?)
    }

    /// Measures `batch`, in parts if it is too large, and passes on each part with the positions of its images.
    fn measure_in_memory(
        &self,
        batch: &Batch,
        micro: &mut ForwardMicro,
        watch: &dyn Watch,
        mut add: impl FnMut(&[u64], Measured) -> Result<(), EvaluationError>,
    ) -> Result<(), EvaluationError> {
        let mut first = 0;
        while first < batch.len() {
            let part = part(batch, first, micro.size());
            match micro.run(part.len(), || self.measure(&part))? {
                Attempt::Done(measured) => {
                    add(&part.draws, measured)?;
                    first += part.len();
                }
                Attempt::TooLarge(why) => watch.line(&why),
            }
        }
        Ok(())
    }

    fn measure(&self, batch: &Batch) -> Result<Measured, String> {
        let (device, dtype) = self.model.place();
        let original = batch.images(&device, statistics_dtype(dtype));
        let (reconstruction, quantized) = self.model.reconstruct(original.clone());
        let reconstruction = reconstruction.clamp(-1.0, 1.0);
        let (images, embeddings) = self.judge.measure(&original, &reconstruction, batch.captions())?;
        let inception = self.inception.as_ref().map(|judge| judge.measure(original, reconstruction)).transpose()?;
        let codes = count_codes(quantized.codes, self.model.quantizer().codes());
        let codes = codes.try_into_vec_as().map_err(|error| error.to_string())?;
        Ok(Measured { images, embeddings, inception, codes })
    }

    fn result(&self, state: &PassState, sums: &mut Sums, folder: &Path) -> Result<Evaluated, EvaluationError> {
        let (mut captions, mut distance, mut by_inception) = (None, None, (None, None));
        if let Some((judge, sums)) = self.inception.as_ref().zip(sums.inception.as_ref()) {
            by_inception = judge.result(sums, folder)?;
        }
        let (rfid, inception_score) = by_inception;
        if let Some(files) = &mut sums.files {
            let (device, _) = self.model.place();
            captions = files.captions(&device)?;
            distance = Some(cmmd(&mut files.originals, &mut files.reconstructions, &device)?);
        }
        let named = |list: &[Ranked]| {
            let image = |ranked: &Ranked| {
                let image = self.set.name_at(ranked.position as usize);
                RankedImage { image, position: ranked.position, value: ranked.value }
            };
            list.iter().map(image).collect()
        };
        Ok(Evaluated {
            scores: Scores::new(&state.sums, captions, CodebookUse::from_counts(&state.codes)),
            cmmd: distance,
            rfid,
            inception_score,
            ranked_by: state.ranking.by,
            worst: named(&state.ranking.worst),
            best: named(&state.ranking.best),
        })
    }

    /// Reconstructs images of a ranking once more: originals and reconstructions as RGB bytes.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn reconstruct(&self, images: &[RankedImage]) -> Result<Vec<[Vec<u8>; 2]>, EvaluationError> {
        let (device, dtype) = self.model.place();
        let mut pairs = Vec::new();
        for RankedImage { position, .. } in images {
            let position = *position as usize;
            let original = self.set.batch(position..position + 1)?.images(&device, statistics_dtype(dtype));
            let (reconstruction, _) = self.model.reconstruct(original.clone());
            let [original, reconstruction] = [original, reconstruction].map(to_pixels);
            let (original, reconstruction) =
                original.and_then(|original| Ok((original, reconstruction?))).map_err(EvaluationError::Device)?;
            pairs.extend(original.into_iter().zip(reconstruction).map(|(a, b)| [a, b]));
        }
        Ok(pairs)
    }
}

impl PassState {
    fn add(&mut self, sums: &mut Sums, positions: &[u64], measured: Measured) -> Result<(), EvaluationError> {
        for (position, image) in positions.iter().zip(&measured.images) {
            self.sums.add(image);
            self.ranking.add(*position, image);
        }
        self.codes.iter_mut().zip(measured.codes).for_each(|(sum, count)| *sum += f64::from(count));
        if let Some((sums, measured)) = sums.inception.as_mut().zip(measured.inception.as_ref()) {
            sums.add(positions, measured);
        }
        if let Some((files, embeddings)) = sums.files.as_mut().zip(measured.embeddings) {
            files.append(embeddings)?;
        }
        Ok(())
    }
}

impl EmbeddingFiles {
    fn append(&mut self, embeddings: Embeddings) -> Result<(), EvaluationError> {
        self.originals.append(embeddings.originals)?;
        self.reconstructions.append(embeddings.reconstructions)?;
        match (&mut self.captions, embeddings.captions) {
            (None, _) => Ok(()),
            (Some(file), Some(captions)) => Ok(file.append(captions)?),
            (Some(_), None) => Err(io::Error::other("an image has lost its caption").into()),
        }
    }

    fn sync(&self) -> Result<(), EvaluationError> {
        let all = [Some(&self.originals), Some(&self.reconstructions), self.captions.as_ref()];
        all.into_iter().flatten().try_for_each(|file| Ok(file.sync()?))
    }

    /// The similarity to captions, and the share that is found among them.
    fn captions(&mut self, device: &Device) -> Result<Option<(f64, f64)>, EvaluationError> {
        let Some(captions) = &mut self.captions else { return Ok(None) };
        let mut matches = CaptionMatches::default();
        for first in (0..captions.rows()).step_by(ROWS) {
            let rows = [captions.read(first, ROWS, device)?, self.reconstructions.read(first, ROWS, device)?];
            let [captions, reconstructions] = rows;
            matches.add(captions, reconstructions).map_err(EvaluationError::Device)?;
        }
        matches.scores().map_err(EvaluationError::Device)
    }
}
