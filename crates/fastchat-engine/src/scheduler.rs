//! Who runs in the next step: admits, cuts prompts into chunks, preempts, and keeps the books of blocks and state
//! slots. A pure state machine over integers; knows no tensors, clocks or channels.

use std::collections::{BTreeSet, HashMap};

use fastchat_kernels::{BLOCK_SIZE, StateStep};

use crate::block_manager::{BlockManager, hash_salt};
use crate::ceiling::Ceiling;
pub use crate::schedule::{Refusal, ScheduledBatch, ScheduledSequence, SchedulerConfig, SchedulerStats, Submission};
use crate::sequence::{FinishReason, Rank, Sequence, SequenceId, SequenceState, SequenceStatus};
use crate::speculation::{Drafter, MAX_DRAFT};
use crate::state_pool::StatePool;

/// Arrivals that one level of priority lets a request overtake. Finite, so that nobody waits for ever.
const TURNS_PER_PRIORITY: i64 = 64;
/// Priorities beyond this count as this.
const MAX_PRIORITY: i32 = 1_000;
/// Prompt positions per step whose logits are wanted: a row of 262,144 logits is 1 MiB.
const MAX_PROMPT_LOGIT_ROWS: usize = 64;
/// Tokens between snapshots of recurrent state within a prompt, beside the one at its last block border.
const SNAPSHOT_INTERVAL: usize = 256;
/// Rows of a step of decoding that cost little more than one: drafts fill it up, and there are none in bigger batches.
const MAX_DRAFTED_ROWS: usize = 8;

/// What is left to give in the step being scheduled.
struct Budget {
    tokens: usize,
    prompt_logit_rows: usize,
}

/// The state machine. `schedule`, run the batch, then `commit` (or `fail`), then `append` and `finish`.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    blocks: BlockManager,
    states: Option<StatePool>,
    sequences: HashMap<SequenceId, Sequence>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    next_id: u64,
    stats: SchedulerStats,
    ceiling: Option<Ceiling>,
}

impl Scheduler {
    /// An idle scheduler. No step runs more sequences than it may have tokens.
    pub fn new(mut config: SchedulerConfig) -> Self {
        config.max_num_seqs = config.max_num_seqs.min(config.max_batch_tokens);
        Self {
            config,
            blocks: BlockManager::new(config.num_blocks),
            states: config.num_state_slots.map(StatePool::new),
            sequences: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            next_id: 0,
            stats: SchedulerStats::default(),
            ceiling: None,
        }
    }

    /// Enters a request and returns its choices in order.
    ///
    /// # Errors
    /// When a choice could not finish even with the whole cache to itself.
    pub fn submit(&mut self, submission: Submission) -> Result<Vec<SequenceId>, Refusal> {
        let Submission { request, prompt, n, max_tokens, priority, cache_salt, wants_prompt_logits, drafts } =
            submission;
        // A recurrent state cannot be taken back.
        let drafts = drafts && self.states.is_none();
        let max_len = prompt.len().saturating_add(max_tokens).min(self.config.max_model_len);
        // The last token is never computed, only returned.
        let refusal = Refusal { needed: (max_len - 1).div_ceil(BLOCK_SIZE), total: self.config.num_blocks };
        if refusal.needed > refusal.total || prompt.is_empty() || prompt.len() >= max_len {
            return Err(refusal);
        }
        let salt = match (self.config.enable_prefix_caching, cache_salt) {
            (true, Some(salt)) => Some(hash_salt("salt", salt.as_bytes())),
            (true, None) => Some(hash_salt("shared", &[])),
            (false, _) if n > 1 => Some(hash_salt("request", &self.next_id.to_le_bytes())),
            (false, _) => None,
        };
        let ids: Vec<_> = (0..u64::from(n)).map(|index| SequenceId(self.next_id + index)).collect();
        let turn = self.next_id as i64 + TURNS_PER_PRIORITY * i64::from(priority.clamp(-MAX_PRIORITY, MAX_PRIORITY));
        self.next_id += u64::from(n);
        for (index, &id) in ids.iter().enumerate() {
            let rank = Rank { turn, id };
            let sequence = Sequence {
                rank,
                request,
                index: index as u32,
                status: SequenceStatus::Waiting,
                tokens: prompt.clone(),
                prompt_len: prompt.len(),
                max_len,
                num_computed: 0,
                cached_tokens: None,
                block_table: Vec::new(),
                hashes: Vec::new(),
                salt,
                state: None,
                wants_prompt_logits: wants_prompt_logits && index == 0,
                forks: if index == 0 { ids[1..].to_vec() } else { Vec::new() },
                drafter: drafts.then(Drafter::default),
            };
            self.sequences.insert(id, sequence);
            if index == 0 {
                self.waiting.insert(rank);
            }
        }
        Ok(ids)
    }

