//! Norms and activations.

use fastchat_kernels::{Activation, Kernels};
use proptest::prelude::*;

use crate::backends;
use crate::data::{DEFAULT, Random, assert_close, assert_same_bits};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms_equal_the_default(seed: u64, rows in 0..9usize, width in 1..700usize, eps in 1e-6..1e-4f32) {
        let mut random = Random(seed);
        let (x, residual) = (random.tensor(&[rows, width], 4.), random.tensor(&[rows, width], 4.));
        let (weight, bias) = (random.tensor(&[width], 2.), random.tensor(&[width], 2.));
        for kernels in backends() {
            let name = kernels.name();
            let out = kernels.rms_norm(&x, &weight, eps).unwrap();
            assert_close(&name, &out, &DEFAULT.rms_norm(&x, &weight, eps).unwrap(), 1e-5);
            let (sum, normed) = DEFAULT.add_rms_norm(&x, &residual, &weight, eps).unwrap();
            let (own_sum, own_normed) = kernels.add_rms_norm(&x, &residual, &weight, eps).unwrap();
            assert_same_bits(&name, &own_sum, &sum);
            assert_close(&name, &own_normed, &normed, 1e-5);
            // The variance of one element is zero: nothing to compare but noise over eps.
            if width > 2 {
                for bias in [None, Some(&bias)] {
                    let layer = DEFAULT.layer_norm(&x, &weight, bias, eps).unwrap();
                    assert_close(&name, &kernels.layer_norm(&x, &weight, bias, eps).unwrap(), &layer, 2e-5);
                }
            }
            if rows > 1 {
                let last = kernels.rms_norm(&x.narrow(0, rows - 1, 1).unwrap(), &weight, eps).unwrap();
                assert_same_bits(&name, &last, &out.narrow(0, rows - 1, 1).unwrap());
            }
        }
    }

    #[test]
    fn activations_equal_the_default(seed: u64, rows in 1..9usize, width in 1..400usize, act in activations()) {
        let x = Random(seed).tensor(&[rows, 2 * width], 12.);
        let gated = DEFAULT.gated_act(&x, act).unwrap();
        for kernels in backends() {
            let name = format!("{} {act:?}", kernels.name());
            assert_close(&name, &kernels.gated_act(&x, act).unwrap(), &gated, 1e-5);
            match DEFAULT.act(&x, act) {
                Ok(plain) => assert_close(&name, &kernels.act(&x, act).unwrap(), &plain, 1e-5),
                Err(_) => assert!(kernels.act(&x, act).is_err()),
            }
        }
    }
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::GeluTanh),
        Just(Activation::QuickGelu),
        Just(Activation::Relu2),
        Just(Activation::QuickGelu),
        (0.5..2f32, 1..10u8).prop_map(|(alpha, limit)| Activation::SwigluOai { alpha, limit: f32::from(limit) }),
    ]
}

#[test]
fn no_rows_give_no_rows() {
    for kernels in backends() {
        let x = Random(1).tensor(&[0, 6], 1.);
        assert_eq!(kernels.gated_act(&x, Activation::Silu).unwrap().dims(), [0, 3]);
        assert_eq!(kernels.act(&x, Activation::Silu).unwrap().dims(), [0, 6]);
    }
}
