//! A part of a tile's work: its query rows against a run of partitions, folded in ascending order.

use std::ops::Range;

use super::tile::{Blocks, PARTITION, group_size, merge, scores, softmax, weighted};
use crate::BLOCK_SIZE;
use crate::cpu::host::Disjoint;
use crate::cpu::simd::{Element, LANES, Simd, Task};

/// Rows from which a cache of halves is widened once rather than by every group of rows.
const WIDEN_ROWS: usize = 17;

/// Blocks of a partition that was copied.
static IN_ORDER: [u32; PARTITION / BLOCK_SIZE] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// What all tiles of one call share.
pub(super) struct Job<'a> {
    /// `[tokens, heads, dim]`.
    pub(super) q: &'a [f32],
    pub(super) positions: &'a [u32],
    /// Last position that each token sees.
    pub(super) reach: &'a [u32],
    pub(super) heads: usize,
    /// Query heads per cached head.
    pub(super) group: usize,
    pub(super) dim: usize,
    pub(super) v_dim: usize,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
    pub(super) sinks: Option<&'a [f32]>,
}

/// Queries that read the same cached head. Its rows are (token, head of the group), token by token.
pub(super) struct Tile {
    pub(super) sequence: usize,
    /// Cached head.
    pub(super) head: usize,
    /// Flat tokens of the batch.
    pub(super) tokens: Range<usize>,
    /// Partitions that some row sees.
    pub(super) partitions: Range<usize>,
}

/// One task.
pub(super) struct Part {
    pub(super) tile: usize,
    pub(super) partitions: Range<usize>,
    /// Whether these are all partitions of the tile.
    pub(super) whole: bool,
    /// Multiplications.
    pub(super) cost: usize,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    partial: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Tile {
    pub(super) fn new(job: &Job, sequence: usize, head: usize, tokens: Range<usize>) -> Self {
        let visible = job.visible(&tokens);
        let partitions = visible.start / PARTITION..visible.end.div_ceil(PARTITION);
        Self { sequence, head, tokens, partitions }
    }
}

impl Job<'_> {
    /// Positions that some of `tokens`, consecutive ones of a sequence, see.
    pub(super) fn visible(&self, tokens: &Range<usize>) -> Range<usize> {
        let first = self.positions[tokens.start] as usize;
        let last = self.reach[tokens.clone()].iter().max().map_or(0, |&last| last as usize);
        let start = self.window.map_or(0, |window| (first + 1).saturating_sub(window));
        start..last + 1
    }

    /// Elements of a row's state: values, maximum, sum.
    pub(super) fn row_len(&self) -> usize {
        self.v_dim + 2
    }

    pub(super) fn state_len(&self, tile: &Tile) -> usize {
        tile.tokens.len() * self.group * self.row_len()
    }

    /// Nothing seen yet but the sinks.
    pub(super) fn first_state(&self, tile: &Tile, state: &mut Vec<f32>) {
        state.resize(self.state_len(tile), 0.);
        self.reset(tile, true, state);
    }

    /// Nothing seen yet, or with `sinks` only the sink.
    fn reset(&self, tile: &Tile, sinks: bool, state: &mut [f32]) {
        for (row, state) in state.chunks_exact_mut(self.row_len()).enumerate() {
            state.fill(0.);
            let sink = self.sinks.filter(|_| sinks).map(|sinks| sinks[tile.head * self.group + row % self.group]);
            (state[self.v_dim], state[self.v_dim + 1]) = sink.map_or((f32::NEG_INFINITY, 0.), |sink| (sink, 1.));
        }
    }

    /// Writes the rows of a tile to the result `[tokens, heads, v_dim]`.
    ///
    /// # Safety
    /// No other thread holds rows of this tile.
    pub(super) unsafe fn finish(&self, tile: &Tile, state: &[f32], out: &Disjoint<f32>) {
        for (row, state) in state.chunks_exact(self.row_len()).enumerate() {
            let (token, head) = (tile.tokens.start + row / self.group, tile.head * self.group + row % self.group);
            let start = (token * self.heads + head) * self.v_dim;
            // SAFETY: promised by the caller.
            let out = unsafe { out.piece(start..start + self.v_dim) };
            let factor = 1. / state[self.v_dim + 1];
            for (out, value) in out.iter_mut().zip(state) {
                *out = value * factor;
            }
        }
    }
}

/// Computes a part into `state`, complete but for the division by the sum.
pub(super) struct Fold<'a, E> {
    pub(super) job: &'a Job<'a>,
    pub(super) tile: &'a Tile,
    pub(super) part: &'a Part,
    pub(super) keys: Blocks<'a, E>,
    /// `None`: the values are the first elements of the keys.
    pub(super) values: Option<Blocks<'a, E>>,
    pub(super) scratch: &'a mut Scratch,
    pub(super) state: &'a mut [f32],
}

