//! The logistic function.

use pulp::{Arch, Simd, WithSimd};

use crate::real::Real;

/// Replaces each z by `1 / (1 + exp(-z))`.
pub fn sigmoid<R: Real>(values: &mut [R]) {
    struct Sigmoid<'a, R>(&'a mut [R]);
    impl<R: Real> WithSimd for Sigmoid<'_, R> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            for z in self.0 {
                *z = (R::one() + (-*z).exponential()).recip();
            }
        }
    }
    Arch::new().dispatch(Sigmoid(values));
}

/// exp(x) to 2e-7 of it, from exp(-87) to exp(87), without a call and without a branch, so that it is computed in vectors.
///
/// x is n ln 2 + r, and exp(r) a polynomial: Cephes' `expf` (Moshier 1992), with ln 2 in two parts.
#[inline(always)]
pub(crate) fn exponential(x: f32) -> f32 {
    /// Added to a number, it leaves the nearest integer in the last bits: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5e-1];
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut sum = POLYNOMIAL[0];
    for factor in &POLYNOMIAL[1..] {
        sum = sum * r + factor;
    }
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    (sum * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_the_library() {
        for i in -8_800..=8_800 {
            let z = i as f32 / 100.0;
            let exact = (1.0 + (-f64::from(z)).exp()).recip();
            let mut found = [z; 17];
            sigmoid(&mut found);
            let apart = (f64::from(found[16]) - exact).abs() / exact.max(1e-30);
            assert!(apart < 3e-7, "{z}: {} instead of {exact}", found[16]);
            let mut found = [f64::from(z)];
            sigmoid(&mut found);
            assert!((found[0] - exact).abs() <= 1e-15 * exact, "{z}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut found = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        sigmoid(&mut found);
        assert!(found[0].is_nan() && found[1] == 1.0 && found[2] < 1e-30);
    }
}
