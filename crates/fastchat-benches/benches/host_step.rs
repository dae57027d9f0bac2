//! Host work of thirty-two decode steps, with nothing computed and nothing sampled: schedule, flat arrays and their padding,
//! what rows ask for and whom they follow, all of it into a plan that is written over (the emulator's, whose memory is the
//! host's), commit, append.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // criterion's macros; a benchmark may fail loudly

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fastchat_engine::forward::{Spare, forward_batch, pad, padded_size};
use fastchat_engine::scheduler::{ScheduledBatch, Scheduler, SchedulerConfig, Submission};
use fastchat_kernels::{Kernels, Plan, SampleRow, StepInput, StepRoom};

const STEPS: usize = 32;
const CONTEXT: usize = 2048;

/// `count` sequences that have prompts of 512 tokens in the cache.
fn decoding(count: usize) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 130 * count,
        num_state_slots: None,
        max_batch_tokens: 8192,
        max_num_seqs: count,
        max_model_len: CONTEXT,
        enable_prefix_caching: true,
    });
    for request in 0..count as u64 {
        let prompt = (0..512).map(|i| i + request as u32 * 1000).collect();
        let submission = Submission { request, prompt, n: 1, max_tokens: 1500, ..Submission::default() };
        assert!(scheduler.submit(submission).is_ok());
    }
    loop {
        let batch = scheduler.schedule();
        let ready = batch.sequences.len() == count && batch.sequences.iter().all(|scheduled| scheduled.samples);
        end(&mut scheduler, &batch);
        if ready {
            return scheduler;
        }
    }
}

fn end(scheduler: &mut Scheduler, batch: &ScheduledBatch) {
    scheduler.commit(batch);
    for scheduled in batch.sequences.iter().filter(|scheduled| scheduled.samples) {
        scheduler.append(scheduled.id, 7);
    }
}

fn step(scheduler: &mut Scheduler, kernels: Option<(&dyn Kernels, &Plan)>, spare: u32) {
    let batch = scheduler.schedule();
    let (mut forward, rows) = forward_batch(&batch, scheduler);
    pad(&mut forward, padded_size(batch.sequences.len()), Spare { block: spare, slot: 0 });
    if let Some((kernels, plan)) = kernels {
        let size = forward.num_sequences();
        let asked = vec![SampleRow { temperature: 0.8, ..SampleRow::greedy() }; size];
        let follows: Vec<u32> = (0..size as u32).collect();
        kernels.replan(plan, &StepInput { batch: &forward, follows: &follows, asked: &asked }).unwrap();
    }
    black_box((forward, rows));
    end(scheduler, &batch);
}

fn host_step(criterion: &mut Criterion) {
    let emulated = fastchat_emulator::emulated(false);
    if emulated.is_none() {
        eprintln!("the upload is left out: the CUDA backend is not emulated without a C++ compiler");
    }
    let mut group = criterion.benchmark_group("host_32_decode_steps");
    for count in [1, 64, 256] {
        let ready = decoding(count);
        let blocks = 130 * count;
        let room =
            StepRoom { sequences: padded_size(count), context: CONTEXT, blocks: blocks + 1, vocab: 1 << 20, slots: 0 };
        let plan = emulated.as_ref().map(|emulated| emulated.kernels.lasting_plan(&room, &[]).unwrap());
        let device = emulated.as_ref().zip(plan.as_ref()).map(|(emulated, plan)| (emulated.kernels.as_ref(), plan));
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, _| {
            let steps = |mut scheduler: Scheduler| {
                for _ in 0..STEPS {
                    step(&mut scheduler, device, blocks as u32);
                }
                scheduler
            };
            bencher.iter_batched(|| ready.clone(), steps, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, host_step);
criterion_main!(benches);
