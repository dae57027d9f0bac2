//! The quantised product with AVX-512 VNNI. Weights are unpacked in registers and used for up to eight rows and two tiles.
//! Integer dot products are exact; the float operations of a row come in the order of its groups, whatever its company.

#![cfg(target_arch = "x86_64")]

#[allow(clippy::wildcard_imports)] // intrinsics
use std::arch::x86_64::*;

use super::activation::Group;
use super::format::{FORMATS, Format, Plane, ROWS, Scales};

/// `T` tiles times `R` rows.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// The first tile; the others follow `stride` bytes apart.
    pub(super) tile: *const u8,
    pub(super) stride: usize,
    /// Blocks of a tile.
    pub(super) blocks: usize,
    /// Activations `[group][row]`.
    pub(super) groups: *const Group,
    /// Sums `[tile][row]`.
    pub(super) sums: *mut [f32; ROWS],
}

/// The product for a format index, 1 or 2 tiles and 1, 2, 4 or 8 rows.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL, VNNI. The operands point to whole tiles of the format, to activations for all
/// their groups, and to `tiles * rows` sums.
pub(super) unsafe fn product(format: usize, tiles: usize, rows: usize, operands: Operands) {
    macro_rules! select {
        ($($index:literal)*) => {
            match (format, tiles, rows) {
                $(
                    // SAFETY: the caller's promise.
                    ($index, 1, 1) => unsafe { run::<$index, 1, 1>(operands) },
                    // SAFETY: as above.
                    ($index, 1, 2) => unsafe { run::<$index, 1, 2>(operands) },
                    // SAFETY: as above.
                    ($index, 1, 4) => unsafe { run::<$index, 1, 4>(operands) },
                    // SAFETY: as above.
                    ($index, 1, 8) => unsafe { run::<$index, 1, 8>(operands) },
                    // SAFETY: as above.
                    ($index, 2, 8) => unsafe { run::<$index, 2, 8>(operands) },
                )*
                _ => unreachable!("format {format}, {tiles} tiles, {rows} rows; this is a bug"),
            }
        };
    }
    const { assert!(FORMATS.len() == 13, "list all formats below") };
    select!(0 1 2 3 4 5 6 7 8 9 10 11 12);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[allow(clippy::needless_range_loop)] // tiles and rows index several arrays at once
unsafe fn run<const F: usize, const T: usize, const R: usize>(operands: Operands) {
    let format = const { FORMATS[F] };
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    let mut x = operands.groups;
    for block in 0..operands.blocks {
        // SAFETY: blocks, groups and rows stay within what the caller promised; so in all of this function.
        unsafe {
            let headers: [*const u8; T] =
                std::array::from_fn(|t| operands.tile.add(t * operands.stride + block * format.block_bytes()));
            let supers: [[__m512; 2]; T] = std::array::from_fn(|t| block_scales(&format, headers[t]));
            for group in 0..format.groups() {
                let codes: [[__m512i; 8]; T] = std::array::from_fn(|t| {
                    unpack(&format, headers[t].add(format.header_bytes() + group * format.group_bytes()))
                });
                for half in 0..format.halves() {
                    let (quads, which) =
                        if format.halves() == 2 { (4 * half..4 * half + 4, 1 + half) } else { (0..8, 0) };
                    let mut dots = [[_mm512_setzero_si512(); R]; T];
                    if let Some(offset) = format.offset {
                        for r in 0..R {
                            let start = _mm512_sll_epi32(
                                _mm512_set1_epi32((*x.add(r)).minus_sum[which]),
                                _mm_cvtsi32_si128(offset as i32),
                            );
                            for dots in &mut dots {
                                dots[r] = start;
                            }
                        }
                    }
                    for quad in quads {
                        for r in 0..R {
                            let four = (*x.add(r)).codes.as_ptr().add(4 * quad).cast::<i32>().read_unaligned();
                            for t in 0..T {
                                dots[t][r] = _mm512_dpbusd_epi32(dots[t][r], codes[t][quad], _mm512_set1_epi32(four));
                            }
                        }
                    }
                    for t in 0..T {
                        let (scale, shift) = group_scales(&format, headers[t], supers[t], group, half);
                        for r in 0..R {
                            let scale = _mm512_mul_ps(scale, _mm512_set1_ps((*x.add(r)).scale));
                            sums[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][r]), scale, sums[t][r]);
                            if format.has_shift() {
                                sums[t][r] = _mm512_fmadd_ps(shift, _mm512_set1_ps((*x.add(r)).sum[which]), sums[t][r]);
                            }
                        }
                    }
                }
                x = x.add(R);
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            // SAFETY: the caller has room for all sums.
            unsafe { _mm512_storeu_ps(operands.sums.add(t * R + r).cast(), sums[t][r]) };
        }
    }
}

