//! The quantised product with AVX2, or with AVX2 and a dot product of bytes. Codes are unpacked in registers, eight of a
//! tile's rows at a time, and used for up to four rows of input. Integer dot products are exact; the float operations of a
//! row come in the order of its groups, whatever its company.

#![cfg(target_arch = "x86_64")]

#[allow(clippy::wildcard_imports)] // intrinsics
use std::arch::x86_64::*;

use super::activation::RowBlock;
use super::format::{FORMATS, Plane, ROWS, Scales};
use super::group::Group;
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
            Isa::Portable | Isa::Avx512Vnni | Isa::Avx512Bf16 => None,
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
        const { assert!(FORMATS.len() == 23, "list all formats but the last below") };
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
            let format = const { &FORMATS[F] };
            let blocks = tile.len() / format.block_bytes();
            let needed = (blocks * format.groups()).saturating_sub(1) * stride + R;
            assert!(groups.len() >= needed && sums.len() == R, "activations are padded to whole blocks; this is a bug");
            // SAFETY: compiled for what it needs; the lengths were checked.
            unsafe {
                if R < 4 {
                    // Both halves of a tile at once: the sums of few rows leave registers for them.
                    run::<F, R, 2, $dot>(Operands { tile, groups, stride, first: 0 }, sums);
                } else {
                    for first in [0, 1] {
                        run::<F, R, 1, $dot>(Operands { tile, groups, stride, first }, sums);
                    }
                }
            }
        }
    )*};
}
runs! {
    run_pairs: PAIRS, "avx2,fma,f16c";
    run_vex: VEX, "avx2,fma,f16c,avxvnni";
    run_evex: EVEX, "avx2,fma,f16c,avx512vl,avx512vnni";
}

/// A tile times rows, or one half of its rows.
#[derive(Clone, Copy)]
struct Operands<'a> {
    tile: &'a [u8],
    /// Begins with the first row's; the next group of a row lies `stride` further.
    groups: &'a [Group],
    stride: usize,
    /// The first of the halves to compute.
    first: usize,
}

/// Integer sums of one group: `[row][tile half]`.
struct Dots<const R: usize, const H: usize> {
    whole: [[__m256i; H]; R],
    /// What has been summed in 16 bits and not yet been added to `whole`.
    pairs: [[__m256i; H]; R],
}

/// `H` halves of a tile, of eight rows each, times `R` rows.
#[inline(always)]
#[allow(clippy::inline_always)] // into a function whose instructions it needs; so with all below
unsafe fn run<const F: usize, const R: usize, const H: usize, const D: u8>(
    operands: Operands<'_>,
    sums: &mut [[f32; ROWS]],
) {
    let format = const { &FORMATS[F] };
    let Operands { tile, groups, stride, first } = operands;
    // SAFETY: the caller is compiled for the instructions and has checked that the groups of all blocks are there; a
    // block has as many bytes as its format says. So with all below.
    unsafe {
        let mut totals = [[_mm256_setzero_ps(); H]; R];
        let mut x = groups.as_ptr();
        for block in tile.chunks_exact(format.block_bytes()) {
            // From here on to the bytes of these halves of the first quad.
            let header = block.as_ptr();
            let mut codes = header.add(format.header_bytes() + 32 * first);
            let mut shared = [[_mm256_setzero_ps(); 2]; H];
            for (h, shared) in shared.iter_mut().enumerate() {
                *shared = block_scales::<F>(header, first + h);
            }
            for group in 0..format.groups() {
                macro_rules! part {
                    ($which:expr, $half:literal: $($quad:literal)*) => {{
                        let mut dots = begin::<F, R, H, D>(x, $which);
                        $(
                            accumulate::<F, R, H, D, $quad>(&mut dots, codes, x);
                            // Sixteen bits hold this many quads: one adds twice 127 times the largest code.
                            if const { ($quad + 1) % quads_of_pairs(F) == 0 } {
                                flush::<F, R, H, D>(&mut dots);
                            }
                        )*
                        flush::<F, R, H, D>(&mut dots);
                        let mut scales = [(_mm256_setzero_ps(), _mm256_setzero_ps()); H];
                        for (h, scales) in scales.iter_mut().enumerate() {
                            *scales = group_scales::<F>(header, shared[h], (group, $half), first + h);
                        }
                        add::<F, R, H>(&mut totals, &dots.whole, x, scales, $which);
                    }};
                }
                if format.halves() == 2 {
                    part!(1, 0: 0 1 2 3);
                    part!(2, 1: 4 5 6 7);
                } else {
                    part!(0, 0: 0 1 2 3 4 5 6 7);
                }
                codes = codes.add(format.group_bytes());
                x = x.wrapping_add(stride);
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            for (h, total) in totals.into_iter().enumerate() {
                _mm256_storeu_ps(sums.as_mut_ptr().add(8 * (first + h)), total);
            }
        }
    }
}

/// Whether codes take all of a byte: they would overflow 16-bit sums of pairs and are taken as signed there.
const fn is_wide(format: usize) -> bool {
    matches!(FORMATS[format].offset, Some(7))
}

/// Quads whose 16-bit sums cannot overflow.
const fn quads_of_pairs(format: usize) -> usize {
    let format = &FORMATS[format];
    match format.plane {
        Plane::Four if format.table.is_none() => 8,
        Plane::Four | Plane::Five => 4,
        Plane::Six => 2,
        Plane::Eight | Plane::Halves => 1,
    }
}

/// Starts integer sums at minus the offset times the sum `which` of the activation's codes.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn begin<const F: usize, const R: usize, const H: usize, const D: u8>(
    x: *const Group,
    which: usize,
) -> Dots<R, H> {
    let offset = if const { D == PAIRS && is_wide(F) } { 0 } else { const { FORMATS[F].offset_value() } };
    // SAFETY: as above.
    unsafe {
        let zero = [[_mm256_setzero_si256(); H]; R];
        let mut whole = zero;
        if offset != 0 {
            for (r, whole) in whole.iter_mut().enumerate() {
                *whole = [_mm256_set1_epi32((*x.add(r)).minus_sum[which] * offset); H];
            }
        }
        Dots { whole, pairs: zero }
    }
}

