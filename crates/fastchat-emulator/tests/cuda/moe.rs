//! Mixtures of experts, dense and quantised.

use candle_core::Tensor;
use fastchat_kernels::{Activation, Kernels, Linear, MoeSpec, MoeWeights, RouterScore, Weight, WeightKind};
use proptest::prelude::*;

use crate::backends;
use crate::data::{DEFAULT, Random, assert_close, assert_same_bits, floats};
use crate::weights::weight;

/// The same mixture for the same random numbers, packed by `kernels`.
fn weights(kernels: &dyn Kernels, kind: WeightKind, sizes: (usize, usize, usize), bias: bool, seed: u64) -> MoeWeights {
    let (experts, hidden, inter) = sizes;
    let mut random = Random(seed);
    let router = kernels.pack(&[weight(WeightKind::F32, experts, hidden, &mut random)], None).unwrap();
    let mut pack = |rows: usize, parts: usize, cols| -> Linear {
        let weights: Vec<Weight> = (0..parts).map(|_| weight(kind, rows, cols, &mut random)).collect();
        let bias = bias.then(|| random.tensor(&[rows * parts], 0.5));
        kernels.pack(&weights, bias).unwrap()
    };
    let gate_up = (0..experts).map(|_| pack(inter, 2, hidden)).collect();
    let down = (0..experts).map(|_| pack(hidden, 1, inter)).collect();
    let score_bias = Some(random.tensor(&[experts], 0.1));
    MoeWeights { router, score_bias, gate_up, down }
}

