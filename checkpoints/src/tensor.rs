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

/// A shape that holds another number of elements than there are.
#[derive(Debug, thiserror::Error)]
#[error("{found} elements do not fill the shape {shape:?}")]
pub struct ShapeError {
    /// The shape asked for.
    pub shape: Vec<usize>,
    /// Elements that there are.
    pub found: usize,
}

impl HostTensor {
    /// An F32 tensor with these elements in row-major order.
    ///
    /// # Panics
    /// When `shape` does not hold `values.len()` elements.
    pub fn from_f32(shape: impl AsRef<[usize]>, values: &[f32]) -> HostTensor {
        let shape = shape.as_ref().to_vec();
        assert_eq!(elements(&shape), Some(values.len()), "{shape:?} does not hold the values");
        // Written in place and not collected byte by byte: a run waits for this when it saves.
        let mut bytes = vec![0; size_of_val(values)];
        for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        HostTensor { dtype: Dtype::F32, bytes, shape }
    }

    /// The elements as `f32` in row-major order. F16 and BF16 are exact, F64 and wide integers are rounded; of the
    /// 8-bit and packed floats and of complex numbers, which no VQGAN has, every element is NaN.
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes.as_slice();
        match self.dtype {
            Dtype::F64 => convert(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => convert(bytes, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::I64 => convert(bytes, |b| i64::from_le_bytes(b) as f32),
            Dtype::U64 => convert(bytes, |b| u64::from_le_bytes(b) as f32),
            Dtype::I32 => convert(bytes, |b| i32::from_le_bytes(b) as f32),
            Dtype::U32 => convert(bytes, |b| u32::from_le_bytes(b) as f32),
            Dtype::I16 => convert(bytes, |b| i16::from_le_bytes(b).into()),
            Dtype::U16 => convert(bytes, |b| u16::from_le_bytes(b).into()),
            Dtype::I8 => convert(bytes, |b| i8::from_le_bytes(b).into()),
            Dtype::U8 | Dtype::BOOL => convert(bytes, |b| u8::from_le_bytes(b).into()),
            _ => vec![f32::NAN; self.len()],
        }
    }

    /// The elements, rounded to F16.
    #[must_use]
    pub fn to_f16(&self) -> HostTensor {
        let bytes = self.to_f32().into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
        HostTensor { dtype: Dtype::F16, shape: self.shape.clone(), bytes }
    }

    /// Whether no element is infinite or NaN, without a copy of them in between; of the types of which
    /// [`to_f32`](Self::to_f32) knows nothing, not even an empty tensor is.
    pub fn is_finite(&self) -> bool {
        let bytes = self.bytes.as_slice();
        match self.dtype {
            Dtype::F64 => all(bytes, |b| f64::from_le_bytes(b).is_finite()),
            Dtype::F32 => all(bytes, |b| f32::from_le_bytes(b).is_finite()),
            Dtype::F16 => all(bytes, |b| f16::from_le_bytes(b).is_finite()),
            Dtype::BF16 => all(bytes, |b| bf16::from_le_bytes(b).is_finite()),
            Dtype::I64 | Dtype::U64 | Dtype::I32 | Dtype::U32 | Dtype::I16 | Dtype::U16 => true,
            Dtype::I8 | Dtype::U8 | Dtype::BOOL => true,
            _ => false,
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`ShapeError`] when `shape` holds another number of elements.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Result<HostTensor, ShapeError> {
        let shape = shape.into();
        if elements(&shape) != Some(self.len()) {
            let found = self.len();
            return Err(ShapeError { shape, found });
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

/// Whether weights may have elements of this type.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn convert<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| element(*chunk)).collect()
}

fn all<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool) -> bool {
    bytes.as_chunks::<N>().0.iter().all(|chunk| is(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_becomes_f32() {
        let of = |dtype, bytes: Vec<u8>| HostTensor { dtype, shape: vec![1], bytes };
        let values = [
            of(Dtype::F64, 1.5f64.to_le_bytes().to_vec()),
            of(Dtype::F32, 1.5f32.to_le_bytes().to_vec()),
            of(Dtype::F16, f16::from_f32(1.5).to_le_bytes().to_vec()),
            of(Dtype::BF16, bf16::from_f32(1.5).to_le_bytes().to_vec()),
        ];
        for tensor in values {
            assert_eq!(tensor.to_f32(), [1.5]);
        }
        let minus_two = of(Dtype::I64, (-2i64).to_le_bytes().to_vec());
        assert_eq!(minus_two.to_f32(), [-2.0]);
    }

    #[test]
    fn one_element_that_is_not_finite_is_found() {
        let of = |dtype, values: [Vec<u8>; 3]| HostTensor { dtype, shape: vec![3], bytes: values.concat() };
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let wide = [-0.0, wrong, 2.0];
            let tensors = [
                of(Dtype::F64, wide.map(|value| f64::from(value).to_le_bytes().to_vec())),
                of(Dtype::F32, wide.map(|value| value.to_le_bytes().to_vec())),
                of(Dtype::F16, wide.map(|value| f16::from_f32(value).to_le_bytes().to_vec())),
                of(Dtype::BF16, wide.map(|value| bf16::from_f32(value).to_le_bytes().to_vec())),
            ];
            for tensor in tensors {
                assert_eq!(tensor.is_finite(), tensor.to_f32().iter().all(|value| value.is_finite()), "{tensor:?}");
            }
        }
        assert!(of(Dtype::I64, [1i64, i64::MAX, -1].map(|value| value.to_le_bytes().to_vec())).is_finite());
    }

    #[test]
    fn a_shape_must_hold_the_elements() {
        let tensor = HostTensor::from_f32([2, 3], &[0.0; 6]);
        assert_eq!(tensor.clone().reshape([6, 1, 1]).unwrap().shape, [6, 1, 1]);
        assert!(tensor.reshape([7]).is_err());
        assert_eq!(HostTensor::from_f32([0usize; 0], &[1.0]).len(), 1);
        assert_eq!(elements(&[usize::MAX, 2]), None);
        assert_eq!(elements(&[usize::MAX, 2, 0]), Some(0));
    }
}
