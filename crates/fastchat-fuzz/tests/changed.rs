//! Runs every target on the kept inputs and, for a short time, on changed ones. Owns the bound on memory.
#![allow(missing_docs, clippy::print_stderr)] // counts are for whoever reads a test's output

use std::alloc::System;
use std::time::Duration;

use cap::Cap;
use fastchat_fuzz::{every_target, mutation};

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

macro_rules! target {
    ($name:ident) => {
        #[test]
        fn $name() {
            let time = Duration::from_secs(setting("FASTCHAT_FUZZ_SECONDS", 2));
            let seed = setting("FASTCHAT_FUZZ_SEED", 1);
            let check = |input: &[u8]| bounded(fastchat_fuzz::$name::check, input);
            let count = mutation::run(stringify!($name), check, time, seed);
            eprintln!("{}: {count} changed inputs", stringify!($name));
            assert!(count > 0);
        }
    };
}

every_target!(target);
