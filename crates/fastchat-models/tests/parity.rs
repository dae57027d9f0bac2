//! Every family against the outputs of the reference implementation: whole, in every chunking, cached, in company.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[macro_use]
mod rows;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{BLOCK_SIZE, DefaultKernels, Kernels};
use fastchat_models::{Decoder, LoadOptions, load};
use rows::{Feed, Sequence, argmax, cache, chunked, chunked_in, difference, golden, step};

/// Largest difference of a logit, both sides computed in f32.
const TOLERANCE: f32 = 1e-4;

/// Root mean square of those differences over the rows of one run.
const MEAN_TOLERANCE: f32 = 1e-5;

/// (family, first row) from where f32 itself cannot reach `TOLERANCE` in every row: a head of the gated delta rule has a mean
/// square of 4e-9 there, the norm over it (eps 1e-6) multiplies every rounding by a thousand, and later rows see it.
/// The reference's own logits are off by 8.5e-5 there, as `double.rs` shows in f64, and f32 evaluations that differ only in
/// the order of their sums scatter by up to 3.4e-4.
const AMPLIFIED: &[(&str, usize)] = &[("qwen3_5", 14), ("qwen3_next", 2)];

/// The tolerance of those rows.
const AMPLIFIED_TOLERANCE: f32 = 5e-4;

struct Golden {
    /// First row of the larger tolerance.
    amplified: usize,
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
    /// What a backend that promises the same bits for every split of the work computed for the whole.
    whole: Option<Vec<Vec<f32>>>,
}

impl Golden {
    fn read(folder: &Path) -> Self {
        let file = folder.join("golden.safetensors");
        let ids = |name| -> Vec<u32> { golden(&file, name).to_dtype(DType::U32).unwrap().to_vec1().unwrap() };
        let name = folder.file_name().unwrap();
        let amplified = AMPLIFIED.iter().find(|(family, _)| name == *family).map_or(usize::MAX, |(_, row)| *row);
        Self {
            amplified,
            ids: ids("input_ids"),
            logits: golden(&file, "logits").to_vec2().unwrap(),
            whole: None,
            greedy: ids("greedy"),
        }
    }

    fn check(&self, what: &str, from: usize, rows: &[Vec<f32>]) {
        let mut squares = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let position = from + i;
            let amplified = position >= self.amplified;
            let tolerance = if amplified { AMPLIFIED_TOLERANCE } else { TOLERANCE };
            let most = difference(std::slice::from_ref(row), &self.logits[position..=position]);
            assert!(most <= tolerance, "{what}: logits of row {position} differ by {most}");
            if let Some(whole) = &self.whole {
                assert!(*row == whole[position], "{what}: row {position} differs from the whole in some bit");
            }
            if !amplified {
                squares.extend(row.iter().zip(&self.logits[position]).map(|(a, b)| (a - b).powi(2)));
            }
        }
        let mean = (squares.iter().sum::<f32>() / squares.len().max(1) as f32).sqrt();
        assert!(mean <= MEAN_TOLERANCE, "{what}: logits differ by {mean} on average");
    }
}

/// The reference and the CPU with every instruction set it has; whether bits must not depend on how work is split.
fn kernels() -> Vec<(Arc<dyn Kernels>, bool)> {
    let mut sets = vec![Isa::Avx512Vnni, Isa::Avx2, Isa::Portable];
    for isa in &mut sets {
        *isa = (*isa).min(Isa::detect());
    }
    sets.dedup();
    let cpu = sets.into_iter().map(|isa| (Arc::new(CpuKernels::with_isa(None, isa)) as Arc<dyn Kernels>, true));
    std::iter::once((Arc::new(DefaultKernels(Device::Cpu)) as Arc<dyn Kernels>, false)).chain(cpu).collect()
}

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text").join(name);
    let mut golden = Golden::read(&folder);
    for (kernels, exact) in kernels() {
        let name = format!("{name} on {}", kernels.name());
        let decoder = load(&folder, kernels, &LoadOptions::default()).unwrap().decoder;
        golden.whole = exact.then(|| chunked(&decoder, &golden.ids, golden.ids.len()));
        chunks(&name, &decoder, &golden);
        greedy(&name, &decoder, &golden);
        cached(&name, &decoder, &golden);
        company(&name, &decoder, &golden);
        if exact {
            half_caches(&name, &decoder, &golden);
        }
    }
}

fn chunks(name: &str, decoder: &Decoder, golden: &Golden) {
    for chunk in 1..=golden.ids.len() {
        let rows = chunked(decoder, &golden.ids, chunk);
        golden.check(&format!("{name}, chunks of {chunk}"), 0, &rows);
    }
}

