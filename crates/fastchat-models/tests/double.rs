//! Every family in f64 against the reference's f32: what is left is the rounding of the reference, so every row is held to
//! the bound of 1e-4, also where f32 cannot reach it (`parity.rs` says where and why).
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[macro_use]
mod rows;

use std::sync::Arc;

use candle_core::DType;
use fastchat_kernels::DoubleKernels;
use fastchat_models::{LoadOptions, load};
use rows::{Feed, Sequence, cache, difference, golden, step};

/// Largest difference of a logit.
const TOLERANCE: f32 = 1e-4;

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text").join(name);
    let file = folder.join("golden.safetensors");
    let ids: Vec<u32> = golden(&file, "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let expected: Vec<Vec<f32>> = golden(&file, "logits").to_vec2().unwrap();
    let decoder = load(&folder, Arc::new(DoubleKernels), &LoadOptions::default()).unwrap().decoder;
    let cache = cache(&decoder, 1, DType::F32);
    let rows = step(&decoder, &cache, &mut [Feed { sequence: &mut Sequence::new(0, 1), tokens: &ids }]);
    let most = difference(&rows, &expected);
    eprintln!("{name}: {most:e}");
    assert!(most <= TOLERANCE, "{name}: logits differ by {most}");
}

every_text_family!(family);
