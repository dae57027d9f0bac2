//! Random weights of every kind, and what a backend's products with them are held to. Quantised kinds round their input to
//! 8 bits per 32 columns, and bf16 to bf16 where the backend multiplies that, so the default is given the rounded input;
//! what remains is the order of f32 additions.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::{Kernels, Weight, WeightKind};

use crate::data::{DEFAULT, Random, assert_same_bits, floats};

/// Kinds whose products round their input.
pub const QUANTISED: [WeightKind; 22] = [
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
/// Kinds whose products do not.
pub const DENSE: [WeightKind; 4] = [WeightKind::F32, WeightKind::F16, WeightKind::BF16, WeightKind::F8_E4M3];

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
            WeightKind::F8_E4M3 => {
                // Few bits, so that f16, which the CPU computes with, holds code and scale together.
                bytes.extend(((1. + (random.next() % 32) as f32 / 32.) / 64.).to_le_bytes());
                let finite = |code: u8| if code & 0x7f == 0x7f { code ^ 1 } else { code };
                bytes.extend((4..size).map(|_| finite(random.next() as u8)));
            }
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

/// The input as the backend takes it for a weight of `kind`.
fn taken(kernels: &dyn Kernels, kind: WeightKind, x: &Tensor) -> Tensor {
    let name = kernels.name();
    match kind {
        // A CPU's instruction for bf16 is for weights that are stored so.
        WeightKind::F16 | WeightKind::F8_E4M3 if name.starts_with("cpu") => x.clone(),
        WeightKind::BF16 | WeightKind::F16 | WeightKind::F8_E4M3 if name.ends_with("bf16") => {
            x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
        }
        _ if kind.is_float() => x.clone(),
        _ => rounded(x),
    }
}

fn magnitudes(weight: &Weight) -> Weight {
    let bytes: Vec<u8> = weight.to_f32().unwrap().iter().flat_map(|w| w.abs().to_le_bytes()).collect();
    Weight::new(WeightKind::F32, weight.rows(), weight.cols(), bytes.into()).unwrap()
}

/// A layer of parts of these kinds equals the default's for each part: within 1e-5 of the sum of magnitudes, which covers
/// another order of f32 additions (2^-24 times a few dozen operations). Its last row alone has the same bits.
pub fn check_linear(
    kernels: &dyn Kernels,
    kinds: &[WeightKind],
    (tokens, cols, rows): (usize, usize, usize),
    seed: u64,
) {
    let mut random = Random(seed);
    let weights: Vec<Weight> = kinds.iter().map(|&kind| weight(kind, rows, cols, &mut random)).collect();
    let outputs = rows * kinds.len();
    let x = random.tensor(&[tokens, cols], 1.);
    let bias = random.tensor(&[outputs], 1.);
    let layer = kernels.pack(&weights, Some(bias.clone())).unwrap();
    let out = kernels.linear(&x, &layer).unwrap();
    assert_eq!(out.dims(), [tokens, outputs]);
    for (part, weight) in weights.iter().enumerate() {
        let x = taken(kernels, weight.kind(), &x);
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

/// Rows of an embedding table of two kinds, and an id beyond it.
pub fn check_embed(kernels: &dyn Kernels) {
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
