//! What the scheduler does when the device had no memory for a step: half of it at a time, then twice as much again and
//! again while steps succeed.

use super::Scheduler;
use crate::schedule::{ScheduledBatch, ScheduledSequence, SchedulerConfig};
use crate::sequence::Rank;

/// Steps that must succeed before the next may be twice as large; twice as many each time that was too much, or sequences
/// that start again from their beginning might never reach their end.
const PATIENCE: u32 = 32;
/// The most of them.
const MAX_PATIENCE: u32 = 1 << 16;

/// How large steps may be for now, below what is configured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceiling {
    tokens: usize,
    sequences: usize,
    succeeded: u32,
    patience: u32,
    /// Whether it has been lower.
    raised: bool,
}

impl Ceiling {
    fn new(tokens: usize, sequences: usize, patience: u32) -> Self {
        Self { tokens: tokens.max(1), sequences: sequences.max(1), succeeded: 0, patience, raised: false }
    }

    /// How patient the next ceiling is when a step under this one did not fit.
    fn patience(self) -> u32 {
        if self.raised { self.patience.saturating_mul(2).min(MAX_PATIENCE) } else { self.patience }
    }

    /// Tokens of a step.
    pub fn tokens(self) -> usize {
        self.tokens
    }

    /// Sequences that may run.
    pub fn sequences(self, config: &SchedulerConfig) -> usize {
        self.sequences.min(self.tokens).min(config.max_num_seqs)
    }

    /// Books a step that succeeded; `None` when this is no longer a bound.
    pub fn lift(mut self, config: &SchedulerConfig) -> Option<Self> {
        self.succeeded += 1;
        if self.succeeded >= self.patience {
            // What was raised and held has earned trust.
            let patience = if self.raised { (self.patience / 2).max(PATIENCE) } else { self.patience };
            let raised = Self::new(self.tokens.saturating_mul(2), self.sequences.saturating_mul(2), patience);
            self = Self { raised: true, ..raised };
        }
        (self.tokens < config.max_batch_tokens || self.sequences < config.max_num_seqs).then_some(self)
    }
}

impl Scheduler {
    /// Takes back a step for which the device had no memory: the younger half of its sequences is preempted, and for a
    /// while steps are half as large. Whether that leaves anything to try; if not, the step has failed.
    pub fn recede(&mut self, batch: &ScheduledBatch) -> bool {
        let tokens: usize = batch.sequences.iter().map(|s| s.end - s.start + s.draft.len()).sum();
        if tokens <= 1 {
            return false;
        }
        batch.sequences.iter().for_each(|scheduled| self.forget_snapshots(scheduled));
        let known = batch.sequences.iter().filter_map(|scheduled| self.sequences.get(&scheduled.id));
        let mut places: Vec<_> = known.map(|sequence| (sequence.rank, sequence.line)).collect();
        places.sort_unstable_by_key(|&(rank, _): &(Rank, _)| rank);
        let most = places.len().div_ceil(2);
        // A recurrent state may have been written half; keys and values are written again at the same places.
        let kept = if self.states.is_some() { 0 } else { most };
        for &(rank, line) in places[kept..].iter().rev() {
            self.put_back(line, rank);
        }
        let patience = self.ceiling.map_or(PATIENCE, Ceiling::patience);
        self.ceiling = Some(Ceiling::new(tokens / 2, most, patience));
        true
    }

    /// Sequences that may run.
    pub(super) fn most_running(&self) -> usize {
        self.ceiling.map_or(self.config.max_num_seqs, |ceiling| ceiling.sequences(&self.config))
    }

    /// Gives back the slots of copies of recurrent state that were not made.
    pub(super) fn forget_snapshots(&mut self, scheduled: &ScheduledSequence) {
        if let (Some(states), Some(step)) = (&mut self.states, &scheduled.state) {
            step.snapshots.iter().for_each(|&(_, slot)| states.release(slot));
        }
    }
}
