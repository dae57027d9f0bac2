//! The gated delta rule on the states' own memory: convolution row by row, then the recurrence head by head.

mod recurrence;

use candle_core::{Result, Tensor, bail};

use self::recurrence::{Convolve, Recurrence};
use super::CpuKernels;
use super::host::{Disjoint, SERIAL, for_rows, in_place, slice};
use super::simd::dispatch;
use crate::ops::gated_delta::{check, gated_delta as plain};
use crate::{GatedDeltaSpec, Plan, StateCache, StateLayout, StateStep};

pub(super) fn gated_delta(
    kernels: &CpuKernels,
    inputs: &[&Tensor; 3],
    spec: &GatedDeltaSpec,
    cache: &StateCache,
    plan: &Plan,
) -> Result<Tensor> {
    let layout = &cache.layout;
    check(inputs, spec, layout, plan)?;
    let steps = &plan.batch.states;
    check_slots(cache, steps)?;
    if entangled(steps) {
        return plain(inputs, spec, cache, plan);
    }
    let inputs = [inputs[0].contiguous()?, inputs[1].contiguous()?, inputs[2].contiguous()?];
    let storages = [&inputs[0], &inputs[1], &inputs[2]].map(Tensor::storage_and_layout);
    let [qkv, beta, decay] = [0, 1, 2].map(|i| slice::<f32>(&storages[i].0, storages[i].1));
    let (qkv, beta, decay) = (qkv?, beta?, decay?);
    let decay: Vec<f32> = decay.iter().map(|decay| decay.exp()).collect();

    let mixed = convolve(kernels, qkv, spec, cache, plan)?;
    let StateLayout { num_v_heads, k_head_dim, v_head_dim, .. } = *layout;
    let (tokens, width) = (plan.batch.num_tokens(), num_v_heads * v_head_dim);
    let mut out = vec![0.; tokens * width];
    in_place::<f32>(&cache.recurrent, |states| {
        let size = k_head_dim * v_head_dim;
        let (states, out) = (Disjoint::new(states), Disjoint::new(&mut out));
        let run = |task: usize| {
            let (s, head) = (task / num_v_heads, task % num_v_heads);
            let range = plan.batch.query_range(s);
            let step = &steps[s];
            // SAFETY: tasks differ in head or sequence, sequences do not share slots (`entangled`), and of one task's
            // two pieces the slots differ.
            let piece = |slot: u32| unsafe {
                let start = (slot as usize * num_v_heads + head) * size;
                states.piece(start..start + size)
            };
            match step.source {
                None => piece(step.target).fill(0.),
                Some(source) if source != step.target => piece(step.target).copy_from_slice(piece(source)),
                Some(_) => {}
            }
            let mut stops: Vec<(usize, Option<u32>)> = vec![(range.len(), None)];
            let snapshots = step.snapshots.iter().filter(|(at, slot)| *at > 0 && *slot != step.target);
            stops.extend(snapshots.map(|&(at, slot)| (at as usize, Some(slot))).filter(|stop| stop.0 <= range.len()));
            stops.sort_by_key(|stop| stop.0);
            let mut from = range.start;
            for (at, slot) in stops {
                let tokens = from..range.start + at;
                from = tokens.end;
                dispatch(
                    kernels.isa,
                    Recurrence {
                        layout,
                        num_k_heads: spec.num_k_heads,
                        head,
                        tokens,
                        mixed: &mixed,
                        beta,
                        decay: &decay,
                        state: piece(step.target),
                        out: &out,
                    },
                );
                if let Some(slot) = slot {
                    piece(slot).copy_from_slice(piece(step.target));
                }
            }
        };
        let tasks = steps.len() * num_v_heads;
        if tokens * num_v_heads * size < SERIAL {
            (0..tasks).for_each(run);
        } else {
            kernels.pool.run(tasks, &run);
        }
        Ok(())
    })?;
    Tensor::from_vec(out, (tokens, width), inputs[0].device())
}

