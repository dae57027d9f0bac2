//! The quantised product with AVX2, or with AVX2 and a dot product of bytes. Groups are unpacked to bytes in the first-level cache by the portable loops, which the
//! compiler vectorises here, and multiplied for up to four rows at once.

#![cfg(target_arch = "x86_64")]

#[allow(clippy::wildcard_imports)] // intrinsics
use std::arch::x86_64::*;

use super::activation::{Group, RowBlock, scale_of};
use super::format::{FORMATS, GROUP, Plane, ROWS};
use super::tiles::{group_scales, unpack};
use crate::cpu::Isa;

/// Which instruction multiplies bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot {
    /// `vpmaddubsw`, whose sums have 16 bits.
    Pairs,
    /// `vpdpbusd` as AVX-VNNI encodes it.
    Vex,
    /// `vpdpbusd` as AVX-512 VL and VNNI encode it.
    Evex,
}

impl Dot {
    /// What `isa`, which this machine has, multiplies with; `None` where it is not for these kernels.
    pub(super) fn of(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Avx2 => Some(Self::Pairs),
            Isa::AvxVnni if is_x86_feature_detected!("avxvnni") => Some(Self::Vex),
            Isa::AvxVnni => Some(Self::Evex),
            Isa::Portable | Isa::Avx512Vnni => None,
        }
    }
}

/// One tile times a block of rows: sums `[row][tile row]`.
///
/// # Safety
/// The machine has AVX2, FMA and F16C, and the instruction `dot`.
pub(super) unsafe fn product(dot: Dot, format: usize, tile: &[u8], block: RowBlock<'_>, sums: &mut [[f32; ROWS]]) {
    let step = block.rows.min(4);
    for (i, sums) in sums.chunks_mut(step).enumerate() {
        let groups = &block.data[i * step..];
        macro_rules! select {
            ($run:ident: $($index:literal)*) => {
                match (format, step) {
                    $(
                        // SAFETY: the caller's promise.
                        ($index, 1) => unsafe { $run::<$index, 1>(tile, groups, block.rows, sums) },
                        // SAFETY: the caller's promise.
                        ($index, 2) => unsafe { $run::<$index, 2>(tile, groups, block.rows, sums) },
                        // SAFETY: the caller's promise.
                        ($index, 4) => unsafe { $run::<$index, 4>(tile, groups, block.rows, sums) },
                    )*
                    _ => unreachable!("format {format}, {step} rows; this is a bug"),
                }
            };
        }
        const { assert!(FORMATS.len() == 22, "list all formats below") };
        match dot {
            Dot::Pairs => select!(run_pairs: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21),
            Dot::Vex => select!(run_vex: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21),
            Dot::Evex => select!(run_evex: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21),
        }
    }
}

/// Sixteen-bit sums of pairs.
const PAIRS: u8 = 0;
/// `vpdpbusd`, as AVX-VNNI and as AVX-512 encode it.
const VEX: u8 = 1;
const EVEX: u8 = 2;

macro_rules! runs {
    ($($name:ident: $dot:ident, $features:literal;)*) => {$(
        #[target_feature(enable = $features)]
        fn $name<const F: usize, const R: usize>(
            tile: &[u8],
            groups: &[Group],
            stride: usize,
            sums: &mut [[f32; ROWS]],
        ) {
            // SAFETY: compiled for what it needs.
            unsafe { run::<F, R, $dot>(tile, groups, stride, sums) }
        }
    )*};
}
runs! {
    run_pairs: PAIRS, "avx2,fma,f16c";
    run_vex: VEX, "avx2,fma,f16c,avxvnni";
    run_evex: EVEX, "avx2,fma,f16c,avx512vl,avx512vnni";
}

/// 64-byte aligned codes of a group.
#[repr(align(64))]
struct Codes([u8; 512]);

/// `groups` begins with the first row's; the next group of a row lies `stride` further.
#[inline(always)]
unsafe fn run<const F: usize, const R: usize, const D: u8>(
    tile: &[u8],
    groups: &[Group],
    stride: usize,
    sums: &mut [[f32; ROWS]],
) {
    let format = const { &FORMATS[F] };
    let mut codes = Codes([0; 512]);
    let mut totals = [[0f32; ROWS]; R];
    let mut rows = groups.chunks(stride);
    for bytes in tile.chunks_exact(format.block_bytes()) {
        let (header, codes_of) = bytes.split_at(format.header_bytes());
        for (g, bytes) in codes_of.chunks_exact(format.group_bytes()).enumerate() {
            unpack(format, bytes, &mut codes.0);
            if let Some(table) = const { &FORMATS[F].table } {
                // SAFETY: the caller's instructions include AVX2.
                unsafe { look_up(&mut codes, table) };
            }
            let scales = group_scales(format, header, g);
            let x = rows.next().and_then(|rows| rows.first_chunk::<R>());
            let x = x.expect("activations are padded to whole blocks; this is a bug");
            if const { FORMATS[F].halves() == 2 } {
                for half in 0..2 {
                    // SAFETY: as above.
                    unsafe {
                        let dots = dot::<F, R, D>(&codes, x, 4 * half, 4, 1 + half);
                        add::<F, R>(&mut totals, dots, x, (&scales.scale[half], &scales.shift[half]), 1 + half);
                    }
                }
            } else {
                // SAFETY: as above.
                unsafe {
                    let dots = dot::<F, R, D>(&codes, x, 0, 8, 0);
                    add::<F, R>(&mut totals, dots, x, (&scales.scale[0], &scales.shift[0]), 0);
                }
            }
        }
    }
    sums.copy_from_slice(&totals);
}

