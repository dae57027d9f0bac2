//! The arrays of a batch where kernels can read them: one upload per step, in one tensor. It is a new one each time, or
//! that of a plan that is written over.

use candle_core::{DType, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::RowArgs;
use super::sample::Lists;
use crate::ops::qkv::plan as plain;
use crate::{ForwardBatch, KNOWN, Plan, Rope, StateStep, StepInput, StepRoom};

/// Words of what a row is asked for.
const ROW_WORDS: usize = size_of::<RowArgs>() / size_of::<u32>();

/// Addresses of the arrays.
#[derive(Clone, Copy)]
pub(super) struct Arrays {
    /// Of plans that are written over: how each sequence's next token is chosen, and what its own follows.
    pub(super) asked: *const RowArgs,
    pub(super) follows: *const u32,
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

fn is_save(step: &StateStep, tokens: u32, (consumed, slot): (u32, u32)) -> bool {
    (1..=tokens).contains(&consumed) && slot != step.target
}

/// When a sequence's state is saved, and where: snapshots in order, the target last, since it may be the source.
fn saves(step: &StateStep, tokens: u32) -> Vec<(u32, u32)> {
    let mut saves: Vec<_> = step.snapshots.iter().copied().filter(|&save| is_save(step, tokens, save)).collect();
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
    batch.block_tables.iter().for_each(|table| all.extend(table));
    Ok(all)
}

pub(super) fn upload(kernels: &CudaKernels, batch: &ForwardBatch) -> Result<Tensor> {
    Tensor::new(flat(batch)?, kernels.runtime.device())
}

pub(super) fn lasting(kernels: &CudaKernels, room: &StepRoom, ropes: &[Rope]) -> Result<Plan> {
    // Every position there may be, once: so that no step has angles to upload.
    let everywhere = ForwardBatch { positions: (0..u32::try_from(room.context)?).collect(), ..ForwardBatch::default() };
    let rope = plain(&everywhere, ropes, kernels.runtime.device())?.rope;
    let states = if room.slots == 0 { 0 } else { 4 * room.sequences + 1 };
    let len = (ROW_WORDS + 5) * room.sequences + 2 * (room.sequences + 1) + states + room.tables();
    let zeros = |len| Tensor::zeros(len, DType::U32, kernels.runtime.device()).map(Some);
    Ok(Plan { uploaded: zeros(len)?, chosen: zeros(room.sequences)?, ..Plan::lasting(*room, rope) })
}

/// What is written over comes first, and what is asked for before all: it has numbers of eight bytes.
pub(super) fn rewrite(kernels: &CudaKernels, plan: &Plan, input: &StepInput) -> Result<()> {
    let (Some(room), Some(uploaded)) = (plan.room, &plan.uploaded) else { bail!("the plan is not written over") };
    room.check(input)?;
    let most = plan.chosen.as_ref().map_or(Ok(0), |chosen| chosen.dim(0))?;
    if let Some(row) = input.follows.iter().find(|&&row| row != KNOWN && row as usize >= most) {
        bail!("a sequence follows row {row} of a step of {most} at most");
    }
    let mut all = Lists::of(input.asked).into_words();
    all.resize(ROW_WORDS * room.sequences, 0);
    all.extend(input.follows);
    all.resize((ROW_WORDS + 1) * room.sequences, KNOWN);
    all.extend(flat(input.batch)?);
    kernels.runtime.write(uploaded, &all)
}

pub(super) fn follow(kernels: &CudaKernels, plan: &Plan) -> Result<()> {
    let (arrays, chosen) = (Arrays::of(kernels, plan)?, chosen(kernels, plan)?);
    let count = i32::try_from(plan.batch.num_sequences())?;
    kernels.launch("follow_tokens", |launchers, stream| {
        // SAFETY: all have an element for every sequence, and `chosen` one for every row that `rewrite` lets one follow.
        unsafe { (launchers.follow_tokens)(arrays.token_ids.cast_mut(), arrays.follows, chosen, count, stream) }
    })
}

/// Where the tokens that a step chooses are left.
pub(super) fn chosen(kernels: &CudaKernels, plan: &Plan) -> Result<*mut i32> {
    let Some(chosen) = &plan.chosen else { bail!("the plan is not written over") };
    kernels.elements(chosen, DType::U32)
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
        let lens = batch.query_start.windows(2).map(|pair| pair[1] - pair[0]);
        let saves = |(step, tokens): (&StateStep, u32)| {
            1 + step.snapshots.iter().filter(|&&save| is_save(step, tokens, save)).count()
        };
        let saves: usize = batch.states.iter().zip(lens).map(saves).sum();
        let lasting = plan.room.map_or(0, |room| room.sequences);
        Ok(Self {
            asked: next(ROW_WORDS * lasting).cast(),
            follows: next(lasting),
            token_ids: next(batch.token_ids.len()),
            positions: next(batch.positions.len()),
            last_seen: next(batch.positions.len()),
            slots: next(batch.slot_mapping.len()),
            query_start: next(batch.query_start.len()),
            table_start: next(batch.block_tables.len() + 1),
            sources: next(steps).cast(),
            save_start: next(if steps == 0 { 0 } else { steps + 1 }),
            saves: next(2 * saves),
            tables: next(0),
        })
    }
}
