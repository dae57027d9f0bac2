//! The largest product of each row, the search for the next token of greedy sampling. Products are not written. Few rows
//! search weights that are split: from their high bits follows how large each product can be, and only tiles that may have
//! the largest are computed, by the same kernels and to the same bits as all would be.
//!
//! The bound. A weight is `d * (16 * h + l - 128)`; its high half stands for `d * (16 * h + 7.5 - 128)`, and of the rest a
//! group adds at most `d * |l - 7.5| * |x|`, by Cauchy and Schwarz.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{Result, Tensor, bail};

use super::activation::{Activation, BLOCK_ROWS, blocks};
use super::format::ROWS;
use super::group::Group;
use super::split::{self, SplitTiles};
use super::{CpuKernels, Sink, Sums, quantised};
use crate::Linear;
use crate::cpu::host::{Disjoint, slice};
use crate::cpu::simd::{Simd, Task, dispatch};
use crate::cpu::{Isa, Pool};
use crate::linear::Packed;

/// Rows up to which weights from memory are waited for rather than computed with.
const FEW_ROWS: usize = 4;
/// Pieces per thread that tiles are searched in.
const PIECES_PER_THREAD: usize = 8;
/// Rounding in units of a group's largest part: what the kernels, the bound and its sum may be off by. Of `g` groups a sum
/// has fewer than `3 g + 8` roundings of 2^-24, each of at most `(16 * 8 + 7.5) * sqrt(32)` times the sums of scales.
const ROUNDING: f32 = 800. / 16_777_216.;
/// Inputs above this are not searched: sums must not overflow.
const LARGEST: f32 = 1e20;

/// The largest product of a row so far, and its column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Best {
    value: f32,
    column: u32,
}

impl Best {
    /// Below all numbers.
    pub(super) const NONE: Self = Self { value: f32::NEG_INFINITY, column: 0 };

    /// Takes columns from `column` on, which follow those that were taken.
    pub(super) fn take(&mut self, column: usize, products: &[f32]) {
        let largest = products.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
        if largest > self.value {
            let first = products.iter().position(|&x| x >= largest).unwrap_or(0);
            *self = Self { value: largest, column: (column + first) as u32 };
        }
    }

    /// The first of the largest in pieces that follow each other: `[piece][row]`.
    fn of_pieces(pieces: &[Self], rows: usize) -> Vec<Option<u32>> {
        let best =
            |row| pieces.iter().skip(row).step_by(rows).fold(Self::NONE, |a, &b| if b.value > a.value { b } else { a });
        let column = |best: Self| (best.value > f32::NEG_INFINITY).then_some(best.column);
        (0..rows).map(|row| column(best(row))).collect()
    }
}

/// What a bound needs of one group of one row.
#[derive(Clone, Copy, Debug)]
struct Moments {
    /// 7.5 times the sum of its elements.
    middle: f32,
    /// The root of the sum of their squares, rounded up.
    norm: f32,
}

impl Moments {
    fn of(group: &Group) -> Self {
        let squares: i32 = group.codes.iter().map(|&code| i32::from(code) * i32::from(code)).sum();
        Self { middle: 7.5 * group.sum[0], norm: group.scale * (squares as f32).sqrt() * 1.000_001 }
    }

    fn fits(self) -> bool {
        self.middle.abs() < LARGEST && self.norm < LARGEST
    }
}

/// The largest that any product of a high tile with each of a block of rows can be.
struct Bound<'a> {
    blocks: &'a [u8],
    /// `[group][row]`.
    moments: &'a [Moments],
    reach: [f32; ROWS],
    /// Products of the high codes, in units of 16.
    high: &'a [[f32; ROWS]],
    out: &'a mut [f32],
}

impl Task for Bound<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.high.len();
        for (r, (high, out)) in self.high.iter().zip(self.out).enumerate() {
            let (mut middle, mut norm) = (simd.splat(0.), simd.splat(0.));
            let mut moments = self.moments[r..].iter().step_by(rows);
            for block in self.blocks.chunks_exact(split::BLOCK) {
                for (scales, moments) in split::scales(block).iter().zip(&mut moments) {
                    let scales = simd.load_f16(scales);
                    middle = simd.fma(scales, simd.splat(moments.middle), middle);
                    norm = simd.fma(scales, simd.splat(moments.norm), norm);
                }
            }
            // The last, because products of the smallest numbers round by more than their share.
            let rest = simd.fma(norm, simd.load(&self.reach), simd.splat(1e-30));
            let most = simd.add(simd.fma(simd.load(high), simd.splat(16.), middle), rest);
            *out = simd.largest(most);
        }
    }
}

