//! Mixtures of experts over dense weights.

use candle_core::Tensor;
use fastchat_kernels::{Activation, Kernels, Linear, MoeSpec, MoeWeights, RouterScore, Weight, WeightKind};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, assert_close, assert_same_bits, backends};

fn weight(rows: usize, cols: usize, random: &mut Random) -> Weight {
    let bytes: Vec<u8> = random.floats(rows * cols, 0.5).iter().flat_map(|x| x.to_le_bytes()).collect();
    Weight::new(WeightKind::F32, rows, cols, bytes.into()).unwrap()
}

/// The same mixture for the same random numbers, packed by `kernels`.
fn weights(kernels: &dyn Kernels, (experts, hidden, inter): (usize, usize, usize), seed: u64) -> MoeWeights {
    let mut random = Random(seed);
    let mut pack = |rows, cols| -> Linear { kernels.pack(&[weight(rows, cols, &mut random)], None).unwrap() };
    let router = pack(experts, hidden);
    let gate_up = (0..experts).map(|_| pack(2 * inter, hidden)).collect();
    let down = (0..experts).map(|_| pack(hidden, inter)).collect();
    let score_bias = Some(random.tensor(&[experts], 0.1));
    MoeWeights { router, score_bias, gate_up, down }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_default(
        seed: u64,
        tokens in 1..20usize,
        (experts, top_k) in (1..9usize, 1..4usize),
        score in prop_oneof![Just(RouterScore::Softmax), Just(RouterScore::SoftmaxTopK), Just(RouterScore::Sigmoid)],
        renormalize: bool,
    ) {
        let top_k = top_k.min(experts);
        let sizes = (experts, 32, 16);
        let spec = MoeSpec {
            num_experts: experts,
            top_k,
            score,
            renormalize,
            scaling: 1.5,
            groups: None,
            act: Activation::Silu,
        };
        let x: Tensor = Random(seed ^ 1).tensor(&[tokens, 32], 1.);
        let expected = DEFAULT.moe(&x, &spec, &weights(&DEFAULT, sizes, seed)).unwrap();
        for kernels in backends() {
            let weights = weights(&kernels, sizes, seed);
            let out = kernels.moe(&x, &spec, &weights).unwrap();
            assert_close(&kernels.name(), &out, &expected, 1e-5);
            let last = kernels.moe(&x.narrow(0, tokens - 1, 1).unwrap(), &spec, &weights).unwrap();
            assert_same_bits(&kernels.name(), &last, &out.narrow(0, tokens - 1, 1).unwrap());
        }
    }
}
