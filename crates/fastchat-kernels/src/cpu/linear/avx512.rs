//! The quantised product with AVX-512 VNNI. Weights are unpacked in registers and used for up to eight rows and two tiles.
//! Integer dot products are exact; the float operations of a row come in the order of its groups, whatever its company.

#![cfg(target_arch = "x86_64")]

#[allow(clippy::wildcard_imports)] // intrinsics
use std::arch::x86_64::*;

use super::format::{FORMATS, HALVES, Plane, ROWS, Scales};
use super::group::Group;

/// A tile times rows.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) tile: *const u8,
    /// Low codes of all groups, of the format that has them apart.
    pub(super) low: *const u8,
    /// Blocks of the tile.
    pub(super) blocks: usize,
    /// Activations `[group][row]`.
    pub(super) groups: *const Group,
    /// Sums `[row]`.
    pub(super) sums: *mut [f32; ROWS],
}

/// The product for a format index and 1, 2, 4 or 8 rows.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL, VNNI. The operands point to a whole tile of the format and what belongs to it, to
/// activations for all its groups, and to `rows` sums.
pub(super) unsafe fn product(format: usize, rows: usize, operands: Operands) {
    macro_rules! select {
        ($($index:literal)*) => {
            match (format, rows) {
                $(
                    // SAFETY: the caller's promise.
                    ($index, 1) => unsafe { run::<$index, 1>(operands) },
                    // SAFETY: as above.
                    ($index, 2) => unsafe { run::<$index, 2>(operands) },
                    // SAFETY: as above.
                    ($index, 4) => unsafe { run::<$index, 4>(operands) },
                    // SAFETY: as above.
                    ($index, 8) => unsafe { run::<$index, 8>(operands) },
                )*
                _ => unreachable!("format {format}, {rows} rows; this is a bug"),
            }
        };
    }
    const { assert!(FORMATS.len() == 23, "list all formats below") };
    select!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22);
}

/// Rows that compute for longer than the processor reads ahead by itself. Fewer rows are faster without: they read as fast
/// as the memory gives, and its own reading ahead is the better one.
const MANY: usize = 4;
/// Bytes between what is used and what the memory is asked for.
const AHEAD: usize = 2048;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn run<const F: usize, const R: usize>(operands: Operands) {
    // Constants, all of them: what depends on the format must fold away.
    let halves = const { FORMATS[F].halves() };
    // Two chains of integer sums: for the halves' own scales, or so that few rows need not wait for their last addition.
    let chains = const { if FORMATS[F].halves() == 2 || R < 8 { 2 } else { 1 } };
    let mut sums = [_mm512_setzero_ps(); R];
    let (mut x, mut low) = (operands.groups, operands.low);
    for block in 0..operands.blocks {
        // SAFETY: blocks, groups and rows stay within what the caller promised.
        unsafe {
            let header = operands.tile.add(block * const { FORMATS[F].block_bytes() });
            if R >= MANY {
                prefetch(header, const { FORMATS[F].header_bytes() });
            }
            let shared = block_scales::<F>(header);
            let mut codes = header.add(const { FORMATS[F].header_bytes() });
            for group in 0..const { FORMATS[F].groups() } {
                if R >= MANY {
                    prefetch(codes, const { FORMATS[F].group_bytes() });
                    if const { F == HALVES } {
                        prefetch(low, const { FORMATS[F].group_bytes() });
                    }
                }
                // Of quads 0 to 3 and of quads 4 to 7.
                let (mut first, mut second) = ([_mm512_setzero_si512(); R], [_mm512_setzero_si512(); R]);
                if let Some(offset) = const { FORMATS[F].offset } {
                    begin(&mut first, x, offset, usize::from(halves == 2));
                    if halves == 2 {
                        begin(&mut second, x, offset, 2);
                    }
                }
                macro_rules! step {
                    ($i:literal) => {
                        let quads = unpack::<F, $i>(codes, low);
                        accumulate(&mut first, quads[0], x, $i);
                        accumulate(if chains == 2 { &mut second } else { &mut first }, quads[1], x, $i + 4);
                    };
                }
                step!(0);
                step!(1);
                step!(2);
                step!(3);
                let scales = group_scales::<F>(header, shared, group, 0);
                if halves == 2 {
                    add_scaled::<F, R>(&mut sums, &first, x, scales, 1);
                    add_scaled::<F, R>(&mut sums, &second, x, group_scales::<F>(header, shared, group, 1), 2);
                } else {
                    if chains == 2 {
                        for (first, second) in first.iter_mut().zip(second) {
                            *first = _mm512_add_epi32(*first, second);
                        }
                    }
                    add_scaled::<F, R>(&mut sums, &first, x, scales, 0);
                }
                codes = codes.add(const { FORMATS[F].group_bytes() });
                if const { F == HALVES } {
                    low = low.add(const { FORMATS[F].group_bytes() });
                }
                x = x.add(R);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        // SAFETY: the caller has room for all sums.
        unsafe { _mm512_storeu_ps(operands.sums.add(r).cast(), sums) };
    }
}

/// Asks for what lies `AHEAD` of these bytes, in the next tile if not in this one.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn prefetch(from: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        // SAFETY: a hint may point anywhere; the caller runs on a machine with the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + 64 * line).cast()) };
    }
}

