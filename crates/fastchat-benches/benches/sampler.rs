//! One token from a row of 262,144 logits, the widest vocabulary in use.
#![allow(missing_docs)] // criterion's macros

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use fastchat_engine::SamplingParams;
use fastchat_engine::rng::uniform;
use fastchat_engine::sampler::{ChoiceSampler, Sampler, logprobs};

/// Logits as models make them: a bell (the sum of twelve uniforms) with a few that stand out.
fn row() -> Vec<f32> {
    let bell = |i: u64| (0..12).map(|j| uniform(i, j)).sum::<f64>() - 6.0;
    let peak = |i: u64| if i.is_multiple_of(20_000) { 12.0 } else { 0.0 };
    (0..262_144).map(|i| (2.0 * bell(i) + peak(i)) as f32).collect()
}

fn sample(criterion: &mut Criterion) {
    let row = row();
    let base = SamplingParams::default;
    let cases = [
        ("greedy", SamplingParams { temperature: 0.0, ..base() }),
        ("temperature", base()),
        ("top_p", SamplingParams { top_p: 0.9, ..base() }),
        ("top_k", SamplingParams { top_k: 50, ..base() }),
        ("min_p", SamplingParams { min_p: 0.05, ..base() }),
        ("penalties", SamplingParams { repetition_penalty: 1.1, temperature: 0.0, ..base() }),
    ];
    let prompt: Vec<u32> = (0..1000).map(|i| i * 37).collect();
    let mut sampler = Sampler::default();
    for (name, params) in cases {
        let choice = ChoiceSampler::new(Arc::new(params), 1, &prompt, Arc::new([]));
        let mut position = 0;
        criterion.bench_function(&format!("sample_262k/{name}"), |bencher| {
            bencher.iter(|| {
                position += 1;
                sampler.sample(&row, &choice, position, None)
            });
        });
    }
    criterion.bench_function("logprobs_262k/top_20", |bencher| bencher.iter(|| logprobs(&row, 7, 20)));
}

criterion_group!(benches, sample);
criterion_main!(benches);
