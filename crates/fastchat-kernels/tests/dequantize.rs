//! Decoding is bit-equal to the `gguf` Python package; `tests/data/make_dequant.py` wrote the fixture.

#![allow(clippy::unwrap_used)] // the helper functions belong to the tests

use fastchat_kernels::WeightKind;
use fastchat_kernels::quant::dequantize;

const KINDS: &[(&str, WeightKind)] = &[
    ("Q4_0", WeightKind::Q4_0),
    ("Q4_1", WeightKind::Q4_1),
    ("Q5_0", WeightKind::Q5_0),
    ("Q5_1", WeightKind::Q5_1),
    ("Q8_0", WeightKind::Q8_0),
    ("Q2_K", WeightKind::Q2_K),
    ("Q3_K", WeightKind::Q3_K),
    ("Q4_K", WeightKind::Q4_K),
    ("Q5_K", WeightKind::Q5_K),
    ("Q6_K", WeightKind::Q6_K),
    ("IQ4_NL", WeightKind::IQ4_NL),
    ("IQ4_XS", WeightKind::IQ4_XS),
    ("MXFP4", WeightKind::MXFP4),
    ("IQ2_XXS", WeightKind::IQ2_XXS),
    ("IQ2_XS", WeightKind::IQ2_XS),
    ("IQ2_S", WeightKind::IQ2_S),
    ("IQ3_XXS", WeightKind::IQ3_XXS),
    ("IQ3_S", WeightKind::IQ3_S),
    ("IQ1_S", WeightKind::IQ1_S),
    ("IQ1_M", WeightKind::IQ1_M),
    ("TQ1_0", WeightKind::TQ1_0),
    ("TQ2_0", WeightKind::TQ2_0),
];

/// The records of the fixture: name, stored bytes, expected bits.
fn records() -> Vec<(String, Vec<u8>, Vec<u32>)> {
    let mut rest: &[u8] = include_bytes!("data/dequant.bin");
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n.min(rest.len()));
        rest = tail;
        head
    };
    let u32_of = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mut records = Vec::new();
    while let [len] = *take(1) {
        let name = String::from_utf8(take(usize::from(len)).to_vec()).unwrap();
        let (size, elements) = (u32_of(take(4)) as usize, u32_of(take(4)) as usize);
        let stored = take(size).to_vec();
        records.push((name, stored, take(4 * elements).chunks(4).map(u32_of).collect()));
    }
    records
}

#[test]
fn equals_the_gguf_package() {
    let records = records();
    for (name, kind) in KINDS {
        let (_, stored, expected) = records.iter().find(|record| record.0 == *name).unwrap();
        let values = dequantize(*kind, stored, expected.len()).unwrap();
        for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
            let expected = f32::from_bits(*expected);
            assert_eq!(value.to_bits(), expected.to_bits(), "{name} element {i}: {value} is not {expected}");
        }
    }
}

#[test]
fn refuses_a_wrong_length() {
    assert!(dequantize(WeightKind::Q8_0, &[0; 33], 32).is_err());
    assert!(dequantize(WeightKind::Q8_0, &[0; 34], 33).is_err());
    assert!(dequantize(WeightKind::F32, &[0; 4], 2).is_err());
}
