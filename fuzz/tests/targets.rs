//! Every target under bolero: the kept inputs and random bytes under `cargo test`; built with libFuzzer the test that is
//! named, without end.
#![allow(missing_docs)]

use fastchat_fuzz::every_target;

macro_rules! target {
    ($name:ident) => {
        #[test]
        fn $name() {
            bolero::check!().with_iterations(500).for_each(|input: &[u8]| fastchat_fuzz::$name::check(input));
        }
    };
}

every_target!(target);
