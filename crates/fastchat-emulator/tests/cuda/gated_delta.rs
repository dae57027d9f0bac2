//! The gated delta rule over steps that start from, end in and stop at state slots.

use proptest::prelude::*;

use crate::backends;
use crate::gated_delta_case::{Case, check, check_slots};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_default_in_any_company(
        seed: u64,
        lens in prop::collection::vec(1..14usize, 1..4),
        heads in (1..3usize, 1..3usize, 1..20usize, 1..40usize),
        conv_taps in 2..5usize,
        entangled in 0..8u8,
    ) {
        check(&Case { seed, lens, heads, conv_taps, entangled }, backends());
    }
}

#[test]
fn refuses_slots_outside_the_cache() {
    check_slots(backends());
}