/// The ternary operation `a | (b & c)`.
const OR_AND: i32 = 0xf8;

/// The eight quads of a group as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unpack(format: &Format, group: *const u8) -> [__m512i; 8] {
    // SAFETY: the lines belong to the group.
    let line = |i: usize| unsafe { _mm512_load_si512(group.add(64 * i).cast()) };
    if format.plane == Plane::Eight {
        return std::array::from_fn(line);
    }
    let low = _mm512_set1_epi8(15);
    let mut quads = [_mm512_setzero_si512(); 8];
    for i in 0..4 {
        let nibbles = line(i);
        quads[i] = _mm512_and_si512(nibbles, low);
        quads[i + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), low);
    }
    match format.plane {
        Plane::Five => {
            let (bits, fifth) = (line(4), _mm512_set1_epi8(16));
            for (i, quad) in quads.iter_mut().enumerate() {
                *quad = _mm512_ternarylogic_epi32::<OR_AND>(*quad, shift_left(bits, 4 - i as i32), fifth);
            }
        }
        Plane::Six => {
            let (bits, high) = ([line(4), line(5)], _mm512_set1_epi8(0x30));
            for (i, quad) in quads.iter_mut().enumerate() {
                let bits = shift_left(bits[i / 4], 4 - 2 * (i as i32 % 4));
                *quad = _mm512_ternarylogic_epi32::<OR_AND>(*quad, bits, high);
            }
        }
        Plane::Four | Plane::Eight => {}
    }
    if let Some(table) = format.table {
        // SAFETY: the table has 16 bytes.
        let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
        quads = quads.map(|quad| _mm512_shuffle_epi8(table, quad));
    }
    quads
}

/// 16-bit lanes shifted left by `by`, or right by `-by`; folds to one instruction where `by` is constant.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shift_left(x: __m512i, by: i32) -> __m512i {
    match by {
        4 => _mm512_slli_epi16::<4>(x),
        3 => _mm512_slli_epi16::<3>(x),
        2 => _mm512_slli_epi16::<2>(x),
        1 => _mm512_slli_epi16::<1>(x),
        0 => x,
        -1 => _mm512_srli_epi16::<1>(x),
        -2 => _mm512_srli_epi16::<2>(x),
        _ => _mm512_srli_epi16::<3>(x),
    }
}

/// What the groups of a block share: scale and minimum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block_scales(format: &Format, header: *const u8) -> [__m512; 2] {
    // SAFETY: the header begins with 64 bytes.
    unsafe {
        match format.scales {
            Scales::Half | Scales::Exponent => [_mm512_setzero_ps(); 2],
            _ => [halves(header), halves(header.add(32))],
        }
    }
}

/// Scale and shift of a group or of its half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn group_scales(
    format: &Format,
    header: *const u8,
    [scale, shift]: [__m512; 2],
    group: usize,
    half: usize,
) -> (__m512, __m512) {
    let none = _mm512_setzero_ps();
    // SAFETY: the offsets are those of the format's header.
    unsafe {
        let unsigned = |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(header.add(at).cast())));
        let signed = |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(header.add(at).cast())));
        let minimum = |at: usize| _mm512_sub_ps(none, _mm512_mul_ps(shift, unsigned(at)));
        match format.scales {
            Scales::Half => (halves(header.add(32 * group)), none),
            Scales::HalfShift => (scale, shift),
            Scales::Super32 => {
                let at = 64 + 32 * group;
                (_mm512_mul_ps(scale, unsigned(at)), minimum(at + 16))
            }
            Scales::Super16 => {
                let at = 64 + 64 * group + 16 * half;
                (_mm512_mul_ps(scale, unsigned(at)), minimum(at + 32))
            }
            Scales::Signed16 => (_mm512_mul_ps(scale, signed(64 + 32 * group + 16 * half)), none),
            Scales::Signed32 => (_mm512_mul_ps(scale, signed(64 + 16 * group)), none),
            Scales::Exponent => {
                let exponent = _mm512_cvtepu8_epi32(_mm_load_si128(header.add(16 * group).cast()));
                let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponent, _mm512_set1_epi32(1)));
                // The two smallest are subnormal.
                let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponent);
                let is_small = _mm512_cmplt_epi32_mask(exponent, _mm512_set1_epi32(2));
                (_mm512_castsi512_ps(_mm512_mask_blend_epi32(is_small, normal, small)), none)
            }
        }
    }
}

/// Sixteen f16 as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller has 32 bytes there.
    _mm512_cvtph_ps(unsafe { _mm256_load_si256(at.cast()) })
}