impl CpuKernels {
    pub(in crate::cpu) fn run_most_likely(&self, x: &Tensor, layer: &Linear) -> Result<Vec<Option<u32>>> {
        let (rows, cols) = x.dims2()?;
        if rows == 0 {
            return Ok(vec![]);
        }
        if let ([part], None) = (layer.parts.as_slice(), &layer.bias)
            && let Packed::Split(tiles) = &part.packed
            && rows <= FEW_ROWS
            && cols == layer.in_features
            && tiles.pays()
            && let Some(found) = self.search(x, tiles)?
        {
            return Ok(found);
        }
        let chunks = self.chunks(x, layer)?;
        if layer.out_features > u32::MAX as usize {
            bail!("tokens of {} products", layer.out_features);
        }
        let mut best = vec![Best::NONE; chunks.len() * rows];
        self.fill(x, layer, &chunks, layer.out_features, &Sink::Best(Disjoint::new(&mut best)))?;
        Ok(Best::of_pieces(&best, rows))
    }

    /// `None` for inputs that no bound can be made of.
    fn search(&self, x: &Tensor, tiles: &SplitTiles) -> Result<Option<Vec<Option<u32>>>> {
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let x = slice::<f32>(&storage, layout)?;
        Ok(self.rounded.with(|data| {
            let activation = Activation::quantize(x, tiles.cols, self.isa, &self.pool, data);
            let moments: Vec<_> = activation.data().iter().map(Moments::of).collect();
            if !moments.iter().all(|moments| moments.fits()) {
                return None;
            }
            let rows = x.len() / tiles.cols;
            let groups = moments.len() / rows;
            let search = Search { isa: self.isa, tiles, activation, moments: &moments, groups, rows };
            let (best, read) = self.bounds.with(|bounds| search.run(&self.pool, bounds));
            tiles.learn(read);
            Some(Best::of_pieces(&best, rows))
        }))
    }
}

/// Rows and the tiles they are searched in.
struct Search<'a> {
    isa: Isa,
    tiles: &'a SplitTiles,
    activation: Activation<'a>,
    /// Of the groups of the activation.
    moments: &'a [Moments],
    /// Groups of a row, with those that are empty.
    groups: usize,
    rows: usize,
}

