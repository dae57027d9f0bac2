//! Routed experts: what a token costs by the number of experts there are, and of those that are chosen.

#![allow(missing_docs, clippy::unwrap_used)] // a bench may fail loudly

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{Activation, Kernels, Linear, MoeSpec, MoeWeights, RouterScore, WeightKind, quantize};

const HIDDEN: usize = 1024;
const INTER: usize = 512;

/// Repeatable numbers in -0.5 .. 0.5.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

fn pack(kernels: &CpuKernels, rows: usize, cols: usize, seed: u32) -> Linear {
    let weight = quantize(WeightKind::Q8_0, rows, cols, &values(rows * cols, seed)).unwrap();
    kernels.pack(&[weight], None).unwrap()
}

/// 8 and 64 experts at the same `top_k`: one token reads as many experts of either, 512 compute as much, and 64 read
/// eight times as many experts for the same sums. Where only 8 of the 64 are ever chosen, 64 tokens read as many as of 8.
fn experts(criterion: &mut Criterion) {
    let kernels = CpuKernels::new(None);
    let mut group = criterion.benchmark_group("moe");
    for (num_experts, active) in [(8, 8), (64, 64), (64, 8)] {
        let seed = |part: usize| (num_experts * 1000 + part) as u32;
        let bias: Vec<f32> = (0..num_experts).map(|expert| if expert < active { 1. } else { 0. }).collect();
        let weights = MoeWeights {
            router: pack(&kernels, num_experts, HIDDEN, seed(999)),
            // Scores are at most 1.
            score_bias: Some(Tensor::from_vec(bias, num_experts, &Device::Cpu).unwrap()),
            gate_up: (0..num_experts).map(|i| pack(&kernels, 2 * INTER, HIDDEN, seed(i))).collect(),
            down: (0..num_experts).map(|i| pack(&kernels, HIDDEN, INTER, seed(500 + i))).collect(),
        };
        let spec = MoeSpec {
            num_experts,
            top_k: 4,
            score: RouterScore::Softmax,
            renormalize: true,
            scaling: 1.,
            groups: None,
            act: Activation::Silu,
        };
        for tokens in [1, 64, 512] {
            let x = Tensor::from_vec(values(tokens * HIDDEN, 7), (tokens, HIDDEN), &Device::Cpu).unwrap();
            let id = BenchmarkId::new(format!("top 4 of {num_experts}, {active} chosen from"), tokens);
            group.bench_with_input(id, &x, |bencher, x| {
                bencher.iter(|| kernels.moe(black_box(x), &spec, &weights).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, experts);
criterion_main!(benches);
