//! Images as the packages that compute FID give them to InceptionV3. They differ in where a pixel lies.

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Side of the network's input, in pixels.
const SIDE: usize = 299;

/// Whose preparation of images, and so whose figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum FidPackage {
    /// torch-fidelity: resized as TensorFlow 1 does, where a pixel lies at its upper left corner, then `(x - 128) / 128`.
    #[default]
    TorchFidelity,
    /// pytorch-fid: resized as PyTorch does, where a pixel lies at its centre, then `2 x / 255 - 1`.
    PytorchFid,
}

impl FidPackage {
    /// Converts images `[N, 3, H, W]` of 8 bits, in 0..255, to the network's input, `[N, 3, 299, 299]`.
    pub(super) fn prepare(self, levels: Tensor<4>) -> Tensor<4> {
        let [n, c, height, width] = levels.dims();
        let device = levels.device();
        let matrix = |side: usize| {
            let data = TensorData::new(self.weights(side), [SIDE, side]);
            Tensor::<2>::from_data(data, (&device, DType::F32))
        };
        let (rows, columns) = (matrix(height), matrix(width));
        let narrowed = levels.reshape([n * c * height, width]).matmul(columns.transpose());
        let resized = rows.unsqueeze::<3>().matmul(narrowed.reshape([n * c, height, SIDE])).reshape([n, c, SIDE, SIDE]);
        match self {
            Self::TorchFidelity => (resized - 128.0) / 128.0,
            Self::PytorchFid => resized * (2.0 / 255.0) - 1.0,
        }
    }

    /// Bilinear interpolation along an axis of `side` pixels, without antialiasing, as a matrix `[SIDE, side]`. In f32, as
    /// the packages compute positions.
    fn weights(self, side: usize) -> Vec<f32> {
        let scale = side as f32 / SIDE as f32;
        let mut matrix = vec![0.0; SIDE * side];
        for (index, row) in matrix.chunks_exact_mut(side).enumerate() {
            let position = match self {
                Self::TorchFidelity => index as f32 * scale,
                Self::PytorchFid => ((index as f32 + 0.5) * scale - 0.5).max(0.0),
            };
            let low = (position as usize).min(side - 1);
            let part = position - low as f32;
            row[low] += 1.0 - part;
            row[(low + 1).min(side - 1)] += part;
        }
        matrix
    }
}