fn scores() -> impl Strategy<Value = RouterScore> {
    prop_oneof![Just(RouterScore::Softmax), Just(RouterScore::SoftmaxTopK), Just(RouterScore::Sigmoid)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_default_and_itself_in_other_company(
        seed: u64,
        tokens in 0..12usize,
        (groups, size, top_k) in (1..5usize, 1..5usize, 1..5usize),
        kept in 1..5usize,
        (hidden, inter) in (1..20usize, 1..20usize),
        score in scores(),
        (renormalize, grouped, bias) in any::<(bool, bool, bool)>(),
    ) {
        let experts = groups * size;
        let kept = kept.min(groups);
        let top_k = top_k.min(if grouped { kept * size } else { experts });
        let spec = MoeSpec {
            num_experts: experts,
            top_k,
            score,
            renormalize,
            scaling: 1.5,
            groups: grouped.then_some((groups, kept)),
            act: Activation::Silu,
        };
        let (hidden, inter) = (4 * hidden, inter);
        let x: Tensor = Random(seed ^ 1).tensor(&[tokens, hidden], 1.);
        let sizes = (experts, hidden, inter);
        let expected = DEFAULT.moe(&x, &spec, &weights(&DEFAULT, WeightKind::F32, sizes, bias, seed)).unwrap();
        for kernels in backends() {
            let weights = weights(&kernels, WeightKind::F32, sizes, bias, seed);
            let out = kernels.moe(&x, &spec, &weights).unwrap();
            // An element may be the small rest of large terms, whose size the largest element tells.
            let size = f64::from(floats(&expected).into_iter().fold(1f32, |most, value| most.max(value.abs())));
            assert_close(&kernels.name(), &(&out / size).unwrap(), &(&expected / size).unwrap(), 2e-5);
            if tokens > 0 {
                let last = kernels.moe(&x.narrow(0, tokens - 1, 1).unwrap(), &spec, &weights).unwrap();
                assert_same_bits(&kernels.name(), &last, &out.narrow(0, tokens - 1, 1).unwrap());
            }
        }
    }
}

/// Experts that are as good as one another are taken in their order, whichever lane holds them.
#[test]
fn of_equal_experts_the_first_are_taken() {
    let (experts, hidden) = (40, 8);
    let spec = MoeSpec {
        num_experts: experts,
        top_k: 3,
        score: RouterScore::Softmax,
        renormalize: true,
        scaling: 1.,
        groups: None,
        act: Activation::Silu,
    };
    let x: Tensor = Random(3).tensor(&[2, hidden], 1.);
    // Every score is the same; the bias makes four experts better, by as much.
    let bias: Vec<f32> = (0..experts).map(|e| if [7, 9, 20, 38].contains(&e) { 1. } else { 0. }).collect();
    let weights = |kernels: &dyn Kernels| {
        let mixture = weights(kernels, WeightKind::F32, (experts, hidden, 4), false, 5);
        let zeros = Weight::new(WeightKind::F32, experts, hidden, vec![0; 4 * experts * hidden].into()).unwrap();
        let router = kernels.pack(&[zeros], None).unwrap();
        let score_bias = Some(Tensor::new(&bias[..], x.device()).unwrap());
        MoeWeights { router, score_bias, ..mixture }
    };
    let expected = DEFAULT.moe(&x, &spec, &weights(&DEFAULT)).unwrap();
    for kernels in backends() {
        assert_close(&kernels.name(), &kernels.moe(&x, &spec, &weights(&kernels)).unwrap(), &expected, 2e-5);
    }
}

/// Experts of bf16 have larger chunks, which change no bit.
#[test]
fn experts_by_tensor_cores_do_not_mind_company() {
    let spec = MoeSpec {
        num_experts: 3,
        top_k: 2,
        score: RouterScore::Sigmoid,
        renormalize: true,
        scaling: 1.,
        groups: None,
        act: Activation::Silu,
    };
    let sizes = (3, 264, 40);
    let x: Tensor = Random(4).tensor(&[100, sizes.1], 1.);
    for kernels in backends() {
        let weights = weights(&kernels, WeightKind::BF16, sizes, true, 9);
        let out = kernels.moe(&x, &spec, &weights).unwrap();
        for (first, count) in [(0, 1), (93, 7), (60, 20)] {
            let some = kernels.moe(&x.narrow(0, first, count).unwrap(), &spec, &weights).unwrap();
            assert_same_bits(&kernels.name(), &some, &out.narrow(0, first, count).unwrap());
        }
    }
}

/// Rounded inputs make a quantised mixture differ from the default, and sums of bf16 are long: they are compared with the same steps one by one.
#[test]
fn experts_equal_their_products_one_by_one() {
    let spec = MoeSpec {
        num_experts: 6,
        top_k: 2,
        score: RouterScore::Softmax,
        renormalize: true,
        scaling: 1.,
        groups: None,
        act: Activation::SwigluOai { alpha: 1.7, limit: 7. },
    };
    for (kind, inter) in [
        (WeightKind::MXFP4, 32),
        (WeightKind::Q4_K, 256),
        (WeightKind::Q8_0, 96),
        (WeightKind::BF16, 40),
        (WeightKind::F8_E4M3, 128),
    ] {
        for kernels in backends() {
            let weights = weights(&kernels, kind, (6, 256, inter), true, 11);
            for tokens in [1, 7, 40] {
                let x = Random(12).tensor(&[tokens, 256], 1.);
                let out = kernels.moe(&x, &spec, &weights).unwrap();
                let (expected, size) = by_hand(&kernels, &x, &spec, &weights);
                let (out, expected, size) = (floats(&out), floats(&expected), floats(&size));
                for (i, ((actual, expected), size)) in out.into_iter().zip(expected).zip(size).enumerate() {
                    let close = (actual - expected).abs() <= 1e-5 * (1. + size);
                    assert!(close, "{kind:?} element {i}: {actual} is not {expected} of {size}");
                }
            }
        }
    }
}

/// Softmax, top two, and the sum over experts in ascending order, by the backend's own products; and the sum of magnitudes.
fn by_hand(kernels: &dyn Kernels, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> (Tensor, Tensor) {
    let logits = kernels.linear(x, &weights.router).unwrap().to_vec2::<f32>().unwrap();
    let bias = weights.score_bias.as_ref().unwrap().to_vec1::<f32>().unwrap();
    let (mut rows, mut sizes) = (Vec::new(), Vec::new());
    for (t, logits) in logits.iter().enumerate() {
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        let scores: Vec<f32> = logits.iter().map(|x| x.exp() / sum).collect();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| (scores[b] + bias[b]).total_cmp(&(scores[a] + bias[a])));
        order.truncate(spec.top_k);
        order.sort_unstable();
        let total: f32 = order.iter().map(|&e| scores[e]).sum();
        let x = x.narrow(0, t, 1).unwrap();
        let mut out = x.zeros_like().unwrap();
        let mut size = out.clone();
        for e in order {
            let inner = kernels.gated_linear(&x, &weights.gate_up[e], spec.act).unwrap();
            let y = kernels.linear(&inner, &weights.down[e]).unwrap();
            let y = (y * f64::from(scores[e] / total)).unwrap();
            size = (size + y.abs().unwrap()).unwrap();
            out = (out + y).unwrap();
        }
        rows.push(out);
        sizes.push(size);
    }
    (Tensor::cat(&rows, 0).unwrap(), Tensor::cat(&sizes, 0).unwrap())
}
