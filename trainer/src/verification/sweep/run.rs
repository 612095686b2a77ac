//! Measures the rows of a sweep, one after another.

use std::path::PathBuf;
use std::time::Instant;

use super::gradient_file;
use super::rows::{Reference, Row, Sweep, SweepError};
use crate::config::{Loaded, Recompute};
use crate::memory::{Gradient, Measured, Measurer, MemoryError, Status, Variant};

/// The rows that `[sweep]` asks for, and those left out because their micro-batch exceeds their effective batch.
///
/// # Errors
/// If the configuration of a row is wrong, or if no row is left.
pub fn variants(loaded: &Loaded) -> Result<(Vec<Variant>, Vec<Variant>), SweepError> {
    let own = Variant::of(&loaded.config);
    let sweep = &loaded.config.sweep;
    let mut all = Vec::new();
    for resolution in or_own(&sweep.resolution, own.resolution) {
        for effective in or_own(&sweep.effective, own.effective) {
            for precision in or_own(&sweep.precision, own.precision) {
                for recompute in or_own(&sweep.recompute, own.recompute) {
                    for micro in or_own(&sweep.micro, own.micro) {
                        let variant = Variant { micro, effective, precision, resolution, recompute };
                        if !all.contains(&variant) {
                            all.push(variant);
                        }
                    }
                }
            }
        }
    }
    let (rows, left_out): (Vec<_>, Vec<_>) = all.into_iter().partition(|row| row.micro <= row.effective);
    for row in &rows {
        row.apply(&loaded.config).check().map_err(|problem| loaded.locate(problem))?;
    }
    if rows.is_empty() { Err(SweepError::NoRows) } else { Ok((rows, left_out)) }
}

fn or_own<T: Copy>(values: &[T], own: T) -> Vec<T> {
    if values.is_empty() { vec![own] } else { values.to_vec() }
}

/// Measures every row of `variants`, each in a process of its own; `show` sees each as soon as it is measured.
///
/// # Errors
/// If processes or files cannot be had, or if a signal came. A row that fails is no error.
pub fn run(measurer: Measurer, variants: &[Variant], mut show: impl FnMut(&Row)) -> Result<Sweep, SweepError> {
    let mut sweep = Sweep {
        config: measurer.loaded.name().to_owned(),
        device: None,
        random_weights: measurer.networks.random(),
        steps: measurer.children.steps,
        references: Vec::new(),
        rows: Vec::new(),
        bars: Vec::new(),
    };
    for variant in variants {
        let gradient = |number| measurer.networks.folder().join(format!("reference-{number}.safetensors"));
        let what = match sweep.reference_for(*variant, gradient, measurer)? {
            Some(reference) => Gradient::Compare(reference),
            None => Gradient::Ignore,
        };
        let (measured, took) = measurer.measure(variant, &what)?;
        if let Ok(measurement) = &measured {
            sweep.device = Some(measurement.device.clone());
        }
        let row = Row::new(*variant, (measured, took));
        show(&row);
        sweep.rows.push(row);
    }
    let modes = sweep.rows_between_modes(variants);
    modes.iter().for_each(show);
    sweep.rows.extend(modes);
    Ok(sweep)
}

impl Sweep {
    /// The file with the reference gradient for `variant`. The reference is measured the first time. Where f32 without recomputation
    /// does not fit, it is the reference with recomputation; where that fails as well, there is none.
    fn reference_for(
        &mut self,
        variant: Variant,
        file: impl Fn(usize) -> PathBuf,
        measurer: Measurer,
    ) -> Result<Option<PathBuf>, MemoryError> {
        let own = variant.reference();
        for variant in [own, Variant { recompute: Recompute::Blocks, ..own }] {
            if self.references.iter().all(|reference| reference.variant != variant) {
                let gradient = file(self.references.len());
                let (status, loss) = match measurer.measure(&variant, &Gradient::Write(gradient.clone()))?.0 {
                    Ok(measurement) => (Status::Ok, measurement.loss),
                    Err(status) => (status, None),
                };
                self.references.push(Reference { variant, status, loss, gradient });
            }
            let mut found = self.references.iter().filter(|reference| reference.variant == variant);
            if let Some(reference) = found.find(|reference| reference.status == Status::Ok) {
                return Ok(Some(reference.gradient.clone()));
            }
        }
        Ok(None)
    }

    /// Rows that compare the references with and without recomputation, wherever `variants` asks for both.
    fn rows_between_modes(&self, variants: &[Variant]) -> Vec<Row> {
        let is_asked_for =
            |reference: &&Reference| variants.iter().any(|variant| variant.reference() == reference.variant);
        let asked: Vec<&Reference> = self.references.iter().filter(is_asked_for).collect();
        let of = |kept: &Reference| {
            let variant = Variant { recompute: Recompute::Blocks, ..kept.variant };
            asked.iter().find(|reference| reference.variant == variant).copied()
        };
        let kept = asked.iter().filter(|reference| reference.variant.recompute == Recompute::None);
        kept.filter_map(|kept| Some(Row::between(kept, of(kept)?))).collect()
    }
}

impl Row {
    fn new(variant: Variant, (measured, took): Measured) -> Self {
        let (status, measured) = match measured {
            Ok(measured) => (Status::Ok, Some(measured)),
            Err(status) => (status, None),
        };
        let deviation = measured.as_ref().and_then(|measured| measured.deviation);
        Self {
            variant,
            against: None,
            status,
            peak_memory: measured.as_ref().map(|measured| measured.peak_memory),
            images_per_second: measured.as_ref().map(|measured| measured.images_per_second),
            deviation: deviation.and_then(|deviation| deviation.whole),
            deviation_generator: deviation.and_then(|deviation| deviation.generator),
            deviation_discriminator: deviation.and_then(|deviation| deviation.discriminator),
            loss: measured.as_ref().and_then(|measured| measured.loss),
            skipped: measured.as_ref().map(|measured| measured.skipped),
            memory: measured.map(|measured| measured.memory).unwrap_or_default(),
            seconds: took.as_secs_f64(),
        }
    }

    /// The deviation of a reference from the one of the same effective batch with the other recomputation.
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
            against: Some(b.variant.recompute),
            status,
            deviation: deviation.and_then(|deviation| deviation.whole),
            deviation_generator: deviation.and_then(|deviation| deviation.generator),
            deviation_discriminator: deviation.and_then(|deviation| deviation.discriminator),
            loss: a.loss,
            ..Self::new(a.variant, (Err(Status::Ok), started.elapsed()))
        }
    }
}
