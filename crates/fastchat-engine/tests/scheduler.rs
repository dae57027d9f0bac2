//! Random arrivals, departures and failures over tiny pools, held against a model of what the cache contains.
#![allow(clippy::unwrap_used)] // a test may fail loudly

#[path = "scheduler/world.rs"]
mod world;

use fastchat_engine::scheduler::{Scheduler, SchedulerConfig, Submission};
use fastchat_engine::sequence::{FinishReason, SequenceId};
use fastchat_kernels::BLOCK_SIZE;
use proptest::prelude::*;
use world::{Event, World};

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
        6 => (1..8_usize, any::<bool>()).prop_map(|(count, ahead)| Event::Step { count, ahead }),
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
            world.step(false)?;
            world.step(false)?;
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
