//! The fused operations of the CPU backend at the sizes of small models: decode attention by context, prefill attention,
//! norms, activations and the gated delta rule.
#![allow(missing_docs, clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{
    Activation, AttentionSpec, BLOCK_SIZE, ForwardBatch, GatedDeltaSpec, Kernels, KvCache, KvLayout, NormScope, Plan,
    QkvSpec, Rope, RopeLayout, StateCache, StateLayout, StateStep,
};

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

/// `sequences` sequences of `context` tokens, the last `new` of them in this step.
fn batch(sequences: usize, context: usize, new: usize) -> ForwardBatch {
    let blocks = context.div_ceil(BLOCK_SIZE);
    let mut batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    for s in 0..sequences {
        batch.positions.extend((context - new..context).map(|position| position as u32));
        let slot = |position| ((s * blocks + position / BLOCK_SIZE) * BLOCK_SIZE + position % BLOCK_SIZE) as u32;
        batch.slot_mapping.extend((context - new..context).map(slot));
        batch.query_start.push(batch.positions.len() as u32);
        batch.context_lens.push(context as u32);
        batch.block_tables.push((s * blocks..(s + 1) * blocks).map(|block| block as u32).collect());
    }
    batch.token_ids = vec![0; batch.positions.len()];
    batch
}

/// (name, query heads, key heads, head size).
const SHAPES: [(&str, usize, usize, usize); 3] =
    [("smollm2-135m", 9, 3, 64), ("qwen2.5-0.5b", 14, 2, 64), ("gemma3-270m", 4, 1, 256)];

fn attention(c: &mut Criterion, group: &str, cases: &[(usize, usize, usize)]) {
    let kernels = CpuKernels::new(None);
    let mut group = c.benchmark_group(group);
    for (name, heads, kv_heads, dim) in SHAPES {
        for &(sequences, context, new) in cases {
            let layout = KvLayout { num_kv_heads: kv_heads, head_dim: dim, v_head_dim: dim, dtype: DType::F16 };
            let blocks = sequences * context.div_ceil(BLOCK_SIZE);
            let half = |shape: &[usize]| random(shape).to_dtype(DType::F16).unwrap();
            let k = half(&[blocks, kv_heads, dim, BLOCK_SIZE]);
            let cache = KvCache { layout, k, v: Some(half(&[blocks, kv_heads, BLOCK_SIZE, dim])) };
            let plan = Plan::new(batch(sequences, context, new), vec![]);
            let q = random(&[sequences * new, heads * dim]);
            let spec = AttentionSpec {
                num_heads: heads,
                v_head_dim: dim,
                scale: 0.125,
                window: None,
                softcap: None,
                sinks: None,
            };
            // Bytes of the cache for decode, multiplications for prefill.
            group.throughput(if new == 1 {
                Throughput::Bytes((sequences * context * kv_heads * dim * 4) as u64)
            } else {
                Throughput::Elements((sequences * new * (2 * context - new) * heads * dim) as u64)
            });
            group.bench_function(BenchmarkId::new(name, format!("{sequences}x{context}")), |b| {
                b.iter(|| kernels.attention(&q, &spec, &cache, &plan).unwrap());
            });
        }
    }
}

fn decode(c: &mut Criterion) {
    attention(c, "decode", &[(1, 128, 1), (1, 1024, 1), (1, 8192, 1), (16, 512, 1)]);
}

fn prefill(c: &mut Criterion) {
    attention(c, "prefill", &[(1, 512, 512), (1, 4096, 512)]);
}

fn rows(c: &mut Criterion) {
    let kernels = CpuKernels::new(None);
    let mut group = c.benchmark_group("rows");
    for tokens in [1, 512] {
        let (x, weight) = (random(&[tokens, 896]), random(&[896]));
        group.bench_function(BenchmarkId::new("add_rms_norm", tokens), |b| {
            b.iter(|| kernels.add_rms_norm(&x, &x, &weight, 1e-6).unwrap());
        });
        let gate_up = random(&[tokens, 2 * 4864]);
        for act in [Activation::Silu, Activation::GeluTanh] {
            group.bench_function(BenchmarkId::new(format!("gated {act:?}"), tokens), |b| {
                b.iter(|| kernels.gated_act(&gate_up, act).unwrap());
            });
        }
        let layout = KvLayout { num_kv_heads: 2, head_dim: 64, v_head_dim: 64, dtype: DType::F16 };
        let cache = KvCache::new(layout, 512 / BLOCK_SIZE, &Device::Cpu).unwrap();
        let inv_freq = (0..32).map(|i| 10000f32.powf(-(i as f32) / 32.)).collect();
        let rope = Rope { index: 0, layout: RopeLayout::HalfSplit, inv_freq, axes: Vec::new(), attention_factor: 1. };
        let plan = kernels.plan(&batch(1, tokens, tokens), std::slice::from_ref(&rope)).unwrap();
        let qk_norm = Some((random(&[64]), random(&[64]), 1e-6, NormScope::PerHead));
        let spec = QkvSpec { num_heads: 14, num_kv_heads: 2, head_dim: 64, qk_norm, rope: Some(rope) };
        let qkv = random(&[tokens, 18 * 64]);
        group.bench_function(BenchmarkId::new("qk_norm_rope_write", tokens), |b| {
            b.iter(|| kernels.qk_norm_rope_write(&qkv, &spec, &cache, &plan).unwrap());
        });
    }
}

fn gated_delta(c: &mut Criterion) {
    let kernels = CpuKernels::new(None);
    let mut group = c.benchmark_group("gated_delta");
    let layout = StateLayout { conv_channels: 8192, conv_taps: 4, num_v_heads: 32, k_head_dim: 128, v_head_dim: 128 };
    let spec = GatedDeltaSpec { num_k_heads: 16, conv_weight: random(&[8192, 4]), l2_eps: 1e-6 };
    let cache = StateCache::new(layout, 1, &Device::Cpu).unwrap();
    for tokens in [1, 128] {
        let mut batch = batch(1, tokens, tokens);
        batch.states = vec![StateStep { source: Some(0), target: 0, snapshots: vec![] }];
        let plan = Plan::new(batch, vec![]);
        let qkv = random(&[tokens, 8192]);
        let beta = Tensor::full(0.5f32, (tokens, 32), &Device::Cpu).unwrap();
        let decay = Tensor::full(-0.1f32, (tokens, 32), &Device::Cpu).unwrap();
        group.bench_function(BenchmarkId::from_parameter(tokens), |b| {
            b.iter(|| kernels.gated_delta(&[&qkv, &beta, &decay], &spec, &cache, &plan).unwrap());
        });
    }
}

criterion_group!(benches, decode, prefill, rows, gated_delta);
criterion_main!(benches);
