//! The arrays of a batch where kernels can read them: one upload per step, in one tensor. It is a new one each time, or
//! that of a plan that is written over.

use candle_core::{DType, Result, Tensor, bail};

use super::CudaKernels;
use crate::ops::qkv::plan as plain;
use crate::{ForwardBatch, Plan, Rope, StateStep, StepRoom};

/// Addresses of the arrays.
#[derive(Clone, Copy)]
pub(super) struct Arrays {
    pub(super) token_ids: *const u32,
    pub(super) positions: *const u32,
    /// Last position that each token sees.
    pub(super) last_seen: *const u32,
    pub(super) slots: *const u32,
    pub(super) query_start: *const u32,
    /// Prefix sums of the block tables' lengths, and the tables one after the other.
    pub(super) table_start: *const u32,
    pub(super) tables: *const u32,
    /// For models with recurrent layers: slots to start from or -1, prefix sums of the saves, (tokens consumed, slot)s.
    pub(super) sources: *const i32,
    pub(super) save_start: *const u32,
    pub(super) saves: *const u32,
}

/// When a sequence's state is saved, and where: snapshots in order, the target last, since it may be the source.
fn saves(step: &StateStep, tokens: u32) -> Vec<(u32, u32)> {
    let wanted = |&&(consumed, slot): &&(u32, u32)| (1..=tokens).contains(&consumed) && slot != step.target;
    let mut saves: Vec<_> = step.snapshots.iter().filter(wanted).copied().collect();
    saves.sort_by_key(|&(consumed, _)| consumed);
    saves.push((tokens, step.target));
    saves
}

/// The arrays one after the other; `Arrays::of` knows the order. Block tables come after all whose lengths the shape of a
/// batch says.
fn flat(batch: &ForwardBatch) -> Result<Vec<u32>> {
    let mut all = Vec::with_capacity(4 * batch.num_tokens() + 64);
    all.extend(&batch.token_ids);
    all.extend(&batch.positions);
    all.extend((0..batch.positions.len()).map(|token| batch.last_seen(token)));
    all.extend(&batch.slot_mapping);
    all.extend(&batch.query_start);
    let mut start = 0;
    all.push(start);
    for table in &batch.block_tables {
        start += u32::try_from(table.len())?;
        all.push(start);
    }
    batch.block_tables.iter().for_each(|table| all.extend(table));
    if !batch.states.is_empty() {
        all.extend(batch.states.iter().map(|step| step.source.unwrap_or(u32::MAX)));
        let lens = batch.query_start.windows(2).map(|pair| pair[1] - pair[0]);
        let saves: Vec<_> = batch.states.iter().zip(lens).map(|(step, tokens)| saves(step, tokens)).collect();
        let mut start = 0;
        all.push(start);
        for saves in &saves {
            start += saves.len() as u32;
            all.push(start);
        }
        all.extend(saves.iter().flatten().flat_map(|&(consumed, slot)| [consumed, slot]));
    }
    Ok(all)
}

pub(super) fn upload(kernels: &CudaKernels, batch: &ForwardBatch) -> Result<Tensor> {
    Tensor::new(flat(batch)?, kernels.runtime.device())
}

pub(super) fn lasting(kernels: &CudaKernels, room: &StepRoom, ropes: &[Rope]) -> Result<Plan> {
    // Every position there may be, once: so that no step has angles to upload.
    let everywhere = ForwardBatch { positions: (0..u32::try_from(room.context)?).collect(), ..ForwardBatch::default() };
    let rope = plain(&everywhere, ropes, kernels.runtime.device())?.rope;
    let len = 4 * room.sequences + 2 * (room.sequences + 1) + room.tables();
    let uploaded = Some(Tensor::zeros(len, DType::U32, kernels.runtime.device())?);
    Ok(Plan { uploaded, ..Plan::lasting(*room, rope) })
}

pub(super) fn rewrite(kernels: &CudaKernels, plan: &Plan, batch: &ForwardBatch) -> Result<()> {
    let (Some(room), Some(uploaded)) = (plan.room, &plan.uploaded) else { bail!("the plan is not written over") };
    room.check(batch)?;
    uploaded.slice_set(&upload(kernels, batch)?, 0, 0)
}

impl Arrays {
    pub(super) fn of(kernels: &CudaKernels, plan: &Plan) -> Result<Self> {
        let Some(uploaded) = &plan.uploaded else { bail!("the plan was made by another backend") };
        let batch = &plan.batch;
        let mut at = kernels.elements::<u32>(uploaded, DType::U32)?.cast_const();
        let mut next = |len: usize| {
            let here = at;
            // Inside the upload or at its end: the lengths are those of `upload`.
            at = at.wrapping_add(len);
            here
        };
        let steps = batch.states.len();
        Ok(Self {
            token_ids: next(batch.token_ids.len()),
            positions: next(batch.positions.len()),
            last_seen: next(batch.positions.len()),
            slots: next(batch.slot_mapping.len()),
            query_start: next(batch.query_start.len()),
            table_start: next(batch.block_tables.len() + 1),
            tables: next(batch.block_tables.iter().map(Vec::len).sum()),
            sources: next(steps).cast(),
            save_start: next(steps + 1),
            saves: next(0),
        })
    }
}
