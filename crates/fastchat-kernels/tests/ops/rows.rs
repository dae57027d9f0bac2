//! Norms and activations.

use fastchat_kernels::{Activation, Kernels};
use proptest::prelude::*;

use crate::data::{DEFAULT, Random, assert_close, assert_same_bits, backends};

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::GeluTanh),
        Just(Activation::QuickGelu),
        Just(Activation::Relu2),
        (0.5..2f32, 1..10u8).prop_map(|(alpha, limit)| Activation::SwigluOai { alpha, limit: f32::from(limit) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms_equal_the_default(seed: u64, rows in 1..90usize, width in 1..700usize, eps in 1e-6..1e-4f32) {
        let mut random = Random(seed);
        let (x, residual) = (random.tensor(&[rows, width], 4.), random.tensor(&[rows, width], 4.));
        let (weight, bias) = (random.tensor(&[width], 2.), random.tensor(&[width], 2.));
        let rms = DEFAULT.rms_norm(&x, &weight, eps).unwrap();
        let (sum, normed) = DEFAULT.add_rms_norm(&x, &residual, &weight, eps).unwrap();
        let layer = DEFAULT.layer_norm(&x, &weight, Some(&bias), eps).unwrap();
        let plain = DEFAULT.layer_norm(&x, &weight, None, eps).unwrap();
        for kernels in backends() {
            let name = kernels.name();
            let out = kernels.rms_norm(&x, &weight, eps).unwrap();
            assert_close(&name, &out, &rms, 1e-5);
            let last = x.narrow(0, rows - 1, 1).unwrap();
            let alone = kernels.rms_norm(&last, &weight, eps).unwrap();
            assert_same_bits(&name, &alone, &out.narrow(0, rows - 1, 1).unwrap());
            let (own_sum, own_normed) = kernels.add_rms_norm(&x, &residual, &weight, eps).unwrap();
            assert_same_bits(&name, &own_sum, &sum);
            assert_close(&name, &own_normed, &normed, 1e-5);
            // The variance of one element is zero: nothing to compare but noise over eps.
            if width > 2 {
                let out = kernels.layer_norm(&x, &weight, Some(&bias), eps).unwrap();
                assert_close(&name, &out, &layer, 2e-5);
                assert_close(&name, &kernels.layer_norm(&x, &weight, None, eps).unwrap(), &plain, 2e-5);
                let alone = kernels.layer_norm(&last, &weight, Some(&bias), eps).unwrap();
                assert_same_bits(&name, &alone, &out.narrow(0, rows - 1, 1).unwrap());
            }
        }
    }

    #[test]
    fn activations_equal_the_default(seed: u64, rows in 1..90usize, width in 1..400usize, act in activations()) {
        let mut random = Random(seed);
        let x = random.tensor(&[rows, 2 * width], 12.);
        let gated = DEFAULT.gated_act(&x, act).unwrap();
        for kernels in backends() {
            let name = format!("{} {act:?}", kernels.name());
            let out = kernels.gated_act(&x, act).unwrap();
            assert_close(&name, &out, &gated, 1e-5);
            let alone = kernels.gated_act(&x.narrow(0, rows - 1, 1).unwrap(), act).unwrap();
            assert_same_bits(&name, &alone, &out.narrow(0, rows - 1, 1).unwrap());
            if let Ok(plain) = DEFAULT.act(&x, act) {
                assert_close(&name, &kernels.act(&x, act).unwrap(), &plain, 1e-5);
            } else {
                assert!(kernels.act(&x, act).is_err());
            }
        }
    }
}
