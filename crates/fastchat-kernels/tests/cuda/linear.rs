//! Products with every kind of weight. Quantised kinds round their input to 8 bits per 32 columns, so the default is given
//! the rounded input; what remains is the order of f32 additions.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::cuda::CudaKernels;
use fastchat_kernels::{Activation, Kernels, Weight, WeightKind};
use proptest::prelude::*;

use crate::backends;
use crate::data::{DEFAULT, Random, assert_same_bits, floats};

const QUANTISED: [WeightKind; 22] = [
    WeightKind::Q4_0,
    WeightKind::Q4_1,
    WeightKind::Q5_0,
    WeightKind::Q5_1,
    WeightKind::Q8_0,
    WeightKind::Q2_K,
    WeightKind::Q3_K,
    WeightKind::Q4_K,
    WeightKind::Q5_K,
    WeightKind::Q6_K,
    WeightKind::IQ4_NL,
    WeightKind::IQ4_XS,
    WeightKind::MXFP4,
    WeightKind::IQ2_XXS,
    WeightKind::IQ2_XS,
    WeightKind::IQ2_S,
    WeightKind::IQ3_XXS,
    WeightKind::IQ3_S,
    WeightKind::IQ1_S,
    WeightKind::IQ1_M,
    WeightKind::TQ1_0,
    WeightKind::TQ2_0,
];
const DENSE: [WeightKind; 3] = [WeightKind::F32, WeightKind::F16, WeightKind::BF16];

/// Where the f16 scales of a block lie.
fn scale_offsets(kind: WeightKind) -> &'static [usize] {
    match kind {
        WeightKind::Q4_1 | WeightKind::Q5_1 | WeightKind::Q4_K | WeightKind::Q5_K => &[0, 2],
        WeightKind::Q2_K => &[80, 82],
        WeightKind::Q3_K => &[108],
        WeightKind::Q6_K => &[208],
        WeightKind::TQ1_0 => &[52],
        WeightKind::TQ2_0 => &[64],
        WeightKind::MXFP4 | WeightKind::IQ1_M => &[],
        _ => &[0],
    }
}

/// A random weight of any kind.
pub fn weight(kind: WeightKind, rows: usize, cols: usize, random: &mut Random) -> Weight {
    let (elements, size) = kind.block();
    let mut bytes = Vec::new();
    for _ in 0..rows * cols / elements {
        let value = random.floats(1, 1.)[0];
        match kind {
            WeightKind::F32 => bytes.extend(value.to_le_bytes()),
            WeightKind::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            WeightKind::BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
            _ => {
                let mut block: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
                for &at in scale_offsets(kind) {
                    let scale = random.floats(1, 1.)[0] / 16.;
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                }
                if kind == WeightKind::IQ1_M {
                    // The exponent of its f16 lies in the last byte.
                    block[55] = block[55] & 0x8f | 0x20;
                }
                if kind == WeightKind::MXFP4 {
                    block[0] = 120 + block[0] % 8;
                }
                bytes.extend(block);
            }
        }
    }
    Weight::new(kind, rows, cols, bytes.into()).unwrap()
}

