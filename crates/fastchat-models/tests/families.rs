//! Families without reference outputs: their published config and tensor names load completely, and a random checkpoint
//! computes the same in every chunking, cached and in company.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::sync::Arc;

use candle_core::DType;
use fastchat_kernels::cpu::CpuKernels;
use fastchat_models::{Decoder, LoadOptions, load};
use rows::{Feed, Sequence, cache, chunked, difference, step};

/// Orders of f32 sums may differ between chunkings.
const TOLERANCE: f32 = 1e-4;

fn tokens() -> Vec<u32> {
    (0..48).map(|i| (i * 37 + 11) % 256).collect()
}

fn family(name: &str) {
    let folder = checkpoints::random(name, "families");
    let kernels = Arc::new(CpuKernels::new(Some(1)));
    let decoder = load(&folder.0, kernels, &LoadOptions::default()).unwrap().decoder;
    let whole = chunked(&decoder, &tokens(), 48);
    assert!(whole.iter().flatten().all(|x| x.is_finite()), "{name}: a logit is not finite");
    let spread = |row: &Vec<f32>| row.iter().fold(0.0, |most: f32, x| most.max((x - row[0]).abs()));
    assert!(whole.iter().all(|row| spread(row) > 1e-3), "{name}: a row of logits is flat");
    for chunk in [1, 5, 16, 47] {
        let most = difference(&chunked(&decoder, &tokens(), chunk), &whole);
        assert!(most <= TOLERANCE, "{name}: chunks of {chunk} differ by {most}");
    }
    cached(name, &decoder, &whole);
}

fn cached(name: &str, decoder: &Decoder, whole: &[Vec<f32>]) {
    let (cache, tokens) = (cache(decoder, 2, DType::F32), tokens());
    let mut first = Sequence::new(0, 2);
    step(decoder, &cache, &mut [Feed { sequence: &mut first, tokens: &tokens }]);
    let mut second = Sequence::new(1, 2).share(&first, 1);
    let mut feeds =
        [Feed { sequence: &mut first, tokens: &tokens[..1] }, Feed { sequence: &mut second, tokens: &tokens[16..] }];
    let rows = step(decoder, &cache, &mut feeds);
    let most = difference(&rows[1..], &whole[16..]);
    assert!(most <= TOLERANCE, "{name}: after 16 cached tokens, in company: differs by {most}");
}

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test] fn $name() { family(stringify!($name)); })*

        #[test]
        fn every_config_has_its_test() {
            let mut known = vec![$(stringify!($name)),*];
            known.sort_unstable();
            assert_eq!(known, checkpoints::FAMILIES);
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs");
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), known.len());
        }
    };
}

families! {
    cohere2 ernie4_5 exaone4 gemma3_text_config glm4 glm4_moe granite olmo2 olmo3 olmoe qwen2_moe seed_oss starcoder2
}
