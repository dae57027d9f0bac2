//! Plans that are written over: what reads a step's arrays gives the same bits as with a plan of its own, whatever was
//! there before, and as if the longest context there may be were there.

use candle_core::{DType, Tensor};
use fastchat_kernels::cuda::CudaKernels;
use fastchat_kernels::{
    AttentionSpec, ForwardBatch, Kernels, KvCache, KvLayout, Plan, QkvSpec, Rope, RopeLayout, StepInput, StepRoom,
    Weight, WeightKind,
};
use proptest::prelude::*;

use crate::data::{Random, assert_same_bits, batch, cache};
use crate::{backends, exchanged};

/// A decode step over contexts of these lengths.
fn decode(lengths: &[usize], random: &mut Random) -> (ForwardBatch, usize) {
    let sequences: Vec<_> = lengths.iter().map(|&length| (length - 1, 1)).collect();
    let (mut batch, blocks) = batch(&sequences, random);
    batch.token_ids = (0..lengths.len()).map(|s| (7 * s + lengths[0]) as u32 % 10).collect();
    batch.logits_rows = (0..lengths.len() as u32).collect();
    (batch, blocks)
}

struct Layer {
    table: Weight,
    qkv: QkvSpec,
    attention: AttentionSpec,
    layout: KvLayout,
}

/// Everything that reads the arrays of a plan, and the cache as it is left.
fn outputs(kernels: &CudaKernels, layer: &Layer, qkv: &Tensor, cache: &KvCache, plan: &Plan) -> Vec<Tensor> {
    let v = cache.v.as_ref().map(|v| v.copy().unwrap());
    let cache = KvCache { layout: cache.layout, k: cache.k.copy().unwrap(), v };
    let table = kernels.pack(std::slice::from_ref(&layer.table), None).unwrap();
    let rows = kernels.embed_tokens(&table, plan).unwrap();
    let q = kernels.qk_norm_rope_write(qkv, &layer.qkv, &cache, plan).unwrap();
    let out = kernels.attention(&q, &layer.attention, &cache, plan).unwrap();
    let rope = layer.qkv.rope.as_ref().unwrap();
    let turned = kernels.rope(&q, layer.qkv.head_dim, rope, true, plan).unwrap();
    let latent = KvLayout { v_head_dim: 0, ..layer.layout };
    let latent = KvCache::new(latent, cache.k.dim(0).unwrap(), kernels.device()).unwrap();
    let keys = turned.narrow(1, 0, layer.qkv.num_kv_heads * layer.qkv.head_dim).unwrap();
    kernels.write_kv(&keys, None, &latent, plan).unwrap();
    [rows, q, out, turned, latent.k, cache.k].into_iter().chain(cache.v).collect()
}

