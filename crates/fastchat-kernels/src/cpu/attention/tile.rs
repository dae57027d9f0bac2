//! The arithmetic of attention: a tile of query rows against one partition of a sequence's keys. Every row is computed
//! lane by lane in the same order whatever tile it is in, so that its result does not depend on the tile.

use std::ops::Range;

use crate::BLOCK_SIZE;
use crate::cpu::simd::{Element, LANES, Simd, exp, tanh};

/// Tokens per partition, counted from the start of the sequence: softmax runs within one, results are merged in order.
pub(super) const PARTITION: usize = 256;

/// One head of one of the cache's tensors: `block(i)` is what `table[i]` points to.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a, E> {
    pub(super) data: &'a [E],
    /// Elements from one block to the next, from the start of a block to the head, and of the head.
    pub(super) stride: usize,
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) table: &'a [u32],
}

impl<'a, E> Blocks<'a, E> {
    #[inline(always)]
    pub(super) fn block(&self, i: usize) -> &'a [E] {
        &self.data[self.table[i] as usize * self.stride + self.offset..][..self.len]
    }
}

/// How many of the rows that are left form the next group: they are computed together, their queries interleaved.
#[inline(always)]
pub(super) fn group_size<S: Simd>(rows_left: usize) -> usize {
    rows_left.min(if S::WIDE { 8 } else { 4 })
}

/// Scores of the rows `row ..` whose queries are interleaved in `q`, for the blocks `blocks` of the partition; row `r`
/// lies at `r * PARTITION` of `scores`.
#[inline(always)]
pub(super) fn scores<S: Simd, E: Element>(
    simd: S,
    (q, group): (&[f32], usize),
    keys: &Blocks<E>,
    blocks: Range<usize>,
    scores: &mut [f32],
) {
    macro_rules! tile {
        ($rows:literal, $blocks:literal) => {
            score_blocks::<S, E, $rows, $blocks>(simd, q, keys, blocks, scores)
        };
    }
    // As many sums as hide the latency of one and fit the registers.
    match (group, S::WIDE) {
        (1, true) => tile!(1, 8),
        (2, true) => tile!(2, 8),
        (3, true) => tile!(3, 4),
        (4, true) => tile!(4, 4),
        (5, true) => tile!(5, 2),
        (6, true) => tile!(6, 2),
        (7, true) => tile!(7, 2),
        (_, true) => tile!(8, 2),
        (1, false) => tile!(1, 4),
        (2, false) => tile!(2, 2),
        (3, false) => tile!(3, 1),
        (_, false) => tile!(4, 1),
    }
}

#[inline(always)]
fn score_blocks<S: Simd, E: Element, const R: usize, const B: usize>(
    simd: S,
    q: &[f32],
    keys: &Blocks<E>,
    blocks: Range<usize>,
    scores: &mut [f32],
) {
    let (q, _) = q.as_chunks::<R>();
    let mut block = blocks.start;
    while block + B <= blocks.end {
        score_tile::<S, E, R, B>(simd, q, keys, block, scores);
        block += B;
    }
    while block < blocks.end {
        score_tile::<S, E, R, 1>(simd, q, keys, block, scores);
        block += 1;
    }
}

#[inline(always)]
fn score_tile<S: Simd, E: Element, const R: usize, const B: usize>(
    simd: S,
    q: &[[f32; R]],
    keys: &Blocks<E>,
    block: usize,
    scores: &mut [f32],
) {
    let mut k: [&[[E; LANES]]; B] = [&[]; B];
    for b in 0..B {
        k[b] = &keys.block(block + b).as_chunks::<LANES>().0[..q.len()];
    }
    let mut sums = [[simd.splat(0.); B]; R];
    for (d, q) in q.iter().enumerate() {
        let mut lanes = [simd.splat(0.); B];
        for b in 0..B {
            lanes[b] = E::load(simd, &k[b][d]);
        }
        for r in 0..R {
            let q = simd.splat(q[r]);
            for b in 0..B {
                sums[r][b] = simd.fma(q, lanes[b], sums[r][b]);
            }
        }
    }
    for r in 0..R {
        let (row, _) = scores[r * PARTITION..][..PARTITION].as_chunks_mut::<LANES>();
        for b in 0..B {
            simd.store(sums[r][b], &mut row[block + b]);
        }
    }
}

/// Turns the scores of a row into `e^(score - maximum)` within `seen` and zeros in the rest of `blocks`; returns the
/// maximum and the sum. `seen` counts tokens of the partition.
#[inline(always)]
pub(super) fn softmax<S: Simd>(
    simd: S,
    row: &mut [f32],
    blocks: Range<usize>,
    seen: Range<usize>,
    softcap: Option<f32>,
) -> (f32, f32) {
    let (row, _) = row.as_chunks_mut::<LANES>();
    if seen.is_empty() {
        for lanes in &mut row[blocks] {
            *lanes = [0.; LANES];
        }
        return (f32::NEG_INFINITY, 0.);
    }
    let minus_infinity = simd.splat(f32::NEG_INFINITY);
    let mut largest = minus_infinity;
    for (block, lanes) in row.iter_mut().enumerate().take(blocks.end).skip(blocks.start) {
        let mut x = simd.load(lanes);
        if let Some(cap) = softcap {
            x = simd.mul(tanh(simd, simd.mul(x, simd.splat(1. / cap))), simd.splat(cap));
        }
        let first = block * LANES;
        if first < seen.start || first + LANES > seen.end {
            let index = simd.load(&std::array::from_fn(|i| (first + i) as f32));
            x = simd.select_lt(index, simd.splat(seen.start as f32), minus_infinity, x);
            x = simd.select_lt(index, simd.splat(seen.end as f32), x, minus_infinity);
        }
        simd.store(x, lanes);
        largest = simd.max(largest, x);
    }
    let largest = simd.largest(largest);
    let splat = simd.splat(largest);
    let mut sum = simd.splat(0.);
    for lanes in &mut row[blocks] {
        let x = exp(simd, simd.sub(simd.load(lanes), splat));
        simd.store(x, lanes);
        sum = simd.add(sum, x);
    }
    (largest, simd.sum(sum))
}

