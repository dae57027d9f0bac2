//! Products with every kind of weight.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::{Activation, Kernels, Weight, WeightKind};
use proptest::prelude::*;

use crate::backends;
use crate::data::{DEFAULT, Random, assert_same_bits, floats};
use crate::weights::{DENSE, QUANTISED, check_embed, check_linear, weight};

#[test]
fn every_kind_equals_the_default() {
    for (i, kind) in QUANTISED.into_iter().chain(DENSE).enumerate() {
        for (tokens, rows) in [(1, 50), (3, 50), (9, 50), (70, 71)] {
            check_linear(&fastchat_emulator::kernels(false), &[kind], (tokens, 512, rows), i as u64);
        }
        for tokens in [2, 11] {
            check_linear(&fastchat_emulator::kernels(true), &[kind], (tokens, 256, 17), i as u64);
        }
    }
}

/// Few tokens, and tiles of 64 and of 128 with tails; columns within a span, and in several that end early. Rows alone
/// are computed by the kernel for few, so that same bits mean the same order.
#[test]
fn tensor_cores_equal_the_default() {
    for kind in [WeightKind::BF16, WeightKind::F16] {
        for make in [fastchat_emulator::kernels, fastchat_emulator::bf16_kernels] {
            for (tokens, cols, rows) in [(1, 2312, 17), (8, 1024, 33), (9, 40, 70), (70, 264, 30), (130, 520, 290)] {
                check_linear(&make(false), &[kind], (tokens, cols, rows), cols as u64);
            }
            for (tokens, cols, rows) in [(1, 2312, 17), (3, 1032, 40), (20, 296, 37), (129, 72, 260)] {
                check_linear(&make(true), &[kind], (tokens, cols, rows), cols as u64);
            }
        }
    }
}

/// The same with codes of 8 bits, whose columns fill their spans.
#[test]
fn codes_with_scales_equal_the_default() {
    let codes = &[WeightKind::F8_E4M3];
    for make in [fastchat_emulator::kernels, fastchat_emulator::bf16_kernels] {
        for (tokens, cols, rows) in [(1, 2304, 17), (8, 1024, 33), (9, 128, 70), (70, 256, 30), (130, 512, 290)] {
            check_linear(&make(false), codes, (tokens, cols, rows), cols as u64);
        }
        for (tokens, cols, rows) in [(1, 2304, 17), (3, 1152, 40), (20, 256, 37), (129, 128, 260)] {
            check_linear(&make(true), codes, (tokens, cols, rows), cols as u64);
        }
    }
}

/// Every code there is, subnormal ones and zeros of both signs among them, meets a one.
#[test]
fn every_code_has_its_value() {
    let finite = |code: u8| if code & 0x7f == 0x7f { code ^ 1 } else { code };
    let mut bytes = Vec::new();
    for half in [0, 128] {
        bytes.extend(1f32.to_le_bytes());
        bytes.extend((0..128).map(|code| finite(half + code)));
    }
    let table = Weight::new(WeightKind::F8_E4M3, 2, 128, bytes.into()).unwrap();
    let values = table.to_f32().unwrap();
    for kernels in backends() {
        let layer = kernels.pack(std::slice::from_ref(&table), None).unwrap();
        for tokens in [1, 128] {
            let x = Tensor::eye(128, DType::F32, &Device::Cpu).unwrap();
            let rows: Vec<_> = x.chunk(128 / tokens, 0).unwrap();
            let out = rows.iter().map(|x| kernels.linear(x, &layer).unwrap()).collect::<Vec<_>>();
            let out = Tensor::cat(&out, 0).unwrap().t().unwrap().contiguous().unwrap();
            assert_eq!(floats(&out), values, "{tokens} tokens at a time");
        }
    }
}

/// Eleven bits, subnormal numbers too, survive as two numbers of eight bits; what is no number stays none.
#[test]
fn halves_keep_their_bits() {
    let odd = [0x0001u16, 0x03ff, 0x0401, 0x3fff, 0x7bff, 0x8001, 0xbc01, 0xfbff, 0x0000, 0x7e00];
    for tokens in [1, 9] {
        for bits in odd {
            let mut row = [0u16; 8];
            row[3] = bits;
            let bytes: Vec<u8> = row.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            let kernels = fastchat_emulator::kernels(false);
            let layer = kernels.pack(&[Weight::new(WeightKind::F16, 1, 8, bytes.into()).unwrap()], None).unwrap();
            let mut x = vec![0f32; 8 * tokens];
            x[8 * (tokens - 1) + 3] = 1.;
            let x = Tensor::from_vec(x, (tokens, 8), &Device::Cpu).unwrap();
            let found = *floats(&kernels.linear(&x, &layer).unwrap()).last().unwrap();
            let value = half::f16::from_bits(bits).to_f32();
            assert!(found.to_bits() == value.to_bits() || (found.is_nan() && value.is_nan()), "{value} became {found}");
        }
    }
}

