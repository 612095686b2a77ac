//! The types to compute in, in vectors of any processor.

use bytemuck::Pod;
use num_traits::Float;
use pulp::Simd;

use crate::sigmoid::exponential;

/// f32 or f64.
pub trait Real: Float + Pod + Into<f64> + Send + Sync {
    /// A register of values.
    type Vector<S: Simd>: Copy;
    /// Values in a register.
    fn lanes<S: Simd>() -> usize;
    /// The value in all lanes.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// exp of it, in f32 from exp(-87) to exp(87).
    fn exponential(self) -> Self;
    /// `a * b + c`, rounded once where the processor can do that.
    fn multiply_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// `a + b`.
    fn sum<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// The values in vectors, without a last part that fills none.
    fn vectors<S: Simd>(values: &[Self]) -> &[Self::Vector<S>];
    /// The values in vectors, without a last part that fills none.
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [Self::Vector<S>];
}

macro_rules! real {
    ($type:ty, $vector:ident, $lanes:ident, $splat:ident, $mul_add:ident, $add:ident, $vectors:ident, $vectors_mut:ident, $exponential:expr) => {
        impl Real for $type {
            type Vector<S: Simd> = S::$vector;
            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn exponential(self) -> Self {
                $exponential(self)
            }
            #[inline(always)]
            fn multiply_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> &[S::$vector] {
                S::$vectors(values).0
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [S::$vector] {
                S::$vectors_mut(values).0
            }
        }
    };
}

real!(f32, f32s, F32_LANES, splat_f32s, mul_add_e_f32s, add_f32s, as_simd_f32s, as_mut_simd_f32s, exponential);
real!(f64, f64s, F64_LANES, splat_f64s, mul_add_e_f64s, add_f64s, as_simd_f64s, as_mut_simd_f64s, f64::exp);
