//! Decode steps that a device captures once and replays: the contract between who runs steps and the hardware. A replay
//! reads its arrays where the captured step did, so their plan stays in place and is written over. Knows no models.

use std::fmt::Debug;

use candle_core::{Error, Result, bail};

use crate::{BLOCK_SIZE, ForwardBatch, SampleRow, StateStep};

/// What is captured. It owns whatever it touches, for a graph holds addresses: they stay valid while the graph keeps it.
pub type Work = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Captured work.
pub trait Graph: Send + Debug {
    /// Queues once more what was captured, as one launch.
    ///
    /// # Errors
    /// The device's.
    fn replay(&self) -> Result<()>;
}

/// What came of an attempt to capture work that has just run.
#[derive(Debug)]
pub enum Capture {
    /// A graph of it.
    Graph(Box<dyn Graph>),
    /// Why there is none; running the work is still possible.
    Failed(Error),
}

/// In `StepInput::follows`: the batch itself says the token.
pub const KNOWN: u32 = u32::MAX;

/// What is written over a plan: a decode step, where its tokens come from, and how the next ones are chosen.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// The step; `token_ids` are read where `follows` says `KNOWN`.
    pub batch: &'a ForwardBatch,
    /// For each sequence the row of the step before whose chosen token it has, though the host may not know it yet, or
    /// `KNOWN`; empty: all are known.
    pub follows: &'a [u32],
    /// How `Kernels::choose_next` chooses each sequence's next token, none of them with changes to logits or
    /// log-probabilities; empty: it does not.
    pub asked: &'a [SampleRow],
}

impl<'a> StepInput<'a> {
    /// A step that chooses nothing, of known tokens.
    pub fn of(batch: &'a ForwardBatch) -> Self {
        Self { batch, follows: &[], asked: &[] }
    }
}

/// Chosen tokens on their way to the host. To drop them is to not want them.
pub trait PendingTokens: Send + Debug {
    /// Waits for the step that chose them and no longer: a token of each row, `u32::MAX` where there was none to choose.
    ///
    /// # Errors
    /// What went wrong on the device until then.
    fn wait(self: Box<Self>) -> Result<Vec<u32>>;
}

/// Tokens that are there already.
impl PendingTokens for Vec<u32> {
    fn wait(self: Box<Self>) -> Result<Vec<u32>> {
        Ok(*self)
    }
}

/// A decode step of one token a sequence whose plan is written over from step to step, and the bounds of what may be
/// written: launches depend on these numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRoom {
    /// Sequences, each with one token whose logits are wanted.
    pub sequences: usize,
    /// Most tokens of a sequence, those in the cache included.
    pub context: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Slots of recurrent state; 0: the model has none.
    pub slots: usize,
}

impl StepRoom {
    /// Block table entries that all sequences together may have.
    pub(crate) fn tables(&self) -> usize {
        self.sequences * self.context.div_ceil(BLOCK_SIZE)
    }

    /// The smallest step of this shape: it stands in for those that are written later.
    pub(crate) fn template(&self) -> ForwardBatch {
        let rows = 0..self.sequences as u32;
        ForwardBatch {
            token_ids: vec![0; self.sequences],
            positions: vec![0; self.sequences],
            slot_mapping: vec![0; self.sequences],
            query_start: (0..=self.sequences as u32).collect(),
            context_lens: vec![1; self.sequences],
            block_tables: vec![vec![0]; self.sequences],
            logits_rows: rows.collect(),
            states: vec![StateStep::default(); if self.slots == 0 { 0 } else { self.sequences }],
            ..ForwardBatch::default()
        }
    }

    /// Refuses states that leave the slots or get in each other's way: a sequence goes on in its own slot, or begins in one
    /// that nobody reads.
    fn check_states(&self, states: &[StateStep]) -> Result<()> {
        if states.len() != self.template().states.len() {
            bail!("{} states for {} sequences and {} slots", states.len(), self.sequences, self.slots);
        }
        let begins = |step: &StateStep| step.source.is_none() && step.snapshots.is_empty();
        let mut own: Vec<u32> = states.iter().filter(|step| step.stays()).map(|step| step.target).collect();
        own.sort_unstable();
        let shared = own.windows(2).any(|pair| pair[0] == pair[1]);
        for step in states {
            let apart = step.stays() || (begins(step) && own.binary_search(&step.target).is_err());
            if shared || !apart || step.target as usize >= self.slots {
                bail!("states must each stay in a slot of their own of {}: {step:?}", self.slots);
            }
        }
        Ok(())
    }