/// `sum of weight * value` over the tokens `tokens` of the partition, for `group` rows; row `r` of the weights lies at
/// `r * PARTITION`, of the sums at `r * sums_stride`.
#[inline(always)]
pub(super) fn weighted<S: Simd, E: Element>(
    simd: S,
    (weights, group): (&[f32], usize),
    values: &Blocks<E>,
    tokens: Range<usize>,
    (sums, sums_stride): (&mut [f32], usize),
) {
    let dim = values.len / BLOCK_SIZE;
    let mut column = 0;
    while column < dim {
        let chunks = (dim - column) / LANES;
        macro_rules! tile {
            ($rows:literal, $chunks:literal) => {{
                let out = (&mut sums[column..], sums_stride);
                if chunks >= $chunks {
                    weighted_tile::<S, E, $rows, $chunks>(simd, weights, values, (tokens.clone(), dim, column), out);
                    column += $chunks * LANES;
                } else {
                    weighted_tile::<S, E, $rows, 1>(simd, weights, values, (tokens.clone(), dim, column), out);
                    column += LANES;
                }
            }};
        }
        match (group, S::WIDE) {
            (1, true) => tile!(1, 8),
            (2, true) => tile!(2, 4),
            (3, true) => tile!(3, 4),
            (4, true) => tile!(4, 4),
            (5, true) => tile!(5, 2),
            (6, true) => tile!(6, 2),
            (7, true) => tile!(7, 2),
            (_, true) => tile!(8, 2),
            (1, false) => tile!(1, 4),
            (2, false) => tile!(2, 2),
            (3, false) => tile!(3, 1),
            (_, false) => tile!(4, 1),
        }
    }
}

/// `C` vectors from element `column` of rows of `dim`; the last may be cut short by the end of the row.
#[inline(always)]
fn weighted_tile<S: Simd, E: Element, const R: usize, const C: usize>(
    simd: S,
    weights: &[f32],
    values: &Blocks<E>,
    (tokens, dim, column): (Range<usize>, usize, usize),
    (out, stride): (&mut [f32], usize),
) {
    let width = (dim - column).min(C * LANES);
    let mut sums = [[simd.splat(0.); C]; R];
    for block in tokens.start / BLOCK_SIZE..tokens.end.div_ceil(BLOCK_SIZE) {
        let first = block * BLOCK_SIZE;
        let inside = tokens.start.max(first) - first..tokens.end.min(first + BLOCK_SIZE) - first;
        let v = values.block(block);
        let mut weight: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            weight[r] = &weights[r * PARTITION + first..][..BLOCK_SIZE];
        }
        for token in inside {
            let v = &v[token * dim + column..][..width];
            let mut lanes = [simd.splat(0.); C];
            if width == C * LANES {
                let (v, _) = v.as_chunks::<LANES>();
                for c in 0..C {
                    lanes[c] = E::load(simd, &v[c]);
                }
            } else {
                lanes[0] = E::load_part(simd, v);
            }
            for r in 0..R {
                let weight = simd.splat(weight[r][token]);
                for c in 0..C {
                    sums[r][c] = simd.fma(weight, lanes[c], sums[r][c]);
                }
            }
        }
    }
    for r in 0..R {
        let out = &mut out[r * stride..][..width];
        if width == C * LANES {
            let (out, _) = out.as_chunks_mut::<LANES>();
            for c in 0..C {
                simd.store(sums[r][c], &mut out[c]);
            }
        } else {
            simd.store_part(sums[r][0], out);
        }
    }
}

/// Folds a partition's weighted values, maximum and sum, which end a row, into those of the partitions before it.
#[inline(always)]
pub(super) fn merge<S: Simd>(simd: S, state: &mut [f32], partial: &[f32]) {
    let dim = partial.len() - 2;
    let (values, tail) = state.split_at_mut(dim);
    if partial[dim] == f32::NEG_INFINITY {
        return;
    }
    let largest = tail[0].max(partial[dim]);
    let before = simd.to_array(exp(simd, simd.splat(tail[0] - largest)))[0];
    let now = simd.to_array(exp(simd, simd.splat(partial[dim] - largest)))[0];
    for (value, partial) in values.iter_mut().zip(partial) {
        *value = *value * before + partial * now;
    }
    tail.copy_from_slice(&[largest, tail[1] * before + partial[dim + 1] * now]);
}
