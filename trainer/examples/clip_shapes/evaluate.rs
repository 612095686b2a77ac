//! Measures the model on images and captions that it has not seen.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use checkpoints::load_clip;
use datasets::Attribute;
use strum::VariantArray;
use trainer::models::clip::ClipTokenizer;

use crate::Result;
use crate::data::{Samples, tokens};
use crate::network::Network;

/// Images are of another seed than those that a model was trained on, and so are most captions; of those that are the
/// same, none was trained on.
const SEED: u64 = 1_000_003;
/// Images, and captions that each one is compared with.
const IMAGES: usize = 2048;
const AMONG: usize = 64;

/// Prints how often an image's own caption is the most similar of 64, and of itself with one attribute changed.
pub fn evaluate(model: &Path) -> Result<()> {
    let clip = load_clip(model)?;
    let architecture = &clip.architecture;
    let tokenizer = ClipTokenizer::open(clip.tokenizer.as_deref().ok_or("the model has no tokenizer")?, architecture)?;
    let device = Device::flex();
    let network = Network::new(architecture, &clip.weights, &device)?;
    let samples = Samples::new(SEED, architecture.image_size)?;
    let (indices, _) = samples.next(0, IMAGES, true);
    let embed = |captions: Vec<String>| -> Result<Tensor<2>> {
        let ids = tokens(&captions, &tokenizer, architecture.end_of_text, &device)?;
        Ok(unit(network.text.forward(ids)))
    };

    let mut first = 0;
    let mut right = vec![0; Attribute::VARIANTS.len()];
    for part in indices.chunks(AMONG) {
        let images = unit(network.image.forward(samples.images(part, architecture, &device)?));
        let captions = embed(part.iter().map(|index| samples.caption(*index)).collect())?;
        let similar = values(images.clone().matmul(captions.clone().swap_dims(0, 1)))?;
        let own = |at: usize| similar[at * part.len() + at];
        first += (0..part.len())
            .filter(|at| {
                similar[at * part.len()..][..part.len()].iter().enumerate().all(|(j, v)| j == *at || *v < own(*at))
            })
            .count();
        for (attribute, right) in Attribute::VARIANTS.iter().zip(&mut right) {
            let changed = embed(part.iter().map(|index| samples.changed_caption(*index, *attribute)).collect())?;
            let other = values((images.clone() * changed).sum_dim(1))?;
            *right += (0..part.len()).filter(|at| own(*at) > other[*at]).count();
        }
    }
    let share = |count: usize| 100.0 * count as f64 / indices.len() as f64;
    println!("{} images and captions that were not trained on", indices.len());
    println!("right caption first of {AMONG}    {:5.1} %", share(first));
    for (attribute, right) in Attribute::VARIANTS.iter().zip(right) {
        let name: &str = attribute.into();
        println!("right {name:<10} of two      {:5.1} %", share(right));
    }
    Ok(())
}

fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).clamp_min(1e-12).sqrt()
}

fn values(tensor: Tensor<2>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|error| format!("{error:?}").into())
}
