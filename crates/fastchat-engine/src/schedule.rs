//! What goes into the scheduler and what comes out of it: plain integers.

use fastchat_kernels::StateStep;

use crate::block_hash::BlockHash;
use crate::sequence::{MediaSpan, SequenceId};

/// Limits of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Recurrent state slots; `None` for models without recurrent state.
    pub num_state_slots: Option<usize>,
    /// Tokens per step.
    pub max_batch_tokens: usize,
    /// Sequences per step.
    pub max_num_seqs: usize,
    /// Tokens of a sequence.
    pub max_model_len: usize,
    /// Whether requests share equal prefixes; the choices of one request always do.
    pub enable_prefix_caching: bool,
}

/// A request as the scheduler needs it.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// The submitter's number for it.
    pub request: u64,
    /// At least one token, fewer than `max_model_len`.
    pub prompt: Vec<u32>,
    /// Choices.
    pub n: u32,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Less is earlier.
    pub priority: i32,
    /// Requests share prefixes only with those of the same salt.
    pub cache_salt: Option<String>,
    /// Tenants share the engine evenly, however much each asks for; requests without one are one tenant.
    pub tenant: Option<String>,
    /// Logits of every prompt position are wanted (of choice 0).
    pub wants_prompt_logits: bool,
    /// Tokens that pictures belong to, in order.
    pub spans: Vec<MediaSpan>,
    /// Hash of what every token may depend on beside the tokens: pictures that are looked at.
    pub surroundings: Option<BlockHash>,
    /// Its tokens depend on nothing but the rows of logits, so that drafts can be checked by sampling row after row.
    pub drafts: bool,
}

/// A request that could not finish even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Blocks it may need.
    pub needed: usize,
    /// Blocks there are.
    pub total: usize,
}

/// One sequence's part of a step: tokens `start..end` of it are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// Which.
    pub id: SequenceId,
    /// First token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// Whether the last row's logits choose the next token.
    pub samples: bool,
    /// Whether the logits of all rows are wanted.
    pub prompt_logits: bool,
    /// Recurrent state moves.
    pub state: Option<StateStep>,
    /// Tokens that may follow `end`: computed too, and kept by `keep` as far as sampling agrees.
    pub draft: Vec<u32>,
}

/// What runs in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduledBatch {
    /// In no particular order, each sequence at most once.
    pub sequences: Vec<ScheduledSequence>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences thrown back to waiting.
    pub preemptions: u64,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u64,
    /// Tokens proposed by drafts.
    pub draft_tokens: u64,
    /// Proposed tokens that sampling chose.
    pub accepted_tokens: u64,
}