/// Half-width caches: near the reference, and still the same bits for every split.
fn half_caches(name: &str, decoder: &Decoder, golden: &Golden) {
    for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 8e-2)] {
        near(&format!("{name}, {dtype:?} cache"), decoder, golden, (dtype, tolerance));
    }
}

/// The middle row is within a tolerance (where experts are close, rounding may rightly choose another, and that row is far
/// off), and chunks have the bits of the whole.
fn near(what: &str, decoder: &Decoder, golden: &Golden, (cache, tolerance): (DType, f32)) {
    let whole = chunked_in(decoder, &golden.ids, golden.ids.len(), cache);
    let mut rows: Vec<f32> = (0..whole.len()).map(|i| difference(&whole[i..=i], &golden.logits[i..=i])).collect();
    rows.sort_by(f32::total_cmp);
    let middle = rows[rows.len() / 2];
    assert!(middle <= tolerance, "{what}: logits of the middle row differ by {middle}");
    for chunk in [1, 7, 16] {
        let rows = chunked_in(decoder, &golden.ids, chunk, cache);
        assert!(rows == whole, "{what}: chunks of {chunk} differ from the whole in some bit");
    }
}

/// Inputs rounded to bf16, where this machine multiplies that: as near as a cache of bf16, and nothing depends on company.
#[test]
fn products_of_bf16_do_not_depend_on_the_split() {
    let Some(shared) = rows::shared() else { return };
    for name in ["llama3", "gemma3", "qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let folder = shared.join("text").join(name);
        let kernels: Arc<dyn Kernels> = Arc::new(CpuKernels::with_isa(None, Isa::Avx512Bf16));
        let what = format!("{name} on {}", kernels.name());
        let decoder = load(&folder, kernels, &LoadOptions::default()).unwrap().decoder;
        near(&what, &decoder, &Golden::read(&folder), (DType::F32, 8e-2));
    }
}

fn greedy(name: &str, decoder: &Decoder, golden: &Golden) {
    let cache = cache(decoder, 1, DType::F32);
    let mut sequence = Sequence::new(0, 1);
    let mut tokens = golden.ids[..40].to_vec();
    let mut generated = Vec::new();
    for _ in 0..golden.greedy.len() {
        let rows = step(decoder, &cache, &mut [Feed { sequence: &mut sequence, tokens: &tokens }]);
        tokens = vec![argmax(rows.last().unwrap())];
        generated.push(tokens[0]);
    }
    assert_eq!(generated, golden.greedy, "{name}: greedy tokens");
}

/// A second sequence continues after whole blocks of the first.
fn cached(name: &str, decoder: &Decoder, golden: &Golden) {
    let cache = cache(decoder, 2, DType::F32);
    let mut first = Sequence::new(0, 2);
    step(decoder, &cache, &mut [Feed { sequence: &mut first, tokens: &golden.ids }]);
    for blocks in [2, 1] {
        let from = blocks * BLOCK_SIZE;
        let mut second = Sequence::new(1, 2).share(&first, blocks);
        let rows = step(decoder, &cache, &mut [Feed { sequence: &mut second, tokens: &golden.ids[from..] }]);
        golden.check(&format!("{name}, {from} tokens cached"), from, &rows);
    }
}

/// Three sequences in one step: a whole prompt, the rest of one, and a single token.
fn company(name: &str, decoder: &Decoder, golden: &Golden) {
    let (cache, ids) = (cache(decoder, 3, DType::F32), &golden.ids);
    let [mut a, mut b, mut c] = [0, 1, 2].map(|i| Sequence::new(i, 3));
    let mut early = [Feed { sequence: &mut b, tokens: &ids[..21] }, Feed { sequence: &mut c, tokens: &ids[..33] }];
    let rows = step(decoder, &cache, &mut early);
    golden.check(&format!("{name}, first of two"), 0, &rows[..21]);
    golden.check(&format!("{name}, second of two"), 0, &rows[21..]);
    let mut late = [
        Feed { sequence: &mut c, tokens: &ids[33..34] },
        Feed { sequence: &mut a, tokens: ids },
        Feed { sequence: &mut b, tokens: &ids[21..40] },
    ];
    let rows = step(decoder, &cache, &mut late);
    golden.check(&format!("{name}, one token in company"), 33, &rows[..1]);
    golden.check(&format!("{name}, whole in company"), 0, &rows[1..=ids.len()]);
    golden.check(&format!("{name}, rest in company"), 21, &rows[1 + ids.len()..]);
}

every_text_family!(family);
