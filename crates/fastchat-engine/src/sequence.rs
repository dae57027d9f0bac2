//! One choice of a request as the scheduler sees it: its tokens, how many of them are in the cache, and where. Knows no
//! tensors, clocks or channels.

use std::fmt;
use std::sync::Arc;

use fastchat_kernels::BLOCK_SIZE;

use crate::block_hash::{BlockHash, hash_block, hash_media};
use crate::speculation::Drafter;

/// Key of a sequence, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// A tenant's line, while it has sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineId(pub(crate) u64);

/// Order of service within a line, least first. It never changes, so the least of a line is the last of it to be
/// preempted, and every sequence becomes the least in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Number of arrivals before this one, plus the head start its priority gives or takes.
    pub turn: i64,
    /// Breaks ties by arrival.
    pub id: SequenceId,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, a stop string, or the model's end of text.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// The caller gave up.
    Abort,
    /// The engine failed.
    Error,
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceStatus {
    /// Owns no block.
    Waiting,
    /// Owns blocks for all its tokens.
    Running,
    /// Owns nothing and is about to be forgotten.
    Finished(FinishReason),
}

/// Tokens that a picture belongs to, as the scheduler sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaSpan {
    /// First token.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Hash of the picture.
    pub hash: BlockHash,
    /// Whether its tokens see each other, so that they are computed in one step.
    pub whole: bool,
}

/// Recurrent state of a running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceState {
    /// Slot this sequence writes.
    pub slot: u32,
    /// Snapshot (by hash, and its slot) to start from instead, pinned until the first step is done.
    pub resume_from: Option<(BlockHash, u32)>,
}

/// One choice of a request.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Key and order of service.
    pub rank: Rank,
    /// The line it stands in.
    pub line: LineId,
    /// Request it belongs to, as the submitter numbers them.
    pub request: u64,
    /// Choice of that request.
    pub index: u32,
    /// Where it stands.
    pub status: SequenceStatus,
    /// Prompt, then what was generated.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Prompt and completion together never exceed this.
    pub max_len: usize,
    /// Tokens whose keys and values (or state) are in the cache.
    pub num_computed: usize,
    /// Prompt tokens that were found in the cache when it first ran; `None` before.
    pub cached_tokens: Option<usize>,
    /// Blocks in order.
    pub block_table: Vec<u32>,
    /// Chained hashes of the full blocks, as far as they were needed.
    pub hashes: Vec<BlockHash>,
    /// Start of the chain; `None` shares nothing.
    pub salt: Option<BlockHash>,
    /// Recurrent state while it runs; `None` for models without.
    pub state: Option<SequenceState>,
    /// Tokens that pictures belong to, in order.
    pub spans: Arc<[MediaSpan]>,
    /// Logits of every prompt position are wanted, so no cached prefix may be skipped yet.
    pub wants_prompt_logits: bool,
    /// Choices that start once this one has the prompt in the cache.
    pub forks: Vec<SequenceId>,
    /// Proposes tokens ahead of sampling; `None` where drafts cannot be checked.
    pub drafter: Option<Drafter>,
}

impl Sequence {
    /// Its key.
    pub fn id(&self) -> SequenceId {
        self.rank.id
    }

    /// Tokens generated so far.
    pub fn completion_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens known but not yet in the cache.
    pub fn num_pending(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// Hashes of its first `count` blocks, which must be full; empty if it shares nothing.
    pub fn hash_blocks(&mut self, count: usize) -> &[BlockHash] {
        let Some(salt) = self.salt else { return &[] };
        extend_chain(&mut self.hashes, (salt, count), &self.tokens, &self.spans);
        &self.hashes[..count]
    }

    /// Where a chunk that begins with the next token and would end at `end` ends so that tokens that see each other are
    /// computed together; the token it begins with if none of them fit.
    pub fn whole_spans(&self, end: usize) -> usize {
        let cut = self.spans.iter().find(|span| span.whole && span.start < end && end < span.end);
        cut.map_or(end, |span| span.start.max(self.num_computed))
    }

    /// Whether it only waits for its newest token to be computed.
    pub fn is_decoding(&self) -> bool {
        self.num_pending() == 1 && self.completion_len() > 0
    }
}

/// Makes `hashes` at least `count` long: those of the full blocks of `tokens`, in a chain that starts with `salt`.
pub(crate) fn extend_chain(
    hashes: &mut Vec<BlockHash>,
    (salt, count): (BlockHash, usize),
    tokens: &[u32],
    spans: &[MediaSpan],
) {
    let mut parent = hashes.last().copied().unwrap_or(salt);
    for block in hashes.len()..count {
        let (start, end) = (block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
        parent = hash_block(parent, &tokens[start..end]);
        for span in spans.iter().filter(|span| span.start < end && span.end > start) {
            parent = hash_media(parent, span.hash);
        }
        hashes.push(parent);
    }
}
