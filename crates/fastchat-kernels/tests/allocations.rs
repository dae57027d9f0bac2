//! What a step of decoding takes from the heap: no operation more than its results and their handles, however long the
//! context and whatever the batch, and no large buffer but those.

#![allow(unsafe_code)] // an allocator cannot be counted otherwise

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device, Result, Tensor};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{
    Activation, AttentionSpec, BLOCK_SIZE, ForwardBatch, Kernels, KvCache, KvLayout, Linear, Plan, QkvSpec, Weight,
    WeightKind,
};

/// The system's allocator with a count.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HIDDEN: usize = 256;
const INNER: usize = 512;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;

struct Layer {
    kernels: CpuKernels,
    norm: Tensor,
    qkv: Linear,
    out: Linear,
    gate_up: Linear,
    down: Linear,
    cache: KvCache,
    heads: QkvSpec,
    attention: AttentionSpec,
}

/// Allocations of each operation of a layer, in order.
type Counts = [(&'static str, usize); 7];

impl Layer {
    fn new(blocks: usize) -> Result<Self> {
        let kernels = CpuKernels::new(Some(2));
        let pack = |parts: &[usize], cols: usize| {
            let (elements, size) = WeightKind::Q4_K.block();
            let weight = |&rows: &usize| {
                Weight::new(WeightKind::Q4_K, rows, cols, vec![0; rows * cols / elements * size].into())
            };
            kernels.pack(&parts.iter().map(weight).collect::<Result<Vec<_>>>()?, None)
        };
        let layout = KvLayout { num_kv_heads: KV_HEADS, head_dim: DIM, v_head_dim: DIM, dtype: DType::F16 };
        Ok(Self {
            norm: Tensor::ones(HIDDEN, DType::F32, &Device::Cpu)?,
            qkv: pack(&[HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], HIDDEN)?,
            out: pack(&[HIDDEN], HEADS * DIM)?,
            gate_up: pack(&[INNER, INNER], HIDDEN)?,
            down: pack(&[HIDDEN], INNER)?,
            cache: KvCache::new(layout, blocks, &Device::Cpu)?,
            heads: QkvSpec { num_heads: HEADS, num_kv_heads: KV_HEADS, head_dim: DIM, qk_norm: None, rope: None },
            attention: AttentionSpec {
                num_heads: HEADS,
                v_head_dim: DIM,
                scale: 0.125,
                window: None,
                softcap: None,
                sinks: None,
            },
            kernels,
        })
    }

    fn step(&self, x: &Tensor, plan: &Plan) -> Result<Counts> {
        let kernels = &self.kernels;
        let mut before = CALLS.load(Relaxed);
        let mut count = |name| {
            let now = CALLS.load(Relaxed);
            let calls = now - std::mem::replace(&mut before, now);
            (name, calls)
        };
        let normed = kernels.rms_norm(x, &self.norm, 1e-6)?;
        let rms_norm = count("rms_norm");
        let qkv = kernels.linear(&normed, &self.qkv)?;
        let linear = count("linear");
        let q = kernels.qk_norm_rope_write(&qkv, &self.heads, &self.cache, plan)?;
        let write = count("qk_norm_rope_write");
        let mixed = kernels.attention(&q, &self.attention, &self.cache, plan)?;
        let attention = count("attention");
        let mixed = kernels.linear(&mixed, &self.out)?;
        count("linear");
        let (_, normed) = kernels.add_rms_norm(&mixed, x, &self.norm, 1e-6)?;
        let add_rms_norm = count("add_rms_norm");
        let inner = kernels.gated_linear(&normed, &self.gate_up, Activation::Silu)?;
        let gated_linear = count("gated_linear");
        kernels.linear(&inner, &self.down)?;
        Ok([rms_norm, linear, write, attention, add_rms_norm, gated_linear, count("down")])
    }
}

/// One token for each of `sequences`, at `position`.
fn batch(sequences: usize, position: usize) -> ForwardBatch {
    let blocks = position / BLOCK_SIZE + 1;
    let tables: Vec<Vec<u32>> =
        (0..sequences).map(|s| (s * blocks..(s + 1) * blocks).map(|block| block as u32).collect()).collect();
    ForwardBatch {
        token_ids: vec![0; sequences],
        positions: vec![position as u32; sequences],
        slot_mapping: tables
            .iter()
            .map(|table| table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32)
            .collect(),
        query_start: (0..=sequences as u32).collect(),
        context_lens: vec![position as u32 + 1; sequences],
        block_tables: tables,
        ..ForwardBatch::default()
    }
}

/// A tensor is five: its elements, shape and strides, the shared handle and the shared storage.
const TENSOR: usize = 5;

#[test]
fn a_step_of_decoding_takes_its_results_and_the_cut_of_its_work() {
    let most: Counts = [
        ("rms_norm", TENSOR),
        ("linear", TENSOR + 1),
        // The keys' rows between rotation and cache, and the two writes in place.
        ("qk_norm_rope_write", TENSOR + 3),
        // Tiles, parts, where their states begin, and what joins the parts of a long context.
        ("attention", TENSOR + 4),
        ("add_rms_norm", 2 * TENSOR),
        // The parts, and the cut.
        ("gated_linear", TENSOR + 2),
        ("down", TENSOR + 1),
    ];
    let mut seen = most.map(|(name, _)| (name, 0));
    for (sequences, position) in [(1, 40), (1, 1500), (16, 200), (64, 100)] {
        let layer = Layer::new(sequences * (position / BLOCK_SIZE + 2)).unwrap();
        let x = Tensor::ones((sequences, HIDDEN), DType::F32, &Device::Cpu).unwrap();
        let plan = layer.kernels.plan(&batch(sequences, position), &[]).unwrap();
        // The first steps bring buffers that stay.
        for _ in 0..20 {
            layer.step(&x, &plan).unwrap();
        }
        // A thread that other work of the machine kept out of them brings its buffers later, once: the median is without.
        let steps: Vec<Counts> = (0..11).map(|_| layer.step(&x, &plan).unwrap()).collect();
        for (operation, (_, seen)) in seen.iter_mut().enumerate() {
            let mut calls: Vec<usize> = steps.iter().map(|step| step[operation].1).collect();
            calls.sort_unstable();
            *seen = calls[calls.len() / 2].max(*seen);
        }
    }
    assert!(seen.iter().zip(&most).all(|((_, seen), (_, most))| seen <= most), "{seen:?}, known are {most:?}");
}
