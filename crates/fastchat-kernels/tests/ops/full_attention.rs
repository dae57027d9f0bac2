//! Attention in both directions.

use candle_core::{Device, Tensor};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{AttentionSpec, DefaultKernels, ForwardBatch, Kernels, Plan, QkvSpec, Rope, RopeLayout};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, assert_close, assert_same_bits, backends, batch};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_default_and_itself_alone(
        seed: u64,
        lengths in prop::collection::vec(1..90usize, 1..4),
        (num_kv_heads, group, half_dim) in (1..4usize, 1..4usize, 1..40usize),
        window in prop_oneof![3 => Just(None), 1 => (1..40usize).prop_map(Some)],
        softcap in prop_oneof![Just(None), Just(Some(3.))],
        rotated: bool,
        (from, to) in (0..1000u32, 0..1000u32).prop_map(|(a, b)| (f64::from(a) / 1000., f64::from(b) / 1000.)),
    ) {
        let mut random = Random(seed);
        let (num_heads, head_dim) = (num_kv_heads * group, 2 * half_dim);
        let sequences: Vec<_> = lengths.iter().map(|&length| (0, length)).collect();
        let (batch, _) = batch(&sequences, &mut random);
        let inv_freq = random.floats(half_dim, 1.);
        let layout = RopeLayout::HalfSplit;
        let rope = rotated.then_some(Rope { index: 0, layout, inv_freq, axes: Vec::new(), attention_factor: 1. });
        let ropes: Vec<Rope> = rope.iter().cloned().collect();
        let parts = QkvSpec { num_heads, num_kv_heads, head_dim, qk_norm: None, rope };
        let scale = (head_dim as f32).powf(-0.5);
        let spec = AttentionSpec { num_heads, v_head_dim: head_dim, scale, window, softcap, sinks: None };
        let qkv = random.tensor(&[batch.num_tokens(), (num_heads + 2 * num_kv_heads) * head_dim], 2.);
        let plan = DEFAULT.plan(&batch, &ropes).unwrap();
        let tokens = batch.num_tokens();
        let expected = DEFAULT.full_attention(&qkv, &parts, &spec, &plan, 0..tokens).unwrap();
        let asked = (from * tokens as f64) as usize..tokens - (to * tokens as f64 / 2.) as usize;
        for kernels in backends() {
            let name = kernels.name();
            let out = kernels.full_attention(&qkv, &parts, &spec, &plan, 0..tokens).unwrap();
            assert_close(&name, &out, &expected, 2e-5);
            if !asked.is_empty() {
                let some = kernels.full_attention(&qkv, &parts, &spec, &plan, asked.clone()).unwrap();
                let own = out.narrow(0, asked.start, asked.len()).unwrap();
                match window {
                    None => assert_same_bits(&name, &some, &own),
                    // The plain default, whose products may be summed in another order.
                    Some(_) => assert_close(&name, &some, &own, 2e-5),
                }
            }
            for s in 0..lengths.len() {
                let rows = batch.query_range(s);
                let own = |x: &Tensor| x.narrow(0, rows.start, rows.len()).unwrap();
                let mut alone = crate::data::alone(&batch, s, 0..rows.len());
                // Neither slots nor tables mean anything here.
                alone.slot_mapping.clear();
                alone.block_tables.clear();
                let plan = kernels.plan(&alone, &ropes).unwrap();
                let out_alone = kernels
                    .full_attention(&own(&qkv).contiguous().unwrap(), &parts, &spec, &plan, 0..rows.len())
                    .unwrap();
                assert_same_bits(&name, &out_alone, &own(&out));
            }
        }
    }
}

#[test]
fn a_reach_hides_what_follows() {
    let batch = ForwardBatch {
        token_ids: vec![0; 3],
        query_start: vec![0, 3],
        context_lens: vec![3],
        reach: vec![2, 0, 1],
        ..ForwardBatch::default()
    };
    let plan = Plan::new(batch, vec![]);
    let rows: Vec<f32> = (0..3).flat_map(|t| [0., 0., t as f32]).collect();
    let qkv = Tensor::from_vec(rows, (3, 3), &Device::Cpu).unwrap();
    let parts = QkvSpec { num_heads: 1, num_kv_heads: 1, head_dim: 1, qk_norm: None, rope: None };
    let spec = AttentionSpec { num_heads: 1, v_head_dim: 1, scale: 1., window: None, softcap: None, sinks: None };
    for kernels in [&DefaultKernels(Device::Cpu) as &dyn Kernels, &CpuKernels::new(None)] {
        let out = |rows| kernels.full_attention(&qkv, &parts, &spec, &plan, rows).unwrap();
        let values = |rows| out(rows).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(0..3), [1., 0., 0.5], "{}", kernels.name());
        assert_eq!(values(1..3), [0., 0.5], "{}", kernels.name());
    }
}
