//! One tenant's crowd and another tenant's single request: how many steps the single one waits, whatever the crowd does.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly and says what it measured

use std::collections::HashMap;

use fastchat_engine::scheduler::{Scheduler, SchedulerConfig, Submission};
use fastchat_engine::sequence::SequenceId;
use fastchat_kernels::BLOCK_SIZE;
use proptest::prelude::*;

const STEP: usize = 512;

fn config(num_blocks: usize, max_num_seqs: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        num_state_slots: None,
        max_batch_tokens: STEP,
        max_num_seqs,
        max_model_len: 4_096,
        enable_prefix_caching: true,
    }
}

fn submission(tenant: &str, first: u32, prompt: usize, max_tokens: usize) -> Submission {
    let prompt = (0..prompt as u32).map(|at| first * 10_000 + at).collect();
    Submission { prompt, n: 1, max_tokens, tenant: Some(tenant.to_owned()), ..Submission::default() }
}

/// One step; returns the tokens each sequence had in it.
fn step(scheduler: &mut Scheduler) -> HashMap<SequenceId, usize> {
    let batch = scheduler.schedule();
    scheduler.commit(&batch);
    for scheduled in batch.sequences.iter().filter(|scheduled| scheduled.samples) {
        if let Some(reason) = scheduler.append(scheduled.id, 7) {
            scheduler.finish(scheduled.id, reason);
        }
    }
    scheduler.check().unwrap();
    batch.sequences.iter().map(|scheduled| (scheduled.id, scheduled.end - scheduled.start)).collect()
}

/// Steps until the sequence has its first token; panics if it has none after `most`.
fn steps_to_first_token(scheduler: &mut Scheduler, id: SequenceId, most: usize) -> usize {
    for steps in 1..=most {
        step(scheduler);
        if scheduler.sequence(id).is_none_or(|sequence| sequence.completion_len() > 0) {
            return steps;
        }
    }
    panic!("no token after {most} steps");
}

#[test]
fn a_single_request_does_not_wait_for_two_hundred() {
    // Plenty of room; every block taken; every place taken.
    for (num_blocks, max_num_seqs) in [(16_384, 256), (700, 256), (16_384, 16)] {
        let mut scheduler = Scheduler::new(config(num_blocks, max_num_seqs));
        for request in 0..200 {
            scheduler.submit(submission("crowd", request, 900, 400)).unwrap();
        }
        for _ in 0..60 {
            step(&mut scheduler);
        }
        let waiting = scheduler.num_waiting();
        let id = scheduler.submit(submission("single", 999, 400, 50)).unwrap()[0];
        let first = steps_to_first_token(&mut scheduler, id, 100);
        let mut steps = 0;
        while scheduler.sequence(id).is_some() {
            step(&mut scheduler);
            steps += 1;
        }
        eprintln!("{waiting} of 200 waiting: first token after {first} steps, 49 more tokens in {steps}");
        // The step of its arrival is over; 400 tokens at half a step of 512 are two steps.
        assert!(first <= 2, "{first} steps");
        assert_eq!(steps, 49, "a token in every step");
    }
}

#[test]
fn two_crowds_share_alike() {
    let mut scheduler = Scheduler::new(config(16_384, 256));
    let mut tenants = HashMap::new();
    for request in 0..200 {
        let id = scheduler.submit(submission("many", request, 700, 20)).unwrap()[0];
        tenants.insert(id, 0);
    }
    for request in 200..240 {
        let id = scheduler.submit(submission("few", request, 700, 20)).unwrap()[0];
        tenants.insert(id, 1);
    }
    let mut had = [0_usize; 2];
    for _ in 0..60 {
        for (id, tokens) in step(&mut scheduler) {
            had[tenants[&id]] += tokens;
        }
    }
    eprintln!("tokens of both tenants in 60 steps: {had:?}");
    assert!(had[0].abs_diff(had[1]) * 50 < had[0] + had[1], "{had:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_crowd_delays_a_newcomer(
        crowd in 2_u32..120, long in 1_usize..600, answer in 1_usize..200, head_start in 0_usize..60,
        tenants in 1_usize..4, prompt in 1_usize..1_000, max_num_seqs in 8_usize..128, blocks in 600_usize..4_000,
    ) {
        let mut scheduler = Scheduler::new(config(blocks, max_num_seqs));
        for request in 0..crowd {
            let tenant = format!("crowd {}", request as usize % tenants);
            scheduler.submit(submission(&tenant, request, long, answer)).unwrap();
        }
        for _ in 0..head_start {
            step(&mut scheduler);
        }
        let id = scheduler.submit(submission("single", 9_999, prompt, 8)).unwrap()[0];
        let mut steps = 0;
        while scheduler.sequence(id).is_some_and(|sequence| sequence.completion_len() == 0) {
            step(&mut scheduler);
            steps += 1;
            // Its share of a step, less the tokens of those that decode and a quantum.
            let share = STEP / (tenants + 1) - BLOCK_SIZE;
            prop_assert!(steps <= prompt.div_ceil(share) + 1, "{steps} steps for {prompt} tokens");
        }
    }
}
