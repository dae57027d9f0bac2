//! The step after one that is still computed: every sequence goes on with the token that nobody knows yet. Plain integers.

use fastchat_kernels::{BLOCK_SIZE, StateStep};

use super::{MAX_DRAFTED_ROWS, Scheduler};
use crate::schedule::{ScheduledBatch, ScheduledSequence};

/// A step, and which place of the one before each of its sequences had.
pub struct Ahead {
    /// One token of each sequence, the one that the step before chooses.
    pub batch: ScheduledBatch,
    /// Places in the batch before.
    pub places: Vec<u32>,
}

impl Scheduler {
    /// Whether the next step lets nobody in, unless somebody goes: nobody waits, or there is no place that a line could claim.
    pub(super) fn admits_nobody_next(&self) -> bool {
        let full = self.lines.num_running() >= self.most_running();
        let mut waiting = self.lines.with_waiting();
        waiting.all(|line| full && self.lines.victim_for(line).is_none())
    }

    /// What `schedule` would give once `batch` is committed and each of its sequences has one more token, none of which
    /// ends it: as many as may have another after that. It is run like a scheduled one, and committed after `batch`.
    /// `None` when `batch` is no decode step, or when there is more to decide: who comes in, who is thrown out for a block,
    /// which drafts are tried.
    pub fn ahead(&mut self, batch: &ScheduledBatch) -> Option<Ahead> {
        let decoding = |one: &ScheduledSequence| {
            let stays = one.state.as_ref().is_none_or(StateStep::stays);
            one.samples && one.end - one.start == 1 && one.draft.is_empty() && stays && !one.prompt_logits
        };
        if !self.settled || self.ceiling.is_some() || !batch.sequences.iter().all(decoding) {
            return None;
        }
        let live = |one: &&ScheduledSequence| self.sequences.contains_key(&one.id) && !self.held.contains(&one.id);
        let running = batch.sequences.iter().filter(live).count();
        if running + self.held.len() != self.lines.num_running() {
            return None;
        }
        let (mut sequences, mut places) = (Vec::with_capacity(running), Vec::with_capacity(running));
        let drafted = 2 * running <= MAX_DRAFTED_ROWS;
        for (place, one) in (0..).zip(&batch.sequences) {
            let Some(sequence) = self.sequences.get_mut(&one.id) else { continue };
            let len = one.end + 1;
            // A held one's next mask is not known; a draft is a matter of tokens.
            if self.held.contains(&one.id) || (drafted && sequence.drafter.is_some()) {
                return None;
            }
            if len >= sequence.max_len {
                continue;
            }
            if len > sequence.block_table.len() * BLOCK_SIZE {
                sequence.block_table.push(self.blocks.allocate()?);
            }
            let next = ScheduledSequence { start: one.end, end: len, ..one.clone() };
            sequences.push(next);
            places.push(place);
        }
        (!sequences.is_empty()).then_some(Ahead { batch: ScheduledBatch { sequences }, places })
    }

    /// Leaves out of a step that was computed the sequences that have ended since it was scheduled, and of `tokens` theirs.
    pub fn drop_ended(&self, batch: &mut ScheduledBatch, tokens: &mut Vec<u32>) {
        let live = |one: &ScheduledSequence| self.sequences.contains_key(&one.id);
        let mut kept = batch.sequences.iter().map(live);
        tokens.retain(|_| kept.next().unwrap_or(false));
        batch.sequences.retain(live);
    }
}
