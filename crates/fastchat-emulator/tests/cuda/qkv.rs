//! Norm, rotation and caching.

use candle_core::DType;
use fastchat_kernels::{Kernels, KvCache, KvLayout, NormScope, QkvSpec, Rope, RopeLayout};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, assert_close, assert_same_bits, batch};
use crate::{backends, exchanged};

fn empty(layout: KvLayout, blocks: usize) -> KvCache {
    KvCache::new(layout, blocks, &candle_core::Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fused_equals_the_default(
        seed: u64,
        sequences in prop::collection::vec((0..40usize, 1..6usize), 1..3),
        (kv_heads, group, head_dim) in (1..3usize, 1..4usize, 1..70usize),
        rotated in 0..35usize,
        interleaved: bool,
        norm in prop_oneof![Just(None), Just(Some(NormScope::PerHead)), Just(Some(NormScope::FullWidth))],
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
    ) {
        let mut random = Random(seed);
        let (batch, blocks) = batch(&sequences, &mut random);
        let (heads, half) = (kv_heads * group, rotated.min(head_dim / 2));
        let layout = if interleaved { RopeLayout::Interleaved } else { RopeLayout::HalfSplit };
        let inv_freq = random.floats(half, 1.);
        let rope = (half > 0).then_some(Rope { index: 0, layout, inv_freq, axes: vec![], attention_factor: 1.25 });
        let ropes: Vec<Rope> = rope.iter().cloned().collect();
        let qk_norm = norm.map(|scope| {
            let (q, k) = if scope == NormScope::PerHead { (1, 1) } else { (heads, kv_heads) };
            (random.tensor(&[q * head_dim], 2.), random.tensor(&[k * head_dim], 2.), 1e-5, scope)
        });
        let spec = QkvSpec { num_heads: heads, num_kv_heads: kv_heads, head_dim, qk_norm, rope };
        let qkv = random.tensor(&[batch.num_tokens(), (heads + 2 * kv_heads) * head_dim], 3.);
        let layout = KvLayout { num_kv_heads: kv_heads, head_dim, v_head_dim: head_dim, dtype };
        let expected_cache = empty(layout, blocks);
        let plan = DEFAULT.plan(&batch, &ropes).unwrap();
        let expected = DEFAULT.qk_norm_rope_write(&qkv, &spec, &expected_cache, &plan).unwrap();
        // What rounds to the cache's type may round to a neighbour.
        let tolerance = match dtype { DType::F32 => 1e-5, DType::F16 => 1e-3, _ => 8e-3 };
        for kernels in backends() {
            let (name, cache) = (kernels.name(), empty(layout, blocks));
            let plan = kernels.plan(&batch, &ropes).unwrap();
            let q = kernels.qk_norm_rope_write(&qkv, &spec, &cache, &plan).unwrap();
            assert_close(&name, &q, &expected, 1e-5);
            assert_close(&name, &exchanged(&cache, false).k, &expected_cache.k, tolerance);
            assert_same_bits(&name, cache.v.as_ref().unwrap(), expected_cache.v.as_ref().unwrap());
        }
    }

    #[test]
    fn rotation_and_caching_alone_equal_the_default(
        seed: u64,
        (before, new) in (0..40usize, 1..20usize),
        (heads, head_dim, v_dim) in (1..4usize, 1..70usize, 0..40usize),
        rotated in 1..35usize,
        tail: bool,
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
    ) {
        let mut random = Random(seed);
        let (batch, blocks) = batch(&[(before, new)], &mut random);
        let half = rotated.min(head_dim / 2);
        let inv_freq = random.floats(half, 1.);
        let rope = Rope { index: 0, layout: RopeLayout::HalfSplit, inv_freq, axes: vec![], attention_factor: 1. };
        let ropes = [rope.clone()];
        let (k, v) = (random.tensor(&[new, heads * head_dim], 2.), random.tensor(&[new, heads * v_dim], 2.));
        let v = (v_dim > 0).then_some(&v);
        let plan = DEFAULT.plan(&batch, &ropes).unwrap();
        let layout = KvLayout { num_kv_heads: heads, head_dim, v_head_dim: v_dim, dtype };
        let expected_cache = empty(layout, blocks);
        DEFAULT.write_kv(&k, v, &expected_cache, &plan).unwrap();
        for kernels in backends() {
            let (name, cache) = (kernels.name(), empty(layout, blocks));
            let plan = kernels.plan(&batch, &ropes).unwrap();
            if half > 0 {
                let out = kernels.rope(&k, head_dim, &rope, tail, &plan).unwrap();
                assert_close(&name, &out, &DEFAULT.rope(&k, head_dim, &rope, tail, &plan).unwrap(), 1e-5);
            }
            kernels.write_kv(&k, v, &cache, &plan).unwrap();
            assert_same_bits(&name, &exchanged(&cache, false).k, &expected_cache.k);
            if let (Some(v), Some(expected)) = (&cache.v, &expected_cache.v) {
                assert_same_bits(&name, v, expected);
            }
        }
    }
}
