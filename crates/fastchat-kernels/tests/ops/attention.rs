//! Attention over shapes that cross blocks, partitions, tiles and windows.

use candle_core::DType;
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{AttentionSpec, Kernels, KvLayout};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, alone, assert_close, assert_same_bits, backends, batch, cache, plan};

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
    /// Tokens see to the end of their stretch of so many.
    stretch: Option<u32>,
}

fn cases() -> impl Strategy<Value = Case> {
    let sequence = prop_oneof![
        (0..40usize, 1..40usize),
        (200..300usize, 1..2usize),
        (500..800usize, 1..3usize),
        (0..20usize, 100..300usize),
    ];
    let shape = (1..4usize, 1..10usize, 1..40usize, prop_oneof![Just(None), (1..50usize).prop_map(Some)]);
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)];
    let window = prop_oneof![Just(None), (1..400usize).prop_map(Some)];
    let softcap = prop_oneof![Just(None), (0.5..50f32).prop_map(Some)];
    let extras = (any::<bool>(), prop_oneof![Just(None), (2..90u32).prop_map(Some)]);
    (any::<u64>(), prop::collection::vec(sequence, 1..5), shape, dtype, window, softcap, extras).prop_map(
        |(seed, sequences, (kv_heads, group, dim, v_dim), dtype, window, softcap, (sinks, stretch))| Case {
            seed,
            sequences,
            kv_heads,
            group,
            dim: 2 * dim,
            v_dim,
            dtype,
            window,
            softcap,
            sinks,
            stretch,
        },
    )
}

fn check(case: &Case) {
    let mut random = Random(case.seed);
    let layout = KvLayout {
        num_kv_heads: case.kv_heads,
        head_dim: case.dim,
        v_head_dim: case.v_dim.unwrap_or(0),
        dtype: case.dtype,
    };
    let (mut batch, num_blocks) = batch(&case.sequences, &mut random);
    if let Some(stretch) = case.stretch {
        for s in 0..batch.num_sequences() {
            let last = batch.context_lens[s] - 1;
            let positions = &batch.positions[batch.query_range(s)];
            batch.reach.extend(positions.iter().map(|p| (p / stretch * stretch + stretch - 1).min(last)));
        }
        batch.check(num_blocks).unwrap();
    }
    let cache = cache(layout, num_blocks, &batch, &mut random);
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
    let run = |kernels: &CpuKernels, s: usize, rows: std::ops::Range<usize>| {
        let start = batch.query_start[s] as usize;
        let q = q.narrow(0, start + rows.start, rows.len()).unwrap();
        kernels.attention(&q, &spec, &cache, &plan(alone(&batch, s, rows))).unwrap()
    };
    for kernels in backends() {
        let name = format!("{} with {} threads", kernels.name(), kernels.threads());
        let out = kernels.attention(&q, &spec, &cache, &plan(batch.clone())).unwrap();
        assert_close(&name, &out, &expected, 1e-5);
        let single = CpuKernels::with_isa(Some(1), kernels.isa());
        for (s, &(_, new)) in case.sequences.iter().enumerate() {
            // Alone, cut in two, and the last token by itself.
            for rows in [0..new, 0..new.div_ceil(3), new.div_ceil(3)..new, new - 1..new] {
                if rows.is_empty() {
                    continue;
                }
                let own = out.narrow(0, batch.query_start[s] as usize + rows.start, rows.len()).unwrap();
                assert_same_bits(&format!("{name}, {rows:?} of {s}"), &run(&kernels, s, rows.clone()), &own);
                assert_same_bits(&format!("{name}, {rows:?} of {s}, 1 thread"), &run(&single, s, rows.clone()), &own);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_default_in_any_company(case in cases()) {
        check(&case);
    }
}

#[test]
fn usual_shapes() {
    let case = Case {
        seed: 1,
        sequences: vec![(1000, 1), (0, 70), (255, 1), (256, 2)],
        kv_heads: 2,
        group: 7,
        dim: 64,
        v_dim: Some(64),
        dtype: DType::F16,
        window: None,
        softcap: None,
        sinks: false,
        stretch: None,
    };
    check(&case);
    check(&Case { kv_heads: 1, group: 4, dim: 256, v_dim: Some(256), window: Some(512), ..case.clone() });
    check(&Case { kv_heads: 1, group: 16, dim: 96, v_dim: None, sinks: true, ..case });
}

#[test]
fn refuses_tables_that_are_too_short() {
    let mut random = Random(3);
    let (mut batch, num_blocks) = batch(&[(20, 1)], &mut random);
    let layout = KvLayout { num_kv_heads: 1, head_dim: 4, v_head_dim: 4, dtype: DType::F32 };
    let cache = cache(layout, num_blocks, &batch, &mut random);
    batch.block_tables[0].pop();
    let spec = AttentionSpec { num_heads: 1, v_head_dim: 4, scale: 1., window: None, softcap: None, sinks: None };
    for kernels in backends() {
        let error = kernels.attention(&random.tensor(&[1, 4], 1.), &spec, &cache, &plan(batch.clone())).unwrap_err();
        assert!(error.to_string().contains("block_tables[0]"), "{error}");
    }
}
