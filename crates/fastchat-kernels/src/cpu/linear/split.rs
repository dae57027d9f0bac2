//! Weights of eight bits whose high and low four bits lie apart, so that the largest of many products is found by reading
//! little more than half of them: a layout, and the bound that the high bits give. Knows no search. For AVX-512, which puts
//! the halves together as it multiplies; with AVX2 that cost more than the search saved.
//!
//! A high tile is a tile of Q4_0, `16 * scale * (code - 8)`, and after its blocks one byte per row, its reach. With the low
//! tile it has the elements of Q8_0.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use candle_core::{Result, bail};
use half::f16;

use super::Tile;
use super::buffer::{Arena, Buffer, fill_pairs};
use super::format::{FORMATS, Format, GROUP, HALVES, ROWS};
use super::pack::pack_row;
use super::tiles::code_at;
use crate::cpu::Pool;
use crate::quant::f16_at;
use crate::{Weight, WeightKind};

/// Bytes of a group's high codes, and of its low ones.
const CODES: usize = ROWS * GROUP / 2;
/// Bytes of a block of two groups of a high tile, the scales of both first.
pub(super) const BLOCK: usize = 2 * ROWS * size_of::<f16>() + 2 * CODES;
/// Bytes behind the blocks of a high tile.
const REACHES: usize = 64;
/// Steps of `reach` to the unit. The largest distance is 7.5 times the root of 32.
const REACH_STEPS: f32 = 6.;
/// Searches that are left out after the first one that did not pay, and at most.
const PAUSE: [u32; 2] = [8, 256];

/// The scales of the two groups of a block.
pub(super) fn scales(block: &[u8]) -> &[[f16; ROWS]; 2] {
    assert!(
        block.len() == BLOCK && block.as_ptr().addr().is_multiple_of(align_of::<f16>()),
        "not a block; this is a bug"
    );
    // SAFETY: as many bytes as there are, aligned; any two of them are an f16.
    unsafe { &*block.as_ptr().cast() }
}

/// A Q8_0 weight in two halves.
#[derive(Debug)]
pub(crate) struct SplitTiles {
    pub(super) rows: usize,
    pub(super) cols: usize,
    high: Buffer,
    low: Buffer,
    /// Searches to be left out, and how many that will be the next time.
    skipped: AtomicU32,
    pause: AtomicU32,
}

fn format_of(kind: WeightKind) -> usize {
    Format::index_of(kind).expect("both kinds have a format; this is a bug")
}

impl SplitTiles {
    /// Splits `weight`; `None` if it is of another kind, or has scales that no bound can be made of.
    pub(super) fn pack(weight: &Weight, pool: &Pool, arena: &Arena) -> Result<Option<Self>> {
        if weight.kind() != WeightKind::Q8_0 || weight.cols() == 0 {
            return Ok(None);
        }
        let (rows, cols) = (weight.rows(), weight.cols());
        let tiles = rows.div_ceil(ROWS);
        let (Some(high), Some(low)) = (tiles.checked_mul(high_stride(cols)), tiles.checked_mul(low_stride(cols)))
        else {
            bail!("Q8_0 of {rows} rows overflows");
        };
        let (mut high, mut low) = (arena.zeroed(high)?, arena.zeroed(low)?);
        let whole = &FORMATS[format_of(WeightKind::Q8_0)];
        let row_bytes = weight.row_bytes();
        let bounded = AtomicBool::new(true);
        fill_pairs(pool, (&mut high, high_stride(cols)), (&mut low, low_stride(cols)), &|tile, [high, low]| {
            let mut merged = vec![0; whole.blocks(cols) * whole.block_bytes()];
            let stored = &weight.bytes()[tile * ROWS * row_bytes..];
            for (lane, row) in stored.chunks_exact(row_bytes).take(ROWS).enumerate() {
                // A scale below zero would turn its bound around; infinity and NaN have none.
                let fits = |block: &[u8]| (0. ..f32::INFINITY).contains(&f16_at(block));
                if !row.chunks_exact(WeightKind::Q8_0.block().1).all(fits) {
                    bounded.store(false, Relaxed);
                }
                pack_row(whole, row, &mut merged, lane);
            }
            split(&merged, cols / GROUP, high, low);
        });
        let pause = AtomicU32::new(PAUSE[0]);
        Ok(bounded.into_inner().then_some(Self { rows, cols, high, low, skipped: AtomicU32::new(0), pause }))
    }

