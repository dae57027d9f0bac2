//! Who runs in the next step: admits, cuts prompts into chunks, preempts, and keeps the books of blocks and state
//! slots. A pure state machine over integers; knows no tensors, clocks or channels.

mod view;

use std::sync::Arc;

use fastchat_kernels::BLOCK_SIZE;
use hashbrown::{HashMap, HashSet};

use crate::block_manager::BlockManager;
use crate::fairness::{Demand, Lines, grants};
pub use crate::schedule::{Refusal, ScheduledBatch, ScheduledSequence, SchedulerConfig, SchedulerStats, Submission};
use crate::sequence::{FinishReason, LineId, MediaSpan, Rank, Sequence, SequenceId, SequenceState, SequenceStatus};
use crate::speculation::{Drafter, MAX_DRAFT};
use crate::state_pool::StatePool;
pub use outside::BlockNews;
use recede::Ceiling;

mod ahead;
mod outside;
mod recede;

/// Arrivals that one level of priority lets a request overtake. Finite, so that nobody waits for ever.
const TURNS_PER_PRIORITY: i64 = 64;
/// Priorities beyond this count as this.
const MAX_PRIORITY: i32 = 1_000;
/// Prompt positions per step whose logits are wanted: a row of 262,144 logits is 1 MiB.
const MAX_PROMPT_LOGIT_ROWS: usize = 64;
/// Rows of a step of decoding that cost little more than one: drafts fill it up, and there are none in bigger batches.
const MAX_DRAFTED_ROWS: usize = 8;

/// The step being scheduled: what is left to give, what was given, and which lines must let nobody in.
struct Step {
    tokens: usize,
    prompt_logit_rows: usize,
    /// Whether some prompt has its part.
    prefilled: bool,
    closed: HashSet<LineId>,
    batch: ScheduledBatch,
}

