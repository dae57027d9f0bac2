//! Attention in both directions by way of the paged kernels: keys and values go to a cache that lives for this call, and
//! every query reaches to its sequence's last position, from where causal attention sees all of it.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::{CpuKernels, attention, qkv};
use crate::ops::full_attention::check_rows;
use crate::{AttentionSpec, BLOCK_SIZE, ForwardBatch, KvCache, KvLayout, Plan, QkvSpec};

/// For specs without a window.
pub(super) fn full_attention(
    kernels: &CpuKernels,
    qkv: &Tensor,
    parts: &QkvSpec,
    (spec, plan): (&AttentionSpec, &Plan),
    rows: &Range<usize>,
) -> Result<Tensor> {
    check_rows(plan, rows)?;
    let mut plan = plan.clone();
    let mut num_blocks = 0;
    plan.batch.slot_mapping.clear();
    plan.batch.block_tables.clear();
    let mut reach = Vec::with_capacity(plan.batch.num_tokens());
    plan.batch.positions.clear();
    for s in 0..plan.batch.num_sequences() {
        let tokens = plan.batch.query_range(s).len() as u32;
        let blocks = tokens.div_ceil(BLOCK_SIZE as u32);
        let first = num_blocks * BLOCK_SIZE as u32;
        plan.batch.slot_mapping.extend(first..first + tokens);
        plan.batch.block_tables.push((num_blocks..num_blocks + blocks).collect());
        plan.batch.context_lens[s] = tokens;
        plan.batch.positions.extend(0..tokens);
        reach.extend((0..tokens).map(|_| tokens - 1));
        num_blocks += blocks;
    }
    let layout = KvLayout {
        num_kv_heads: parts.num_kv_heads,
        head_dim: parts.head_dim,
        v_head_dim: spec.v_head_dim,
        dtype: qkv.dtype(),
    };
    let cache = KvCache::new(layout, num_blocks as usize, &Device::Cpu)?;
    let q = qkv::qk_norm_rope_write(kernels, qkv, parts, &cache, &plan)?;
    if plan.batch.reach.is_empty() {
        plan.batch.reach = reach;
    }
    if *rows == (0..plan.batch.num_tokens()) {
        return attention::attention(kernels, &q, spec, &cache, &plan);
    }
    let asking = Plan::new(asking(&plan.batch, rows), Vec::new());
    attention::attention(kernels, &q.narrow(0, rows.start, rows.len())?, spec, &cache, &asking)
}

/// The tokens `rows` alone, each in its sequence, which is cached whole.
fn asking(batch: &ForwardBatch, rows: &Range<usize>) -> ForwardBatch {
    let mut own = ForwardBatch {
        token_ids: batch.token_ids[rows.clone()].to_vec(),
        positions: batch.positions[rows.clone()].to_vec(),
        reach: batch.reach[rows.clone()].to_vec(),
        slot_mapping: batch.slot_mapping[rows.clone()].to_vec(),
        query_start: vec![0],
        ..ForwardBatch::default()
    };
    for s in 0..batch.num_sequences() {
        let all = batch.query_range(s);
        let asked = rows.start.max(all.start)..rows.end.min(all.end);
        if !asked.is_empty() {
            own.query_start.push((asked.end - rows.start) as u32);
            own.context_lens.push(batch.context_lens[s]);
            own.block_tables.push(batch.block_tables[s].clone());
        }
    }
    own
}