    /// Bytes of both halves of a tile.
    pub(super) fn stride(&self) -> usize {
        high_stride(self.cols) + low_stride(self.cols)
    }

    /// Bytes of the high and of the low halves of tiles.
    pub(super) fn bytes(&self, tiles: Range<usize>) -> [&[u8]; 2] {
        let part = |stride: usize| tiles.start * stride..tiles.end * stride;
        [&self.high.bytes()[part(high_stride(self.cols))], &self.low.bytes()[part(low_stride(self.cols))]]
    }

    /// The blocks of the high tile `index`, how far the low codes of a group of each row are from their middle at most (the
    /// root of the sum of `(code - 7.5)^2`), and the low tile.
    fn tile(&self, index: usize) -> (&[u8], [f32; ROWS], &[u8]) {
        let [high, low] = self.bytes(index..index + 1);
        let (blocks, reach) = high.split_at(high.len() - REACHES);
        (blocks, std::array::from_fn(|lane| f32::from(reach[lane]) / REACH_STEPS), low)
    }

    /// The tile `index`.
    pub(super) fn whole(&self, index: usize) -> Tile<'_> {
        let (bytes, _, low) = self.tile(index);
        Tile { format: HALVES, cols: self.cols, bytes, low }
    }

    /// The high half of tile `index`, and the reach of its rows.
    pub(super) fn half(&self, index: usize) -> (Tile<'_>, [f32; ROWS]) {
        let (bytes, reach, _) = self.tile(index);
        (Tile { format: format_of(WeightKind::Q4_0), cols: self.cols, bytes, low: &[] }, reach)
    }

    /// Row `row` as f32.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (high, _, low) = self.tile(row / ROWS);
        let (half, lane) = (&FORMATS[format_of(WeightKind::Q4_0)], row % ROWS);
        let groups = high.chunks_exact(BLOCK).flat_map(|block| {
            let codes = block[BLOCK - 2 * CODES..].chunks_exact(CODES);
            scales(block).iter().map(|scales| scales[lane].to_f32()).zip(codes)
        });
        for (((scale, high), low), out) in groups.zip(low.chunks_exact(CODES)).zip(out.chunks_mut(GROUP)) {
            for (k, out) in out.iter_mut().enumerate() {
                let code = code_at(half, high, lane, k) << 4 | code_at(half, low, lane, k);
                *out = scale * f32::from(i16::from(code) - 128);
            }
        }
    }

    /// Whether to search the next rows: not for a while after searches that had to read most tiles all the same.
    pub(super) fn pays(&self) -> bool {
        self.skipped.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err()
    }

    /// Takes note of a search that read `read` of all tiles whole.
    pub(super) fn learn(&self, read: usize) {
        if 3 * read <= self.rows.div_ceil(ROWS) {
            return self.pause.store(PAUSE[0], Relaxed);
        }
        let pause = self.pause.load(Relaxed);
        self.skipped.store(pause, Relaxed);
        self.pause.store((2 * pause).min(PAUSE[1]), Relaxed);
    }
}

fn high_stride(cols: usize) -> usize {
    FORMATS[format_of(WeightKind::Q4_0)].blocks(cols) * BLOCK + REACHES
}

fn low_stride(cols: usize) -> usize {
    FORMATS[format_of(WeightKind::Q4_0)].blocks(cols) * 2 * CODES
}