/// Refuses slots outside the cache.
fn check_slots(cache: &StateCache, steps: &[StateStep]) -> Result<()> {
    let slots = cache.recurrent.dim(0)?;
    for step in steps {
        let mut used = step.source.into_iter().chain([step.target]).chain(step.snapshots.iter().map(|s| s.1));
        if let Some(slot) = used.find(|&slot| slot as usize >= slots) {
            bail!("state slot {slot} of {slots}");
        }
    }
    Ok(())
}

/// Whether a sequence writes a slot that another one reads or writes. The scheduler has no reason to; the default copes.
fn entangled(steps: &[StateStep]) -> bool {
    // (slot, sequence, written)
    let mut uses: Vec<(u32, usize, bool)> = Vec::new();
    for (s, step) in steps.iter().enumerate() {
        uses.extend(step.source.map(|slot| (slot, s, false)));
        uses.push((step.target, s, true));
        uses.extend(step.snapshots.iter().map(|&(_, slot)| (slot, s, true)));
    }
    uses.sort_unstable();
    uses.chunk_by(|a, b| a.0 == b.0).any(|uses| {
        let shared = uses.iter().any(|&(_, s, _)| s != uses[0].1);
        shared && uses.iter().any(|&(_, _, written)| written)
    })
}

/// Convolved, activated rows `[tokens, channels]` with q and k of unit length and q scaled; leaves the last inputs of
/// each sequence in its slots.
fn convolve(
    kernels: &CpuKernels,
    qkv: &[f32],
    spec: &GatedDeltaSpec,
    cache: &StateCache,
    plan: &Plan,
) -> Result<Vec<f32>> {
    let StateLayout { conv_channels: channels, conv_taps: taps, .. } = cache.layout;
    let kept = (taps - 1) * channels;
    let steps = &plan.batch.states;
    // The states as they are before this step, one sequence after the other.
    let mut before = vec![0.; steps.len() * kept];
    {
        let (storage, layout) = cache.conv.storage_and_layout();
        let states = slice::<f32>(&storage, layout)?;
        for (s, step) in steps.iter().enumerate() {
            if let Some(slot) = step.source {
                before[s * kept..][..kept].copy_from_slice(&states[slot as usize * kept..][..kept]);
            }
        }
    }
    let weight = spec.conv_weight.t()?.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let weight = slice::<f32>(&storage, layout)?;
    let mut mixed = vec![0.; qkv.len()];
    for (s, before) in (0..steps.len()).map(|s| (s, &before[s * kept..][..kept])) {
        let range = plan.batch.query_range(s);
        let x = &qkv[range.start * channels..range.end * channels];
        let out = Disjoint::new(&mut mixed[range.start * channels..range.end * channels]);
        for_rows(&kernels.pool, range.len(), channels * taps, |rows| {
            // SAFETY: the ranges of `for_rows` are disjoint.
            let out = unsafe { out.piece(rows.start * channels..rows.end * channels) };
            dispatch(kernels.isa, Convolve { layout: &cache.layout, spec, weight, before, x, first: rows.start, out });
        });
    }
    in_place::<f32>(&cache.conv, |states| {
        for (s, step) in steps.iter().enumerate() {
            let range = plan.batch.query_range(s);
            let x = &qkv[range.start * channels..range.end * channels];
            let before = &before[s * kept..][..kept];
            let snapshots = step.snapshots.iter().map(|&(at, slot)| (at as usize, slot));
            let snapshots = snapshots.filter(|&(at, _)| at > 0 && at <= range.len());
            for (at, slot) in snapshots.chain([(range.len(), step.target)]) {
                let state = &mut states[slot as usize * kept..][..kept];
                // The last `kept` elements of `before` followed by the first `at` rows.
                let new = (at * channels).min(kept);
                state[..kept - new].copy_from_slice(&before[new..]);
                state[kept - new..].copy_from_slice(&x[at * channels - new..at * channels]);
            }
        }
        Ok(())
    })?;
    Ok(mixed)
}
