//! Weights stored as f32, f16 or bf16, kept in that type: tiles of sixteen rows, `[column][row]`, of bf16 as
//! `[pair of columns][row][2]` (a last odd column with zeros), which is how its instruction takes them. Products
//! accumulate in f32, even and odd columns apart, in the same order however many rows are computed at once.

use candle_core::{Result, bail};

use super::bf16::{self, PairRows};
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
        let row_bytes = weight.row_bytes();
        let stride = stride(kind, cols);
        let Some(len) = stride.checked_mul(rows.div_ceil(ROWS)) else { bail!("{kind:?} of {rows} rows overflows") };
        let mut buffer = arena.zeroed(len)?;
        buffer.fill_chunks(pool, stride, &|tile, bytes| {
            let stored = &weight.bytes()[tile * ROWS * row_bytes..];
            let lanes = stored.chunks_exact(row_bytes).take(ROWS).enumerate();
            // Strides of constant size, so that copying an element, or a pair of them, is one move.
            if kind == WeightKind::F16 {
                lanes.for_each(|(lane, row)| scatter::<2>(row, lane, bytes));
            } else {
                lanes.for_each(|(lane, row)| scatter::<4>(row, lane, bytes));
            }
        });
        Ok(Self { kind, rows, cols, buffer })
    }

    /// Bytes of one tile.
    pub(super) fn stride(&self) -> usize {
        stride(self.kind, self.cols)
    }

    /// Whether these are bf16.
    pub(super) fn is_bf16(&self) -> bool {
        self.kind == WeightKind::BF16
    }

    /// All tiles, one after the other.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    fn tile(&self, index: usize) -> &[u8] {
        &self.buffer.bytes()[index * self.stride()..(index + 1) * self.stride()]
    }

    /// Row `row` as f32.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let pairs = self.tile(row / ROWS).chunks(2 * ROWS * self.kind.block().1);
        for (pair, out) in pairs.zip(out.chunks_mut(2)) {
            for (odd, out) in out.iter_mut().enumerate() {
                *out = element(self.kind, &pair[offset(self.kind, odd, row % ROWS)..]);
            }
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

    /// The same with rows of pairs of bf16, where these are bf16 too.
    pub(super) fn product_of_pairs(&self, index: usize, x: PairRows<'_>, sums: &mut [[f32; ROWS]]) {
        bf16::product(self.tile(index), x, sums);
    }

    fn product_of<const R: usize>(&self, isa: Isa, index: usize, x: &[f32], sums: &mut [[f32; ROWS]]) {
        let tile = self.tile(index);
        assert!(sums.len() == R && x.len() == R * self.cols);
        #[cfg(target_arch = "x86_64")]
        match isa {
            // SAFETY: this machine has the instruction set `isa`; the lengths are those of R rows and a tile.
            Isa::Avx512Vnni | Isa::Avx512Bf16 => return unsafe { x86::avx512::<R>(self.kind, tile, x, sums) },
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

/// Bytes of a tile of `cols` columns.
fn stride(kind: WeightKind, cols: usize) -> usize {
    let stored = if kind == WeightKind::BF16 { cols.next_multiple_of(2) } else { cols };
    stored * ROWS * kind.block().1
}

/// Where in a pair of columns the element of row `lane` lies.
#[inline(always)]
#[allow(clippy::inline_always)]
fn offset(kind: WeightKind, odd: usize, lane: usize) -> usize {
    match kind {
        WeightKind::BF16 => 2 * (2 * lane + odd),
        _ => kind.block().1 * (odd * ROWS + lane),
    }
}

/// Puts a row, `SIZE` bytes at a time, into its lane; what is left of it is padded with zeros.
fn scatter<const SIZE: usize>(row: &[u8], lane: usize, tile: &mut [u8]) {
    let mut columns = tile.as_chunks_mut::<SIZE>().0.chunks_exact_mut(ROWS);
    let (elements, rest) = row.as_chunks::<SIZE>();
    for (element, column) in elements.iter().zip(&mut columns) {
        column[lane] = *element;
    }
    if let (false, Some(column)) = (rest.is_empty(), columns.next()) {
        column[lane][..rest.len()].copy_from_slice(rest);
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
        for odd in 0..2.min(cols - 2 * pair) {
            let mut weights = [0f32; ROWS];
            for (lane, weight) in weights.iter_mut().enumerate() {
                *weight = element(kind, &columns[offset(kind, odd, lane)..]);
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
        __m512, _mm256_loadu_si256, _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtph_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_slli_epi32, _mm512_storeu_ps,
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
            WeightKind::F16 => columns::<R, 2>(tile, x, sums, |pair, odd| {
                // SAFETY: sixteen elements of each column there is begin at `pair`.
                _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(pair.add(2 * ROWS * odd).cast()) })
            }),
            WeightKind::BF16 => columns::<R, 2>(tile, x, sums, |pair, odd| {
                // SAFETY: sixteen pairs begin at `pair`.
                let bits = unsafe { _mm512_loadu_si512(pair.cast()) };
                _mm512_castsi512_ps(match odd {
                    0 => _mm512_slli_epi32::<16>(bits),
                    _ => _mm512_and_si512(bits, _mm512_set1_epi32(!0xffff)),
                })
            }),
            _ => columns::<R, 4>(tile, x, sums, |pair, odd| {
                // SAFETY: as for f16.
                unsafe { _mm512_loadu_ps(pair.add(4 * ROWS * odd).cast()) }
            }),
        }
    }

    /// `load` reads sixteen weights of a pair of columns, `SIZE` bytes each: of the even one, or of the odd one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn columns<const R: usize, const SIZE: usize>(
        tile: &[u8],
        x: &[f32],
        sums: &mut [[f32; ROWS]],
        load: impl Fn(*const u8, usize) -> __m512,
    ) {
        let cols = x.len() / R;
        assert!(tile.len() >= cols * SIZE * ROWS && sums.len() == R);
        let mut parts = [[_mm512_setzero_ps(); 2]; R];
        let step = |pair: usize, odd: usize, parts: &mut [[__m512; 2]; R]| {
            // SAFETY: the tile has the column; its length was checked.
            let weights = load(unsafe { tile.as_ptr().add(2 * pair * SIZE * ROWS) }, odd);
            for (r, parts) in parts.iter_mut().enumerate() {
                // SAFETY: `x` has R rows of `cols`.
                let x = _mm512_set1_ps(unsafe { *x.get_unchecked(r * cols + 2 * pair + odd) });
                parts[odd] = _mm512_fmadd_ps(weights, x, parts[odd]);
            }
        };
        for pair in 0..cols / 2 {
            step(pair, 0, &mut parts);
            step(pair, 1, &mut parts);
        }
        if cols % 2 == 1 {
            step(cols / 2, 0, &mut parts);
        }
        for (sums, [even, odd]) in sums.iter_mut().zip(parts) {
            // SAFETY: a row of sums holds sixteen.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(even, odd)) };
        }
    }
}
