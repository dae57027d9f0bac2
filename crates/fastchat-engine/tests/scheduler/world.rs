//! A model of what the cache contains, played beside the scheduler: what each position reads must be what was written for it.
#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, clippy::missing_errors_doc)] // part of a test

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fastchat_engine::scheduler::{ScheduledBatch, ScheduledSequence, Scheduler, SchedulerConfig, Submission};
use fastchat_engine::sequence::{FinishReason, SequenceId};
use fastchat_kernels::BLOCK_SIZE;
use proptest::prelude::*;

/// All that a cached position or a state depends on: the salt and every token up to there.
type Contents = (u64, Vec<u32>);

/// What a correct cache must contain, kept apart from the scheduler's own books.
pub struct World {
    scheduler: Scheduler,
    config: SchedulerConfig,
    kv: HashMap<usize, Contents>,
    states: HashMap<u32, Contents>,
    /// Per live sequence: salt, prompt, completion, most tokens to generate.
    pub live: BTreeMap<SequenceId, (u64, Vec<u32>, Vec<u32>, usize)>,
    pub ended: HashMap<SequenceId, FinishReason>,
    held: BTreeSet<SequenceId>,
    next_request: u64,
    /// A step that a device computes already, and the slot that each of its sequences writes.
    queued: Option<(ScheduledBatch, Vec<usize>)>,
}

#[derive(Clone, Debug)]
pub enum Event {
    Submit {
        prompt: Vec<u32>,
        n: u32,
        max_tokens: usize,
        priority: i32,
        salt: u64,
        prompt_logits: bool,
        tenant: u8,
    },
    Step {
        count: usize,
        /// Whether the next step is queued before this one is known.
        ahead: bool,
    },
    Cancel {
        which: prop::sample::Index,
    },
    Fail,
    /// Of those that live: their next token is not known to be allowed.
    Hold {
        which: prop::sample::Index,
    },
    Resume,
}

