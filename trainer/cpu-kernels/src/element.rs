//! The types of a tensor's elements.

use crate::real::Real;
use bytemuck::Pod;
use half::{bf16, f16};

/// An element of a tensor, and the type to compute in.
pub trait Element: Pod + Send + Sync + 'static {
    /// f64 for itself, f32 for the others.
    type Wide: Real;
    /// Whether elements have the type to compute in.
    const IS_WIDE: bool = size_of::<Self>() == size_of::<Self::Wide>();
    /// The same value in the type to compute in.
    fn widen(self) -> Self::Wide;
    /// The nearest value of this type.
    fn narrow(wide: Self::Wide) -> Self;
    /// The nearest f32.
    fn to_f32(self) -> f32;
    /// The nearest value of this type.
    fn from_f32(value: f32) -> Self;
}

macro_rules! element {
    ($type:ty, $wide:ty, $widen:expr, $narrow:expr) => {
        impl Element for $type {
            type Wide = $wide;
            #[inline(always)]
            fn widen(self) -> $wide {
                $widen(self)
            }
            #[inline(always)]
            fn narrow(wide: $wide) -> Self {
                $narrow(wide)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self.widen() as f32
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                Self::narrow(<$wide>::from(value))
            }
        }
    };
}

element!(f64, f64, std::convert::identity, std::convert::identity);
element!(f32, f32, std::convert::identity, std::convert::identity);
element!(f16, f32, f16::to_f32, f16::from_f32);
element!(bf16, f32, bf16::to_f32, bf16::from_f32);
