//! Every text family on the emulated CUDA kernels: the reference's logits, the same bits however a prompt is cut and
//! whoever is in the step, and how many kernels a decode step launches.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[macro_use]
mod rows;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::DType;
use fastchat_models::{Decoder, LoadOptions, load};
use rows::{Feed, Sequence, cache, chunked_in, difference, golden, step};

/// Largest difference of a logit to the reference's.
const TOLERANCE: f32 = 1e-4;

/// Families whose gated delta rule multiplies roundings; `parity.rs` says how.
const AMPLIFIED: &[&str] = &["qwen3_5", "qwen3_next"];

/// Their tolerance.
const AMPLIFIED_TOLERANCE: f32 = 5e-4;

/// Tokens of the reference that are fed: past a block's border, and few, since every thread is emulated.
const TOKENS: usize = 19;

/// A model on the emulated kernels and the counter of their launches, or `None` with a loud line.
fn emulated(folder: &Path) -> Option<(Decoder, Arc<AtomicU64>)> {
    let Some(emulated) = fastchat_kernels::emulated(false) else {
        eprintln!("SKIPPED: the CUDA kernels are not emulated without a C++ compiler");
        return None;
    };
    let decoder = load(folder, emulated.kernels, &LoadOptions::default()).unwrap().decoder;
    Some((decoder, emulated.launches))
}

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text").join(name);
    let Some((decoder, _)) = emulated(&folder) else { return };
    let file = folder.join("golden.safetensors");
    let ids: Vec<u32> = golden(&file, "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let logits: Vec<Vec<f32>> = golden(&file, "logits").to_vec2().unwrap();
    let ids = &ids[..TOKENS];
    let whole = chunked_in(&decoder, ids, TOKENS, DType::F32);
    let tolerance = if AMPLIFIED.contains(&name) { AMPLIFIED_TOLERANCE } else { TOLERANCE };
    for (position, (row, expected)) in whole.iter().zip(&logits).enumerate() {
        let most = difference(std::slice::from_ref(row), std::slice::from_ref(expected));
        assert!(most <= tolerance, "{name}: logits of row {position} differ by {most}");
    }
    for chunk in [1, 5, 16] {
        let rows = chunked_in(&decoder, ids, chunk, DType::F32);
        assert!(rows == whole, "{name}: chunks of {chunk} differ from the whole in some bit");
    }
    // Three sequences in one step: the rest of one, a whole prompt, a single token.
    let cache = cache(&decoder, 3, DType::F32);
    let [mut a, mut b, mut c] = [0, 1, 2].map(|index| Sequence::new(index, 3));
    let mut early = [Feed { sequence: &mut b, tokens: &ids[..7] }, Feed { sequence: &mut c, tokens: &ids[..17] }];
    step(&decoder, &cache, &mut early);
    let mut late = [
        Feed { sequence: &mut b, tokens: &ids[7..12] },
        Feed { sequence: &mut a, tokens: &ids[..3] },
        Feed { sequence: &mut c, tokens: &ids[17..18] },
    ];
    let rows = step(&decoder, &cache, &mut late);
    let expected = [&whole[7..12], &whole[..3], &whole[17..18]].concat();
    assert!(rows == expected, "{name}: company changes some bit");
}

every_text_family!(family);

/// Launches of a decode step, alone and in company: a layer is norm, qkv, rope and cache, attention, output, norm, gate
/// and up, down; the embedding, the final norm and the output matrix come on top.
#[test]
fn a_decode_step_launches_eight_kernels_a_layer() {
    let Some(shared) = rows::shared() else { return };
    for name in ["llama3", "llama_tied_bias", "qwen2", "qwen3", "smollm3", "phi3"] {
        let Some((decoder, launches)) = emulated(&shared.join("text").join(name)) else { return };
        let layers = decoder.spec().layers.len() as u64;
        let cache = cache(&decoder, 2, DType::F32);
        let [mut a, mut b] = [0, 1].map(|index| Sequence::new(index, 2));
        step(&decoder, &cache, &mut [Feed { sequence: &mut a, tokens: &[1, 2, 3] }]);
        step(&decoder, &cache, &mut [Feed { sequence: &mut b, tokens: &[4, 5] }]);
        let count = |feeds: &mut [Feed]| {
            let before = launches.load(Ordering::Relaxed);
            step(&decoder, &cache, feeds);
            launches.load(Ordering::Relaxed) - before
        };
        assert_eq!(count(&mut [Feed { sequence: &mut a, tokens: &[4] }]), 8 * layers + 3, "{name}");
        let mut both = [Feed { sequence: &mut a, tokens: &[5] }, Feed { sequence: &mut b, tokens: &[6] }];
        assert_eq!(count(&mut both), 8 * layers + 3, "{name}, two sequences");
    }
}