/// The state machine. `schedule`, run the batch, then `commit` (or `fail`), then `append` and `finish`.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    blocks: BlockManager,
    states: Option<StatePool>,
    sequences: HashMap<SequenceId, Sequence>,
    lines: Lines,
    next_id: u64,
    /// Running ones that no step may compute for now.
    held: HashSet<SequenceId>,
    /// Tokens per step while a sequence decodes.
    shared_tokens: usize,
    stats: SchedulerStats,
    ceiling: Option<Ceiling>,
    /// Whether the last step has everybody whom another could compute: nobody has come, and nobody waits for who has gone.
    settled: bool,
    /// For who keeps blocks elsewhere.
    news: Option<Vec<BlockNews>>,
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
            lines: Lines::default(),
            next_id: 0,
            held: HashSet::new(),
            shared_tokens: config.max_batch_tokens,
            stats: SchedulerStats::default(),
            ceiling: None,
            settled: false,
            news: None,
        }
    }

    /// Sets how many tokens a step may have while a sequence decodes, so that prompts do not hold it up. Prompts still
    /// get a block per step.
    pub fn set_pace(&mut self, tokens: usize) {
        self.shared_tokens = tokens;
    }

    /// Enters a request and returns its choices in order.
    ///
    /// # Errors
    /// When a choice could not finish even with the whole cache to itself.
    pub fn submit(&mut self, submission: Submission) -> Result<Vec<SequenceId>, Refusal> {
        let salt = self.salt(&submission);
        let Submission { request, prompt, n, max_tokens, priority, tenant, wants_prompt_logits, drafts, .. } =
            submission;
        let spans: Arc<[MediaSpan]> = submission.spans.into();
        // A recurrent state cannot be taken back.
        let drafts = drafts && self.states.is_none();
        let max_len = prompt.len().saturating_add(max_tokens).min(self.config.max_model_len);
        // The last token is never computed, only returned.
        let refusal = Refusal { needed: (max_len - 1).div_ceil(BLOCK_SIZE), total: self.config.num_blocks };
        if refusal.needed > refusal.total || prompt.is_empty() || prompt.len() >= max_len {
            return Err(refusal);
        }
        let ids: Vec<_> = (0..u64::from(n)).map(|index| SequenceId(self.next_id + index)).collect();
        let turn = self.next_id as i64 + TURNS_PER_PRIORITY * i64::from(priority.clamp(-MAX_PRIORITY, MAX_PRIORITY));
        self.next_id += u64::from(n);
        self.settled = false;
        for (index, &id) in ids.iter().enumerate() {
            let rank = Rank { turn, id };
            let line = self.lines.join(tenant.as_deref());
            let sequence = Sequence {
                rank,
                line,
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
                spans: spans.clone(),
                wants_prompt_logits: wants_prompt_logits && index == 0,
                forks: if index == 0 { ids[1..].to_vec() } else { Vec::new() },
                drafter: drafts.then(Drafter::default),
            };
            self.sequences.insert(id, sequence);
            if index == 0 {
                self.lines.wait(line, rank);
            }
        }
        Ok(ids)
    }

    /// Chooses the next step: one token for each decoding sequence, then prompts with what is left, shared among lines.
    pub fn schedule(&mut self) -> ScheduledBatch {
        let mut running: Vec<(LineId, Rank)> = self.lines.running().collect();
        running.retain(|(_, rank)| !self.held.contains(&rank.id));
        running.sort_unstable_by_key(|&(_, rank)| rank);
        let (decoding, prefilling): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|(_, rank)| self.sequences[&rank.id].is_decoding());
        let most = if decoding.is_empty() { usize::MAX } else { self.shared_tokens.max(decoding.len() + BLOCK_SIZE) };
        let mut step = Step {
            tokens: self.ceiling.map_or(self.config.max_batch_tokens, Ceiling::tokens).min(most),
            prompt_logit_rows: MAX_PROMPT_LOGIT_ROWS,
            prefilled: false,
            closed: HashSet::new(),
            batch: ScheduledBatch::default(),
        };
        let quiet = prefilling.is_empty() && !self.lines.has_waiting();
        let draft_room = if quiet { MAX_DRAFTED_ROWS / decoding.len().max(1) } else { 0 };
        let mut served: HashMap<LineId, usize> = HashMap::new();
        for (place, &(line, rank)) in decoding.iter().enumerate() {
            if self.lines.is_running(line, rank) && self.grow(rank, &mut step) {
                *served.entry(line).or_default() += self.schedule_chunk(rank.id, usize::MAX, &mut step);
                if let Some(scheduled) = step.batch.sequences.last_mut().filter(|scheduled| scheduled.id == rank.id) {
                    let spare = step.tokens.saturating_sub(decoding.len() - 1 - place);
                    scheduled.draft = self.draft(rank.id, draft_room.saturating_sub(1).min(spare));
                    step.tokens -= scheduled.draft.len();
                }
            }
        }
        self.share_out(&prefilling, &served, &mut step);
        self.settled = !step.prefilled && step.closed.is_empty() && self.admits_nobody_next();
        step.batch
    }

    /// Gives what is left of a step to prompts: lets in whom each line's share may serve, then shares it out exactly.
    fn share_out(&mut self, prefilling: &[(LineId, Rank)], served: &HashMap<LineId, usize>, step: &mut Step) {
        let order = self.lines.order();
        let mut prompts: HashMap<LineId, Vec<Rank>> = order.iter().map(|&line| (line, Vec::new())).collect();
        for &(line, rank) in prefilling {
            prompts.entry(line).or_default().push(rank);
        }
        let served = |line| served.get(&line).copied().unwrap_or(0);
        let tokens = step.tokens;
        let pending = |scheduler: &Self, ranks: &mut dyn Iterator<Item = Rank>| {
            let mut wanted = 0;
            while wanted < tokens
                && let Some(rank) = ranks.next()
            {
                wanted += scheduler.sequences[&rank.id].num_pending();
            }
            wanted.min(tokens)
        };
        let demand = |scheduler: &Self, prompts: &HashMap<LineId, Vec<Rank>>, waiting: bool| -> Vec<Demand> {
            let of = |&line: &LineId| {
                let waiting = scheduler.lines.waiting(line).take(if waiting { usize::MAX } else { 0 });
                let running = prompts[&line].iter().copied().filter(|&rank| scheduler.lines.is_running(line, rank));
                let wanted = pending(scheduler, &mut running.chain(waiting));
                Demand { line, served: served(line), wanted }
            };
            order.iter().map(of).collect()
        };
        let mut shares = grants(&demand(self, &prompts, true), step.tokens);
        let mut running = demand(self, &prompts, false);
        let mut open = true;
        for (at, &line) in order.iter().enumerate() {
            shares[at] = shares[at].saturating_sub(running[at].wanted);
            open = open && self.admit(line, shares[at], prompts.entry(line).or_default(), step);
        }
        running = demand(self, &prompts, false);
        for (&line, mut share) in order.iter().zip(grants(&running, step.tokens)) {
            for &rank in &prompts[&line] {
                // Held ones wait. A grammar may have appended more tokens than the last block holds.
                if !self.held.contains(&rank.id) && self.lines.is_running(line, rank) && self.grow(rank, step) {
                    share = share.saturating_sub(self.schedule_chunk(rank.id, share, step));
                }
            }
        }
    }

    /// Makes room for the newest tokens of a running sequence; throws out others, itself at worst. Who was thrown out
    /// must not come back in this step for the blocks it was thrown out for, so its line is `closed`.
    fn grow(&mut self, rank: Rank, step: &mut Step) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&rank.id).expect("running sequences exist; this is a bug");
            if sequence.tokens.len() <= sequence.block_table.len() * BLOCK_SIZE {
                return true;
            }
            if let Some(block) = self.blocks.allocate() {
                sequence.block_table.push(block);
                continue;
            }
            let (line, victim) = self.lines.victim().expect("this sequence is running; this is a bug");
            self.preempt(line, victim, step);
            if victim == rank {
                return false;
            }
        }
    }

    fn preempt(&mut self, line: LineId, rank: Rank, step: &mut Step) {
        step.closed.insert(line);
        if let Some(at) = step.batch.sequences.iter().position(|scheduled| scheduled.id == rank.id) {
            let scheduled = step.batch.sequences.remove(at);
            self.forget_snapshots(&scheduled);
        }
        self.put_back(line, rank);
    }

    fn put_back(&mut self, line: LineId, rank: Rank) {
        self.lines.wait(line, rank);
        self.release(rank.id);
        let sequence = self.sequences.get_mut(&rank.id).expect("running sequences exist; this is a bug");
        sequence.status = SequenceStatus::Waiting;
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

    /// Lets the waiting of a line in, strictly in order, up to `share` tokens and while there is room for all of their
    /// tokens. Returns whether the next line may: nobody who has more passes one for whom there was no room.
    fn admit(&mut self, line: LineId, mut share: usize, admitted: &mut Vec<Rank>, step: &mut Step) -> bool {
        let most = self.most_running();
        while share > 0 && !step.closed.contains(&line) {
            let Some(rank) = self.lines.waiting(line).next() else { break };
            while self.lines.num_running() >= most || !self.place(rank.id) {
                // A line that has much less running than another takes a place from it.
                let Some((other, victim)) = self.lines.victim_for(line) else { return false };
                self.preempt(other, victim, step);
            }
            self.lines.start(line, rank);
            admitted.push(rank);
            share = share.saturating_sub(self.sequences[&rank.id].num_pending());
        }
        true
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
        let needed = fresh + self.blocks.num_unreferenced(&prefix) + self.lines.num_running();
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

    /// Puts as many pending tokens of a running sequence into the step as its share and the budget allow; returns them.
    fn schedule_chunk(&mut self, id: SequenceId, share: usize, step: &mut Step) -> usize {
        let sequence = self.sequences.get_mut(&id).expect("running sequences exist; this is a bug");
        let prompt_logits = sequence.wants_prompt_logits;
        let mut count = sequence.num_pending().min(share).min(step.tokens);
        if prompt_logits {
            count = count.min(step.prompt_logit_rows);
        }
        let start = sequence.num_computed;
        let mut end = sequence.whole_spans(start + count);
        if end == start && count > 0 && !step.prefilled {
            // More than the step has left, perhaps than any has: the first prompt's may exceed it.
            end = sequence.spans.iter().find(|span| span.whole && span.end > start).map_or(end, |span| span.end);
        }
        let count = end - start;
        if count == 0 {
            return 0;
        }
        step.tokens = step.tokens.saturating_sub(count);
        step.prefilled |= !sequence.is_decoding();
        if prompt_logits {
            step.prompt_logit_rows = step.prompt_logit_rows.saturating_sub(count);
        }
        let state = self.states.as_mut().map(|states| states.step(sequence, end));
        let samples = end == sequence.tokens.len();
        step.batch.sequences.push(ScheduledSequence {
            id,
            start,
            end,
            samples,
            prompt_logits,
            state,
            draft: Vec::new(),
        });
        count
    }

    /// Tokens that may follow a decoding sequence, at most `room`, with blocks to compute them in.
    fn draft(&mut self, id: SequenceId, room: usize) -> Vec<u32> {
        let headroom = self.blocks.num_free() > self.lines.num_running();
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

    /// Leaves a sequence out of steps until it is resumed: what its next token may be is not known yet.
    pub fn hold(&mut self, id: SequenceId) {
        self.held.insert(id);
    }

    /// Whether any sequence is held.
    pub fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// Lets it take part again.
    pub fn resume(&mut self, id: SequenceId) {
        self.settled = false;
        self.held.remove(&id);
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
        self.ceiling = self.ceiling.and_then(|ceiling| ceiling.lift(&self.config));
        for scheduled in &batch.sequences {
            let sequence = self.sequences.get_mut(&scheduled.id).expect("scheduled sequences exist; this is a bug");
            sequence.num_computed = scheduled.end;
            let full = scheduled.end / BLOCK_SIZE;
            sequence.hash_blocks(full);
            if sequence.salt.is_some() {
                // Drafted tokens were kept after their step was booked, so the blocks they filled are booked now.
                for block in scheduled.start.saturating_sub(MAX_DRAFT) / BLOCK_SIZE..full {
                    let (id, hash) = (sequence.block_table[block], sequence.hashes[block]);
                    if self.blocks.remember(id, hash)
                        && let Some(news) = &mut self.news
                    {
                        news.push(BlockNews::Remembered(hash, id));
                    }
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

    /// Ends every sequence of a step that did not run. What it may have written is forgotten.
    pub fn fail(&mut self, batch: &ScheduledBatch) -> Vec<Sequence> {
        batch.sequences.iter().for_each(|scheduled| self.forget_snapshots(scheduled));
        batch.sequences.iter().filter_map(|scheduled| self.finish(scheduled.id, FinishReason::Error)).collect()
    }

    fn wake(&mut self, forks: &[SequenceId]) {
        self.settled &= forks.is_empty();
        for sequence in forks.iter().filter_map(|id| self.sequences.get(id)) {
            self.lines.wait(sequence.line, sequence.rank);
        }
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
        if self.lines.leave(sequence.line, sequence.rank) {
            if reason == FinishReason::Error {
                // What made it fail may be in what it computed.
                let forgotten = self.blocks.forget(&sequence.block_table);
                for hash in forgotten {
                    self.note(BlockNews::Forgotten(hash));
                }
            }
            self.release(id);
        }
        self.held.remove(&id);
        self.settled &= !self.lines.has_waiting();
        let mut sequence = self.sequences.remove(&id)?;
        self.wake(&std::mem::take(&mut sequence.forks));
        sequence.status = SequenceStatus::Finished(reason);
        Some(sequence)
    }
}