/// Starts integer sums at minus the offset times the sum `which` of the activation's codes.
#[inline(always)]
#[allow(clippy::inline_always)] // into `run`, whose instruction set it needs; so with all below
unsafe fn begin<const R: usize>(dots: &mut [__m512i; R], x: *const Group, offset: u32, which: usize) {
    for (r, dot) in dots.iter_mut().enumerate() {
        // SAFETY: `x` points to R groups; the caller runs on a machine with the instructions. So with all below.
        *dot = unsafe {
            let sum = _mm512_set1_epi32((*x.add(r)).minus_sum[which]);
            _mm512_sllv_epi32(sum, _mm512_set1_epi32(offset as i32))
        };
    }
}

/// Adds the products of quad `quad`, whose codes are `codes`.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn accumulate<const R: usize>(dots: &mut [__m512i; R], codes: __m512i, x: *const Group, quad: usize) {
    for (r, dot) in dots.iter_mut().enumerate() {
        // SAFETY: as above.
        unsafe {
            let four = (*x.add(r)).codes.as_ptr().add(4 * quad).cast::<i32>().read_unaligned();
            *dot = _mm512_dpbusd_epi32(*dot, codes, _mm512_set1_epi32(four));
        }
    }
}

/// `sums += dots * scale * x.scale + shift * x.sum[which]`.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn add_scaled<const F: usize, const R: usize>(
    sums: &mut [__m512; R],
    dots: &[__m512i; R],
    x: *const Group,
    (scale, shift): (__m512, __m512),
    which: usize,
) {
    for (r, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
        // SAFETY: as above.
        unsafe {
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps((*x.add(r)).scale));
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(*dot), scale, *sum);
            if const { FORMATS[F].has_shift() } {
                *sum = _mm512_fmadd_ps(shift, _mm512_set1_ps((*x.add(r)).sum[which]), *sum);
            }
        }
    }
}

/// The ternary operation `a | (b & c)`.
const OR_AND: i32 = 0xf8;
/// The ternary operation `a` where the bit of `c` is set, else `b`.
const SELECT: i32 = 0xe4;

/// Quads `I` and `I + 4` of a group as bytes.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn unpack<const F: usize, const I: i32>(group: *const u8, apart: *const u8) -> [__m512i; 2] {
    // SAFETY: the lines belong to the group, and the caller runs on a machine with the instructions.
    unsafe {
        let line = |i: usize| _mm512_load_si512(group.add(64 * i).cast());
        if const { F == HALVES } {
            let (high, low) = (line(I as usize), _mm512_load_si512(apart.add(64 * I as usize).cast()));
            let top = _mm512_set1_epi8(0xf0_u8 as i8);
            return [
                _mm512_ternarylogic_epi32::<SELECT>(_mm512_slli_epi16::<4>(high), low, top),
                _mm512_ternarylogic_epi32::<SELECT>(high, _mm512_srli_epi16::<4>(low), top),
            ];
        }
        if const { matches!(FORMATS[F].plane, Plane::Eight) } {
            return [line(I as usize), line(I as usize + 4)];
        }
        let (nibbles, low) = (line(I as usize), _mm512_set1_epi8(15));
        let mut quads = [_mm512_and_si512(nibbles, low), _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), low)];
        match const { FORMATS[F].plane } {
            Plane::Five => {
                let (bits, fifth) = (line(4), _mm512_set1_epi8(16));
                quads[0] = _mm512_ternarylogic_epi32::<OR_AND>(quads[0], shift_left(bits, 4 - I), fifth);
                quads[1] = _mm512_ternarylogic_epi32::<OR_AND>(quads[1], shift_left(bits, -I), fifth);
            }
            Plane::Six => {
                let high = _mm512_set1_epi8(0x30);
                quads[0] = _mm512_ternarylogic_epi32::<OR_AND>(quads[0], shift_left(line(4), 4 - 2 * I), high);
                quads[1] = _mm512_ternarylogic_epi32::<OR_AND>(quads[1], shift_left(line(5), 4 - 2 * I), high);
            }
            Plane::Four | Plane::Eight | Plane::Halves => {}
        }
        if let Some(table) = const { &FORMATS[F].table } {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            quads = quads.map(|quad| _mm512_shuffle_epi8(table, quad));
        }
        quads
    }
}

/// 16-bit lanes shifted left by `by`, or right by `-by`; folds to one instruction where `by` is constant.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn shift_left(x: __m512i, by: i32) -> __m512i {
    // SAFETY: the caller runs on a machine with the instructions.
    unsafe {
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
}

/// What the groups of a block share: scale and minimum.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn block_scales<const F: usize>(header: *const u8) -> [__m512; 2] {
    // SAFETY: the header begins with 64 bytes.
    unsafe {
        match const { FORMATS[F].scales } {
            Scales::Half | Scales::Exponent => [_mm512_setzero_ps(); 2],
            Scales::Signed16 | Scales::Signed32 => {
                let scale = _mm512_mul_ps(halves(header), _mm512_set1_ps(const { FORMATS[F].unit }));
                [scale, _mm512_setzero_ps()]
            }
            _ => [halves(header), halves(header.add(32))],
        }
    }
}

/// Scale and shift of a group or of its half.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn group_scales<const F: usize>(
    header: *const u8,
    [scale, shift]: [__m512; 2],
    group: usize,
    half: usize,
) -> (__m512, __m512) {
    // SAFETY: the offsets are those of the format's header.
    unsafe {
        let none = _mm512_setzero_ps();
        let unsigned = |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(header.add(at).cast())));
        let signed = |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(header.add(at).cast())));
        let minimum = |at: usize| _mm512_sub_ps(none, _mm512_mul_ps(shift, unsigned(at)));
        match const { FORMATS[F].scales } {
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
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller has 32 bytes there.
    unsafe { _mm512_cvtph_ps(_mm256_load_si256(at.cast())) }
}