/// Adds the products of quad `Q`.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn accumulate<const F: usize, const R: usize, const H: usize, const D: u8, const Q: usize>(
    dots: &mut Dots<R, H>,
    codes: *const u8,
    x: *const Group,
) {
    for h in 0..H {
        // SAFETY: as above.
        unsafe {
            let mut codes = unpack::<F, Q>(codes.add(32 * h));
            let mut size = codes;
            if const { D == PAIRS && is_wide(F) } {
                codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                size = _mm256_abs_epi8(codes);
            }
            for r in 0..R {
                let four = (*x.add(r)).codes.as_ptr().add(4 * Q).cast::<i32>().read_unaligned();
                let (four, whole) = (_mm256_set1_epi32(four), &mut dots.whole[r][h]);
                match D {
                    VEX => *whole = _mm256_dpbusd_avx_epi32(*whole, codes, four),
                    EVEX => *whole = _mm256_dpbusd_epi32(*whole, codes, four),
                    _ if const { is_wide(F) } => {
                        let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four, codes));
                        *whole = _mm256_add_epi32(*whole, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                    }
                    _ => {
                        let pairs = &mut dots.pairs[r][h];
                        *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(codes, four));
                    }
                }
            }
        }
    }
}

/// Empties the 16-bit sums, where there are some.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn flush<const F: usize, const R: usize, const H: usize, const D: u8>(dots: &mut Dots<R, H>) {
    if const { D != PAIRS || is_wide(F) } {
        return;
    }
    for r in 0..R {
        for h in 0..H {
            let (whole, pairs) = (&mut dots.whole[r][h], &mut dots.pairs[r][h]);
            // SAFETY: as above.
            unsafe {
                *whole = _mm256_add_epi32(*whole, _mm256_madd_epi16(*pairs, _mm256_set1_epi16(1)));
                *pairs = _mm256_setzero_si256();
            }
        }
    }
}

/// Quad `Q` of eight rows as bytes.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn unpack<const F: usize, const Q: usize>(codes: *const u8) -> __m256i {
    // SAFETY: as above: lines are 64 bytes, of which these rows have 32.
    unsafe {
        let line = |i: usize| _mm256_load_si256(codes.add(64 * i).cast());
        if const { matches!(FORMATS[F].plane, Plane::Eight) } {
            return line(Q);
        }
        let nibbles = if Q < 4 { line(Q) } else { _mm256_srli_epi16::<4>(line(Q - 4)) };
        let quad = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        let high = match const { FORMATS[F].plane } {
            Plane::Five => _mm256_and_si256(shift_left(line(4), 4 - Q as i32), _mm256_set1_epi8(16)),
            Plane::Six => _mm256_and_si256(shift_left(line(4 + Q / 4), 4 - 2 * (Q % 4) as i32), _mm256_set1_epi8(0x30)),
            Plane::Four | Plane::Eight | Plane::Halves => _mm256_setzero_si256(),
        };
        let quad = _mm256_or_si256(quad, high);
        match const { &FORMATS[F].table } {
            Some(table) => {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                _mm256_shuffle_epi8(table, quad)
            }
            None => quad,
        }
    }
}

