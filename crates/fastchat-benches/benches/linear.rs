//! Linear layers: bytes per second of weights for one row (decode), operations per second for 256 rows (prefill), beside
//! a probe of what the memory gives.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastchat_kernels::cpu::{CpuKernels, Pool};
use fastchat_kernels::{Kernels, Linear, Weight, WeightKind};

const KINDS: [WeightKind; 6] =
    [WeightKind::Q4_1, WeightKind::Q8_0, WeightKind::Q4_K, WeightKind::Q6_K, WeightKind::Q5_0, WeightKind::BF16];

/// Bytes of zeros are a valid weight of every kind and as fast as any other.
fn weight(kind: WeightKind, rows: usize, cols: usize) -> Weight {
    let (elements, size) = kind.block();
    Weight::new(kind, rows, cols, vec![0; rows * cols / elements * size].into()).unwrap()
}

fn input(rows: usize, cols: usize) -> Tensor {
    let x: Vec<f32> = (0..rows * cols).map(|i| (i % 37) as f32 - 18.).collect();
    Tensor::from_vec(x, (rows, cols), &Device::Cpu).unwrap()
}

/// Reading 256 MiB with all threads.
fn memory(c: &mut Criterion) {
    let threads = CpuKernels::new(None).threads();
    let pool = Pool::new(threads);
    let data = vec![1u64; 32 << 20];
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Bytes(8 * data.len() as u64));
    group.bench_function("read", |b| {
        b.iter(|| {
            pool.run(64, &|chunk| {
                let part = &data[chunk * (data.len() / 64)..][..data.len() / 64];
                // Eight sums, so that additions do not wait for one another.
                let mut sums = [0u64; 64];
                for eight in part.chunks_exact(64) {
                    for (sum, value) in sums.iter_mut().zip(eight) {
                        *sum = sum.wrapping_add(*value);
                    }
                }
                black_box(sums);
            });
        });
    });
    group.finish();
}

/// One row through layers that together exceed the caches, as a step of decoding does.
fn decode(c: &mut Criterion) {
    let kernels = CpuKernels::new(None);
    let mut group = c.benchmark_group("decode");
    for kind in KINDS {
        for cols in [576, 1024, 2048] {
            let cols = if kind.block().0 == 256 { cols / 256 * 256 } else { cols };
            let source = weight(kind, cols * 3, cols);
            let count = (200 << 20) / source.bytes().len();
            let layers: Vec<Linear> =
                (0..count).map(|_| kernels.pack(std::slice::from_ref(&source), None).unwrap()).collect();
            let x = input(1, cols);
            group.throughput(Throughput::Bytes((count * source.bytes().len()) as u64));
            group.bench_function(BenchmarkId::new(format!("{kind:?}"), cols), |b| {
                b.iter(|| {
                    for layer in &layers {
                        black_box(kernels.linear(&x, layer).unwrap());
                    }
                });
            });
        }
    }
    group.finish();
}

fn prefill(c: &mut Criterion) {
    let kernels = CpuKernels::new(None);
    let mut group = c.benchmark_group("prefill");
    for kind in KINDS {
        for cols in [576, 2048] {
            let cols = if kind.block().0 == 256 { cols / 256 * 256 } else { cols };
            let layer = kernels.pack(&[weight(kind, cols * 3, cols)], None).unwrap();
            let x = input(256, cols);
            group.throughput(Throughput::Elements((2 * 256 * cols * cols * 3) as u64));
            group.bench_function(BenchmarkId::new(format!("{kind:?}"), cols), |b| {
                b.iter(|| black_box(kernels.linear(&x, &layer).unwrap()));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, memory, decode, prefill);
criterion_main!(benches);
