//! Paged attention without a matrix of scores: tiles of query rows that share a cached head, spread over the threads, long
//! contexts also by partition.

mod part;
mod tile;

use std::cmp::Reverse;

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};

use self::part::{Fold, Job, Join, Part, Scratch, Tile};
use self::tile::{Blocks, PARTITION};
use super::CpuKernels;
use super::host::{Disjoint, Spare, filled, slice};
use super::simd::{Element, dispatch};
use crate::ops::attention::check;
use crate::{AttentionSpec, BLOCK_SIZE, KvCache, Plan};

/// Query rows per tile: enough to pay for reading the keys, few enough that their scores stay in the second-level cache.
const TILE_ROWS: usize = 64;
/// Multiplications below which all is done on the calling thread.
const SERIAL: usize = 48 * 1024;

/// What an attention leaves for the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    states: Spare<Vec<f32>>,
    scratch: Spare<Scratch>,
}

pub(super) fn attention(
    kernels: &CpuKernels,
    q: &Tensor,
    spec: &AttentionSpec,
    cache: &KvCache,
    plan: &Plan,
) -> Result<Tensor> {
    check(q, spec, cache, plan)?;
    match cache.layout.dtype {
        DType::F32 => attention_over::<f32>(kernels, q, spec, cache, plan),
        DType::F16 => attention_over::<f16>(kernels, q, spec, cache, plan),
        DType::BF16 => attention_over::<bf16>(kernels, q, spec, cache, plan),
        other => bail!("a cache of {other:?}: f32, f16 and bf16 are known"),
    }
}

fn attention_over<E: Element>(
    kernels: &CpuKernels,
    q: &Tensor,
    spec: &AttentionSpec,
    cache: &KvCache,
    plan: &Plan,
) -> Result<Tensor> {
    check_tables(cache, plan)?;
    let q = q.contiguous()?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let (k_storage, k_layout) = cache.k.storage_and_layout();
    let keys = slice::<E>(&k_storage, k_layout)?;
    let v_storage = cache.v.as_ref().map(Tensor::storage_and_layout);
    let values = v_storage.as_ref().map(|(storage, layout)| slice::<E>(storage, layout)).transpose()?;
    let sinks = spec.sinks.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
    if let Some(sinks) = sinks.as_ref().filter(|sinks| sinks.len() != spec.num_heads) {
        bail!("{} sinks for {} heads", sinks.len(), spec.num_heads);
    }
    let layout = &cache.layout;
    let job = Job {
        q: slice::<f32>(&q_storage, q_layout)?,
        positions: &plan.batch.positions,
        reach: if plan.batch.reach.is_empty() { &plan.batch.positions } else { &plan.batch.reach },
        heads: spec.num_heads,
        group: spec.num_heads / layout.num_kv_heads,
        dim: layout.head_dim,
        v_dim: spec.v_head_dim,
        scale: spec.scale,
        window: spec.window,
        softcap: spec.softcap,
        sinks: sinks.as_deref(),
    };
    let (tiles, parts) = cut(&job, kernels.threads(), plan);
    let mut starts = Vec::with_capacity(parts.len() + 1);
    starts.push(0);
    for part in &parts {
        starts.push(starts[starts.len() - 1] + job.state_len(&tiles[part.tile]));
    }
    let fold = |i: usize, state: &mut [f32]| {
        let (part, tile) = (&parts[i], &tiles[parts[i].tile]);
        let blocks = |data, dim: usize| Blocks {
            data,
            stride: layout.num_kv_heads * dim * BLOCK_SIZE,
            offset: tile.head * dim * BLOCK_SIZE,
            len: dim * BLOCK_SIZE,
            table: &plan.batch.block_tables[tile.sequence],
        };
        let (keys, values) = (blocks(keys, job.dim), values.map(|values| blocks(values, job.v_dim)));
        kernels.buffers.scratch.with(|scratch| {
            dispatch(kernels.isa, Fold { job: &job, tile, part, keys, values, scratch, state });
        });
    };
    let serial = parts.iter().map(|part| part.cost).sum::<usize>() < SERIAL;
    let fill = |out: &Disjoint<f32>| {
        kernels.buffers.states.with(|states| {
            if states.len() < starts[parts.len()] {
                states.resize(starts[parts.len()], 0.);
            }
            let shared = Disjoint::new(states);
            let run = |i: usize| {
                // SAFETY: the states of the parts lie one after the other.
                let state = unsafe { shared.piece(starts[i]..starts[i + 1]) };
                fold(i, state);
                if parts[i].whole {
                    // SAFETY: each row of the result belongs to one tile, and this is its only part.
                    unsafe { job.finish(&tiles[parts[i].tile], state, out) };
                }
            };
            if serial {
                (0..parts.len()).for_each(run);
            } else {
                kernels.pool.run(parts.len(), &run);
            }
            // Tiles that were split have their parts one after the other, in order.
            let (mut next, mut state) = (0, Vec::new());
            while let Some(part) = parts.get(next).filter(|part| !part.whole) {
                let tile = &tiles[part.tile];
                job.first_state(tile, &mut state);
                for _ in tile.partitions.clone() {
                    let part = &states[starts[next]..starts[next + 1]];
                    dispatch(kernels.isa, Join { row_len: job.row_len(), state: &mut state, part });
                    next += 1;
                }
                // SAFETY: no other thread is left.
                unsafe { job.finish(tile, &state, out) };
            }
        });
        Ok(())
    };
    // SAFETY: the tiles hold all queries, and a finished tile has written its rows.
    let out = unsafe { filled(plan.batch.num_tokens() * job.heads * job.v_dim, fill) }?;
    Tensor::from_vec(out, (plan.batch.num_tokens(), job.heads * job.v_dim), q.device())
}

