//! Weights stored as f32, f16 or bf16, kept in that type: tiles of sixteen rows, `[column][row]`. Products accumulate in
//! f32, even and odd columns apart, in the same order however many rows are computed at once.

use candle_core::{Result, bail};

use super::buffer::{Arena, Buffer};
use super::format::ROWS;
use crate::cpu::{Isa, Pool};
use crate::quant::half_to_f32;
use crate::{Weight, WeightKind};

/// A dense weight.
#[derive(Debug)]
pub(crate) struct DenseTiles {
    kind: WeightKind,
    pub(super) rows: usize,
    cols: usize,
    buffer: Buffer,
}

impl DenseTiles {
    /// Packs a dense `weight`.
    pub(super) fn pack(weight: &Weight, pool: &Pool, arena: &Arena) -> Result<Self> {
        let (kind, rows, cols) = (weight.kind(), weight.rows(), weight.cols());
        let (size, row_bytes) = (kind.block().1, weight.row_bytes());
        let stride = row_bytes * ROWS;
        let Some(len) = stride.checked_mul(rows.div_ceil(ROWS)) else { bail!("{kind:?} of {rows} rows overflows") };
        let mut buffer = arena.zeroed(len)?;
        buffer.fill_chunks(pool, stride, &|tile, bytes| {
            let stored = &weight.bytes()[tile * ROWS * row_bytes..];
            let lanes = stored.chunks_exact(row_bytes).take(ROWS).enumerate();
            // Strides of constant size, so that copying an element is one move.
            if size == 2 {
                lanes.for_each(|(lane, row)| scatter::<2>(row, lane, bytes));
            } else {
                lanes.for_each(|(lane, row)| scatter::<4>(row, lane, bytes));
            }
        });
        Ok(Self { kind, rows, cols, buffer })
    }

    /// Bytes of one tile.
    pub(super) fn stride(&self) -> usize {
        self.cols * ROWS * self.kind.block().1
    }

    fn tile(&self, index: usize) -> &[u8] {
        &self.buffer.bytes()[index * self.stride()..(index + 1) * self.stride()]
    }

    /// Row `row` as f32.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let size = self.kind.block().1;
        for (column, out) in self.tile(row / ROWS).chunks_exact(size * ROWS).zip(out) {
            *out = element(self.kind, &column[row % ROWS * size..]);
        }
    }

    /// Tile `index` times 1, 2, 4 or 8 rows of `x`: sums `[row][tile row]`.
    pub(super) fn product(&self, isa: Isa, index: usize, x: &[f32], sums: &mut [[f32; ROWS]]) {
        match sums.len() {
            1 => self.product_of::<1>(isa, index, x, sums),
            2 => self.product_of::<2>(isa, index, x, sums),
            4 => self.product_of::<4>(isa, index, x, sums),
            _ => self.product_of::<8>(isa, index, x, sums),
        }
    }

    fn product_of<const R: usize>(&self, isa: Isa, index: usize, x: &[f32], sums: &mut [[f32; ROWS]]) {
        let tile = self.tile(index);
        assert!(sums.len() == R && x.len() == R * self.cols);
        #[cfg(target_arch = "x86_64")]
        match isa {
            // SAFETY: this machine has the instruction set `isa`; the lengths are those of R rows and a tile.
            Isa::Avx512Vnni => return unsafe { x86::avx512::<R>(self.kind, tile, x, sums) },
            // SAFETY: as above.
            Isa::Avx2 | Isa::AvxVnni => return unsafe { x86::avx2::<R>(self.kind, tile, x, sums) },
            Isa::Portable => {}
        }
        let _ = isa;
        match self.kind {
            WeightKind::F16 => plain::<R, 1, false>(tile, x, sums),
            WeightKind::BF16 => plain::<R, 2, false>(tile, x, sums),
            _ => plain::<R, 0, false>(tile, x, sums),
        }
    }
}

