//! Runs every target: under `cargo test` the kept inputs, random bytes and changed inputs of the corpus for a short time;
//! built with libFuzzer the test that is named, without end. Owns the bound on memory.
#![allow(missing_docs)]

use std::alloc::System;
use std::time::Duration;

use cap::Cap;

/// Most that is ever allocated at once, in bytes; inputs are at most 64 KiB, and every target holds to it beside the others.
const MOST: usize = 512 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

fn bounded(check: fn(&[u8]), input: &[u8]) {
    check(input);
    let most = ALLOCATOR.max_allocated();
    assert!(most <= MOST, "{most} bytes were allocated, the bound is {MOST}");
}

/// Seconds of changed inputs for each target, and the seed of the changes.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            bolero::check!().with_iterations(500).for_each(|input: &[u8]| bounded(fastchat_fuzz::$name::check, input));
        })*

        mod changed {
            use super::*;

            $(#[test]
            fn $name() {
                let time = Duration::from_secs(setting("FASTCHAT_FUZZ_SECONDS", 4));
                let seed = setting("FASTCHAT_FUZZ_SEED", 1);
                let check = |input: &[u8]| bounded(fastchat_fuzz::$name::check, input);
                let count = fastchat_fuzz::mutation::run(stringify!($name), check, time, seed);
                assert!(count > 0);
            })*
        }
    };
}

targets!(detokenizer, gguf, grammar, reasoning, safetensors, stop, tokenizer_json, tools);
