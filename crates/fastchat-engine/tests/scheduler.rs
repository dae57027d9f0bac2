//! Random arrivals, departures and failures over tiny pools, held against a model of what the cache contains.
#![allow(clippy::unwrap_used)] // a test may fail loudly

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fastchat_engine::scheduler::{ScheduledBatch, Scheduler, SchedulerConfig, Submission};
use fastchat_engine::sequence::{FinishReason, SequenceId};
use fastchat_kernels::BLOCK_SIZE;
use proptest::prelude::*;

/// All that a cached position or a state depends on: the salt and every token up to there.
type Contents = (u64, Vec<u32>);

/// What a correct cache must contain, kept apart from the scheduler's own books.
struct World {
    scheduler: Scheduler,
    config: SchedulerConfig,
    kv: HashMap<usize, Contents>,
    states: HashMap<u32, Contents>,
    /// Per live sequence: salt, prompt, completion, most tokens to generate.
    live: BTreeMap<SequenceId, (u64, Vec<u32>, Vec<u32>, usize)>,
    ended: HashMap<SequenceId, FinishReason>,
    held: BTreeSet<SequenceId>,
    next_request: u64,
}

#[derive(Clone, Debug)]
enum Event {
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
    fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            config,
            kv: HashMap::new(),
            states: HashMap::new(),
            live: BTreeMap::new(),
            ended: HashMap::new(),
            held: BTreeSet::new(),
            next_request: 0,
        }
    }

    fn submit(&mut self, submission: Submission, salt: u64) -> Result<(), TestCaseError> {
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

    fn end(&mut self, id: SequenceId, reason: FinishReason) -> Result<(), TestCaseError> {
        prop_assert!(self.live.remove(&id).is_some());
        self.held.remove(&id);
        prop_assert_eq!(self.ended.insert(id, reason), None, "ended twice");
        Ok(())
    }

    /// Plays the model: checks what each position would read, then writes.
    fn run(&mut self, batch: &ScheduledBatch) -> Result<(), TestCaseError> {
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

    fn step(&mut self) -> Result<(), TestCaseError> {
        // Whatever the pace, the books stay right.
        self.scheduler.set_pace(self.live.len() * 7 % 40);
        let batch = self.scheduler.schedule();
        let stuck = batch.sequences.is_empty() && !self.live.is_empty() && self.held.is_empty();
        prop_assert!(!stuck, "live sequences but nothing to run");
        prop_assert!(batch.sequences.iter().all(|scheduled| !self.held.contains(&scheduled.id)));
        self.run(&batch)?;
        self.scheduler.commit(&batch);
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

    fn apply(&mut self, event: Event) -> Result<(), TestCaseError> {
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
            Event::Step { count } => {
                for _ in 0..count {
                    self.step()?;
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

    fn resume_all(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.scheduler.resume(id);
        }
        assert!(!self.scheduler.holds_any());
    }

    /// Runs dry. Whoever waits is served within the time that all who may go first need one after the other.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        let serial = |(_, prompt, _, max_tokens): &(u64, Vec<u32>, Vec<u32>, usize)| {
            2 * (prompt.len() + max_tokens + 1) * (max_tokens + 1)
        };
        self.resume_all();
        let bound: usize = self.live.values().map(serial).sum();
        for _ in 0..bound {
            if self.live.is_empty() {
                break;
            }
            self.step()?;
        }
        prop_assert!(self.live.is_empty(), "{} sequences starve after {bound} steps", self.live.len());
        prop_assert!(self.scheduler.is_idle());
        prop_assert_eq!(self.scheduler.blocks().num_free(), self.config.num_blocks, "blocks were lost");
        Ok(())
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    // Prompts are cut from one text, so that prefixes are often equal.
    let prompt = (1..90_usize, 0..3_u32).prop_map(|(len, kind)| (0..len as u32).map(|i| (i * i + kind) % 4).collect());
    let submit = (prompt, 1..4_u32, 1..40_usize, -2..3_i32, 0..2_u64, prop::bool::weighted(0.1), 0..3_u8).prop_map(
        |(prompt, n, max_tokens, priority, salt, prompt_logits, tenant)| Event::Submit {
            prompt,
            n,
            max_tokens,
            priority,
            salt,
            prompt_logits,
            tenant,
        },
    );
    let event = prop_oneof![
        4 => submit,
        6 => (1..8_usize).prop_map(|count| Event::Step { count }),
        2 => any::<prop::sample::Index>().prop_map(|which| Event::Cancel { which }),
        1 => Just(Event::Fail),
        2 => any::<prop::sample::Index>().prop_map(|which| Event::Hold { which }),
        2 => Just(Event::Resume),
    ];
    prop::collection::vec(event, 1..50)
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    (2..14_usize, prop::option::of(1..8_usize), 1..70_usize, 1..6_usize, 20..120_usize, any::<bool>()).prop_map(
        |(num_blocks, num_state_slots, max_batch_tokens, max_num_seqs, max_model_len, enable_prefix_caching)| {
            SchedulerConfig {
                num_blocks,
                num_state_slots,
                max_batch_tokens,
                max_num_seqs,
                max_model_len,
                enable_prefix_caching,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn books_and_contents_agree(config in configs(), events in events()) {
        let mut world = World::new(config);
        for event in events {
            world.apply(event)?;
        }
        world.drain()?;
    }

    #[test]
    fn a_stream_of_urgent_requests_starves_nobody(config in configs(), patient in 1..60_usize) {
        let mut world = World::new(config);
        let small = |len: usize| Submission { prompt: vec![1; len], n: 1, max_tokens: 8, ..Submission::default() };
        let first = SequenceId(0);
        world.submit(Submission { priority: 1, ..small(patient.min(config.max_model_len - 1)) }, 0)?;
        prop_assume!(!world.live.is_empty());
        for _ in 0..1_000 {
            world.submit(small(3), 0)?;
            world.step()?;
            world.step()?;
            if world.ended.contains_key(&first) {
                return Ok(());
            }
        }
        prop_assert!(false, "the first request is still waiting");
    }
}

fn roomy() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 64,
        num_state_slots: None,
        max_batch_tokens: 512,
        max_num_seqs: 8,
        max_model_len: 256,
        enable_prefix_caching: true,
    }
}

fn finish_all(scheduler: &mut Scheduler) {
    while !scheduler.is_idle() {
        let batch = scheduler.schedule();
        scheduler.commit(&batch);
        for scheduled in batch.sequences.iter().filter(|scheduled| scheduled.samples) {
            if let Some(reason) = scheduler.append(scheduled.id, 0) {
                scheduler.finish(scheduled.id, reason);
            }
        }
    }
}

#[test]
fn choices_share_the_prompt() {
    for enable_prefix_caching in [true, false] {
        let mut scheduler = Scheduler::new(SchedulerConfig { enable_prefix_caching, ..roomy() });
        let ids = scheduler
            .submit(Submission { prompt: (0..40).collect(), n: 3, max_tokens: 4, ..Submission::default() })
            .unwrap();
        let batch = scheduler.schedule();
        assert_eq!(batch.sequences.len(), 1, "the other choices wait for the prompt");
        scheduler.commit(&batch);
        scheduler.append(ids[0], 7);
        let batch = scheduler.schedule();
        let computed: Vec<_> = batch.sequences.iter().map(|scheduled| (scheduled.start, scheduled.end)).collect();
        assert_eq!(computed, [(40, 41), (32, 40), (32, 40)]);
        let table = |id| scheduler.sequence(id).unwrap().block_table.clone();
        assert_eq!(table(ids[0])[..2], table(ids[1])[..2]);
        assert_ne!(table(ids[1])[2], table(ids[2])[2]);
        assert_eq!(scheduler.blocks().num_blocks() - scheduler.blocks().num_free(), 5);
    }
}

/// A mask that is slow is waited for by its own request and nobody else: the others' tokens come step by step.
#[test]
fn one_that_is_held_takes_no_step_from_the_others() {
    let mut scheduler = Scheduler::new(roomy());
    let mut submit = |request: u64| {
        let submission = Submission { request, prompt: vec![1; 20], n: 1, max_tokens: 60, ..Submission::default() };
        scheduler.submit(submission).unwrap()[0]
    };
    let (slow, quick) = (submit(0), submit(1));
    let step = |scheduler: &mut Scheduler| {
        let batch = scheduler.schedule();
        scheduler.commit(&batch);
        let ids: Vec<_> = batch.sequences.iter().filter(|s| s.samples).map(|s| s.id).collect();
        for &id in &ids {
            assert_eq!(scheduler.append(id, 5), None);
        }
        ids
    };
    assert_eq!(step(&mut scheduler), [slow, quick]);
    scheduler.hold(slow);
    for _ in 0..40 {
        assert_eq!(step(&mut scheduler), [quick]);
    }
    scheduler.resume(slow);
    assert_eq!(step(&mut scheduler), [slow, quick]);
    let lengths = [slow, quick].map(|id| scheduler.sequence(id).unwrap().completion_len());
    assert_eq!(lengths, [2, 42]);
    // Alone and held: there is nothing to do, and nothing is lost.
    scheduler.finish(quick, FinishReason::Stop);
    scheduler.hold(slow);
    assert!(step(&mut scheduler).is_empty() && scheduler.holds_any());
    scheduler.finish(slow, FinishReason::Abort);
    assert!(scheduler.is_idle() && !scheduler.holds_any());
    scheduler.check().unwrap();
}

#[test]
fn a_long_prompt_leaves_room_for_those_who_decode() {
    let mut scheduler = Scheduler::new(roomy());
    let submit = |scheduler: &mut Scheduler, len: u32| {
        let submission = Submission { prompt: (0..len).collect(), n: 1, max_tokens: 20, ..Submission::default() };
        scheduler.submit(submission).unwrap()[0]
    };
    let first = submit(&mut scheduler, 8);
    scheduler.set_pace(40);
    let batch = scheduler.schedule();
    scheduler.commit(&batch);
    scheduler.append(first, 9);
    let second = submit(&mut scheduler, 200);
    for (share, expected) in [(40, 39), (100, 99), (0, BLOCK_SIZE)] {
        scheduler.set_pace(share);
        let batch = scheduler.schedule();
        let counts: Vec<_> = batch.sequences.iter().map(|scheduled| scheduled.end - scheduled.start).collect();
        assert_eq!(counts, [1, expected]);
        scheduler.commit(&batch);
        scheduler.append(first, 9);
    }
    // Nobody waits for a prompt alone.
    scheduler.finish(first, FinishReason::Stop);
    assert_eq!(scheduler.schedule().sequences[0].end, 200);
    assert!(scheduler.sequence(second).is_some());
}

#[test]
fn prefixes_are_shared_by_salt_only() {
    let mut scheduler = Scheduler::new(roomy());
    let mut cached = |salt: Option<&str>| {
        let submission = Submission {
            prompt: (0..40).collect(),
            n: 1,
            max_tokens: 1,
            cache_salt: salt.map(str::to_owned),
            ..Submission::default()
        };
        scheduler.submit(submission).unwrap();
        let before = scheduler.stats().cached_tokens;
        finish_all(&mut scheduler);
        scheduler.stats().cached_tokens - before
    };
    assert_eq!(cached(None), 0);
    assert_eq!(cached(None), 32);
    assert_eq!(cached(Some("tenant")), 0);
    assert_eq!(cached(Some("tenant")), 32);
}

#[test]
fn recurrent_prefixes_are_reused_up_to_a_snapshot() {
    let mut scheduler = Scheduler::new(SchedulerConfig { num_state_slots: Some(8), ..roomy() });
    let mut cached = |len: u32| {
        let before = scheduler.stats().cached_tokens;
        scheduler
            .submit(Submission { prompt: (0..len).collect(), n: 1, max_tokens: 1, ..Submission::default() })
            .unwrap();
        finish_all(&mut scheduler);
        scheduler.stats().cached_tokens - before
    };
    assert_eq!(cached(70), 0);
    assert_eq!(cached(200), 64, "the last border of the first prompt");
    assert_eq!(cached(100), 64, "no snapshot at 96");
    assert_eq!(cached(100), 96);
}