impl World {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            config,
            kv: HashMap::new(),
            states: HashMap::new(),
            live: BTreeMap::new(),
            ended: HashMap::new(),
            held: BTreeSet::new(),
            next_request: 0,
            queued: None,
        }
    }

    pub fn submit(&mut self, submission: Submission, salt: u64) -> Result<(), TestCaseError> {
        self.next_request += 1;
        let prompt = submission.prompt.clone();
        let max_len = (prompt.len() + submission.max_tokens).min(self.config.max_model_len);
        let fits = (max_len - 1).div_ceil(BLOCK_SIZE) <= self.config.num_blocks && prompt.len() < max_len;
        match self.scheduler.submit(submission) {
            Ok(ids) => {
                prop_assert!(fits);
                for id in ids {
                    self.live.insert(id, (salt, prompt.clone(), Vec::new(), max_len - prompt.len()));
                }
            }
            Err(_) => prop_assert!(!fits),
        }
        Ok(())
    }

    pub fn end(&mut self, id: SequenceId, reason: FinishReason) -> Result<(), TestCaseError> {
        prop_assert!(self.live.remove(&id).is_some());
        self.held.remove(&id);
        prop_assert_eq!(self.ended.insert(id, reason), None, "ended twice");
        Ok(())
    }

    /// Plays the model: checks what each position would read, then writes.
    pub fn run(&mut self, batch: &ScheduledBatch) -> Result<(), TestCaseError> {
        let mut tokens = 0;
        let mut written = HashMap::new();
        let mut new_states = Vec::new();
        prop_assert!(batch.sequences.len() <= self.config.max_num_seqs);
        for scheduled in &batch.sequences {
            let (salt, prompt, completion, max_tokens) = &self.live[&scheduled.id];
            let all: Vec<u32> = prompt.iter().chain(completion).copied().collect();
            let sequence = self.scheduler.sequence(scheduled.id).unwrap();
            prop_assert_eq!(&sequence.tokens, &all);
            prop_assert!(scheduled.start < scheduled.end && scheduled.end <= all.len());
            prop_assert_eq!(scheduled.samples, scheduled.end == all.len());
            tokens += scheduled.end - scheduled.start + scheduled.draft.len();
            prop_assert!(scheduled.draft.is_empty() || (scheduled.samples && scheduled.state.is_none()));
            let computed: Vec<u32> = all[..scheduled.end].iter().chain(&scheduled.draft).copied().collect();
            prop_assert!(computed.len() < prompt.len() + max_tokens);
            let slot = |position: usize| {
                sequence.block_table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
            };
            for position in 0..scheduled.start {
                let expected = (*salt, all[..=position].to_vec());
                prop_assert_eq!(
                    self.kv.get(&slot(position)),
                    Some(&expected),
                    "position {} reads foreign data",
                    position
                );
            }
            for position in scheduled.start..computed.len() {
                let clash = written.insert(slot(position), (*salt, computed[..=position].to_vec()));
                prop_assert_eq!(clash, None, "two sequences write one slot");
            }
            prop_assert_eq!(scheduled.state.is_some(), self.config.num_state_slots.is_some());
            if let Some(step) = &scheduled.state {
                if scheduled.start == 0 {
                    prop_assert_eq!(step.source, None);
                } else {
                    let expected = (*salt, all[..scheduled.start].to_vec());
                    prop_assert_eq!(step.source.and_then(|slot| self.states.get(&slot)), Some(&expected));
                }
                new_states.push((step.target, (*salt, all[..scheduled.end].to_vec())));
                for &(consumed, slot) in &step.snapshots {
                    let border = scheduled.start + consumed as usize;
                    prop_assert!(border.is_multiple_of(BLOCK_SIZE) && border <= scheduled.end && consumed > 0);
                    new_states.push((slot, (*salt, all[..border].to_vec())));
                }
            }
        }
        prop_assert!(tokens <= self.config.max_batch_tokens);
        let targets: std::collections::HashSet<_> = new_states.iter().map(|(slot, _)| *slot).collect();
        prop_assert_eq!(targets.len(), new_states.len(), "two sequences write one state");
        self.kv.extend(written);
        self.states.extend(new_states);
        Ok(())
    }

    pub fn schedule(&mut self) -> Result<ScheduledBatch, TestCaseError> {
        // Whatever the pace, the books stay right.
        self.scheduler.set_pace(self.live.len() * 7 % 40);
        let batch = self.scheduler.schedule();
        let stuck = batch.sequences.is_empty() && !self.live.is_empty() && self.held.is_empty();
        prop_assert!(!stuck, "live sequences but nothing to run");
        prop_assert!(batch.sequences.iter().all(|scheduled| !self.held.contains(&scheduled.id)));
        Ok(batch)
    }

    /// The queued step without the sequences that have ended, whose writes spoil what is there.
    pub fn unqueue(&mut self, (mut batch, slots): (ScheduledBatch, Vec<usize>)) -> ScheduledBatch {
        for (scheduled, slot) in batch.sequences.iter().zip(slots) {
            if !self.live.contains_key(&scheduled.id) {
                self.kv.remove(&slot);
            }
        }
        let mut tokens = vec![0; batch.sequences.len()];
        self.scheduler.drop_ended(&mut batch, &mut tokens);
        assert_eq!(tokens.len(), batch.sequences.len());
        batch
    }

    pub fn step(&mut self, ahead: bool) -> Result<(), TestCaseError> {
        let batch = match self.queued.take() {
            Some(queued) => self.unqueue(queued),
            None => self.schedule()?,
        };
        let next = if ahead { self.scheduler.ahead(&batch) } else { None };
        if let Some(next) = &next {
            let places = |&place: &u32| batch.sequences[place as usize].id;
            prop_assert!(next.places.iter().map(places).eq(next.batch.sequences.iter().map(|one| one.id)));
        }
        let slot = |one: &ScheduledSequence| {
            let table = &self.scheduler.sequence(one.id).unwrap().block_table;
            table[one.start / BLOCK_SIZE] as usize * BLOCK_SIZE + one.start % BLOCK_SIZE
        };
        let slots = next.iter().flat_map(|next| &next.batch.sequences).map(slot).collect();
        self.finish_step(&batch)?;
        if let Some(next) = next {
            // If nobody ends it is the step that would be scheduled now.
            let mut left = next.batch.clone();
            self.scheduler.drop_ended(&mut left, &mut vec![0; next.places.len()]);
            if left.sequences.len() == batch.sequences.len() {
                let expected = self.scheduler.clone().schedule().sequences;
                prop_assert!(expected.len() == left.sequences.len(), "{left:?} for {expected:?}");
                prop_assert!(left.sequences.iter().all(|one| expected.contains(one)), "{left:?} for {expected:?}");
            }
            self.queued = Some((next.batch, slots));
        }
        Ok(())
    }

    pub fn finish_step(&mut self, batch: &ScheduledBatch) -> Result<(), TestCaseError> {
        self.run(batch)?;
        self.scheduler.commit(batch);
        for scheduled in batch.sequences.iter().filter(|scheduled| scheduled.samples) {
            let (_, prompt, completion, max_tokens) = self.live.get_mut(&scheduled.id).unwrap();
            let mut ended = None;
            for ahead in 0..=scheduled.draft.len() {
                // A toy language: few words, so that prefixes meet and drafts come true; 3 ends a text.
                let count = completion.len();
                let token = if count % 29 == 28 { 3 } else { ((prompt.len() * 7 + count * 5) % 3) as u32 };
                completion.push(token);
                let full = completion.len() == *max_tokens;
                let reason = self.scheduler.append(scheduled.id, token);
                prop_assert_eq!(reason, full.then_some(FinishReason::Length));
                let drafted = scheduled.draft.get(ahead) == Some(&token);
                if drafted {
                    self.scheduler.keep(scheduled.id);
                }
                ended = reason.or((token == 3).then_some(FinishReason::Stop));
                if ended.is_some() || !drafted {
                    break;
                }
            }
            if let Some(reason) = ended {
                prop_assert!(self.scheduler.finish(scheduled.id, reason).is_some());
                self.end(scheduled.id, reason)?;
            }
        }
        self.scheduler.check().map_err(TestCaseError::fail)
    }

    pub fn apply(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Submit { prompt, n, max_tokens, priority, salt, prompt_logits, tenant } => {
                let submission = Submission {
                    request: self.next_request,
                    prompt,
                    n,
                    max_tokens,
                    priority,
                    cache_salt: (salt > 0).then(|| salt.to_string()),
                    tenant: (tenant > 0).then(|| tenant.to_string()),
                    wants_prompt_logits: prompt_logits,
                    drafts: n != 2,
                    ..Submission::default()
                };
                self.submit(submission, salt)?;
            }
            Event::Step { count, ahead } => {
                for _ in 0..count {
                    self.step(ahead)?;
                }
            }
            Event::Cancel { which } => {
                let ids: Vec<_> = self.live.keys().copied().collect();
                if !ids.is_empty() {
                    let id = ids[which.index(ids.len())];
                    prop_assert!(self.scheduler.finish(id, FinishReason::Abort).is_some());
                    prop_assert!(self.scheduler.finish(id, FinishReason::Abort).is_none());
                    self.end(id, FinishReason::Abort)?;
                }
            }
            Event::Hold { which } => {
                let ids: Vec<_> = self.live.keys().copied().collect();
                if !ids.is_empty() {
                    let id = ids[which.index(ids.len())];
                    self.scheduler.hold(id);
                    self.held.insert(id);
                }
            }
            Event::Resume => self.resume_all(),
            Event::Fail => {
                if self.queued.is_some() {
                    self.step(false)?;
                }
                let batch = self.scheduler.schedule();
                // A step that died half way leaves anything behind.
                for scheduled in &batch.sequences {
                    let sequence = self.scheduler.sequence(scheduled.id).unwrap();
                    for position in scheduled.start..scheduled.end + scheduled.draft.len() {
                        let block = sequence.block_table[position / BLOCK_SIZE] as usize;
                        self.kv.remove(&(block * BLOCK_SIZE + position % BLOCK_SIZE));
                    }
                    if let Some(step) = &scheduled.state {
                        self.states.remove(&step.target);
                        step.snapshots.iter().for_each(|(_, slot)| drop(self.states.remove(slot)));
                    }
                }
                let failed = self.scheduler.fail(&batch);
                prop_assert_eq!(failed.len(), batch.sequences.len());
                for sequence in failed {
                    self.end(sequence.id(), FinishReason::Error)?;
                }
            }
        }
        self.scheduler.check().map_err(TestCaseError::fail)
    }

    pub fn resume_all(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.scheduler.resume(id);
        }
        assert!(!self.scheduler.holds_any());
    }

    /// Runs dry. Whoever waits is served within the time that all who may go first need one after the other.
    pub fn drain(&mut self) -> Result<(), TestCaseError> {
        let serial = |(_, prompt, _, max_tokens): &(u64, Vec<u32>, Vec<u32>, usize)| {
            2 * (prompt.len() + max_tokens + 1) * (max_tokens + 1)
        };
        self.resume_all();
        let bound: usize = self.live.values().map(serial).sum();
        for _ in 0..bound {
            if self.live.is_empty() {
                break;
            }
            self.step(false)?;
        }
        prop_assert!(self.live.is_empty(), "{} sequences starve after {bound} steps", self.live.len());
        prop_assert!(self.scheduler.is_idle());
        prop_assert_eq!(self.scheduler.blocks().num_free(), self.config.num_blocks, "blocks were lost");
        Ok(())
    }
}
