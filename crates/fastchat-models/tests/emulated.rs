//! Whole models on the CUDA kernels, in their emulator: every family against the reference implementation, with the same
//! bits however the work is cut; and how many launches a decode step takes.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod rows;

use std::path::Path;
use std::sync::atomic::Ordering;

use candle_core::DType;
use fastchat_kernels::emulated;
use fastchat_models::{LoadOptions, load};
use rows::{Feed, Sequence, cache, chunked, difference, golden, step};

/// Largest difference of a logit, both sides computed in f32.
const TOLERANCE: f32 = 1e-4;

/// Families with a head of the gated delta rule that multiplies roundings a thousand times; see parity.rs.
const AMPLIFIED: &[&str] = &["qwen3_5", "qwen3_next"];
const AMPLIFIED_TOLERANCE: f32 = 5e-4;

/// Launches of a layer at most, eager.
const MOST_LAUNCHES: u64 = 8;

fn family(folder: &Path) {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let Some(backend) = emulated(false) else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "a C++ compiler is required in CI");
        return eprintln!("SKIPPED: no C++ compiler, so the CUDA kernels were not emulated");
    };
    let ids: Vec<u32> =
        golden(&folder.join("golden.safetensors"), "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let logits: Vec<Vec<f32>> = golden(&folder.join("golden.safetensors"), "logits").to_vec2().unwrap();
    let decoder = load(folder, backend.kernels.clone(), &LoadOptions::default()).unwrap().decoder;
    let whole = chunked(&decoder, &ids, ids.len());
    let tolerance = if AMPLIFIED.contains(&name.as_str()) { AMPLIFIED_TOLERANCE } else { TOLERANCE };
    for (i, (row, expected)) in whole.iter().zip(&logits).enumerate() {
        let most = difference(std::slice::from_ref(row), std::slice::from_ref(expected));
        assert!(most <= tolerance, "{name}: logits of row {i} differ by {most}");
    }
    for chunk in [1, 7] {
        assert!(chunked(&decoder, &ids, chunk) == whole, "{name}: chunks of {chunk} differ from the whole in some bit");
    }
    let cache = cache(&decoder, 1, DType::BF16);
    let mut sequence = Sequence::new(0, 1);
    step(&decoder, &cache, &mut [Feed { sequence: &mut sequence, tokens: &ids[..5] }]);
    let before = backend.launches.load(Ordering::Relaxed);
    step(&decoder, &cache, &mut [Feed { sequence: &mut sequence, tokens: &ids[5..6] }]);
    let launches = backend.launches.load(Ordering::Relaxed) - before;
    let layers = decoder.spec().layers.len() as u64;
    eprintln!("{name}: {launches} launches per decode step of {layers} layers");
    // The families of Llama-8B and Qwen3-0.6B; beside the layers there are the embedding, the last norm and the head.
    if ["llama3", "qwen3"].contains(&name.as_str()) {
        assert_eq!(launches, MOST_LAUNCHES * layers + 3, "{name}");
    }
}

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let Some(shared) = rows::shared() else { return };
            family(&shared.join("text").join(stringify!($name)));
        })*
    };
}

families! {
    deepseek_v3 gemma2 gemma3 gpt_oss llama3 llama_tied_bias mistral_window mixtral phi3 phi3_longrope qwen2 qwen2_yarn
    qwen3 qwen3_5 qwen3_moe qwen3_next smollm3
}
