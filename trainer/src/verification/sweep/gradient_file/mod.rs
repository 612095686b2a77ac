//! The gradient of one effective batch in a file, for another process to compare its own with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use checkpoints::{HostTensor, SafetensorsError, WeightsError, WeightsFile, write_safetensors};

use crate::engine::EffectiveBatch;
use crate::losses::LossScales;
use crate::memory::Deviation;
use crate::models::VqGan;
use crate::models::discriminator::PatchGan;
use crate::models::weights::{ParameterVisitor, visit_parameters};

const GENERATOR: &str = "generator.";
const DISCRIMINATOR: &str = "discriminator.";

/// Why two gradients cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum GradientError {
    /// The reference cannot be written.
    #[error("the reference gradient: {0}")]
    Write(#[from] SafetensorsError),
    /// The reference cannot be read.
    #[error("the reference gradient: {0}")]
    Read(#[from] WeightsError),
    /// Another gradient than the reference's, and not by rounding.
    #[error("`{0}` has no gradient in the reference, or one of another shape")]
    Different(String),
    /// The device could not hand a tensor back.
    #[error("the device failed while a gradient was read back: {0}")]
    Device(String),
}

fn deviation_of(generator: Squares, adversary: Squares) -> Deviation {
    let whole = Squares {
        difference: generator.difference + adversary.difference,
        reference: generator.reference + adversary.reference,
    };
    Deviation {
        whole: whole.ratio(),
        generator: generator.ratio(),
        discriminator: adversary.ratio().filter(|_| adversary != Squares::default()),
    }
}

/// Writes the gradients of an effective batch.
///
/// # Errors
/// If the device or the disk fails.
pub fn write(
    path: &Path,
    vqgan: &VqGan,
    discriminator: Option<&PatchGan>,
    batch: &EffectiveBatch,
) -> Result<(), GradientError> {
    let mut tensors = BTreeMap::new();
    each(vqgan, discriminator, batch, |name, shape, values| {
        tensors.insert(name, HostTensor::from_f32(shape, &values));
        Ok(())
    })?;
    write_safetensors(path, &tensors, None)?;
    Ok(())
}

/// Compares the gradients of an effective batch with those that [`write`] put into `path`, in f64, one parameter at a time.
///
/// # Errors
/// If the device or the file fails, or if a parameter has a gradient on one side only.
pub fn deviation(
    path: &Path,
    vqgan: &VqGan,
    discriminator: Option<&PatchGan>,
    batch: &EffectiveBatch,
) -> Result<Deviation, GradientError> {
    let reference = WeightsFile::open(path)?;
    let (mut generator, mut adversary) = (Squares::default(), Squares::default());
    let mut left: BTreeSet<String> = reference.names().map(str::to_owned).collect();
    each(vqgan, discriminator, batch, |name, _, values| {
        let squares = if name.starts_with(GENERATOR) { &mut generator } else { &mut adversary };
        if !left.remove(&name) {
            return Err(GradientError::Different(name));
        }
        match squares.add(&values, &reference.read(&name)?.to_f32()) {
            true => Ok(()),
            false => Err(GradientError::Different(name)),
        }
    })?;
    if let Some(name) = left.pop_first() {
        return Err(GradientError::Different(name));
    }
    Ok(deviation_of(generator, adversary))
}

/// Compares two files that [`write`] made.
///
/// # Errors
/// If a file cannot be read, or if a parameter has a gradient in one of them only.
pub fn between(path: &Path, reference: &Path) -> Result<Deviation, GradientError> {
    let (file, reference) = (WeightsFile::open(path)?, WeightsFile::open(reference)?);
    let (mut generator, mut adversary) = (Squares::default(), Squares::default());
    let names: BTreeSet<&str> = file.names().collect();
    if let Some(name) = names.symmetric_difference(&reference.names().collect()).next() {
        return Err(GradientError::Different((*name).to_owned()));
    }
    for name in names {
        let squares = if name.starts_with(GENERATOR) { &mut generator } else { &mut adversary };
        if !squares.add(&file.read(name)?.to_f32(), &reference.read(name)?.to_f32()) {
            return Err(GradientError::Different(name.to_owned()));
        }
    }
    Ok(deviation_of(generator, adversary))
}

#[derive(Debug, Default, PartialEq)]
struct Squares {
    difference: f64,
    reference: f64,
}

impl Squares {
    /// Whether there are as many values as reference values.
    fn add(&mut self, values: &[f32], reference: &[f32]) -> bool {
        let pairs = values.iter().zip(reference).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        self.difference += pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        self.reference += reference.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>();
        values.len() == reference.len()
    }

    fn ratio(&self) -> Option<f64> {
        let ratio = if self.difference == 0.0 { 0.0 } else { (self.difference / self.reference).sqrt() };
        ratio.is_finite().then_some(ratio)
    }
}

/// Shows each gradient by name, with its shape and values without the loss scale, one at a time on the host.
fn each(
    vqgan: &VqGan,
    discriminator: Option<&PatchGan>,
    batch: &EffectiveBatch,
    mut see: impl FnMut(String, Vec<usize>, Vec<f32>) -> Result<(), GradientError>,
) -> Result<(), GradientError> {
    let LossScales { generator, discriminator: of_discriminator } = batch.loss_scales;
    each_of(vqgan, &batch.generator, generator, GENERATOR, &mut see)?;
    match discriminator {
        Some(module) => each_of(module, &batch.discriminator, of_discriminator, DISCRIMINATOR, &mut see),
        None => Ok(()),
    }
}

type See<'a> = &'a mut dyn FnMut(String, Vec<usize>, Vec<f32>) -> Result<(), GradientError>;

fn each_of<M: Module>(
    model: &M,
    gradients: &GradientsParams,
    scale: f64,
    prefix: &'static str,
    see: See,
) -> Result<(), GradientError> {
    struct Visitor<'a, 'b> {
        gradients: &'a GradientsParams,
        scale: f64,
        prefix: &'static str,
        see: &'a mut (dyn FnMut(String, Vec<usize>, Vec<f32>) -> Result<(), GradientError> + 'b),
        result: Result<(), GradientError>,
    }
    impl ParameterVisitor for Visitor<'_, '_> {
        fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, _value: Tensor<D>) {
            // Frozen, or a running statistic.
            let Some(gradient) = self.gradients.get::<D>(id) else { return };
            if self.result.is_err() {
                return;
            }
            let shape = gradient.dims().to_vec();
            self.result = match gradient.try_into_vec_as::<f32>() {
                Ok(mut values) => {
                    values.iter_mut().for_each(|value| *value = (f64::from(*value) / self.scale) as f32);
                    (self.see)(format!("{}{name}", self.prefix), shape, values)
                }
                Err(error) => Err(GradientError::Device(error.to_string())),
            };
        }
    }
    let mut visitor = Visitor { gradients, scale, prefix, see, result: Ok(()) };
    visit_parameters(model, &mut visitor);
    visitor.result
}

#[cfg(test)]
mod tests;
