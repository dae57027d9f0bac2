//! Decode steps that a device captures once and replays: the contract between who runs steps and the hardware. A replay
//! reads its arrays where the captured step did, so their plan stays in place and is written over. Knows no models.

use std::fmt::Debug;

use candle_core::{Error, Result, bail};

use crate::{BLOCK_SIZE, ForwardBatch};

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
            ..ForwardBatch::default()
        }
    }

    /// Refuses a batch that is not of this shape, or that leaves its bounds.
    ///
    /// # Errors
    /// Names the first array that does not fit.
    pub fn check(&self, batch: &ForwardBatch) -> Result<()> {
        let Self { sequences, context, blocks, vocab } = *self;
        batch.check(blocks)?;
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
        if !batch.reach.is_empty() || !batch.states.is_empty() || !batch.rope_positions.is_empty() {
            bail!("reach, states and rope_positions must be empty in a step that is written over");
        }
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
    fn nothing_is_written_that_leaves_the_room() {
        let room = StepRoom { sequences: 2, context: 40, blocks: 5, vocab: 10 };
        let fits = ForwardBatch {
            token_ids: vec![9, 0],
            positions: vec![39, 0],
            slot_mapping: vec![79, 0],
            context_lens: vec![40, 1],
            block_tables: vec![vec![4, 3, 2], vec![0]],
            ..room.template()
        };
        assert!(room.check(&room.template()).is_ok() && room.check(&fits).is_ok());
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
            let error = room.check(&batch).expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
        let one = StepRoom { sequences: 1, ..room };
        assert!(one.check(&fits).is_err() && room.check(&one.template()).is_err());
    }
}
