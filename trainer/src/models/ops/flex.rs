//! Tensors of the CPU backend as slices of elements, and back.

use burn::tensor::{Element, TensorData};
use burn_flex::FlexTensor;

/// An element that kernels compute with and that a tensor can have. So can the type that they compute in.
pub(super) trait Number: cpu_kernels::Element<Wide: Element> + Element {}

impl<E: cpu_kernels::Element<Wide: Element> + Element> Number for E {}

/// Calls a function that is generic over [`Number`] with the type of a tensor's elements.
macro_rules! with_number {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            burn::tensor::DType::F64 => $function::<f64>($($argument),*),
            burn::tensor::DType::F16 => $function::<burn::tensor::f16>($($argument),*),
            burn::tensor::DType::BF16 => $function::<burn::tensor::bf16>($($argument),*),
            _ => $function::<f32>($($argument),*),
        }
    };
}

pub(super) use with_number;

/// The elements of a contiguous tensor.
pub(super) fn elements<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    tensor.as_slice().expect("a contiguous tensor of this type")
}

/// The tensor of `shape` with these elements, without a copy.
pub(super) fn tensor<E: Element>(values: Vec<E>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}
