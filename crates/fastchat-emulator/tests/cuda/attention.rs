//! Attention over shapes that cross blocks, tiles, spans and windows, cut among blocks or not.

use candle_core::DType;
use fastchat_kernels::cuda::CudaKernels;
use fastchat_kernels::{AttentionSpec, ForwardBatch, Kernels, KvLayout};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, alone, assert_close, assert_same_bits, batch, cache, plan};
use crate::{backends, exchanged};

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    sequences: Vec<(usize, usize)>,
    kv_heads: usize,
    group: usize,
    dim: usize,
    /// `None`: values are the first half of the keys.
    v_dim: Option<usize>,
    dtype: DType,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let sequence = prop_oneof![
        3 => (0..40usize, 1..12usize),
        1 => (250..300usize, 1..3usize),
        1 => (500..780usize, 1..2usize),
    ];
    let any_size = (
        1..3usize,
        1..6usize,
        (1..40usize).prop_map(|half| 2 * half),
        prop_oneof![Just(None), (1..50usize).prop_map(Some)],
    );
    // What tensor cores take where the cache has 16 bits.
    let eights = || (1..33usize).prop_map(|eighth| 8 * eighth);
    let shape = prop_oneof![any_size, (1..3usize, 1..20usize, eights(), eights().prop_map(Some))];
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)];
    let window = prop_oneof![Just(None), (1..400usize).prop_map(Some)];
    let softcap = prop_oneof![Just(None), (0.5..50f32).prop_map(Some)];
    (any::<u64>(), prop::collection::vec(sequence, 1..4), shape, dtype, window, softcap, any::<bool>()).prop_map(
        |(seed, sequences, (kv_heads, group, dim, v_dim), dtype, window, softcap, sinks)| Case {
            seed,
            sequences,
            kv_heads,
            group,
            dim,
            v_dim,
            dtype,
            window,
            softcap,
            sinks,
        },
    )
}

fn check(case: &Case, backends: &[CudaKernels]) {
    check_within(1e-5, case, backends);
}

