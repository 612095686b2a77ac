//! A tensor in host memory, as weight files hold it.

use half::{bf16, f16};
use safetensors::Dtype;

/// A tensor that lies in host memory.
///
/// `bytes` are contiguous, row-major and little-endian: `shape.iter().product() * dtype.bitsize() / 8` of them.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Size of every dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Vec<u8>,
}

/// What a [`HostTensor`] cannot do.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// Only floating-point tensors become `f32`.
    #[error("the elements are {0}, not one of F64, F32, F16, BF16")]
    NotFloat(Dtype),
    /// A shape that holds another number of elements.
    #[error("{found} elements do not fill the shape {shape:?}")]
    Shape {
        /// The shape asked for.
        shape: Vec<usize>,
        /// Elements that there are.
        found: usize,
    },
}

impl HostTensor {
    /// An F32 tensor with these elements in row-major order.
    ///
    /// # Errors
    /// [`TensorError::Shape`] when `shape` does not hold `values.len()` elements.
    pub fn from_f32(
        shape: impl Into<Vec<usize>>,
        values: &[f32],
    ) -> Result<HostTensor, TensorError> {
        let shape = shape.into();
        if elements(&shape) != Some(values.len()) {
            let found = values.len();
            return Err(TensorError::Shape { shape, found });
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Ok(HostTensor {
            dtype: Dtype::F32,
            bytes: bytes.collect(),
            shape,
        })
    }

    /// The elements as `f32` in row-major order; F64 is rounded, F16 and BF16 are exact.
    ///
    /// # Errors
    /// [`TensorError::NotFloat`] for integers, booleans and the 8-bit floats.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        let bytes = self.bytes.as_slice();
        Ok(match self.dtype {
            Dtype::F64 => convert(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => convert(bytes, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            other => return Err(TensorError::NotFloat(other)),
        })
    }

    /// Whether [`to_f32`](Self::to_f32) understands the elements.
    pub fn is_float(&self) -> bool {
        is_float(self.dtype)
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`TensorError::Shape`] when `shape` holds another number of elements.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Result<HostTensor, TensorError> {
        let shape = shape.into();
        if elements(&shape) != Some(self.len()) {
            let found = self.len();
            return Err(TensorError::Shape { shape, found });
        }
        Ok(HostTensor { shape, ..self })
    }

    /// Number of elements; 1 for a scalar.
    pub fn len(&self) -> usize {
        elements(&self.shape).unwrap_or(usize::MAX)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Number of elements of a shape, None when it overflows.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, whatever the other dimensions would overflow to.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().copied().try_fold(1usize, usize::checked_mul)
}

/// Whether elements of this type convert to `f32`.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn convert<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| element(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_becomes_f32() {
        let of = |dtype, bytes: Vec<u8>| HostTensor {
            dtype,
            shape: vec![1],
            bytes,
        };
        let values = [
            of(Dtype::F64, 1.5f64.to_le_bytes().to_vec()),
            of(Dtype::F32, 1.5f32.to_le_bytes().to_vec()),
            of(Dtype::F16, f16::from_f32(1.5).to_le_bytes().to_vec()),
            of(Dtype::BF16, bf16::from_f32(1.5).to_le_bytes().to_vec()),
        ];
        for tensor in values {
            assert_eq!(tensor.to_f32().unwrap(), [1.5]);
        }
        let error = of(Dtype::I64, vec![0; 8]).to_f32().unwrap_err();
        assert!(error.to_string().contains("I64"), "{error}");
    }

    #[test]
    fn a_shape_must_hold_the_elements() {
        let tensor = HostTensor::from_f32([2, 3], &[0.0; 6]).unwrap();
        assert_eq!(tensor.clone().reshape([6, 1, 1]).unwrap().shape, [6, 1, 1]);
        assert!(tensor.reshape([7]).is_err());
        assert!(HostTensor::from_f32([usize::MAX, 2], &[0.0]).is_err());
        assert_eq!(HostTensor::from_f32([], &[1.0]).unwrap().len(), 1);
    }
}
