//! Thirty-two scheduler steps at several sizes, with nothing computed.
#![allow(missing_docs)] // criterion's macros

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fastchat_engine::scheduler::{Scheduler, SchedulerConfig, Submission};

/// `count` sequences that have their prompts of 512 tokens in the cache.
fn decoding(count: u64) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 130 * count as usize,
        num_state_slots: None,
        max_batch_tokens: 8192,
        max_num_seqs: count as usize,
        max_model_len: 2048,
        enable_prefix_caching: true,
    });
    for request in 0..count {
        let prompt = (0..512).map(|i| i + request as u32 * 1000).collect();
        let submission = Submission { request, prompt, n: 1, max_tokens: 1500, ..Submission::default() };
        assert!(scheduler.submit(submission).is_ok());
    }
    while scheduler.num_waiting() > 0 || step(&mut scheduler) < count as usize {
        step(&mut scheduler);
    }
    scheduler
}

/// Returns the number of tokens chosen.
fn step(scheduler: &mut Scheduler) -> usize {
    let batch = scheduler.schedule();
    scheduler.commit(&batch);
    let sampling = batch.sequences.iter().filter(|scheduled| scheduled.samples);
    sampling.map(|scheduled| scheduler.append(scheduled.id, 7)).count()
}

fn scheduler_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler_32_steps");
    for count in [1, 64, 256, 512] {
        let ready = decoding(count);
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, _| {
            let clone = || ready.clone();
            let thirty_two = |mut scheduler: Scheduler| {
                for _ in 0..32 {
                    step(&mut scheduler);
                }
                scheduler
            };
            bencher.iter_batched(clone, thirty_two, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, scheduler_step);
criterion_main!(benches);
