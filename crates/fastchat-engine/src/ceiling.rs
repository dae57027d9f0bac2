//! How large steps may be after the device ran out of memory: half of what failed, then twice as much again and again
//! while steps succeed. Plain integers.

use crate::schedule::SchedulerConfig;

/// Steps that must succeed before the next may be twice as large.
const PATIENCE: u32 = 32;

/// A bound below the configured one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceiling {
    tokens: usize,
    sequences: usize,
    succeeded: u32,
}

impl Ceiling {
    /// Steps of `tokens` tokens and `sequences` sequences, at least one.
    pub fn new(tokens: usize, sequences: usize) -> Self {
        Self { tokens: tokens.max(1), sequences: sequences.max(1), succeeded: 0 }
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Sequences that may run.
    pub fn sequences(&self, config: &SchedulerConfig) -> usize {
        self.sequences.min(self.tokens).min(config.max_num_seqs)
    }

    /// Books a step that succeeded; whether the bound is no longer one.
    pub fn lift(&mut self, config: &SchedulerConfig) -> bool {
        self.succeeded += 1;
        if self.succeeded >= PATIENCE {
            *self = Self::new(self.tokens.saturating_mul(2), self.sequences.saturating_mul(2));
        }
        self.tokens >= config.max_batch_tokens && self.sequences >= config.max_num_seqs
    }
}
