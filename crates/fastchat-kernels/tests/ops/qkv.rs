//! Norm, rotation and the write of keys and values.

use candle_core::DType;
use fastchat_kernels::{Kernels, KvCache, KvLayout, NormScope, QkvSpec, Rope, RopeLayout};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, assert_close, assert_same_bits, backends, batch, plan};

fn empty(layout: KvLayout, num_blocks: usize) -> KvCache {
    KvCache::new(layout, num_blocks, DEFAULT.device()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fused_write_equals_the_default(
        seed: u64,
        sequences in prop::collection::vec((0..40usize, 1..60usize), 1..4),
        (num_heads, num_kv_heads, half_dim, half_rotary) in (1..9usize, 1..4usize, 1..50usize, 0..50usize),
        norm in prop_oneof![Just(None), Just(Some(NormScope::PerHead)), Just(Some(NormScope::FullWidth))],
        interleaved: bool,
        tail: bool,
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
    ) {
        let mut random = Random(seed);
        let (head_dim, half) = (2 * half_dim, half_rotary.min(half_dim));
        let (batch, num_blocks) = batch(&sequences, &mut random);
        let layout = if interleaved { RopeLayout::Interleaved } else { RopeLayout::HalfSplit };
        let inv_freq = random.floats(half, 1.);
        let rope = (half > 0).then_some(Rope { index: 0, layout, inv_freq, axes: Vec::new(), attention_factor: 1.25 });
        let plan = match &rope {
            Some(rope) => DEFAULT.plan(&batch, std::slice::from_ref(rope)).unwrap(),
            None => plan(batch),
        };
        let qk_norm = norm.map(|scope| {
            let width = |heads| if scope == NormScope::PerHead { head_dim } else { heads * head_dim };
            (random.tensor(&[width(num_heads)], 2.), random.tensor(&[width(num_kv_heads)], 2.), 1e-6, scope)
        });
        let spec = QkvSpec { num_heads, num_kv_heads, head_dim, qk_norm, rope };
        let qkv = random.tensor(&[plan.batch.num_tokens(), (num_heads + 2 * num_kv_heads) * head_dim], 2.);
        let layout = KvLayout { num_kv_heads, head_dim, v_head_dim: head_dim, dtype };
        let expected = empty(layout, num_blocks);
        let q = DEFAULT.qk_norm_rope_write(&qkv, &spec, &expected, &plan).unwrap();
        // One unit in the last place of what the cache holds.
        let tolerance = match dtype {
            DType::F32 => 1e-5,
            DType::F16 => 1e-3,
            _ => 8e-3,
        };
        for kernels in backends() {
            let name = kernels.name();
            let cache = empty(layout, num_blocks);
            let out = kernels.qk_norm_rope_write(&qkv, &spec, &cache, &plan).unwrap();
            assert_close(&name, &out, &q, 1e-5);
            assert_close(&name, &cache.k, &expected.k, tolerance);
            assert_same_bits(&name, &cache.v.unwrap(), expected.v.as_ref().unwrap());
            if let Some(rope) = &spec.rope {
                let x = qkv.narrow(1, 0, num_heads * head_dim).unwrap();
                let expected = DEFAULT.rope(&x, head_dim, rope, tail, &plan).unwrap();
                assert_close(&name, &kernels.rope(&x, head_dim, rope, tail, &plan).unwrap(), &expected, 1e-5);
            }
        }
    }

    #[test]
    fn write_rounds_as_the_default(
        seed: u64,
        sequences in prop::collection::vec((0..40usize, 1..60usize), 1..4),
        (num_kv_heads, head_dim, v_head_dim) in (1..4usize, 1..80usize, 0..80usize),
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
    ) {
        let mut random = Random(seed);
        let (batch, num_blocks) = batch(&sequences, &mut random);
        let plan = plan(batch);
        let layout = KvLayout { num_kv_heads, head_dim, v_head_dim, dtype };
        let tokens = plan.batch.num_tokens();
        let k = random.tensor(&[tokens, num_kv_heads * head_dim], 3.);
        let v = (v_head_dim > 0).then(|| random.tensor(&[tokens, num_kv_heads * v_head_dim], 3.));
        let expected = empty(layout, num_blocks);
        DEFAULT.write_kv(&k, v.as_ref(), &expected, &plan).unwrap();
        for kernels in backends() {
            let cache = empty(layout, num_blocks);
            kernels.write_kv(&k, v.as_ref(), &cache, &plan).unwrap();
            assert_same_bits(&kernels.name(), &cache.k, &expected.k);
            if let (Some(v), Some(expected)) = (&cache.v, &expected.v) {
                assert_same_bits(&kernels.name(), v, expected);
            }
            let wrong = if v.is_some() { None } else { Some(&k) };
            prop_assert!(kernels.write_kv(&k, wrong, &cache, &plan).is_err());
        }
    }
}