/// What a quantised product makes of its input.
pub fn rounded(x: &Tensor) -> Tensor {
    let (rows, cols) = x.dims2().unwrap();
    let round = |group: &[f32]| {
        let largest = group.iter().fold(0f32, |max, x| max.max(x.abs()));
        let inverse = if largest == 0. { 0. } else { 127. / largest };
        group.iter().map(|x| (x * inverse).round_ties_even() * (largest / 127.)).collect::<Vec<_>>()
    };
    let values: Vec<f32> = floats(x).chunks(cols).flat_map(|row| row.chunks(32).flat_map(round)).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

fn magnitudes(weight: &Weight) -> Weight {
    let bytes: Vec<u8> = weight.to_f32().unwrap().iter().flat_map(|w| w.abs().to_le_bytes()).collect();
    Weight::new(WeightKind::F32, weight.rows(), weight.cols(), bytes.into()).unwrap()
}

fn check(kernels: &CudaKernels, kinds: &[WeightKind], (tokens, cols, rows): (usize, usize, usize), seed: u64) {
    let mut random = Random(seed);
    let weights: Vec<Weight> = kinds.iter().map(|&kind| weight(kind, rows, cols, &mut random)).collect();
    let outputs = rows * kinds.len();
    let x = random.tensor(&[tokens, cols], 1.);
    let bias = random.tensor(&[outputs], 1.);
    let layer = kernels.pack(&weights, Some(bias.clone())).unwrap();
    let out = kernels.linear(&x, &layer).unwrap();
    assert_eq!(out.dims(), [tokens, outputs]);
    for (part, weight) in weights.iter().enumerate() {
        let x = if weight.kind().is_dense() { x.clone() } else { rounded(&x) };
        let run = |weight: &Weight, x: &Tensor| {
            let layer = DEFAULT.pack(std::slice::from_ref(weight), None).unwrap();
            DEFAULT.linear(x, &layer).unwrap()
        };
        let bias = bias.narrow(0, part * rows, rows).unwrap();
        let expected = floats(&run(weight, &x).broadcast_add(&bias).unwrap());
        let size = floats(&run(&magnitudes(weight), &x.abs().unwrap()));
        let actual = floats(&out.narrow(1, part * rows, rows).unwrap());
        for (i, ((actual, expected), size)) in actual.into_iter().zip(expected).zip(size).enumerate() {
            assert!(
                (actual - expected).abs() <= 1e-5 * (size + 1.),
                "{} {:?} element {i}: {actual} is not {expected} of {size}",
                kernels.name(),
                weight.kind()
            );
        }
    }
    if tokens > 1 {
        let last = kernels.linear(&x.narrow(0, tokens - 1, 1).unwrap(), &layer).unwrap();
        assert_same_bits(&format!("{kinds:?} alone"), &last, &out.narrow(0, tokens - 1, 1).unwrap());
    }
}

#[test]
fn every_kind_equals_the_default() {
    for (i, kind) in QUANTISED.into_iter().chain(DENSE).enumerate() {
        for tokens in [1, 3, 9] {
            check(&CudaKernels::emulated(false), &[kind], (tokens, 512, 50), i as u64);
        }
        check(&CudaKernels::emulated(true), &[kind], (2, 256, 17), i as u64);
    }
}

#[test]
fn parts_of_different_kinds_share_an_input() {
    for kernels in backends() {
        let kinds = [WeightKind::Q4_K, WeightKind::Q4_K, WeightKind::F16, WeightKind::Q6_K, WeightKind::Q8_0];
        check(&kernels, &kinds, (9, 256, 24), 5);
    }
}

#[test]
fn rows_too_long_for_a_block_are_rounded_before() {
    check(&CudaKernels::emulated(false), &[WeightKind::Q8_0], (3, 10_016, 3), 6);
    check(&CudaKernels::emulated(false), &[WeightKind::Q4_0], (1, 28_000, 3), 7);
}

#[test]
fn gated_products_equal_product_and_activation() {
    let act = Activation::SwigluOai { alpha: 1.5, limit: 2. };
    for kernels in backends() {
        for (kind, inter) in [(WeightKind::Q5_K, 32), (WeightKind::Q4_0, 24), (WeightKind::BF16, 7)] {
            let mut random = Random(8);
            let halves = [0; 2].map(|_| weight(kind, inter, 256, &mut random));
            let layer = kernels.pack(&halves, Some(random.tensor(&[2 * inter], 1.))).unwrap();
            for tokens in [0, 1, 6] {
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
        for kind in QUANTISED.into_iter().chain(DENSE) {
            let mut random = Random(7);
            let tables = [weight(kind, 37, 512, &mut random), weight(WeightKind::Q8_0, 20, 512, &mut random)];
            let expected = tables.iter().flat_map(|table| table.to_f32().unwrap()).collect::<Vec<_>>();
            let packed = kernels.pack(&tables, None).unwrap();
            let ids = [0, 36, 37, 16, 56, 1];
            let rows = kernels.embed(&packed, &ids).unwrap().to_vec2::<f32>().unwrap();
            for (row, id) in rows.iter().zip(ids) {
                assert_eq!(row, &expected[id as usize * 512..][..512], "{kind:?} row {id}");
            }
            assert!(kernels.embed(&packed, &[57]).is_err());
        }
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
        kind in 0..25usize,
        tokens in 1..20usize,
        blocks in 1..6usize,
        tail in 0..32usize,
        rows in 1..50usize,
        seed: u64,
    ) {
        let kind = QUANTISED.into_iter().chain(DENSE).nth(kind).unwrap();
        let cols = if kind.is_dense() { 32 * blocks - tail } else { kind.block().0 * blocks };
        check(&CudaKernels::emulated(false), &[kind], (tokens, cols, rows), seed);
    }
}

#[test]
fn layers_of_other_backends_are_refused() {
    let layer = DEFAULT.pack(&[weight(WeightKind::F32, 4, 6, &mut Random(1))], None).unwrap();
    let x = Random(2).tensor(&[1, 6], 1.);
    assert!(CudaKernels::emulated(false).linear(&x, &layer).is_err());
    let own = CudaKernels::emulated(false).pack(&[weight(WeightKind::F32, 4, 6, &mut Random(1))], None).unwrap();
    assert!(DEFAULT.linear(&x, &own).is_err());
}