    /// Chooses the next step: one token for each decoding sequence, then prompts in rank order with what is left.
    pub fn schedule(&mut self) -> ScheduledBatch {
        let mut batch = ScheduledBatch::default();
        let tokens = self.ceiling.as_ref().map_or(self.config.max_batch_tokens, Ceiling::tokens);
        let mut budget = Budget { tokens, prompt_logit_rows: MAX_PROMPT_LOGIT_ROWS };
        let preemptions = self.stats.preemptions;
        let (decoding, prefilling): (Vec<_>, Vec<_>) =
            self.running.iter().copied().partition(|rank| self.sequences[&rank.id].is_decoding());
        let quiet = prefilling.is_empty() && self.waiting.is_empty();
        let draft_room = if quiet { MAX_DRAFTED_ROWS / decoding.len().max(1) } else { 0 };
        for (place, &rank) in decoding.iter().enumerate() {
            if self.running.contains(&rank) && self.grow(rank) {
                self.schedule_chunk(rank.id, &mut budget, &mut batch);
                if let Some(scheduled) = batch.sequences.last_mut().filter(|scheduled| scheduled.id == rank.id) {
                    let spare = budget.tokens.saturating_sub(decoding.len() - 1 - place);
                    scheduled.draft = self.draft(rank.id, draft_room.saturating_sub(1).min(spare));
                    budget.tokens -= scheduled.draft.len();
                }
            }
        }
        for rank in prefilling {
            if self.running.contains(&rank) {
                self.schedule_chunk(rank.id, &mut budget, &mut batch);
            }
        }
        // Who was just thrown out must not come back for the blocks it was thrown out for.
        if preemptions == self.stats.preemptions {
            self.admit(&mut budget, &mut batch);
        }
        batch
    }