/// Refuses block tables that end before the last query or point outside the cache.
fn check_tables(cache: &KvCache, plan: &Plan) -> Result<()> {
    let num_blocks = cache.k.dim(0)?;
    for (s, table) in plan.batch.block_tables.iter().enumerate() {
        let range = plan.batch.query_range(s);
        let Some(last) = range.map(|token| plan.batch.last_seen(token)).max() else { continue };
        let needed = last as usize / BLOCK_SIZE + 1;
        if table.len() < needed || table[..needed].iter().any(|&block| block as usize >= num_blocks) {
            bail!("block_tables[{s}] does not cover position {last} in {num_blocks} blocks");
        }
    }
    Ok(())
}

/// Cuts the step's queries into tiles and those into parts, most work first.
fn cut(job: &Job, threads: usize, plan: &Plan) -> (Vec<Tile>, Vec<Part>) {
    let step = (TILE_ROWS / job.group).max(1);
    let stretches = |sequence| plan.batch.query_range(sequence).len().div_ceil(step);
    let heads = job.heads / job.group;
    let mut tiles = Vec::with_capacity(heads * (0..plan.batch.num_sequences()).map(stretches).sum::<usize>());
    for sequence in 0..plan.batch.num_sequences() {
        let range = plan.batch.query_range(sequence);
        for head in 0..heads {
            for start in range.clone().step_by(step) {
                tiles.push(Tile::new(job, sequence, head, start..(start + step).min(range.end)));
            }
        }
    }
    // Where there are too few tiles for the threads, partitions are done apart and joined afterwards: same result.
    if threads > 1 && tiles.len() < 2 * threads && tiles.iter().any(|tile| tile.partitions.len() > 1) {
        let mut parts = Vec::with_capacity(tiles.iter().map(|tile| tile.partitions.len()).sum());
        for (tile, Tile { tokens, partitions, .. }) in tiles.iter().enumerate() {
            let cost = tokens.len() * job.group * PARTITION * (job.dim + job.v_dim);
            parts.extend(partitions.clone().map(|p| Part { tile, partitions: p..p + 1, whole: false, cost }));
        }
        return (tiles, parts);
    }
    let whole = |(tile, Tile { tokens, partitions, .. }): (usize, &Tile)| {
        let blocks = job.visible(tokens).len().div_ceil(BLOCK_SIZE);
        let cost = tokens.len() * job.group * blocks * BLOCK_SIZE * (job.dim + job.v_dim);
        Part { tile, partitions: partitions.clone(), whole: true, cost }
    };
    let mut parts: Vec<Part> = tiles.iter().enumerate().map(whole).collect();
    parts.sort_unstable_by_key(|part| (Reverse(part.cost), part.tile));
    (tiles, parts)
}
