//! The set that reconstructions are compared with by FID, where it is not the originals: `--reference`.

use std::io::Read;
use std::path::Path;

use burn::tensor::{DType, Device};
use checkpoints::{Npz, NpzError};

use super::frechet::{FeatureSums, Statistics};
use super::{EvaluationError, Watch};
use crate::data::to_images;
use crate::memory::{Attempt, ForwardMicro};
use crate::models::inception::{Inception, WIDTH};

/// The images of ADM's batches.
const IMAGES: &str = "arr_0";

/// Reads statistics: `mu` and `sigma` as pytorch-fid saves them, or else of the images of one of ADM's batches, `arr_0` of
/// bytes `[N, H, W, 3]`. Returns `None` if `watch` says stop.
///
/// # Errors
/// The file, its arrays, the device.
pub fn read_reference(
    path: &Path,
    network: &Inception,
    device: &Device,
    micro: &mut ForwardMicro,
    watch: &dyn Watch,
) -> Result<Option<Statistics>, EvaluationError> {
    let mut npz = Npz::open(path)?;
    if npz.has("mu") || !npz.has(IMAGES) {
        return Ok(Some(Statistics::read(&mut npz, WIDTH)?));
    }
    let wrong = |reason: String| NpzError::Array { path: path.to_owned(), name: IMAGES.to_owned(), reason };
    let (header, mut bytes) = npz.array(IMAGES)?;
    let [images, height, width, 3] = header.shape[..] else {
        return Err(wrong(format!("has shape {:?}, and [N, H, W, 3] is needed", header.shape)).into());
    };
    if header.descr != "|u1" || header.fortran_order || images == 0 {
        return Err(wrong(format!("has elements of type {}, and |u1 in C order is needed", header.descr)).into());
    }
    watch.begin(0, images as u64);
    let (mut sums, mut done) = (FeatureSums::new(WIDTH), 0);
    while done < images {
        if watch.should_stop() {
            return Ok(None);
        }
        let count = micro.size().min(images - done);
        let mut pixels = vec![0; count * height * width * 3];
        bytes.read_exact(&mut pixels).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let mut first = 0;
        while first < count {
            let part = micro.size().min(count - first);
            let size = height * width * 3;
            let pixels = &pixels[first * size..(first + part) * size];
            let features = || {
                let images = to_images(pixels, [part, height, width], device, DType::F32);
                // Read back here, so that too little memory is noticed here.
                network.forward(images).features.try_into_vec_as::<f32>().map_err(|error| error.to_string())
            };
            match micro.run(part, features)? {
                Attempt::Done(features) => {
                    sums.add(&features);
                    first += part;
                }
                Attempt::TooLarge(why) => watch.line(&why),
            }
        }
        done += count;
        watch.advance(done as u64);
    }
    Ok(Some(sums.statistics().map_err(EvaluationError::Device)?))
}
