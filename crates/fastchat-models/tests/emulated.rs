//! Every text family on the emulated CUDA kernels: the reference's logits, and the same bits however a prompt is cut,
//! whoever is in the step, and when the arrays of a decode step are written over.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[macro_use]
mod rows;

use std::path::Path;

use candle_core::DType;
use fastchat_kernels::StepInput;
use fastchat_models::{Choosing, DecodeStep, Decoder, LoadOptions, load};
use rows::{Feed, Sequence, batch, cache, chunked_in, difference, golden, step};

/// Largest difference of a logit to the reference's.
const TOLERANCE: f32 = 1e-4;

/// Families whose gated delta rule multiplies roundings; `parity.rs` says how.
const AMPLIFIED: &[&str] = &["qwen3_5", "qwen3_next"];

/// Their tolerance.
const AMPLIFIED_TOLERANCE: f32 = 5e-4;

/// What the roundings of a cache of f16 may do.
const HALF_TOLERANCE: f32 = 2e-2;

/// Tokens of the reference that are fed: past a block's border, and few, since every thread is emulated.
const TOKENS: usize = 19;

/// A model on the emulated kernels, or `None` with a loud line.
fn emulated(folder: &Path) -> Option<Decoder> {
    let Some(emulated) = fastchat_emulator::emulated(false) else {
        eprintln!("SKIPPED: the CUDA kernels are not emulated without a C++ compiler");
        return None;
    };
    Some(load(folder, emulated.kernels, &LoadOptions::default()).unwrap().decoder)
}

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text").join(name);
    let Some(decoder) = emulated(&folder) else { return };
    let file = folder.join("golden.safetensors");
    let ids: Vec<u32> = golden(&file, "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let logits: Vec<Vec<f32>> = golden(&file, "logits").to_vec2().unwrap();
    let ids = &ids[..TOKENS];
    // Attention to a cache of 16 bits is another kernel where its rows are wide enough.
    for (dtype, chunks) in [(DType::F32, &[1, 5][..]), (DType::F16, &[5])] {
        let tolerance = match dtype {
            DType::F16 => HALF_TOLERANCE,
            _ if AMPLIFIED.contains(&name) => AMPLIFIED_TOLERANCE,
            _ => TOLERANCE,
        };
        let whole = chunked_in(&decoder, ids, TOKENS, dtype);
        for (position, (row, expected)) in whole.iter().zip(&logits).enumerate() {
            let most = difference(std::slice::from_ref(row), std::slice::from_ref(expected));
            assert!(most <= tolerance, "{name}: logits of row {position} differ by {most} with a cache of {dtype:?}");
        }
        for &chunk in chunks {
            let rows = chunked_in(&decoder, ids, chunk, dtype);
            assert!(rows == whole, "{name}: chunks of {chunk} differ from the whole in some bit");
        }
        company(name, &decoder, ids, &whole, dtype);
        in_place(name, &decoder, ids, &whole, dtype);
    }
}

/// Three sequences in one step: the rest of one, a whole prompt, a single token.
fn company(name: &str, decoder: &Decoder, ids: &[u32], whole: &[Vec<f32>], dtype: DType) {
    let cache = cache(decoder, 3, dtype);
    let [mut a, mut b, mut c] = [0, 1, 2].map(|index| Sequence::new(index, 3));
    let mut early = [Feed { sequence: &mut b, tokens: &ids[..7] }, Feed { sequence: &mut c, tokens: &ids[..17] }];
    step(decoder, &cache, &mut early);
    let mut late = [
        Feed { sequence: &mut b, tokens: &ids[7..12] },
        Feed { sequence: &mut a, tokens: &ids[..3] },
        Feed { sequence: &mut c, tokens: &ids[17..18] },
    ];
    let rows = step(decoder, &cache, &mut late);
    let expected = [&whole[7..12], &whole[..3], &whole[17..18]].concat();
    assert!(rows == expected, "{name}: company changes some bit");
}

/// Decode steps whose arrays are written over: the same bits again, for any number of sequences, and nothing is touched
/// but the blocks of the sequences in the step.
fn in_place(name: &str, decoder: &Decoder, ids: &[u32], whole: &[Vec<f32>], dtype: DType) {
    if !DecodeStep::serves(decoder) {
        return;
    }
    let cache = cache(decoder, 3, dtype);
    let mut sequences = [0, 1, 2].map(|index| Sequence::new(index, 3));
    for (sequence, len) in sequences.iter_mut().zip([4, 9, 15]) {
        step(decoder, &cache, &mut [Feed { sequence, tokens: &ids[..len] }]);
    }
    let largest = DecodeStep::new(decoder, &cache, 3, 600).unwrap();
    let [a, b, c] = &mut sequences;
    let untouched = |blocks: &[usize]| blocks.iter().map(|&block| cache.read_block(block).unwrap()).collect::<Vec<_>>();
    for present in [[true, true, true], [false, true, true], [false, false, true], [true, false, true]] {
        let own = [&mut *a, &mut *b, &mut *c].into_iter().zip(present).filter(|&(_, present)| present);
        let mut feeds: Vec<_> = own
            .map(|(sequence, _)| {
                let at = sequence.tokens.len();
                Feed { sequence, tokens: &ids[at..=at] }
            })
            .collect();
        let mut batch = batch(decoder, &mut feeds);
        // A decode step goes on in each sequence's own slot.
        batch.states.iter_mut().for_each(|step| step.snapshots.clear());
        let written: Vec<_> = batch.slot_mapping.iter().map(|slot| *slot as usize / 16).collect();
        let others: Vec<_> = (0..cache.num_blocks()).filter(|block| !written.contains(block)).collect();
        let before = untouched(&others);
        let step = largest.first(feeds.len()).unwrap();
        step.write(decoder, &cache, &StepInput::of(&batch)).unwrap();
        step.run(decoder, &cache, Choosing::Nothing).unwrap();
        let expected: Vec<_> = batch.positions.iter().map(|&position| whole[position as usize].clone()).collect();
        assert!(step.logits().to_vec2::<f32>().unwrap() == expected, "{name}: a step in place changes some bit");
        assert!(untouched(&others) == before, "{name}: a step in place writes into blocks of others");
    }
}

every_text_family!(family);