/// Parts of an input add up to it, but for what lies below the smallest bf16.
#[test]
fn large_and_small_inputs_keep_their_bits() {
    for tokens in [1, 9] {
        let inputs =
            [1.000_000_1f32, 3e38, -1.234_567_8e-30, 16_777_215., f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.];
        for (place, input) in inputs.into_iter().enumerate() {
            let one: Vec<u8> =
                (0..8).flat_map(|k| half::bf16::from_f32(f32::from(u8::from(k == place))).to_le_bytes()).collect();
            let kernels = fastchat_emulator::kernels(false);
            let layer = kernels.pack(&[Weight::new(WeightKind::BF16, 1, 8, one.into()).unwrap()], None).unwrap();
            let mut x = vec![0f32; 8 * tokens];
            x[8 * (tokens - 1) + place] = input;
            let x = Tensor::from_vec(x, (tokens, 8), &Device::Cpu).unwrap();
            let found = *floats(&kernels.linear(&x, &layer).unwrap()).last().unwrap();
            assert!(found.to_bits() == input.to_bits() || (found.is_nan() && input.is_nan()), "{input} became {found}");
        }
    }
}

#[test]
fn parts_of_different_kinds_share_an_input() {
    for kernels in backends() {
        let kinds = [WeightKind::Q4_K, WeightKind::Q4_K, WeightKind::F16, WeightKind::Q6_K, WeightKind::Q8_0];
        check_linear(&kernels, &kinds, (9, 256, 24), 5);
    }
}

#[test]
fn rows_too_long_for_a_block_are_rounded_before() {
    check_linear(&fastchat_emulator::kernels(false), &[WeightKind::Q8_0], (3, 10_016, 3), 6);
    check_linear(&fastchat_emulator::kernels(false), &[WeightKind::Q4_0], (1, 28_000, 3), 7);
    check_linear(&fastchat_emulator::kernels(true), &[WeightKind::Q4_1], (1, 3232, 3), 7);
}

#[test]
fn gated_products_equal_product_and_activation() {
    let act = Activation::SwigluOai { alpha: 1.5, limit: 2. };
    for kernels in backends() {
        for (kind, inter) in [
            (WeightKind::Q5_K, 32),
            (WeightKind::Q4_0, 24),
            (WeightKind::F16, 71),
            (WeightKind::F32, 7),
            (WeightKind::BF16, 71),
            (WeightKind::F8_E4M3, 71),
        ] {
            let mut random = Random(8);
            let halves = [0; 2].map(|_| weight(kind, inter, 256, &mut random));
            let layer = kernels.pack(&halves, Some(random.tensor(&[2 * inter], 1.))).unwrap();
            for tokens in [0, 1, 6, 12, 70, 130] {
                if tokens > 100 && !matches!(kind, WeightKind::BF16 | WeightKind::F16 | WeightKind::F8_E4M3) {
                    continue;
                }
                let x = random.tensor(&[tokens, 256], 1.);
                let plain = kernels.gated_act(&kernels.linear(&x, &layer).unwrap(), act).unwrap();
                let out = kernels.gated_linear(&x, &layer, act).unwrap();
                assert_same_bits(&format!("{kind:?} of {inter}"), &out, &plain);
            }
        }
    }
}

#[test]
fn embedded_rows_are_the_decoded_ones() {
    for kernels in backends() {
        check_embed(&kernels);
    }
}

#[test]
fn rows_of_one_group_are_embedded() {
    for kernels in backends() {
        let table = weight(WeightKind::Q8_0, 5, 32, &mut Random(3));
        let packed = kernels.pack(std::slice::from_ref(&table), None).unwrap();
        let rows = kernels.embed(&packed, &[4, 0, 3]).unwrap().to_vec2::<f32>().unwrap();
        let expected = table.to_f32().unwrap();
        assert_eq!(rows, [4, 0, 3].map(|id| expected[id * 32..][..32].to_vec()));
    }
}

#[test]
fn nothing_and_numbers_that_are_none_pass_through() {
    for kernels in backends() {
        for kind in [WeightKind::Q4_K, WeightKind::F32] {
            let layer = kernels.pack(&[weight(kind, 16, 256, &mut Random(1))], None).unwrap();
            let none = Tensor::zeros((0, 256), DType::F32, &Device::Cpu).unwrap();
            assert_eq!(kernels.linear(&none, &layer).unwrap().dims(), [0, 16]);
            assert_eq!(kernels.embed(&layer, &[]).unwrap().dims(), [0, 256]);
            let mut x = vec![1f32; 256];
            x[77] = f32::NAN;
            let y = kernels.linear(&Tensor::from_vec(x, (1, 256), &Device::Cpu).unwrap(), &layer).unwrap();
            assert!(floats(&y).iter().all(|y| y.is_nan()), "{kind:?}");
            assert!(kernels.linear(&Tensor::zeros((1, 128), DType::F32, &Device::Cpu).unwrap(), &layer).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shapes_and_tails(
        kind in 0..26usize,
        tokens in 1..20usize,
        blocks in 1..6usize,
        tail in 0..32usize,
        rows in 1..50usize,
        seed: u64,
    ) {
        let kind = QUANTISED.into_iter().chain(DENSE).nth(kind).unwrap();
        let cols = if kind.is_dense() { 32 * blocks - tail } else { kind.block().0 * blocks };
        check_linear(&fastchat_emulator::kernels(false), &[kind], (tokens, cols, rows), seed);
    }
}

#[test]
fn layers_of_other_backends_are_refused() {
    let layer = DEFAULT.pack(&[weight(WeightKind::F32, 4, 6, &mut Random(1))], None).unwrap();
    let x = Random(2).tensor(&[1, 6], 1.);
    assert!(fastchat_emulator::kernels(false).linear(&x, &layer).is_err());
    let own = fastchat_emulator::kernels(false).pack(&[weight(WeightKind::F32, 4, 6, &mut Random(1))], None).unwrap();
    assert!(DEFAULT.linear(&x, &own).is_err());
}
