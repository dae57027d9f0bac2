//! How a row is rounded to 8 bits: to nearest, ties to even, the largest magnitude of a group to 127. The plain loop, and
//! the same with AVX2.

use super::format::GROUP;
use super::group::Group;
use crate::cpu::Isa;

/// Rounds a row; its groups lie `step` apart in `out`.
pub(super) fn round_row(isa: Isa, row: &[f32], out: &mut [Group], step: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2
        && let (groups, []) = row.as_chunks()
    {
        // SAFETY: this machine has the instruction set `isa`, which includes AVX2.
        return unsafe { x86::round_row(groups, out, step) };
    }
    let _ = isa;
    for (x, out) in row.chunks(GROUP).zip(out.iter_mut().step_by(step)) {
        round(x, out);
    }
}

/// The scale that takes 127 to `largest`, and its inverse.
fn scale_of(largest: f32) -> (f32, f32) {
    (largest / 127., if largest == 0. { 0. } else { 127. / largest })
}

/// Rounds up to 32 values to nearest (ties to even), the largest magnitude to 127.
fn round(x: &[f32], out: &mut Group) {
    // As integers magnitudes compare alike, and NaN is the largest: it stays visible in the scale.
    let largest = f32::from_bits(x.iter().fold(0, |max, value| max.max(value.abs().to_bits())));
    let (scale, inverse) = scale_of(largest);
    out.codes = [0; GROUP];
    for (code, value) in out.codes.iter_mut().zip(x) {
        *code = (value * inverse).round_ties_even() as i8;
    }
    let sum = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
    let sums = [sum(&out.codes[..16]), sum(&out.codes[16..])];
    out.set_sums(scale, sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)] // intrinsics
    use std::arch::x86_64::*;

    use super::{GROUP, Group, scale_of};

    /// Rounds whole groups of a row as `round` does; they lie `step` apart in `out`.
    #[target_feature(enable = "avx2")]
    pub(super) fn round_row(row: &[[f32; GROUP]], out: &mut [Group], step: usize) {
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        for (x, out) in row.iter().zip(out.iter_mut().step_by(step)) {
            // SAFETY: 32 floats are four vectors, 32 codes are one.
            unsafe {
                let x = [0, 8, 16, 24].map(|at| _mm256_loadu_ps(x.as_ptr().add(at)));
                // As integers magnitudes compare alike, and NaN is the largest.
                let size = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), magnitude));
                let max = _mm256_max_epu32(_mm256_max_epu32(size[0], size[1]), _mm256_max_epu32(size[2], size[3]));
                let max = _mm_max_epu32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
                let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
                let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max));
                let largest = _mm_cvtss_f32(_mm_castsi128_ps(max));
                let (scale, inverse) = scale_of(largest);
                let inverse = _mm256_set1_ps(inverse);
                // Rounds to nearest, ties to even.
                let codes = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
                let codes =
                    _mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]), _mm256_packs_epi32(codes[2], codes[3]));
                // Packing interleaves the lanes; this puts fours back in order.
                let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                _mm256_storeu_si256(out.codes.as_mut_ptr().cast(), codes);
                // Sums of eight bytes each, raised by 128 to be unsigned.
                let sums = _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
                let first = _mm256_extract_epi64::<0>(sums) + _mm256_extract_epi64::<1>(sums) - 16 * 128;
                let second = _mm256_extract_epi64::<2>(sums) + _mm256_extract_epi64::<3>(sums) - 16 * 128;
                out.set_sums(scale, [first as i32, second as i32]);
            }
        }
    }
}