/// Takes a tile of Q8_0 apart, of rows of so many groups; what follows them is empty and reaches nowhere.
fn split(merged: &[u8], groups: usize, high: &mut [u8], low: &mut [u8]) {
    let whole = &FORMATS[format_of(WeightKind::Q8_0)];
    let blocks_end = high.len() - REACHES;
    let (blocks, reaches) = high.split_at_mut(blocks_end);
    // Per row the largest sum of (2 code - 15)^2 of a group.
    let mut furthest = [0u16; ROWS];
    let blocks = blocks.chunks_exact_mut(BLOCK).zip(low.chunks_exact_mut(2 * CODES));
    for (block, (merged, (high, low))) in merged.chunks_exact(whole.block_bytes()).zip(blocks).enumerate() {
        let (header, codes) = merged.split_at(whole.header_bytes());
        high[..header.len()].copy_from_slice(header);
        let halves = high[header.len()..].chunks_exact_mut(CODES).zip(low.chunks_exact_mut(CODES));
        for (group, (codes, (high, low))) in (2 * block..).zip(codes.chunks_exact(2 * CODES).zip(halves)) {
            let (first, second) = codes.split_at(CODES);
            let mut squares = [0u16; 64];
            for (((first, second), high), low) in first.iter().zip(second).zip(high).zip(low.iter_mut()) {
                *high = first >> 4 | second & 0xf0;
                *low = first & 15 | second << 4;
            }
            for line in codes.as_chunks::<64>().0 {
                for (square, code) in squares.iter_mut().zip(line) {
                    let distance = 2 * i16::from(code & 15) - 15;
                    *square += (distance * distance) as u16;
                }
            }
            if group >= groups {
                continue;
            }
            for (furthest, squares) in furthest.iter_mut().zip(squares.as_chunks::<4>().0) {
                *furthest = (*furthest).max(squares.iter().sum());
            }
        }
    }
    for (reach, furthest) in reaches.iter_mut().zip(furthest) {
        *reach = (f32::from(furthest).sqrt() / 2. * REACH_STEPS).ceil() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_have_the_elements_and_reach_as_far_as_they_say() {
        let (rows, cols) = (37, 96);
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut bytes: Vec<u8> = (0..rows * cols / 32 * 34).map(|_| random()).collect();
        // Scales from 1 up to 2.
        bytes.chunks_exact_mut(34).for_each(|block| block[1] = 0x3c | block[1] & 3);
        let weight = Weight::new(WeightKind::Q8_0, rows, cols, bytes.clone().into()).unwrap();
        let (pool, arena) = (Pool::new(2), Arena::default());
        let split = SplitTiles::pack(&weight, &pool, &arena).unwrap().unwrap();
        let elements = weight.to_f32().unwrap();
        for tile in 0..rows.div_ceil(ROWS) {
            for row in tile * ROWS..rows.min(tile * ROWS + ROWS) {
                let mut decoded = vec![0.; cols];
                split.decode_row(row, &mut decoded);
                assert_eq!(decoded, elements[row * cols..(row + 1) * cols], "row {row}");
            }
            for (lane, reach) in split.tile(tile).1.into_iter().enumerate().take(rows - tile * ROWS) {
                let row = tile * ROWS + lane;
                let scale = |group: usize| f16_at(&bytes[(row * cols / 32 + group) * 34..]);
                let distance = |group: usize| {
                    let codes = elements[row * cols + 32 * group..][..32].iter().map(|x| x / scale(group));
                    codes.map(|code| (code.rem_euclid(16.) - 7.5).powi(2)).sum::<f32>().sqrt()
                };
                let furthest = (0..cols / 32).map(distance).fold(0., f32::max);
                assert!(furthest <= reach && reach < furthest + 1. / REACH_STEPS + 1e-3, "{furthest} {reach}");
            }
        }
        for scale in [0xbc, 0x7c, 0x7e] {
            bytes[34 * 5 + 1] = scale;
            let weight = Weight::new(WeightKind::Q8_0, rows, cols, bytes.clone().into()).unwrap();
            assert!(SplitTiles::pack(&weight, &pool, &arena).unwrap().is_none());
        }
    }

    #[test]
    fn searches_that_do_not_pay_are_left_out_ever_longer() {
        let weight = Weight::new(WeightKind::Q8_0, 160, 32, vec![0; 160 * 34].into()).unwrap();
        let split = SplitTiles::pack(&weight, &Pool::new(1), &Arena::default()).unwrap().unwrap();
        let left_out = || (0..1000).take_while(|_| !split.pays()).count();
        split.learn(3);
        assert_eq!(left_out(), 0);
        for expected in [8, 16, 32, 64, 128, 256, 256] {
            split.learn(4);
            assert_eq!(left_out(), expected);
        }
        split.learn(0);
        assert_eq!(left_out(), 0);
        split.learn(10);
        assert_eq!(left_out(), 8);
    }
}
