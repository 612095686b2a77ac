//! Blocks of 16 by 16 values, transposed in registers where these are as wide.

use pulp::Simd;

/// Rows and columns of a block.
pub const SIDE: usize = 16;

/// A block.
pub type Block = [[f32; SIDE]; SIDE];

/// Exchanges rows and columns.
#[inline(always)]
pub fn transpose<S: Simd>(_: S, block: &Block) -> Block {
    #[cfg(target_arch = "x86_64")]
    if let (SIDE, Some(simd)) = (S::F32_LANES, pulp::x86::V4::try_new()) {
        return transpose_512(simd, block);
    }
    let mut out = [[0.0; SIDE]; SIDE];
    for i in 0..SIDE {
        for j in 0..SIDE {
            out[j][i] = block[i][j];
        }
    }
    out
}

/// Interleaves pairs of rows, then pairs of pairs; then collects the quarters of the rows that belong to one column.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_512(simd: pulp::x86::V4, block: &Block) -> Block {
    let simd = simd.avx512f;
    let row = |i: usize| pulp::cast(block[i]);
    let mut out = [[0.0; SIDE]; SIDE];
    let mut fours = [simd._mm512_setzero_ps(); SIDE];
    for four in (0..SIDE).step_by(4) {
        let [a, b, c, d] = [row(four), row(four + 1), row(four + 2), row(four + 3)];
        let wide = |vector| simd._mm512_castps_pd(vector);
        let (low, high) = (simd._mm512_unpacklo_ps(a, b), simd._mm512_unpackhi_ps(a, b));
        let (low_2, high_2) = (simd._mm512_unpacklo_ps(c, d), simd._mm512_unpackhi_ps(c, d));
        fours[four] = simd._mm512_castpd_ps(simd._mm512_unpacklo_pd(wide(low), wide(low_2)));
        fours[four + 1] = simd._mm512_castpd_ps(simd._mm512_unpackhi_pd(wide(low), wide(low_2)));
        fours[four + 2] = simd._mm512_castpd_ps(simd._mm512_unpacklo_pd(wide(high), wide(high_2)));
        fours[four + 3] = simd._mm512_castpd_ps(simd._mm512_unpackhi_pd(wide(high), wide(high_2)));
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    for i in 0..4 {
        let (a, b, c, d) = (fours[i], fours[4 + i], fours[8 + i], fours[12 + i]);
        let (even, odd) = (simd._mm512_shuffle_f32x4::<EVEN>(a, b), simd._mm512_shuffle_f32x4::<ODD>(a, b));
        let (even_2, odd_2) = (simd._mm512_shuffle_f32x4::<EVEN>(c, d), simd._mm512_shuffle_f32x4::<ODD>(c, d));
        out[i] = pulp::cast(simd._mm512_shuffle_f32x4::<EVEN>(even, even_2));
        out[4 + i] = pulp::cast(simd._mm512_shuffle_f32x4::<EVEN>(odd, odd_2));
        out[8 + i] = pulp::cast(simd._mm512_shuffle_f32x4::<ODD>(even, even_2));
        out[12 + i] = pulp::cast(simd._mm512_shuffle_f32x4::<ODD>(odd, odd_2));
    }
    out
}