/// Puts the elements of a row, `SIZE` bytes each, into their lane.
fn scatter<const SIZE: usize>(row: &[u8], lane: usize, tile: &mut [u8]) {
    let columns = tile.as_chunks_mut::<SIZE>().0.chunks_exact_mut(ROWS);
    for (element, column) in row.as_chunks::<SIZE>().0.iter().zip(columns) {
        column[lane] = *element;
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn element(kind: WeightKind, bytes: &[u8]) -> f32 {
    match kind {
        WeightKind::F16 => half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
        WeightKind::BF16 => f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

/// Loops over arrays of sixteen, which the caller's instruction set vectorises. `KIND` is 0, 1, 2 for f32, f16, bf16.
#[inline(always)]
#[allow(clippy::inline_always)]
fn plain<const R: usize, const KIND: usize, const FUSED: bool>(tile: &[u8], x: &[f32], sums: &mut [[f32; ROWS]]) {
    let kind = const { [WeightKind::F32, WeightKind::F16, WeightKind::BF16][KIND] };
    let (size, cols) = (kind.block().1, x.len() / R);
    let mut parts = [[[0f32; ROWS]; 2]; R];
    for (pair, columns) in tile.chunks(2 * size * ROWS).enumerate() {
        for (odd, column) in columns.chunks_exact(size * ROWS).enumerate() {
            let mut weights = [0f32; ROWS];
            for (weight, bytes) in weights.iter_mut().zip(column.chunks_exact(size)) {
                *weight = element(kind, bytes);
            }
            for (r, parts) in parts.iter_mut().enumerate() {
                let x = x[r * cols + 2 * pair + odd];
                for (sum, weight) in parts[odd].iter_mut().zip(weights) {
                    *sum = if FUSED { weight.mul_add(x, *sum) } else { weight * x + *sum };
                }
            }
        }
    }
    for (sums, [even, odd]) in sums.iter_mut().zip(parts) {
        *sums = std::array::from_fn(|lane| even[lane] + odd[lane]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, _mm256_loadu_si256, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use super::{ROWS, WeightKind, plain};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<const R: usize>(kind: WeightKind, tile: &[u8], x: &[f32], sums: &mut [[f32; ROWS]]) {
        match kind {
            WeightKind::F16 => plain::<R, 1, true>(tile, x, sums),
            WeightKind::BF16 => plain::<R, 2, true>(tile, x, sums),
            _ => plain::<R, 0, true>(tile, x, sums),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn avx512<const R: usize>(kind: WeightKind, tile: &[u8], x: &[f32], sums: &mut [[f32; ROWS]]) {
        match kind {
            WeightKind::F16 => columns::<R, 2>(tile, x, sums, |at| {
                // SAFETY: sixteen elements begin at `at`.
                _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
            }),
            WeightKind::BF16 => columns::<R, 2>(tile, x, sums, |at| {
                // SAFETY: as above.
                let bits = unsafe { _mm256_loadu_si256(at.cast()) };
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            }),
            // SAFETY: as above.
            _ => columns::<R, 4>(tile, x, sums, |at| unsafe { _mm512_loadu_ps(at.cast()) }),
        }
    }

    /// `load` reads the sixteen weights of a column, `SIZE` bytes each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn columns<const R: usize, const SIZE: usize>(
        tile: &[u8],
        x: &[f32],
        sums: &mut [[f32; ROWS]],
        load: impl Fn(*const u8) -> __m512,
    ) {
        let cols = x.len() / R;
        assert!(tile.len() == cols * SIZE * ROWS && sums.len() == R);
        let mut parts = [[_mm512_setzero_ps(); 2]; R];
        let step = |k: usize, odd: usize, parts: &mut [[__m512; 2]; R]| {
            // SAFETY: `k` is a column; the length of the tile was checked.
            let weights = load(unsafe { tile.as_ptr().add(k * SIZE * ROWS) });
            for (r, parts) in parts.iter_mut().enumerate() {
                // SAFETY: `x` has R rows of `cols`.
                let x = _mm512_set1_ps(unsafe { *x.get_unchecked(r * cols + k) });
                parts[odd] = _mm512_fmadd_ps(weights, x, parts[odd]);
            }
        };
        for pair in 0..cols / 2 {
            step(2 * pair, 0, &mut parts);
            step(2 * pair + 1, 1, &mut parts);
        }
        if cols % 2 == 1 {
            step(cols - 1, 0, &mut parts);
        }
        for (sums, [even, odd]) in sums.iter_mut().zip(parts) {
            // SAFETY: a row of sums holds sixteen.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(even, odd)) };
        }
    }
}
