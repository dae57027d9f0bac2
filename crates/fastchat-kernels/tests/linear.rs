//! The packed linear layers of the CPU backend against the default, on every instruction set this machine has.
//!
//! Quantised kinds round their input to 8 bits, so the default is given the rounded input; what remains is the order of
//! f32 additions: an error of 1e-5 of the sum of magnitudes covers it (2^-24 times a few dozen operations).

#![allow(clippy::unwrap_used)] // the helper functions belong to the tests

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{Activation, DefaultKernels, Kernels, Weight, WeightKind};
use proptest::prelude::*;

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
const ISAS: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.
    }
}

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

fn weight(kind: WeightKind, rows: usize, cols: usize, random: &mut Random) -> Weight {
    let (elements, size) = kind.block();
    let mut bytes = Vec::new();
    for _ in 0..rows * cols / elements {
        let value = random.float();
        match kind {
            WeightKind::F32 => bytes.extend(value.to_le_bytes()),
            WeightKind::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            WeightKind::BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
            _ => {
                let mut block: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
                for &at in scale_offsets(kind) {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(random.float() / 16.).to_le_bytes());
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

fn input(rows: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    (0..rows * cols).map(|_| random.float()).collect()
}

/// What the backend makes of its input: 8 bits per element, one scale per 32.
fn rounded(x: &[f32], cols: usize) -> Vec<f32> {
    let round = |group: &[f32]| {
        let largest = group.iter().fold(0f32, |max, x| max.max(x.abs()));
        let inverse = if largest == 0. { 0. } else { 127. / largest };
        group.iter().map(|x| (x * inverse).round_ties_even() * (largest / 127.)).collect::<Vec<_>>()
    };
    x.chunks(cols).flat_map(|row| row.chunks(32).flat_map(round)).collect()
}

fn tensor(values: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(values, (rows, values.len() / rows), &Device::Cpu).unwrap()
}

fn magnitudes(weight: &Weight) -> Weight {
    let bytes: Vec<u8> = weight.to_f32().unwrap().iter().flat_map(|w| w.abs().to_le_bytes()).collect();
    Weight::new(WeightKind::F32, weight.rows(), weight.cols(), bytes.into()).unwrap()
}

fn output(kernels: &dyn Kernels, weights: &[Weight], bias: Option<&Tensor>, x: &Tensor) -> Vec<f32> {
    let layer = kernels.pack(weights, bias.cloned()).unwrap();
    kernels.linear(x, &layer).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn check(isa: Isa, kinds: &[WeightKind], sizes: (usize, usize, usize), seed: u64) {
    let (tokens, cols, rows) = sizes;
    let mut random = Random(seed);
    let weights: Vec<Weight> = kinds.iter().map(|&kind| weight(kind, rows, cols, &mut random)).collect();
    let outputs = rows * kinds.len();
    let x = input(tokens, cols, &mut random);
    let bias = Tensor::from_vec(input(1, outputs, &mut random), outputs, &Device::Cpu).unwrap();
    let kernels = CpuKernels::with_isa(Some(2), isa);
    let actual = output(&kernels, &weights, Some(&bias), &tensor(&x, tokens));
    for (part, weight) in weights.iter().enumerate() {
        let x = if weight.kind().is_dense() { x.clone() } else { rounded(&x, cols) };
        let size: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        let part_bias = bias.narrow(0, part * rows, rows).unwrap();
        let default = DefaultKernels(Device::Cpu);
        let expected = output(&default, std::slice::from_ref(weight), Some(&part_bias), &tensor(&x, tokens));
        let size = output(&default, &[magnitudes(weight)], None, &tensor(&size, tokens));
        for (i, (expected, size)) in expected.iter().zip(size).enumerate() {
            let (token, row) = (i / rows, i % rows);
            let actual = actual[token * outputs + part * rows + row];
            let kind = weight.kind();
            assert!(
                (actual - expected).abs() <= 1e-5 * (size + 1.),
                "{isa} {kind:?} token {token} row {row}: {actual} is not {expected} of {size}"
            );
        }
    }
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
            let x = input(tokens, cols, &mut random);
            let run = |x: &[f32], tokens: usize| {
                let y = kernels.linear(&tensor(x, tokens), &layer).unwrap();
                y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let together: Vec<u32> = run(&x, tokens).into_iter().map(f32::to_bits).collect();
            for size in [1, 2, 5, 8, 11] {
                let apart: Vec<u32> =
                    x.chunks(size * cols).flat_map(|x| run(x, x.len() / cols)).map(f32::to_bits).collect();
                assert_eq!(together, apart, "{isa} {kind:?} in pieces of {size}");
            }
        }
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
            let bias = Tensor::from_vec(input(1, outputs, &mut random), outputs, &Device::Cpu).unwrap();
            let layer = kernels.pack(&weights, Some(bias)).unwrap();
            for (tokens, act) in [1, 4, 19].into_iter().zip(activations) {
                let x = tensor(&input(tokens, 256, &mut random), tokens);
                let apart = kernels.gated_act(&kernels.linear(&x, &layer).unwrap(), act).unwrap();
                let bits = |x: Tensor| {
                    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                assert_eq!(
                    bits(kernels.gated_linear(&x, &layer, act).unwrap()),
                    bits(apart),
                    "{isa} {kinds:?} {act:?}"
                );
            }
        }
    }
}

#[test]
fn embedded_rows_are_the_decoded_ones() {
    let kernels = CpuKernels::with_isa(Some(2), Isa::Portable);
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

#[test]
fn numbers_that_are_none_stay_visible() {
    for isa in ISAS {
        let kernels = CpuKernels::with_isa(Some(1), isa);
        for kind in [WeightKind::Q4_K, WeightKind::F32] {
            let layer = kernels.pack(&[weight(kind, 16, 256, &mut Random(1))], None).unwrap();
            let mut x = vec![1f32; 256];
            x[77] = f32::NAN;
            let y = kernels.linear(&tensor(&x, 1), &layer).unwrap().to_vec2::<f32>().unwrap();
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
    assert!(kernels.linear(&tensor(&[0.; 5], 1), &layer).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn shapes_and_tails(
        isa in 0..ISAS.len(),
        kind in 0..25usize,
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