    /// Makes room for the newest token of a running sequence; preempts the youngest, itself at worst.
    fn grow(&mut self, rank: Rank) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&rank.id).expect("running sequences exist; this is a bug");
            if sequence.tokens.len() <= sequence.block_table.len() * BLOCK_SIZE {
                return true;
            }
            if let Some(block) = self.blocks.allocate() {
                sequence.block_table.push(block);
                return true;
            }
            let youngest = *self.running.last().expect("this sequence is running; this is a bug");
            self.preempt(youngest);
            if youngest == rank {
                return false;
            }
        }
    }

    fn preempt(&mut self, rank: Rank) {
        self.running.remove(&rank);
        self.release(rank.id);
        let sequence = self.sequences.get_mut(&rank.id).expect("running sequences exist; this is a bug");
        sequence.status = SequenceStatus::Waiting;
        self.waiting.insert(rank);
        self.stats.preemptions += 1;
    }

    /// Takes everything a sequence owns; its tokens stay.
    fn release(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are released; this is a bug");
        self.blocks.release(&std::mem::take(&mut sequence.block_table));
        sequence.num_computed = 0;
        if let (Some(states), Some(state)) = (&mut self.states, sequence.state.take()) {
            states.release(state.slot);
            if let Some((hash, _)) = state.resume_from {
                states.unpin(hash);
            }
        }
    }

    /// Lets waiting sequences in, strictly in order, while there is room for all of their tokens.
    fn admit(&mut self, budget: &mut Budget, batch: &mut ScheduledBatch) {
        let most = self.ceiling.as_ref().map_or(self.config.max_num_seqs, |ceiling| ceiling.sequences(&self.config));
        while budget.tokens > 0 && self.running.len() < most {
            let Some(&rank) = self.waiting.first() else { break };
            if !self.place(rank.id) {
                break;
            }
            self.waiting.remove(&rank);
            self.running.insert(rank);
            self.schedule_chunk(rank.id, budget, batch);
        }
    }

    /// Gives a waiting sequence the blocks of all its tokens, cached ones first, and a state slot.
    fn place(&mut self, id: SequenceId) -> bool {
        // A recurrent sequence may have to do without a snapshot whose slot is the only one left to write to.
        self.place_after(id, true) || (self.states.is_some() && self.place_after(id, false))
    }

    fn place_after(&mut self, id: SequenceId, cached: bool) -> bool {
        let sequence = self.sequences.get_mut(&id).expect("waiting sequences exist; this is a bug");
        let mut prefix = Vec::new();
        let mut snapshot = None;
        if cached && !sequence.wants_prompt_logits {
            // One token at least must be computed, for its logits.
            let hashes = sequence.hash_blocks((sequence.tokens.len() - 1) / BLOCK_SIZE);
            prefix = self.blocks.lookup(hashes);
            if let Some(states) = &self.states {
                let usable = hashes[..prefix.len()].iter().rposition(|&hash| states.contains(hash));
                prefix.truncate(usable.map_or(0, |block| block + 1));
                snapshot = usable.map(|block| hashes[block]);
            }
        }
        let fresh = sequence.tokens.len().div_ceil(BLOCK_SIZE) - prefix.len();
        // A block of headroom per running sequence, or the newcomer would soon be thrown out again.
        let needed = fresh + self.blocks.num_unreferenced(&prefix) + self.running.len();
        if needed > self.blocks.num_free() {
            return false;
        }
        if let Some(states) = &mut self.states {
            let resume_from = snapshot.and_then(|hash| states.pin(hash).map(|slot| (hash, slot)));
            let Some(slot) = states.allocate() else {
                if let Some((hash, _)) = resume_from {
                    states.unpin(hash);
                }
                return false;
            };
            sequence.state = Some(SequenceState { slot, resume_from });
        }
        self.blocks.share(&prefix);
        sequence.num_computed = prefix.len() * BLOCK_SIZE;
        sequence.block_table = prefix;
        for _ in 0..fresh {
            sequence.block_table.push(self.blocks.allocate().expect("room was checked; this is a bug"));
        }
        if sequence.cached_tokens.is_none() {
            sequence.cached_tokens = Some(sequence.num_computed);
            self.stats.cached_tokens += sequence.num_computed as u64;
        }
        sequence.status = SequenceStatus::Running;
        true
    }

    /// Puts as many pending tokens of a running sequence into the step as the budget allows.
    fn schedule_chunk(&mut self, id: SequenceId, budget: &mut Budget, batch: &mut ScheduledBatch) {
        let sequence = self.sequences.get_mut(&id).expect("running sequences exist; this is a bug");
        let prompt_logits = sequence.wants_prompt_logits;
        let mut count = sequence.num_pending().min(budget.tokens);
        if prompt_logits {
            count = count.min(budget.prompt_logit_rows);
            budget.prompt_logit_rows -= count;
        }
        if count == 0 {
            return;
        }
        budget.tokens -= count;
        let start = sequence.num_computed;
        let end = start + count;
        let state = self.states.as_mut().map(|states| state_step(sequence, end, states));
        let samples = end == sequence.tokens.len();
        batch.sequences.push(ScheduledSequence { id, start, end, samples, prompt_logits, state, draft: Vec::new() });
    }

    /// Tokens that may follow a decoding sequence, at most `room`, with blocks to compute them in.
    fn draft(&mut self, id: SequenceId, room: usize) -> Vec<u32> {
        let headroom = self.blocks.num_free() > self.running.len();
        let sequence = self.sequences.get_mut(&id).expect("scheduled sequences exist; this is a bug");
        let Some(drafter) = &mut sequence.drafter else { return Vec::new() };
        let len = sequence.tokens.len();
        let capacity = (sequence.block_table.len() + usize::from(headroom)) * BLOCK_SIZE;
        let draft = drafter.propose(&sequence.tokens, room.min(sequence.max_len - 1 - len).min(capacity - len));
        if len + draft.len() > sequence.block_table.len() * BLOCK_SIZE {
            sequence.block_table.push(self.blocks.allocate().expect("room was checked; this is a bug"));
        }
        self.stats.draft_tokens += draft.len() as u64;
        draft.to_vec()
    }

    /// Books that the newest token of a sequence is the one that was drafted, so that the cache holds it already.
    pub fn keep(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("tokens are kept for live sequences; this is a bug");
        sequence.num_computed += 1;
        debug_assert_eq!(sequence.num_pending(), 0);
        self.stats.accepted_tokens += 1;
    }

    /// Books a step that ran: its tokens are in the cache now.
    pub fn commit(&mut self, batch: &ScheduledBatch) {
        if self.ceiling.as_mut().is_some_and(|ceiling| ceiling.lift(&self.config)) {
            self.ceiling = None;
        }
        for scheduled in &batch.sequences {
            let sequence = self.sequences.get_mut(&scheduled.id).expect("scheduled sequences exist; this is a bug");
            sequence.num_computed = scheduled.end;
            let full = scheduled.end / BLOCK_SIZE;
            sequence.hash_blocks(full);
            if sequence.salt.is_some() {
                // Drafted tokens were kept after their step was booked, so the blocks they filled are booked now.
                for block in scheduled.start.saturating_sub(MAX_DRAFT) / BLOCK_SIZE..full {
                    self.blocks.remember(sequence.block_table[block], sequence.hashes[block]);
                }
            }
            if let (Some(states), Some(step), Some(state)) = (&mut self.states, &scheduled.state, &mut sequence.state) {
                for &(consumed, slot) in &step.snapshots {
                    states.remember(slot, sequence.hashes[(scheduled.start + consumed as usize) / BLOCK_SIZE - 1]);
                }
                if let Some((hash, _)) = state.resume_from.take() {
                    states.unpin(hash);
                }
            }
            if scheduled.end >= sequence.prompt_len {
                sequence.wants_prompt_logits = false;
                let forks = std::mem::take(&mut sequence.forks);
                self.wake(&forks);
            }
        }
    }

    /// Takes back a step for which the device had no memory: the younger half of its sequences is preempted, and for a
    /// while steps are half as large. Whether that leaves anything to try; if not, the step has failed.
    pub fn recede(&mut self, batch: &ScheduledBatch) -> bool {
        let tokens: usize = batch.sequences.iter().map(|s| s.end - s.start + s.draft.len()).sum();
        if tokens <= 1 {
            return false;
        }
        self.release_snapshots(batch);
        let mut ranks: Vec<Rank> = batch.sequences.iter().map(|s| self.sequences[&s.id].rank).collect();
        ranks.sort_unstable();
        // A recurrent state may have been written half; keys and values are written again at the same places.
        let keep = if self.states.is_some() { 0 } else { ranks.len().div_ceil(2) };
        for &rank in ranks[keep..].iter().rev() {
            self.preempt(rank);
        }
        self.ceiling = Some(Ceiling::new(tokens / 2, ranks.len().div_ceil(2)));
        true
    }

    /// Ends every sequence of a step that did not run. What it may have written is forgotten.
    pub fn fail(&mut self, batch: &ScheduledBatch) -> Vec<Sequence> {
        self.release_snapshots(batch);
        batch.sequences.iter().filter_map(|scheduled| self.finish(scheduled.id, FinishReason::Error)).collect()
    }

    fn release_snapshots(&mut self, batch: &ScheduledBatch) {
        for scheduled in &batch.sequences {
            if let (Some(states), Some(step)) = (&mut self.states, &scheduled.state) {
                step.snapshots.iter().for_each(|&(_, slot)| states.release(slot));
            }
        }
    }

    fn wake(&mut self, forks: &[SequenceId]) {
        self.waiting.extend(forks.iter().filter_map(|id| self.sequences.get(id)).map(|sequence| sequence.rank));
    }

    /// Adds a token that was chosen; tells when it was the last that fits. The caller then calls `finish`.
    pub fn append(&mut self, id: SequenceId, token: u32) -> Option<FinishReason> {
        let sequence = self.sequences.get_mut(&id).expect("tokens are for live sequences; this is a bug");
        sequence.tokens.push(token);
        (sequence.tokens.len() >= sequence.max_len).then_some(FinishReason::Length)
    }

    /// Ends a sequence wherever it is and frees what it owns at once. `None` if it has ended before.
    pub fn finish(&mut self, id: SequenceId, reason: FinishReason) -> Option<Sequence> {
        let sequence = self.sequences.get(&id)?;
        let rank = sequence.rank;
        if self.running.remove(&rank) {
            self.release(id);
        }
        self.waiting.remove(&rank);
        let mut sequence = self.sequences.remove(&id)?;
        self.wake(&std::mem::take(&mut sequence.forks));
        sequence.status = SequenceStatus::Finished(reason);
        Some(sequence)
    }

    /// A live sequence.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Sequences that own blocks.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that do not.
    pub fn num_waiting(&self) -> usize {
        self.sequences.len() - self.running.len()
    }

    /// The pool of blocks.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Counters since the start.
    pub fn stats(&self) -> SchedulerStats {
        self.stats
    }

    /// Checks all books between two steps. For tests.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check(&self) -> Result<(), String> {
        self.blocks.check(self.sequences.values().map(|sequence| sequence.block_table.as_slice()))?;
        if let Some(states) = &self.states {
            states.check(self.sequences.values().filter_map(|sequence| sequence.state).map(|state| state.slot))?;
        }
        for sequence in self.sequences.values() {
            let running = self.running.contains(&sequence.rank);
            if running != (sequence.status == SequenceStatus::Running) || running == sequence.block_table.is_empty() {
                return Err(format!("{} is {:?} but in the wrong set", sequence.id(), sequence.status));
            }
        }
        Ok(())
    }
}

/// Where the recurrent state of tokens up to `end` comes from and goes to, with snapshots at the borders worth keeping.
fn state_step(sequence: &mut Sequence, end: usize, states: &mut StatePool) -> StateStep {
    let state = sequence.state.expect("running sequences of recurrent models own a slot; this is a bug");
    let start = sequence.num_computed;
    let source = match state.resume_from {
        Some((_, slot)) => Some(slot),
        None => (start > 0).then_some(state.slot),
    };
    let mut snapshots = Vec::new();
    let last_border = (sequence.tokens.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
    if sequence.salt.is_some() && !sequence.is_decoding() {
        for border in (start / BLOCK_SIZE + 1..=end / BLOCK_SIZE).map(|block| block * BLOCK_SIZE) {
            let hash = sequence.hash_blocks(border / BLOCK_SIZE)[border / BLOCK_SIZE - 1];
            let worth = border == last_border || border.is_multiple_of(SNAPSHOT_INTERVAL);
            if worth && !states.contains(hash) {
                snapshots.extend(states.allocate().map(|slot| ((border - start) as u32, slot)));
            }
        }
    }
    StateStep { source, target: state.slot, snapshots }
}