    /// Refuses a step that is not of this shape, or that leaves its bounds.
    ///
    /// # Errors
    /// Names the first array that does not fit.
    pub fn check(&self, input: &StepInput) -> Result<()> {
        let Self { sequences, context, blocks, vocab, .. } = *self;
        let StepInput { batch, follows, asked } = *input;
        batch.check(blocks)?;
        if ![0, sequences].contains(&follows.len()) || ![0, sequences].contains(&asked.len()) {
            bail!("follows and asked must be empty or have {sequences} entries");
        }
        if asked.iter().any(|row| !row.is_plain()) {
            bail!("asked must neither change logits nor want log-probabilities in a step that is written over");
        }
        if batch.num_sequences() != sequences || batch.num_tokens() != sequences {
            bail!(
                "a step of {sequences} sequences with a token each was written over with {} tokens of {}",
                batch.num_tokens(),
                batch.num_sequences()
            );
        }
        if !batch.logits_rows.iter().copied().eq(0..sequences as u32) {
            bail!("logits_rows must name all {sequences} rows in order");
        }
        if !batch.reach.is_empty() || !batch.rope_positions.is_empty() {
            bail!("reach and rope_positions must be empty in a step that is written over");
        }
        self.check_states(&batch.states)?;
        if let Some(id) = batch.token_ids.iter().find(|&&id| id as usize >= vocab) {
            bail!("token id {id} leaves the table of {vocab} rows");
        }
        for (s, (&position, &len)) in batch.positions.iter().zip(&batch.context_lens).enumerate() {
            if position >= len || len as usize > context {
                bail!(
                    "position {position} of sequence {s} in its context of {len} tokens, of which {context} are allowed"
                );
            }
        }
        if batch.block_tables.iter().map(Vec::len).sum::<usize>() > self.tables() {
            bail!("block_tables have more than {} entries", self.tables());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut ForwardBatch);

    #[test]
    fn states_stay_in_slots_of_their_own() {
        let room = StepRoom { sequences: 3, context: 40, blocks: 5, vocab: 10, slots: 4 };
        let stays = |slot| StateStep { source: Some(slot), target: slot, snapshots: vec![] };
        let begins = |slot| StateStep { source: None, target: slot, snapshots: vec![] };
        let check = |states: &[StateStep]| {
            let batch = ForwardBatch { states: states.to_vec(), ..room.template() };
            room.check(&StepInput::of(&batch)).map_err(|error| error.to_string())
        };
        assert!(check(&[stays(3), stays(0), stays(1)]).is_ok() && check(&[stays(0), begins(3), begins(3)]).is_ok());
        let moves = StateStep { source: Some(0), ..begins(2) };
        let copies = StateStep { snapshots: vec![(1, 2)], ..stays(3) };
        for broken in [
            vec![stays(0), stays(1)],
            vec![stays(0), stays(1), stays(4)],
            vec![stays(0), stays(1), stays(0)],
            vec![stays(0), stays(1), begins(1)],
            vec![stays(0), stays(1), moves],
            vec![stays(0), stays(1), copies],
        ] {
            assert!(check(&broken).expect_err("slots").contains("slot"), "{broken:?}");
        }
    }

    #[test]
    fn tokens_are_chosen_plainly_or_not_at_all() {
        let room = StepRoom { sequences: 2, context: 40, blocks: 5, vocab: 10, slots: 0 };
        let batch = room.template();
        let plain = [SampleRow::greedy(), SampleRow { temperature: 1., ..SampleRow::greedy() }];
        let fits = StepInput { batch: &batch, follows: &[KNOWN, 0], asked: &plain };
        assert!(room.check(&fits).is_ok() && room.check(&StepInput::of(&batch)).is_ok());
        let changes = [SampleRow { barred: vec![3], ..SampleRow::greedy() }, SampleRow::greedy()];
        let reports = [SampleRow::greedy(), SampleRow { logprobs: Some(0), ..SampleRow::greedy() }];
        for (name, broken) in [
            ("follows", StepInput { follows: &[0], ..fits }),
            ("asked", StepInput { asked: &plain[..1], ..fits }),
            ("asked", StepInput { asked: &changes, ..fits }),
            ("asked", StepInput { asked: &reports, ..fits }),
        ] {
            let error = room.check(&broken).expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn nothing_is_written_that_leaves_the_room() {
        let room = StepRoom { sequences: 2, context: 40, blocks: 5, vocab: 10, slots: 0 };
        let fits = ForwardBatch {
            token_ids: vec![9, 0],
            positions: vec![39, 0],
            slot_mapping: vec![79, 0],
            context_lens: vec![40, 1],
            block_tables: vec![vec![4, 3, 2], vec![0]],
            ..room.template()
        };
        assert!(room.check(&StepInput::of(&room.template())).is_ok() && room.check(&StepInput::of(&fits)).is_ok());
        let break_it: [(&str, Change); 10] = [
            ("token id", |batch| batch.token_ids[0] = 10),
            ("position", |batch| batch.positions[1] = 1),
            ("context", |batch| (batch.context_lens[0], batch.block_tables[0]) = (41, vec![4, 3, 2])),
            ("block_tables", |batch| batch.block_tables[0][2] = 5),
            ("block_tables", |batch| batch.block_tables[1] = vec![0; 4]),
            ("slot_mapping", |batch| batch.slot_mapping[0] = 80),
            ("logits_rows", |batch| batch.logits_rows = vec![1, 0]),
            ("reach", |batch| batch.reach = vec![39, 0]),
            ("rope_positions", |batch| batch.rope_positions = vec![[0; 3]; 2]),
            ("states", |batch| batch.states = vec![crate::StateStep::default(); 2]),
        ];
        for (name, break_it) in break_it {
            let mut batch = fits.clone();
            break_it(&mut batch);
            let error = room.check(&StepInput::of(&batch)).expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
        let one = StepRoom { sequences: 1, ..room };
        assert!(one.check(&StepInput::of(&fits)).is_err() && room.check(&StepInput::of(&one.template())).is_err());
    }
}