fn check_within(tolerance: f32, case: &Case, backends: &[CudaKernels]) {
    let mut random = Random(case.seed);
    let layout = KvLayout {
        num_kv_heads: case.kv_heads,
        head_dim: case.dim,
        v_head_dim: case.v_dim.unwrap_or(0),
        dtype: case.dtype,
    };
    let (batch, num_blocks) = batch(&case.sequences, &mut random);
    let cache = cache(layout, num_blocks, &batch, &mut random);
    let own_cache = exchanged(&cache, true);
    let num_heads = case.kv_heads * case.group;
    let q = random.tensor(&[batch.num_tokens(), num_heads * case.dim], 3.);
    let spec = AttentionSpec {
        num_heads,
        v_head_dim: case.v_dim.unwrap_or(case.dim / 2),
        scale: 1. / (case.dim as f32).sqrt(),
        window: case.window,
        softcap: case.softcap,
        sinks: case.sinks.then(|| random.tensor(&[num_heads], 2.)),
    };
    let expected = DEFAULT.attention(&q, &spec, &cache, &plan(batch.clone())).unwrap();
    for kernels in backends {
        let name = kernels.name();
        let run = |q: &candle_core::Tensor, batch: &ForwardBatch| {
            kernels.attention(q, &spec, &own_cache, &kernels.plan(batch, &[]).unwrap()).unwrap()
        };
        let out = run(&q, &batch);
        assert_close(&name, &out, &expected, tolerance);
        // The first and the last sequence, cut in two.
        for s in [0, case.sequences.len() - 1] {
            let new = case.sequences[s].1;
            for rows in [0..new.div_ceil(3), new.div_ceil(3)..new] {
                if rows.is_empty() {
                    continue;
                }
                let start = batch.query_start[s] as usize + rows.start;
                let own = out.narrow(0, start, rows.len()).unwrap();
                let q = q.narrow(0, start, rows.len()).unwrap();
                let part = run(&q, &alone(&batch, s, rows.clone()));
                assert_same_bits(&format!("{name}, {rows:?} of {s}"), &part, &own);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_default_and_itself_in_any_company(case in cases()) {
        check(&case, &[fastchat_emulator::kernels(false)]);
    }
}

/// Every tile height, with and without values of their own, a cut walk, and a window that starts within a tile.
#[test]
fn chosen_shapes_are_right_with_every_access_checked() {
    let case = Case {
        seed: 1,
        sequences: vec![(600, 1)],
        kv_heads: 2,
        group: 3,
        dim: 40,
        v_dim: Some(36),
        dtype: DType::BF16,
        window: None,
        softcap: None,
        sinks: true,
    };
    check(&case, &backends());
    let windowed = Case { window: Some(300), softcap: Some(20.), v_dim: None, dtype: DType::F32, ..case.clone() };
    check(&windowed, &backends());
    let prefill = Case { sequences: vec![(0, 19), (270, 5), (3, 1)], dtype: DType::F16, ..case.clone() };
    check(&prefill, &backends());
    let few = Case { sequences: vec![(30, 2)], group: 4, window: Some(9), kv_heads: 1, ..case };
    check(&few, &backends());
}

/// Rows of one to four groups of 64 elements; walks cut among warps and whole ones; rounded and in parts.
#[test]
fn tensor_cores_are_right_with_every_access_checked() {
    let decode = Case {
        seed: 2,
        sequences: vec![(600, 1), (3, 1)],
        kv_heads: 2,
        group: 3,
        dim: 40,
        v_dim: Some(64),
        dtype: DType::BF16,
        window: None,
        softcap: None,
        sinks: true,
    };
    let prefill =
        Case { sequences: vec![(0, 19), (270, 15), (3, 1)], dtype: DType::F16, sinks: false, ..decode.clone() };
    let windowed = Case { window: Some(300), softcap: Some(20.), dim: 256, v_dim: Some(136), ..decode.clone() };
    let wide = Case { dim: 128, v_dim: Some(256), ..prefill.clone() };
    let whole = Case { kv_heads: 8, sequences: vec![(300, 9)], dim: 128, v_dim: Some(128), ..prefill.clone() };
    for case in [decode, prefill, windowed, wide, whole] {
        check(&case, &backends());
        let rounding = if case.dtype == DType::F16 { 4e-3 } else { 3e-2 };
        check_within(rounding, &case, &[fastchat_emulator::bf16_kernels(false)]);
    }
}

/// Tokens that see later ones, as those of a picture do, across a tile's border.
#[test]
fn a_reach_shows_later_tokens() {
    let mut random = Random(6);
    let layout = KvLayout { num_kv_heads: 1, head_dim: 8, v_head_dim: 8, dtype: DType::F32 };
    let (mut batch, num_blocks) = batch(&[(20, 30), (0, 5)], &mut random);
    batch.reach = (20..50).map(|t| if (24..47).contains(&t) { 46 } else { t }).chain(0..5).collect();
    batch.check(num_blocks).unwrap();
    let cache = cache(layout, num_blocks, &batch, &mut random);
    let q = random.tensor(&[35, 16], 3.);
    for window in [None, Some(7)] {
        let spec = AttentionSpec { num_heads: 2, v_head_dim: 8, scale: 0.4, window, softcap: None, sinks: None };
        let expected = DEFAULT.attention(&q, &spec, &cache, &plan(batch.clone())).unwrap();
        for kernels in backends() {
            let plan = kernels.plan(&batch, &[]).unwrap();
            let out = kernels.attention(&q, &spec, &exchanged(&cache, true), &plan).unwrap();
            assert_close(&kernels.name(), &out, &expected, 1e-5);
        }
    }
}

#[test]
fn an_empty_batch_gives_no_rows() {
    let batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    let layout = KvLayout { num_kv_heads: 1, head_dim: 4, v_head_dim: 4, dtype: DType::F32 };
    let cache = fastchat_kernels::KvCache::new(layout, 1, &candle_core::Device::Cpu).unwrap();
    let spec = AttentionSpec { num_heads: 1, v_head_dim: 4, scale: 1., window: None, softcap: None, sinks: None };
    for kernels in backends() {
        let q = Random(1).tensor(&[0, 4], 1.);
        let plan = kernels.plan(&batch, &[]).unwrap();
        assert_eq!(kernels.attention(&q, &spec, &cache, &plan).unwrap().dims(), [0, 4]);
    }
}

#[test]
fn tables_outside_the_cache_are_refused() {
    let mut random = Random(3);
    let (mut batch, blocks) = batch(&[(0, 20)], &mut random);
    batch.block_tables[0][1] = blocks as u32;
    let layout = KvLayout { num_kv_heads: 1, head_dim: 4, v_head_dim: 4, dtype: DType::F32 };
    let cache = fastchat_kernels::KvCache::new(layout, blocks, &candle_core::Device::Cpu).unwrap();
    let spec = AttentionSpec { num_heads: 1, v_head_dim: 4, scale: 1., window: None, softcap: None, sinks: None };
    for kernels in backends() {
        let plan = kernels.plan(&batch, &[]).unwrap();
        assert!(kernels.attention(&random.tensor(&[20, 4], 1.), &spec, &cache, &plan).is_err());
    }
}

/// A context of a million tokens, whose blocks repeat so that the cache stays small.
#[test]
fn a_million_tokens_are_attended_to() {
    let mut random = Random(4);
    let (context, blocks) = (1 << 20, 7);
    let layout = KvLayout { num_kv_heads: 1, head_dim: 2, v_head_dim: 2, dtype: DType::F32 };
    let batch = ForwardBatch {
        token_ids: vec![0],
        positions: vec![context - 1],
        slot_mapping: vec![0],
        query_start: vec![0, 1],
        context_lens: vec![context],
        block_tables: vec![(0..context / 16).map(|block| block * 5 % blocks).collect()],
        ..ForwardBatch::default()
    };
    let tensor = |random: &mut Random| random.tensor(&[blocks as usize, 1, 2, 16], 1.);
    let cache = fastchat_kernels::KvCache { layout, k: tensor(&mut random), v: Some(tensor(&mut random)) };
    let v = cache.v.as_ref().unwrap().reshape((blocks as usize, 1, 16, 2)).unwrap();
    let cache = fastchat_kernels::KvCache { v: Some(v), ..cache };
    let q = random.tensor(&[1, 2], 3.);
    let kernels = fastchat_emulator::kernels(false);
    for window in [None, Some(1000), Some(900_000)] {
        let spec = AttentionSpec { num_heads: 1, v_head_dim: 2, scale: 1., window, softcap: None, sinks: None };
        let expected = DEFAULT.attention(&q, &spec, &cache, &plan(batch.clone())).unwrap();
        let plan = kernels.plan(&batch, &[]).unwrap();
        let out = kernels.attention(&q, &spec, &exchanged(&cache, true), &plan).unwrap();
        // Sums of a million f32 weights.
        assert_close("a million tokens", &out, &expected, 1e-3);
    }
}
