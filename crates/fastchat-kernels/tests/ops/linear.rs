//! The packed linear layers of the CPU backend against the default, on every instruction set this machine has.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{Activation, DefaultKernels, Kernels, Weight, WeightKind};
use proptest::prelude::*;

use crate::data::{Random, assert_same_bits};
use crate::weights::{DENSE, QUANTISED, check_embed, check_linear, weight};

pub const ISAS: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni, Isa::Avx512Bf16];

fn check(isa: Isa, kinds: &[WeightKind], sizes: (usize, usize, usize), seed: u64) {
    check_linear(&CpuKernels::with_isa(Some(2), isa), kinds, sizes, seed);
}

#[test]
fn every_kind_equals_the_default_on_every_instruction_set() {
    for isa in ISAS {
        for (i, kind) in QUANTISED.into_iter().chain(DENSE).enumerate() {
            for tokens in [1, 2, 3, 4, 8, 15] {
                check(isa, &[kind], (tokens, 512, 50), i as u64);
            }
        }
    }
}

#[test]
fn parts_of_different_kinds_share_an_input() {
    for isa in ISAS {
        check(isa, &[WeightKind::Q4_K, WeightKind::F16, WeightKind::Q6_K, WeightKind::Q8_0], (9, 256, 24), 5);
    }
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        for (i, kind) in QUANTISED.into_iter().chain(DENSE).enumerate() {
            let mut random = Random(100 + i as u64);
            let (cols, rows, tokens) = (768, 70, 23);
            let layer = kernels.pack(&[weight(kind, rows, cols, &mut random)], None).unwrap();
            let x = random.tensor(&[tokens, cols], 1.);
            let together = kernels.linear(&x, &layer).unwrap();
            for size in [1, 2, 5, 8, 11] {
                for first in (0..tokens).step_by(size) {
                    let count = size.min(tokens - first);
                    let apart = kernels.linear(&x.narrow(0, first, count).unwrap(), &layer).unwrap();
                    let what = format!("{isa} {kind:?} in pieces of {size}");
                    assert_same_bits(&what, &apart, &together.narrow(0, first, count).unwrap());
                }
            }
        }
    }
}

#[test]
fn memory_that_is_written_over_has_the_same_rows_and_no_others() {
    let (rows, tokens) = (70, 5);
    let overrides = ISAS.map(|isa| Box::new(CpuKernels::with_isa(Some(2), isa)) as Box<dyn Kernels>);
    for kernels in overrides.into_iter().chain([Box::new(DefaultKernels(Device::Cpu)) as Box<dyn Kernels>]) {
        let mut random = Random(3);
        let weights = [weight(WeightKind::Q4_K, rows, 256, &mut random), weight(WeightKind::F32, 7, 256, &mut random)];
        let layer = kernels.pack(&weights, Some(random.tensor(&[rows + 7], 1.))).unwrap();
        let x = random.tensor(&[tokens, 256], 1.);
        let out = random.tensor(&[tokens + 3, rows + 7], 1.);
        let before = out.copy().unwrap();
        kernels.linear_into(&x, &layer, &out).unwrap();
        let part = |all: &Tensor, first, count| all.narrow(0, first, count).unwrap();
        assert_same_bits(&kernels.name(), &part(&out, 0, tokens), &kernels.linear(&x, &layer).unwrap());
        assert_same_bits(&kernels.name(), &part(&out, tokens, 3), &part(&before, tokens, 3));
        let narrow = random.tensor(&[tokens, rows + 6], 1.);
        assert!(kernels.linear_into(&x, &layer, &narrow).is_err());
        assert!(kernels.linear_into(&x, &layer, &part(&out, 0, tokens - 1)).is_err());
    }
}

#[test]
fn gates_computed_with_what_they_gate_are_the_same() {
    use WeightKind::{F16, Q4_1, Q4_K, Q6_K};
    let gated: [(&[WeightKind], usize); 6] =
        [(&[Q4_1, Q4_1], 50), (&[Q4_K, Q6_K], 32), (&[F16, F16], 7), (&[Q4_1], 64), (&[F16], 96), (&[Q4_K], 50)];
    let activations = [Activation::Silu, Activation::GeluTanh, Activation::SwigluOai { alpha: 1.7, limit: 7. }];
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(2), isa);
        for (kinds, rows) in gated {
            let mut random = Random(rows as u64);
            let weights: Vec<Weight> = kinds.iter().map(|&kind| weight(kind, rows, 256, &mut random)).collect();
            let outputs = rows * kinds.len();
            let layer = kernels.pack(&weights, Some(random.tensor(&[outputs], 1.))).unwrap();
            for (tokens, act) in [1, 4, 19].into_iter().zip(activations) {
                let x = random.tensor(&[tokens, 256], 1.);
                let apart = kernels.gated_act(&kernels.linear(&x, &layer).unwrap(), act).unwrap();
                let together = kernels.gated_linear(&x, &layer, act).unwrap();
                assert_same_bits(&format!("{isa} {kinds:?} {act:?}"), &together, &apart);
            }
        }
    }
}

#[test]
fn embedded_rows_are_the_decoded_ones() {
    check_embed(&CpuKernels::with_isa(Some(2), Isa::Portable));
}

#[test]
fn numbers_that_are_none_stay_visible() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(1), isa);
        for kind in [WeightKind::Q4_K, WeightKind::F32] {
            let layer = kernels.pack(&[weight(kind, 16, 256, &mut Random(1))], None).unwrap();
            let mut x = vec![1f32; 256];
            x[77] = f32::NAN;
            let y = kernels
                .linear(&Tensor::from_vec(x, (1, 256), &Device::Cpu).unwrap(), &layer)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            assert!(y[0].iter().all(|y| y.is_nan()), "{isa} {kind:?}");
        }
    }
}

#[test]
fn no_rows_give_no_rows() {
    let kernels = CpuKernels::new(Some(2));
    for kind in [WeightKind::Q8_0, WeightKind::F32] {
        let layer = kernels.pack(&[weight(kind, 20, 64, &mut Random(1))], None).unwrap();
        let y = kernels.linear(&Tensor::zeros((0, 64), DType::F32, &Device::Cpu).unwrap(), &layer).unwrap();
        assert_eq!(y.dims(), [0, 20]);
        assert_eq!(kernels.embed(&layer, &[]).unwrap().dims(), [0, 64]);
    }
}

#[test]
fn refuses_a_wrong_width() {
    let kernels = CpuKernels::new(Some(1));
    let layer = kernels.pack(&[weight(WeightKind::F32, 4, 6, &mut Random(1))], None).unwrap();
    assert!(kernels.linear(&Random(2).tensor(&[1, 5], 1.), &layer).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn shapes_and_tails(
        isa in 0..ISAS.len(),
        kind in 0..26usize,
        tokens in 1..20usize,
        blocks in 1..7usize,
        tail in 0..32usize,
        rows in 1..70usize,
        seed in any::<u64>(),
    ) {
        let kind = QUANTISED.into_iter().chain(DENSE).nth(kind).unwrap();
        let cols = if kind.is_dense() { 32 * blocks - tail } else { kind.block().0 * blocks };
        check(ISAS[isa], &[kind], (tokens, cols, rows), seed);
    }
}
