//! Rounding to stored kinds: bit-equal to the `gguf` package where that writes the kind (`tests/data/make_quant.py`), near
//! the values otherwise.

#![allow(clippy::unwrap_used)] // the helper functions belong to the tests

use fastchat_kernels::{WeightKind, quantize};
use proptest::prelude::*;

#[test]
fn equals_the_gguf_package() {
    let bytes: &[u8] = include_bytes!("data/quant.bin");
    let (values, mut rest) = bytes.split_at(1024);
    let values: Vec<f32> = values.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    for kind in [WeightKind::Q4_0, WeightKind::Q4_1, WeightKind::Q5_0, WeightKind::Q5_1, WeightKind::Q8_0] {
        let weight = quantize(kind, 2, 128, &values).unwrap();
        let (expected, tail) = rest.split_at(weight.bytes().len());
        assert_eq!(weight.bytes(), expected, "{kind:?}");
        rest = tail;
    }
    assert!(rest.is_empty());
}

/// Root mean square of the error over that of the values.
fn relative_error(kind: WeightKind, values: &[f32]) -> f32 {
    let decoded = quantize(kind, 1, values.len(), values).unwrap().to_f32().unwrap();
    let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
    let error = square(&mut decoded.iter().zip(values).map(|(a, b)| a - b));
    (error / square(&mut values.iter().copied())).sqrt()
}

/// Sums of uniform numbers, nearly normal.
fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

#[test]
fn super_blocks_are_better_than_plain_blocks() {
    let values = normal(5, 256 * 64);
    let error = |kind| relative_error(kind, &values);
    assert!(error(WeightKind::Q4_K) < error(WeightKind::Q4_0), "{}", error(WeightKind::Q4_K));
    assert!(error(WeightKind::Q5_K) < error(WeightKind::Q5_0), "{}", error(WeightKind::Q5_K));
    assert!(error(WeightKind::Q6_K) < error(WeightKind::Q5_K) / 1.5, "{}", error(WeightKind::Q6_K));
}

#[test]
fn zeros_stay_zeros() {
    for kind in [WeightKind::Q4_K, WeightKind::Q5_K, WeightKind::Q6_K, WeightKind::Q8_0, WeightKind::Q4_1] {
        assert!(
            quantize(kind, 1, 256, &[0.; 256]).unwrap().to_f32().unwrap().iter().all(|&x| x.abs() == 0.),
            "{kind:?}"
        );
    }
}

#[test]
fn refuses_what_it_cannot_write() {
    assert!(quantize(WeightKind::Q2_K, 1, 256, &[0.; 256]).is_err());
    assert!(quantize(WeightKind::Q8_0, 1, 33, &[0.; 33]).is_err());
    assert!(quantize(WeightKind::Q8_0, 2, 32, &[0.; 32]).is_err());
    assert!(quantize(WeightKind::Q8_0, 1, 32, &[f32::NAN; 32]).is_err());
}

proptest! {
    #[test]
    fn values_come_back(seed in any::<u64>(), scale in -8i32..8, offset in -1f32..1.) {
        let values: Vec<f32> = normal(seed, 512).iter().map(|x| (x + offset) * 2f32.powi(scale)).collect();
        // Steps of a range of 8 standard deviations, uniform error within a step.
        for (kind, steps) in [(WeightKind::Q4_K, 15.), (WeightKind::Q5_K, 31.), (WeightKind::Q6_K, 63.)] {
            let error = relative_error(kind, &values);
            prop_assert!(error < 8. / steps / 12f32.sqrt(), "{kind:?} {error}");
        }
    }
}