impl<E: Element> Task for Fold<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { job, tile, part, keys, values, scratch, state } = self;
        let rows = tile.tokens.len() * job.group;
        job.reset(tile, part.whole, state);
        interleave::<S>(job, tile, &mut scratch.q);
        scratch.scores.resize(rows * PARTITION, 0.);
        scratch.partial.resize(rows * job.row_len(), 0.);
        let widen = E::WIDEN || (rows >= WIDEN_ROWS && size_of::<E>() != size_of::<f32>());
        for partition in part.partitions.clone() {
            let start = partition * PARTITION;
            let visible = job.visible(&tile.tokens);
            let tokens = visible.start.max(start) - start..visible.end.min(start + PARTITION) - start;
            let blocks = tokens.start / BLOCK_SIZE..tokens.end.div_ceil(BLOCK_SIZE);
            let keys = Blocks { table: &keys.table[start / BLOCK_SIZE..], ..keys };
            let values = values.map(|values| Blocks { table: &values.table[start / BLOCK_SIZE..], ..values });
            if widen {
                copy(simd, &keys, blocks.clone(), &mut scratch.keys);
            }
            match &values {
                None => transpose(simd, &keys, blocks.clone(), job.v_dim, &mut scratch.values),
                Some(values) if widen => copy(simd, values, blocks.clone(), &mut scratch.values),
                Some(_) => {}
            }
            let copied = |data, dim: usize| Blocks {
                data,
                stride: dim * BLOCK_SIZE,
                offset: 0,
                len: dim * BLOCK_SIZE,
                table: &IN_ORDER,
            };
            let wide_keys = copied(&scratch.keys, job.dim);
            let wide_values = copied(&scratch.values, job.v_dim);
            let mut row = 0;
            while row < rows {
                let group = group_size::<S>(rows - row);
                let q = (&scratch.q[row * job.dim..][..group * job.dim], group);
                let row_scores = &mut scratch.scores[row * PARTITION..][..group * PARTITION];
                if widen {
                    scores(simd, q, &wide_keys, blocks.clone(), row_scores);
                } else {
                    scores(simd, q, &keys, blocks.clone(), row_scores);
                }
                for (i, row_scores) in row_scores.chunks_exact_mut(PARTITION).enumerate() {
                    let token = tile.tokens.start + (row + i) / job.group;
                    let visible = job.visible(&(token..token + 1));
                    let end = visible.end.min(start + PARTITION).max(start) - start;
                    let seen = visible.start.max(start) - start..end;
                    let (largest, sum) = softmax(simd, row_scores, blocks.clone(), seen, job.softcap);
                    let partial = &mut scratch.partial[(row + i) * job.row_len()..][..job.row_len()];
                    (partial[job.v_dim], partial[job.v_dim + 1]) = (largest, sum);
                }
                let weights = (&*row_scores, group);
                let sums = (&mut scratch.partial[row * job.row_len()..], job.row_len());
                match &values {
                    Some(values) if !widen => weighted(simd, weights, values, tokens.clone(), sums),
                    _ => weighted(simd, weights, &wide_values, tokens.clone(), sums),
                }
                row += group;
            }
            join(simd, job.row_len(), state, &scratch.partial[..rows * job.row_len()]);
        }
    }
}

/// Folds the state of a later part into that of the earlier ones.
pub(super) struct Join<'a> {
    pub(super) row_len: usize,
    pub(super) state: &'a mut [f32],
    pub(super) part: &'a [f32],
}

impl Task for Join<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        join(simd, self.row_len, self.state, self.part);
    }
}

#[inline(always)]
fn join<S: Simd>(simd: S, row_len: usize, state: &mut [f32], part: &[f32]) {
    for (state, part) in state.chunks_exact_mut(row_len).zip(part.chunks_exact(row_len)) {
        merge(simd, state, part);
    }
}

/// Scaled queries of the tile's rows, group by group, `[dim, rows of the group]` each.
#[inline(always)]
fn interleave<S: Simd>(job: &Job, tile: &Tile, out: &mut Vec<f32>) {
    let rows = tile.tokens.len() * job.group;
    out.resize(rows * job.dim, 0.);
    let mut row = 0;
    while row < rows {
        let group = group_size::<S>(rows - row);
        let out = &mut out[row * job.dim..][..group * job.dim];
        for r in 0..group {
            let (token, head) = ((row + r) / job.group, (row + r) % job.group);
            let head = (tile.tokens.start + token) * job.heads + tile.head * job.group + head;
            for (out, q) in out[r..].iter_mut().step_by(group).zip(&job.q[head * job.dim..][..job.dim]) {
                *out = q * job.scale;
            }
        }
        row += group;
    }
}

/// Blocks `blocks` as f32, to the same places of a buffer in order.
#[inline(always)]
fn copy<S: Simd, E: Element>(simd: S, from: &Blocks<E>, blocks: Range<usize>, out: &mut Vec<f32>) {
    out.resize(from.len * PARTITION / BLOCK_SIZE, 0.);
    for block in blocks {
        let (from_lanes, _) = from.block(block).as_chunks::<LANES>();
        let (out, _) = out[block * from.len..][..from.len].as_chunks_mut::<LANES>();
        for (from, out) in from_lanes.iter().zip(out) {
            simd.store(E::load(simd, from), out);
        }
    }
}

/// The first `v_dim` elements of the keys of `blocks`, laid out as values.
#[inline(always)]
fn transpose<S: Simd, E: Element>(simd: S, keys: &Blocks<E>, blocks: Range<usize>, v_dim: usize, out: &mut Vec<f32>) {
    out.resize(v_dim * PARTITION, 0.);
    for block in blocks {
        let (lanes, _) = keys.block(block).as_chunks::<LANES>();
        let out = &mut out[block * v_dim * BLOCK_SIZE..][..v_dim * BLOCK_SIZE];
        for (d, lanes) in lanes.iter().take(v_dim).enumerate() {
            for (token, x) in simd.to_array(E::load(simd, lanes)).into_iter().enumerate() {
                out[token * v_dim + d] = x;
            }
        }
    }
}