/// Replaces codes by what the table says.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up(codes: &mut Codes, table: &[u8; 16]) {
    // SAFETY: the table has 16 bytes, each chunk of the aligned codes 32.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        for codes in codes.0.chunks_exact_mut(32) {
            let at = codes.as_mut_ptr().cast();
            _mm256_store_si256(at, _mm256_shuffle_epi8(table, _mm256_load_si256(at)));
        }
    }
}

/// Integer sums of `quads` quads from `first` on, less the offset's share: `[row][tile half]`.
#[inline(always)]
unsafe fn dot<const F: usize, const R: usize, const D: u8>(
    codes: &Codes,
    x: &[Group; R],
    first: usize,
    quads: usize,
    which: usize,
) -> [[__m256i; 2]; R] {
    // Codes of eight bits would overflow the 16-bit sums of pairs; they are taken as signed, without offset.
    let signed = const { D == PAIRS && matches!(FORMATS[F].offset, Some(7)) };
    // Quads whose 16-bit sums cannot overflow: a quad adds 2 * 127 * the largest code.
    let chunk = const {
        match FORMATS[F].plane {
            _ if matches!(FORMATS[F].offset, Some(7)) => 1,
            Plane::Four | Plane::Five => 4,
            Plane::Six => 2,
            Plane::Eight => 1,
        }
    };
    let offset = if signed { 0 } else { const { FORMATS[F].offset_value() } };
    // SAFETY: the caller's instructions include AVX2; so with all below.
    let mut dots = [[unsafe { _mm256_setzero_si256() }; 2]; R];
    for (dots, x) in dots.iter_mut().zip(x) {
        // SAFETY: as above.
        *dots = [unsafe { _mm256_set1_epi32(x.minus_sum[which] * offset) }; 2];
    }
    if const { D != PAIRS } {
        for quad in first..first + quads {
            for half in 0..2 {
                // SAFETY: quads are below 8: 32 of the 512 bytes, aligned; `D` is what the caller is compiled for.
                unsafe {
                    let codes = _mm256_load_si256(codes.0.as_ptr().add(64 * quad + 32 * half).cast());
                    for (dots, x) in dots.iter_mut().zip(x) {
                        let four = four(x, quad);
                        dots[half] = if const { D == VEX } {
                            _mm256_dpbusd_avx_epi32(dots[half], codes, four)
                        } else {
                            _mm256_dpbusd_epi32(dots[half], codes, four)
                        };
                    }
                }
            }
        }
        return dots;
    }
    for from in (first..first + quads).step_by(chunk) {
        for half in 0..2 {
            // SAFETY: as above.
            unsafe {
                let mut pairs = [_mm256_setzero_si256(); R];
                for quad in from..from + chunk {
                    let mut codes = _mm256_load_si256(codes.0.as_ptr().add(64 * quad + 32 * half).cast());
                    if signed {
                        codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                    }
                    for (pairs, x) in pairs.iter_mut().zip(x) {
                        let four = four(x, quad);
                        let product = if signed {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(four, codes))
                        } else {
                            _mm256_maddubs_epi16(codes, four)
                        };
                        *pairs = _mm256_add_epi16(*pairs, product);
                    }
                }
                for (dots, pairs) in dots.iter_mut().zip(pairs) {
                    dots[half] = _mm256_add_epi32(dots[half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                }
            }
        }
    }
    dots
}

/// Quad `quad` of an activation, in every lane.
#[inline(always)]
unsafe fn four(x: &Group, quad: usize) -> __m256i {
    let four = [0, 1, 2, 3].map(|k| x.codes[4 * quad + k].cast_unsigned());
    // SAFETY: the caller's instructions include AVX2.
    unsafe { _mm256_set1_epi32(i32::from_le_bytes(four)) }
}

/// `totals += dots * scale * x.scale + shift * x.sum[which]`.
#[inline(always)]
unsafe fn add<const F: usize, const R: usize>(
    totals: &mut [[f32; ROWS]; R],
    dots: [[__m256i; 2]; R],
    x: &[Group; R],
    (scale, shift): (&[f32; ROWS], &[f32; ROWS]),
    which: usize,
) {
    for ((totals, dots), x) in totals.iter_mut().zip(dots).zip(x) {
        for (half, dots) in dots.into_iter().enumerate() {
            // SAFETY: eight of sixteen floats, from 0 or 8 on.
            unsafe {
                let at = totals.as_mut_ptr().add(8 * half);
                let scale = _mm256_mul_ps(_mm256_loadu_ps(scale.as_ptr().add(8 * half)), _mm256_set1_ps(x.scale));
                let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, _mm256_loadu_ps(at));
                if const { FORMATS[F].has_shift() } {
                    let shift = _mm256_loadu_ps(shift.as_ptr().add(8 * half));
                    sum = _mm256_fmadd_ps(shift, _mm256_set1_ps(x.sum[which]), sum);
                }
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}

/// Rounds whole groups of a row as `activation::round` does; they lie `step` apart in `out`.
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