fn check(
    seed: u64,
    (dtype, dim): (DType, usize),
    steps: [&[usize]; 3],
    interleaved: bool,
    window: Option<usize>,
    backends: &[CudaKernels],
) {
    let mut random = Random(seed);
    let (kv_heads, group) = (2, 3);
    let layout = if interleaved { RopeLayout::Interleaved } else { RopeLayout::HalfSplit };
    let rope = Rope { index: 0, layout, inv_freq: random.floats(4, 1.), axes: vec![], attention_factor: 1. };
    let bytes: Vec<u8> = random.floats(10 * 8, 1.).iter().flat_map(|value| value.to_le_bytes()).collect();
    let layer = Layer {
        table: Weight::new(WeightKind::F32, 10, 8, bytes.into()).unwrap(),
        qkv: QkvSpec {
            num_heads: kv_heads * group,
            num_kv_heads: kv_heads,
            head_dim: dim,
            qk_norm: None,
            rope: Some(rope.clone()),
        },
        attention: AttentionSpec {
            num_heads: kv_heads * group,
            v_head_dim: dim,
            scale: 0.3,
            window,
            softcap: None,
            sinks: None,
        },
        layout: KvLayout { num_kv_heads: kv_heads, head_dim: dim, v_head_dim: dim, dtype },
    };
    let most = steps.iter().map(|step| step.len()).max().unwrap();
    let batches = steps.map(|lengths| decode(lengths, &mut random));
    let blocks = batches.iter().map(|batch| batch.1).max().unwrap();
    let room = StepRoom { sequences: most, context: 2000, blocks, vocab: 10, slots: 0 };
    for kernels in backends {
        let lasting = kernels.lasting_plan(&room, std::slice::from_ref(&rope)).unwrap();
        for (batch, _) in &batches {
            let cache = exchanged(&cache(layer.layout, blocks, batch, &mut Random(seed)), true);
            let width = (kv_heads * group + 2 * kv_heads) * dim;
            let qkv = random.tensor(&[batch.num_tokens(), width], 3.);
            let own = kernels.plan(batch, std::slice::from_ref(&rope)).unwrap();
            let plan = lasting.first(batch.num_sequences()).unwrap();
            kernels.replan(&plan, &StepInput::of(batch)).unwrap();
            let expected = outputs(kernels, &layer, &qkv, &cache, &own);
            for (found, expected) in outputs(kernels, &layer, &qkv, &cache, &plan).iter().zip(&expected) {
                assert_same_bits(&kernels.name(), found, expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_a_plan_of_its_own(
        seed: u64,
        lengths in prop::collection::vec(prop_oneof![4 => 1..60usize, 1 => 250..800usize], 6..7),
        interleaved: bool,
        window in prop_oneof![Just(None), (1..400usize).prop_map(Some)],
        // The second is for tensor cores.
        (dtype, dim) in prop_oneof![Just((DType::F32, 10)), Just((DType::F16, 24))],
    ) {
        check(seed, (dtype, dim), [&lengths[..3], &lengths[3..4], &lengths[4..]], interleaved, window, &[fastchat_emulator::kernels(false)]);
    }
}

#[test]
fn chosen_lengths_are_right_with_every_access_checked() {
    check(1, (DType::F32, 10), [&[600, 3], &[17], &[16, 257]], false, None, &backends());
    check(1, (DType::BF16, 72), [&[600, 3], &[17], &[16, 257]], false, None, &backends());
}

#[test]
fn what_leaves_the_room_is_refused() {
    let mut random = Random(2);
    let (batch, blocks) = decode(&[20, 33], &mut random);
    let room = StepRoom { sequences: 2, context: 33, blocks, vocab: 10, slots: 0 };
    for kernels in backends() {
        let fits = kernels.lasting_plan(&room, &[]).unwrap();
        assert!(kernels.replan(&fits, &StepInput::of(&batch)).is_ok());
        assert!(kernels.replan(&kernels.plan(&batch, &[]).unwrap(), &StepInput::of(&batch)).is_err());
        for smaller in
            [StepRoom { context: 32, ..room }, StepRoom { blocks: blocks - 1, ..room }, StepRoom { vocab: 1, ..room }]
        {
            let plan = kernels.lasting_plan(&smaller, &[]).unwrap();
            assert!(kernels.replan(&plan, &StepInput::of(&batch)).is_err(), "{smaller:?}");
        }
        // A cache with fewer blocks than the plan allows.
        let layout = KvLayout { num_kv_heads: 1, head_dim: 4, v_head_dim: 4, dtype: DType::F32 };
        let small = KvCache::new(layout, blocks - 1, &candle_core::Device::Cpu).unwrap();
        let spec = AttentionSpec { num_heads: 1, v_head_dim: 4, scale: 1., window: None, softcap: None, sinks: None };
        assert!(kernels.attention(&random.tensor(&[2, 4], 1.), &spec, &small, &fits).is_err());
        assert!(kernels.write_kv(&random.tensor(&[2, 4], 1.), small.v.as_ref(), &small, &fits).is_err());
    }
}
