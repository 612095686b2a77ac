//! Group normalisation (Wu and He 2018, arXiv 1803.08494), followed by SiLU where the VQGAN has it.
//!
//! With Burn's own operations it would take several dozen, each with a full-size tensor. Here it is one operation
//! ([`operation`]), with a closed form on the CPU ([`flex`]) and custom kernels on a GPU ([`cube`]).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use self::operation::{Kind, group_norm};
use crate::models::statistics_dtype;
use crate::models::weights::{ModelError, WeightReader};

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
mod flex;
mod operation;

/// Every VQGAN family normalises with this epsilon (taming's `Normalize`, LlamaGen's likewise, diffusers' resnets).
const EPSILON: f64 = 1e-6;

/// Group normalisation with statistics in f32 at least. The backward pass keeps the input and two numbers per group.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// Scale, `[C]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub bias: Param<Tensor<1>>,
    groups: usize,
}

impl GroupNorm {
    pub(in crate::models) fn read(from: &WeightReader, groups: usize) -> Result<Self, ModelError> {
        let from = from.wide();
        Ok(Self { weight: from.param("weight")?, bias: from.param("bias")?, groups })
    }

    /// `[N, C, H, W]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.compute(x, false)
    }

    /// Like [`forward`](Self::forward), followed by SiLU.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        self.compute(x, true)
    }

    fn compute(&self, x: Tensor<4>, silu: bool) -> Tensor<4> {
        let wide = statistics_dtype(x.dtype());
        let kind = Kind { groups: self.groups, silu };
        group_norm(x, self.weight.val().cast(wide), self.bias.val().cast(wide), kind)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::silu;
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::device::tested;
    use crate::models::ops::testing::{deviations, precisions, read, values, with_channels_last};

    /// 12, 6 or 3 channels in a group. The pixels have no equal parts, and a cube loops over the parts more than once.
    const GROUPS: [usize; 3] = [2, 4, 8];
    const SHAPE: [usize; 4] = [2, 24, 67, 37];

    /// Its parameters are in f32 or wider, as in a copy that computes in half precision.
    fn norm(groups: usize, device: &Device, dtype: DType) -> GroupNorm {
        let param = |seed, around| Param::from_tensor(values(seed, [SHAPE[1]], around, device, dtype));
        GroupNorm { weight: param(1, 1.5), bias: param(2, -0.5), groups }
    }

    /// Computes the same with Burn's own operations.
    fn composed(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let groups = x.reshape([n, norm.groups, c / norm.groups * h * w]);
        let centred = groups.clone() - groups.mean_dim(2);
        let deviation = (centred.clone().square().mean_dim(2) + EPSILON).sqrt();
        let channel = |param: &Param<Tensor<1>>| param.val().reshape([1, c, 1, 1]);
        (centred / deviation).reshape([n, c, h, w]) * channel(&norm.weight) + channel(&norm.bias)
    }

    /// Returns the output and the gradients at the input, the scale and the shift.
    fn run(
        groups: usize,
        (device, dtype): (&Device, DType),
        forward: impl Fn(&GroupNorm, Tensor<4>) -> Tensor<4>,
    ) -> [Vec<f64>; 4] {
        let device = device.clone().autodiff();
        let norm = norm(groups, &device, statistics_dtype(dtype));
        let x = values(3, SHAPE, 3.0, &device, dtype).require_grad();
        let y = forward(&norm, x.clone());
        let upstream = values(4, SHAPE, 0.25, &device, dtype);
        let wide = statistics_dtype(dtype);
        let gradients = (y.clone().cast(wide) * upstream.cast(wide)).sum().backward();
        let of = |param: &Param<Tensor<1>>| read(param.val().grad(&gradients).unwrap());
        [read(y), read(x.grad(&gradients).unwrap()), of(&norm.weight), of(&norm.bias)]
    }

    #[test]
    fn values_and_derivatives_are_those_of_burns_own_operations() {
        let (device, exact) = (tested(), (&Device::flex(), DType::F64));
        let of_each = [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1.5e-2)];
        for (dtype, most) in precisions(of_each, &device) {
            for groups in GROUPS {
                let own = |forward: fn(&GroupNorm, Tensor<4>) -> Tensor<4>| run(groups, (&device, dtype), forward);
                let plain = deviations(&own(GroupNorm::forward), &run(groups, exact, composed));
                let activated = run(groups, exact, |norm, x| silu(composed(norm, x)));
                let activated = deviations(&own(GroupNorm::forward_silu), &activated);
                println!("{dtype:?}, {groups} groups: {plain:?}, with SiLU {activated:?}");
                assert!(plain.iter().chain(&activated).all(|deviation| *deviation < most), "{dtype:?}");
            }
        }
    }

    /// Convolutions return tensors whose elements have another order in memory.
    #[test]
    fn the_order_of_the_elements_in_memory_does_not_matter() {
        let forward = |norm: &GroupNorm, x: Tensor<4>| norm.forward_silu(with_channels_last(x));
        let device = tested();
        let [turned, plain] = [&forward as &dyn Fn(&_, _) -> _, &GroupNorm::forward_silu]
            .map(|forward| run(4, (&device, DType::F32), forward));
        assert_eq!(turned, plain);
    }

    #[test]
    fn a_frozen_norm_passes_the_gradient_on() {
        let device = tested().autodiff();
        let mut norm = norm(4, &device, DType::F32);
        norm = norm.no_grad();
        let x = values(3, SHAPE, 3.0, &device, DType::F32).require_grad();
        let gradients = norm.forward(x.clone()).square().sum().backward();
        assert!(x.grad(&gradients).is_some() && norm.weight.val().grad(&gradients).is_none());
    }

    #[test]
    fn a_graph_does_not_change_what_a_norm_in_half_precision_gives() {
        let device = tested();
        for dtype in [DType::F16, DType::BF16].into_iter().filter(|dtype| device.supports_dtype(*dtype)) {
            let plain = norm(4, &device, DType::F32).forward(values(3, SHAPE, 3.0, &device, dtype));
            let device = device.clone().autodiff();
            let tracked = norm(4, &device, DType::F32).forward(values(3, SHAPE, 3.0, &device, dtype).require_grad());
            assert_eq!(plain.into_data(), tracked.without_autodiff().into_data(), "{dtype:?}");
        }
    }
}
