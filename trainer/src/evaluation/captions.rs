//! How well CLIP finds the captions of reconstructions.

use burn::tensor::{DType, Tensor};

use super::metrics::read;

/// Captions that each reconstruction is compared with, its own included.
pub const AMONG: usize = 64;

/// Compares reconstructions with captions, [`AMONG`] of them at a time, in their order.
#[derive(Default)]
pub struct CaptionMatches {
    /// Embeddings of captions and reconstructions, `[n, E]`, that are not compared yet.
    waiting: Vec<[Tensor<2>; 2]>,
    similarity: f64,
    right: usize,
    images: usize,
}

impl CaptionMatches {
    /// Adds images by the embeddings of their captions and of their reconstructions, both `[n, E]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn add(&mut self, captions: Tensor<2>, reconstructions: Tensor<2>) -> Result<(), String> {
        self.waiting.push([captions, reconstructions].map(|rows| rows.cast(DType::F32)));
        let count = |waiting: &[[Tensor<2>; 2]]| waiting.iter().map(|[rows, _]| rows.dims()[0]).sum::<usize>();
        while count(&self.waiting) >= AMONG {
            let [captions, reconstructions] = joined(std::mem::take(&mut self.waiting));
            let n = captions.dims()[0];
            let part = |rows: &Tensor<2>, from: usize, to: usize| rows.clone().narrow(0, from, to - from);
            self.compare(part(&captions, 0, AMONG), part(&reconstructions, 0, AMONG))?;
            if n > AMONG {
                self.waiting = vec![[&captions, &reconstructions].map(|rows| part(rows, AMONG, n))];
            }
        }
        Ok(())
    }

    fn compare(&mut self, captions: Tensor<2>, reconstructions: Tensor<2>) -> Result<(), String> {
        let among = captions.dims()[0];
        let cosines = read(unit(reconstructions).matmul(unit(captions).transpose()).flatten::<1>(0, 1))?;
        for (own, row) in cosines.chunks(among).enumerate() {
            self.similarity += row[own];
            self.right += usize::from(row.iter().enumerate().all(|(other, cosine)| other == own || *cosine < row[own]));
        }
        self.images += among;
        Ok(())
    }

    /// Returns the mean cosine of reconstructions and their own captions, and the share of those that are the most similar
    /// of up to [`AMONG`] captions; `None` without images.
    ///
    /// # Errors
    /// What the device says.
    pub fn scores(mut self) -> Result<Option<(f64, f64)>, String> {
        if !self.waiting.is_empty() {
            let [captions, reconstructions] = joined(std::mem::take(&mut self.waiting));
            self.compare(captions, reconstructions)?;
        }
        let n = self.images as f64;
        Ok((self.images > 0).then(|| (self.similarity / n, self.right as f64 / n)))
    }
}

fn joined(parts: Vec<[Tensor<2>; 2]>) -> [Tensor<2>; 2] {
    let (captions, reconstructions) = parts.into_iter().map(|[a, b]| (a, b)).unzip();
    [captions, reconstructions].map(|parts: Vec<Tensor<2>>| Tensor::cat(parts, 0))
}

/// Scales the rows of `x`, `[N, E]`, to unit length.
pub(super) fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).clamp_min(1e-12).sqrt()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn a_caption_is_right_if_no_other_of_64_is_as_similar() {
        // Captions in one plane, each 1 degree further; the second half's reconstructions lie at their neighbour's caption.
        let row = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let rows = |angles: &[f32]| {
            let values: Vec<f32> = angles.iter().copied().flat_map(row).collect();
            Tensor::<2>::from_data(TensorData::new(values, [angles.len(), 2]), &Device::flex())
        };
        let degrees = |half: f32| (0..64).map(move |at| at as f32 + half);
        let captions: Vec<f32> = degrees(0.0).chain(degrees(0.0)).collect();
        let reconstructions: Vec<f32> = degrees(0.0).chain(degrees(1.0)).collect();
        for micro in [1, 48, 64, 128] {
            let mut matches = CaptionMatches::default();
            for (captions, reconstructions) in captions.chunks(micro).zip(reconstructions.chunks(micro)) {
                matches.add(rows(captions) * 3.0, rows(reconstructions)).unwrap();
            }
            let (similarity, right) = matches.scores().unwrap().unwrap();
            // The last one has no neighbour above it.
            assert_eq!(right, 65.0 / 128.0);
            assert!((similarity - (1.0 + 1f64.to_radians().cos()) / 2.0).abs() < 1e-5, "{similarity}");
        }
        assert!(CaptionMatches::default().scores().unwrap().is_none());
    }
}
