//! The gated delta rule on the state slots' own memory.

use candle_core::{Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::DeltaArgs;
use super::plan::Arrays;
use crate::ops::gated_delta::{check, gated_delta as plain};
use crate::{GatedDeltaSpec, Plan, StateCache, StateLayout, StateStep};

/// Whether a slot that one sequence writes is another's, or is read after it was written.
fn entangled(steps: &[StateStep]) -> bool {
    let mut written: Vec<u32> = Vec::new();
    for step in steps {
        let snapshots = step.snapshots.iter().map(|&(_, slot)| slot);
        let mut own: Vec<u32> = snapshots.filter(|&slot| slot != step.target).collect();
        if step.source.is_some_and(|source| own.contains(&source)) {
            return true;
        }
        own.push(step.target);
        own.sort_unstable();
        own.dedup();
        written.extend(own);
    }
    let mut sorted = written.clone();
    sorted.sort_unstable();
    let shared = sorted.windows(2).any(|pair| pair[0] == pair[1]);
    let reads_anothers =
        |step: &StateStep| step.source.is_some_and(|source| source != step.target && written.contains(&source));
    shared || steps.iter().any(reads_anothers)
}

fn check_slots(cache: &StateCache, steps: &[StateStep]) -> Result<()> {
    let slots = cache.recurrent.dim(0)?;
    for step in steps {
        let snapshots = step.snapshots.iter().map(|&(_, slot)| slot);
        for slot in snapshots.chain(step.source).chain([step.target]) {
            if slot as usize >= slots {
                bail!("state slot {slot} of {slots}");
            }
        }
    }
    Ok(())
}

pub(super) fn gated_delta(
    kernels: &CudaKernels,
    inputs: &[&Tensor; 3],
    spec: &GatedDeltaSpec,
    cache: &StateCache,
    plan: &Plan,
) -> Result<Tensor> {
    check(inputs, spec, &cache.layout, plan)?;
    if let Some(room) = plan.room {
        // Each step's states are checked when they are written over the plan.
        let slots = cache.recurrent.dim(0)?;
        if room.slots > slots {
            bail!("a plan for {} state slots, a cache of {slots}", room.slots);
        }
    } else {
        check_slots(cache, &plan.batch.states)?;
        if entangled(&plan.batch.states) {
            return plain(inputs, spec, cache, plan);
        }
    }
    let StateLayout { conv_channels, conv_taps, num_v_heads, k_head_dim, v_head_dim } = cache.layout;
    let tokens = plan.batch.num_tokens();
    let [qkv, beta, decay] = [inputs[0].contiguous()?, inputs[1].contiguous()?, inputs[2].contiguous()?];
    let taps = spec.conv_weight.contiguous()?;
    let (mixed, out) = (kernels.empty(&[tokens, conv_channels])?, kernels.empty(&[tokens, num_v_heads * v_head_dim])?);
    let arrays = Arrays::of(kernels, plan)?;
    let args = DeltaArgs {
        qkv: kernels.floats(&qkv)?,
        beta: kernels.floats(&beta)?,
        decay: kernels.floats(&decay)?,
        taps: kernels.floats(&taps)?,
        query_start: arrays.query_start,
        sources: arrays.sources,
        save_start: arrays.save_start,
        saves: arrays.saves,
        conv: kernels.floats(&cache.conv)?,
        states: kernels.floats(&cache.recurrent)?,
        mixed: kernels.floats(&mixed)?,
        out: kernels.floats(&out)?,
        l2_eps: spec.l2_eps,
        sequences: i32::try_from(plan.batch.num_sequences())?,
        tokens: i32::try_from(tokens)?,
        channels: i32::try_from(conv_channels)?,
        num_taps: i32::try_from(conv_taps)?,
        k_heads: i32::try_from(spec.num_k_heads)?,
        v_heads: i32::try_from(num_v_heads)?,
        k_dim: i32::try_from(k_head_dim)?,
        v_dim: i32::try_from(v_head_dim)?,
    };
    kernels.launch("gated_delta", |launchers, stream| {
        // SAFETY: the shapes were checked, the slots lie in the caches, and no sequence reads what another writes.
        unsafe { (launchers.gated_delta)(&raw const args, stream) }
    })?;
    Ok(out)
}