impl Search<'_> {
    /// The largest products of pieces, `[piece][row]`, and how many tiles were read whole. `bounds` is only memory.
    fn run(&self, pool: &Pool, bounds: &mut Vec<f32>) -> (Vec<Best>, usize) {
        let (rows, count) = (self.rows, self.tiles.rows.div_ceil(ROWS));
        let size = count.div_ceil(PIECES_PER_THREAD * pool.threads()).max(1);
        let piece = |i: usize| i * size..count.min((i + 1) * size);
        let pieces = count.div_ceil(size);
        // `[tile][row]`.
        bounds.resize(count * rows, 0.);
        let all = Disjoint::new(bounds);
        pool.run(pieces, &|i| {
            // SAFETY: the tiles of a piece are its own.
            let bounds = unsafe { all.piece(piece(i).start * rows..piece(i).end * rows) };
            piece(i).zip(bounds.chunks_exact_mut(rows)).for_each(|(tile, bounds)| self.bound(tile, bounds));
        });
        // Where the bound of a row is largest is a product that few can be larger than.
        let mut least = vec![Best::NONE; rows];
        for row in 0..rows {
            let of_row = (0..).zip(bounds.iter().skip(row).step_by(rows));
            let (tile, _) =
                of_row.fold((0, &f32::NEG_INFINITY), |most, next| if next.1 > most.1 { next } else { most });
            self.compute(tile, &mut least);
        }
        let mut best = vec![Best::NONE; pieces * rows];
        let (all, read) = (Disjoint::new(&mut best), AtomicUsize::new(0));
        pool.run(pieces, &|i| {
            // SAFETY: each piece has its own.
            let best = unsafe { all.piece(i * rows..(i + 1) * rows) };
            for tile in piece(i) {
                let mut known = bounds[tile * rows..].iter().zip(best.iter().zip(&least));
                if known.any(|(&bound, (best, least))| bound >= best.value.max(least.value)) {
                    self.compute(tile, best);
                    read.fetch_add(1, Relaxed);
                }
            }
        });
        (best, read.into_inner())
    }

    /// How large the products of a tile can be: one number per row.
    fn bound(&self, tile: usize, out: &mut [f32]) {
        let (tile, reach) = self.tiles.half(tile);
        let reach = reach.map(|reach| reach + (3 * self.groups + 8) as f32 * ROUNDING);
        let mut high: Sums = [[0.; ROWS]; BLOCK_ROWS];
        for (first, rows) in blocks(self.rows) {
            let high = &mut high[..rows];
            quantised(self.isa, tile, self.activation.block(first, rows), high);
            let moments = &self.moments[first * self.groups..(first + rows) * self.groups];
            dispatch(self.isa, Bound { blocks: tile.bytes, moments, reach, high, out: &mut out[first..first + rows] });
        }
    }

    /// Takes all products of a tile.
    fn compute(&self, tile: usize, best: &mut [Best]) {
        let whole = self.tiles.whole(tile);
        let count = ROWS.min(self.tiles.rows - tile * ROWS);
        let mut sums: Sums = [[0.; ROWS]; BLOCK_ROWS];
        for (first, rows) in blocks(self.rows) {
            let (block, sums) = (self.activation.block(first, rows), &mut sums[..rows]);
            quantised(self.isa, whole, block, sums);
            for (best, sums) in best[first..].iter_mut().zip(sums) {
                best.take(tile * ROWS, &sums[..count]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::cpu::linear::Arena;
    use crate::{Kernels, Weight, WeightKind};

    #[test]
    fn few_tiles_are_read_whole_where_one_row_is_meant() {
        let (rows, cols) = (4000, 256);
        let mut state = 3u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(rows * cols / 32 * 34)
        .collect();
        bytes.chunks_exact_mut(34).for_each(|block| block[..2].copy_from_slice(&[0, 0x3c]));
        let weight = Weight::new(WeightKind::Q8_0, rows, cols, bytes.into()).unwrap();
        let x = Tensor::from_slice(&weight.to_f32().unwrap()[1234 * cols..][..cols], (1, cols), &Device::Cpu).unwrap();
        let isa = Isa::Avx512Vnni;
        if Isa::detect() >= isa {
            let kernels = CpuKernels::with_isa(Some(2), isa);
            let tiles = SplitTiles::pack(&weight, &kernels.pool, &Arena::default()).unwrap().unwrap();
            assert_eq!(kernels.search(&x, &tiles).unwrap(), Some(vec![Some(1234)]), "{isa}");
            let (storage, layout) = x.storage_and_layout();
            let mut data = vec![];
            let x = slice::<f32>(&storage, layout).unwrap();
            let activation = Activation::quantize(x, cols, kernels.isa, &kernels.pool, &mut data);
            let moments: Vec<_> = activation.data().iter().map(Moments::of).collect();
            let search = Search {
                isa: kernels.isa,
                tiles: &tiles,
                activation,
                groups: moments.len(),
                moments: &moments,
                rows: 1,
            };
            let (_, read) = search.run(&kernels.pool, &mut vec![]);
            assert_eq!(read, 1, "{isa}: of {}", rows / ROWS);
            // What the bound says of every row is so, and near.
            let whole = kernels.pack(std::slice::from_ref(&weight), None).unwrap();
            let y = kernels.linear(&Tensor::from_slice(x, (1, cols), &Device::Cpu).unwrap(), &whole).unwrap();
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let size: f32 = moments.iter().map(|moments| moments.norm).sum();
            for (tile, y) in y.chunks(ROWS).enumerate() {
                let mut bound = [0.];
                search.bound(tile, &mut bound);
                let most = y.iter().fold(f32::NEG_INFINITY, |max, &y| max.max(y));
                assert!(
                    most <= bound[0] && bound[0] < most + 2. * 43. * size,
                    "{isa} tile {tile}: {most} {}",
                    bound[0]
                );
            }
        }
    }
}