/// 16-bit lanes shifted left by `by`, or right by `-by`; folds to one instruction where `by` is constant.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn shift_left(x: __m256i, by: i32) -> __m256i {
    // SAFETY: as above.
    unsafe {
        match by {
            4 => _mm256_slli_epi16::<4>(x),
            3 => _mm256_slli_epi16::<3>(x),
            2 => _mm256_slli_epi16::<2>(x),
            1 => _mm256_slli_epi16::<1>(x),
            0 => x,
            -1 => _mm256_srli_epi16::<1>(x),
            -2 => _mm256_srli_epi16::<2>(x),
            _ => _mm256_srli_epi16::<3>(x),
        }
    }
}

/// What the groups of a block share: scale and minimum of eight rows, those of half `of` of the tile.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn block_scales<const F: usize>(header: *const u8, of: usize) -> [__m256; 2] {
    // SAFETY: as above.
    unsafe {
        match const { FORMATS[F].scales } {
            Scales::Half | Scales::Exponent => [_mm256_setzero_ps(); 2],
            Scales::Signed16 | Scales::Signed32 => {
                let scale = _mm256_mul_ps(halves(header, of), _mm256_set1_ps(const { FORMATS[F].unit }));
                [scale, _mm256_setzero_ps()]
            }
            _ => [halves(header, of), halves(header.add(32), of)],
        }
    }
}

/// Scale and shift of a group or of half of its columns.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn group_scales<const F: usize>(
    header: *const u8,
    [scale, shift]: [__m256; 2],
    (group, half): (usize, usize),
    of: usize,
) -> (__m256, __m256) {
    // SAFETY: as above: the offsets are those of the format's header.
    unsafe {
        let none = _mm256_setzero_ps();
        let eight = |at: usize| _mm_loadl_epi64(header.add(at + 8 * of).cast());
        let unsigned = |at: usize| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(at)));
        let signed = |at: usize| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(at)));
        let minimum = |at: usize| _mm256_sub_ps(none, _mm256_mul_ps(shift, unsigned(at)));
        match const { FORMATS[F].scales } {
            Scales::Half => (halves(header.add(32 * group), of), none),
            Scales::HalfShift => (scale, shift),
            Scales::Super32 => {
                let at = 64 + 32 * group;
                (_mm256_mul_ps(scale, unsigned(at)), minimum(at + 16))
            }
            Scales::Super16 => {
                let at = 64 + 64 * group + 16 * half;
                (_mm256_mul_ps(scale, unsigned(at)), minimum(at + 32))
            }
            Scales::Signed16 => (_mm256_mul_ps(scale, signed(64 + 32 * group + 16 * half)), none),
            Scales::Signed32 => (_mm256_mul_ps(scale, signed(64 + 16 * group)), none),
            Scales::Exponent => {
                let exponent = _mm256_cvtepu8_epi32(eight(16 * group));
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponent, _mm256_set1_epi32(1)));
                // The two smallest are subnormal.
                let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponent);
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponent);
                (_mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small)), none)
            }
        }
    }
}

/// The f16 of eight of sixteen rows as f32.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn halves(at: *const u8, of: usize) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_cvtph_ps(_mm_load_si128(at.add(16 * of).cast())) }
}

/// `totals += dots * scale * x.scale + shift * x.sum[which]`.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn add<const F: usize, const R: usize, const H: usize>(
    totals: &mut [[__m256; H]; R],
    dots: &[[__m256i; H]; R],
    x: *const Group,
    scales: [(__m256, __m256); H],
    which: usize,
) {
    for (r, (totals, dots)) in totals.iter_mut().zip(dots).enumerate() {
        for ((total, dots), (scale, shift)) in totals.iter_mut().zip(dots).zip(scales) {
            // SAFETY: as above.
            unsafe {
                let x = &*x.add(r);
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x.scale));
                *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(*dots), scale, *total);
                if const { FORMATS[F].has_shift() } {
                    *total = _mm256_fmadd_ps(shift, _mm256_set1_ps(x.sum[which]), *total);
                }
            }
        }
    }
}
