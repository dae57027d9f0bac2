//! Products of bf16 weights with inputs rounded to bf16, by the instruction that takes pairs of them. A pair's two products
//! are added before the sum, even and odd pairs have sums of their own, in the same order however many rows are
//! computed at once. Subnormal numbers count as zero.

use super::format::ROWS;
use crate::cpu::host::Disjoint;
use crate::cpu::{Isa, Pool};

/// Rows that one claim rounds.
const BATCH: usize = 8;

/// Rows rounded to nearest, ties to even: `[row][pair of columns]`, the even column in the low half. They exist only where
/// the instruction set is `Isa::Avx512Bf16`.
#[derive(Clone, Copy)]
pub(super) struct PairRows<'a> {
    data: &'a [u32],
    /// Pairs of a row.
    width: usize,
}

impl<'a> PairRows<'a> {
    /// Rounds `x`, rows of `cols` values, into `data`, which may hold what was rounded before; `None` where the instruction
    /// set has no use for it.
    pub(super) fn round(isa: Isa, x: &[f32], cols: usize, pool: &Pool, data: &'a mut Vec<u32>) -> Option<Self> {
        if isa != Isa::Avx512Bf16 {
            return None;
        }
        let (rows, width) = (x.len() / cols.max(1), cols.div_ceil(2));
        let len = rows * width;
        if data.len() < len {
            data.resize(len, 0);
        }
        let shared = Disjoint::new(&mut data[..len]);
        pool.run(rows.div_ceil(BATCH), &|batch| {
            let rows = batch * BATCH..rows.min((batch + 1) * BATCH);
            // SAFETY: these rows are this batch's.
            let out = unsafe { shared.piece(rows.start * width..rows.end * width) };
            for (x, out) in x[rows.start * cols..rows.end * cols].chunks_exact(cols).zip(out.chunks_exact_mut(width)) {
                round_row(x, out);
            }
        });
        Some(Self { data: &data[..len], width })
    }

    /// `rows` rows from `first` on.
    pub(super) fn some(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.width..][..rows * self.width], ..self }
    }
}

#[cfg(target_arch = "x86_64")]
fn round_row(x: &[f32], out: &mut [u32]) {
    // SAFETY: `PairRows::round` was told that the instruction set was found.
    unsafe { x86::round(x, out) }
}

#[cfg(not(target_arch = "x86_64"))]
fn round_row(_: &[f32], _: &mut [u32]) {
    unreachable!("Avx512Bf16 elsewhere than on x86; this is a bug")
}

/// A tile `[pair][row][2]` times 1, 2, 4 or 8 rows: sums `[row][tile row]`.
#[cfg(target_arch = "x86_64")]
pub(super) fn product(tile: &[u8], x: PairRows<'_>, sums: &mut [[f32; ROWS]]) {
    // SAFETY: pairs exist only where the instruction set was found.
    unsafe {
        match sums.len() {
            1 => x86::product::<1>(tile, x.data, sums),
            2 => x86::product::<2>(tile, x.data, sums),
            4 => x86::product::<4>(tile, x.data, sums),
            _ => x86::product::<8>(tile, x.data, sums),
        }
    }
}

/// Pairs exist on x86 alone.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn product(_: &[u8], x: PairRows<'_>, _: &mut [[f32; ROWS]]) {
    unreachable!("{} pairs of bf16 elsewhere than on x86; this is a bug", x.data.len())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)] // intrinsics
    use std::arch::x86_64::*;

    use super::ROWS;

    /// Rounds a row; a last odd column is paired with zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn round(x: &[f32], out: &mut [u32]) {
        assert!(out.len() == x.len().div_ceil(2));
        for (x, out) in x.chunks(2 * ROWS).zip(out.chunks_mut(ROWS)) {
            // Bits of the values there are.
            let values = u32::MAX.checked_shr(32 - x.len() as u32).unwrap_or(0);
            let stored = (1u32 << out.len()) - 1;
            // SAFETY: masked loads and stores touch what there is.
            unsafe {
                let low = _mm512_maskz_loadu_ps(values as u16, x.as_ptr());
                let high = _mm512_maskz_loadu_ps((values >> 16) as u16, x.as_ptr().wrapping_add(ROWS));
                let pairs = _mm512_cvtne2ps_pbh(high, low);
                let bits = std::mem::transmute::<__m512bh, __m512i>(pairs);
                _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), stored as u16, bits);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn product<const R: usize>(tile: &[u8], x: &[u32], sums: &mut [[f32; ROWS]]) {
        let width = x.len() / R;
        assert!(tile.len() == width * 4 * ROWS && x.len() == R * width && sums.len() == R);
        let mut parts = [[_mm512_setzero_ps(); 2]; R];
        let step = |pair: usize, odd: usize, parts: &mut [[__m512; 2]; R]| {
            // SAFETY: the lengths of the tile and of the rows were checked; all bits are a valid bf16.
            unsafe {
                let weights = _mm512_loadu_si512(tile.as_ptr().add(4 * ROWS * pair).cast());
                let weights = std::mem::transmute::<__m512i, __m512bh>(weights);
                for (r, parts) in parts.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.get_unchecked(r * width + pair) as i32);
                    parts[odd] = _mm512_dpbf16_ps(parts[odd], weights, std::mem::transmute::<__m512i, __m512bh>(x));
                }
            }
        };
        for two in 0..width / 2 {
            step(2 * two, 0, &mut parts);
            step(2 * two + 1, 1, &mut parts);
        }
        if width % 2 == 1 {
            step(width - 1, 0, &mut parts);
        }
        for (sums, [even, odd]) in sums.iter_mut().zip(parts) {
            // SAFETY: a row of sums holds sixteen.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(even, odd)) };
        }
    }
}
